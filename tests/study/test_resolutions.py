"""How wide filters are over resolutions and seeds: planted growth is seen, and training says something of all."""

from __future__ import annotations

import json
import math
from pathlib import Path

import pytest
import torch

from niffbench.cli import main
from niffbench.study import digits
from niffbench.study.effective import FilterSize, mass_ratio
from niffbench.study.images import fold_of
from niffbench.study.resolutions import Width, growth


@pytest.mark.parametrize(
    ("exponent", "verdict"),
    [(0.0, "do not grow for certain"), (0.5, "grow more slowly than the map"), (1.0, "grow with the map")],
)
def test_planted_growth_is_recovered(exponent: float, verdict: str) -> None:
    noise = torch.Generator().manual_seed(0)
    widths = [
        Width("a", side, side, seed, 1.0, width := 3 * side**exponent * scatter, width, 0.9)
        for side in (8, 16, 32)
        for seed in range(5)
        for scatter in [float(torch.exp(0.05 * torch.randn((), generator=noise)))]
    ]
    (one,) = growth(widths)
    assert one.exponent.low is not None
    assert one.exponent.high is not None
    assert one.exponent.low <= exponent <= one.exponent.high
    assert one.exponent.high - one.exponent.low < 0.3
    assert one.verdict == verdict


def test_sizes_whose_maps_are_equal_are_told_apart() -> None:
    sizes = {15: (8, 3.0), 16: (8, 5.0), 32: (16, 8.0)}
    widths = [
        Width("a", size, side, seed, 1.0, most, 1.0, 0.9)
        for size, (side, most) in sizes.items()
        for seed in (0, 1)
    ]
    (one,) = growth(widths)
    assert one.exponent.estimate == pytest.approx(math.log2(8 / math.sqrt(15)))


def test_a_width_lies_between_the_windows_around_it() -> None:
    kernel = torch.zeros(1, 7, 7)
    kernel[0, 2:5, 2:5] = 1  # a ninth of it in the middle, all in 3×3
    size = FilterSize(7, 7, 1, tuple(mass_ratio(kernel).tolist()), (1.0,), (1.0,), 7)
    assert size.width_of(1 / 9) == pytest.approx(1)
    assert size.width_of(1.0) == pytest.approx(3)
    assert size.width_of(0.5) == pytest.approx(1 + 2 * (0.5 - 1 / 9) / (8 / 9))
    assert size.side(0.5) == 3


def test_every_digit_is_judged_once_and_no_fold_sees_what_it_is_judged_or_verified_by() -> None:
    judged: list[bytes] = []
    for number in range(3):
        data, (images, labels) = fold_of(8, number, 3)
        parts = [
            [image.numpy().tobytes() for image in part] for part in (data.train_images, images, data.test_images)
        ]
        assert len(images) == len(labels)
        assert sum(map(len, parts)) == 1797
        judged += parts[2]
    every = digits.load(8)
    whole = torch.cat((every.train_images, every.test_images))
    assert sorted(judged) == sorted(image.numpy().tobytes() for image in whole)


def test_filters_are_learned_at_several_resolutions(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    arguments = ["--train", "digits", "--sizes", "12,8", "--seeds", "2", "--epochs", "1", "--out", "out"]
    assert main(["filters", *arguments]) == 0
    said = capsys.readouterr().out
    result = json.loads((tmp_path / "out" / "widths.json").read_text())
    assert len(result["widths"]) == 2 * 2 * 4
    assert {(one["size"], one["map"]) for one in result["widths"]} == {(8, 8), (8, 4), (12, 12), (12, 6)}
    for one in result["widths"]:
        assert 0 < one["half"] < one["most"] <= one["map"]
    assert "stage1.0.filter: filters" in said
    assert (tmp_path / "out" / "plots" / "widths.svg").is_file()
    assert (tmp_path / "out" / "report.md").read_text().count("stage2.1.filter") >= 3
