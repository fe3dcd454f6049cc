"""How wide filters are over resolutions and seeds: planted growth is seen, and training says something of all."""

from __future__ import annotations

import json
import math
from pathlib import Path

import pytest
import torch

from niffbench.cli import main
from niffbench.stats.intervals import Interval
from niffbench.study import digits
from niffbench.study.effective import FilterSize, mass_ratio
from niffbench.study.folds import _beside_budget
from niffbench.study.images import fold_of
from niffbench.study.resolutions import Growth, Width, growth
from niffbench.study.shrink import Budget, Quality


@pytest.mark.parametrize(
    ("exponent", "verdict"),
    [
        (0.0, "are not shown to grow and, if they do, grow more slowly than the map"),
        (0.5, "grow more slowly than the map"),
        (1.0, "grow, at a rate that may be the map's"),
    ],
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


@pytest.mark.parametrize(
    ("low", "high", "said"),
    [
        (0.02, 1.9, "grow, at a rate that may be the map's"),
        (-0.1, 0.9, "are not shown to grow and, if they do, grow more slowly than the map"),
        (-0.1, 1.1, "are not shown to grow"),
        (1.1, 1.9, "grow faster than the map"),
        (-0.9, -0.1, "shrink in pixels"),
    ],
)
def test_growth_is_said_as_far_as_its_interval_tells(low: float, high: float, said: str) -> None:
    assert Growth("a", Interval((low + high) / 2, low, high, 0.95, 3, "paired t on logs")).verdict == said


@pytest.mark.parametrize(
    ("lost", "said"),
    [
        (0, "within the 0.2 % that were allowed (95 %)"),
        (3, "on average within the 0.2 % that were allowed"),
        (5, "on average beyond the 0.2 % that were allowed"),
        (20, "beyond the 0.2 % that were allowed (95 %)"),
    ],
)
def test_a_loss_is_held_against_what_was_allowed_by_its_interval(lost: int, said: str) -> None:
    own = Quality(0.1, images=1797, right=1700, lost=lost, gained=0)
    assert own.loss is not None
    assert _beside_budget(own, own.loss, Budget("accuracy", 0.002)) == said


def test_a_budget_of_errors_is_no_accuracy() -> None:
    own = Quality(0.1, images=1797, right=1700, lost=20, gained=0)
    assert own.loss is not None
    assert _beside_budget(own, own.loss, Budget("error", 0.05)) == "outputs are 10 % off, where 5 % was allowed"


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
