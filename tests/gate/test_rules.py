"""Rules: shares, files of thresholds, and which limit a case gets."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from niffbench.case import Case, Problem
from niffbench.errors import UsageError
from niffbench.gate.rules import JUDGED, Rules, chosen, fraction, read_thresholds

NIFF = Case("niff-depthwise/rfft", Problem(1, 64, 64, 56, 56, mode="training"))
DENSE = Case("dense", Problem(1, 64, 64, 56, 56), 7)


def thresholds(folder: Path, text: str) -> Path:
    path = folder / "thresholds.toml"
    path.write_text(text)
    return path


@pytest.mark.parametrize(
    ("given_", "share"), [("3%", 0.03), (" 3 %", 0.03), (0.03, 0.03), ("0", 0.0), ("150%", 1.5)]
)
def test_a_share_is_read_as_people_write_it(given_: object, share: float) -> None:
    assert fraction(given_) == pytest.approx(share)


@pytest.mark.parametrize("given_", ["", "x", "-1%", "-0.1", "nan", "inf", "1000%", 10, True, None, [], "%"])
def test_what_is_no_share_is_refused(given_: object) -> None:
    with pytest.raises(ValueError, match="should be a share"):
        fraction(given_)


@given(st.floats(0, 9.99))
def test_a_share_reads_back(value: float) -> None:
    assert fraction(repr(value)) == value
    assert fraction(f"{value * 100!r}%") == pytest.approx(value)


def test_regimes_come_in_their_usual_order_and_first_is_not_judged_unasked() -> None:
    assert "first" not in JUDGED
    assert chosen([]) == JUDGED
    assert chosen(["steady", "first"]) == ("first", "steady")


def test_the_last_threshold_that_fits_wins(tmp_path: Path) -> None:
    path = thresholds(
        tmp_path,
        """
        [[threshold]]
        cases = ["niff-*"]
        min_effect = "5%"
        memory_tolerance = 0.2

        [[threshold]]
        cases = ["niff-*", "mode=training"]
        quantities = ["latency_steady", "ratio_*"]
        min_effect = 0.10
        """,
    )
    rules = Rules().reading(path)
    label = "niff-depthwise/rfft"
    assert rules.min_effect_of(NIFF, label, "latency_steady") == 0.10
    assert rules.min_effect_of(NIFF, label, "latency_cold") == 0.05
    assert rules.min_effect_of(DENSE, "dense-k7", "latency_steady") == 0.03
    assert rules.memory_tolerance_of(NIFF, label, "memory_peak") == 0.2
    assert rules.memory_tolerance_of(DENSE, "dense-k7", "memory_peak") == 0.01
    assert not rules.unused([(NIFF, label)])
    assert rules.unused([(DENSE, "dense-k7")]) == (f"{path}: threshold[0]", f"{path}: threshold[1]")


def test_a_case_is_named_by_its_id_or_label(tmp_path: Path) -> None:
    for name in (DENSE.id, "dense-k7"):
        rules = Rules().reading(thresholds(tmp_path, f"[[threshold]]\ncases = ['{name}']\nmin_effect = 0.5"))
        assert rules.min_effect_of(DENSE, "dense-k7", "latency_steady") == 0.5


@pytest.mark.parametrize(
    ("text", "output"),
    [
        ("[[threshold]", "not valid TOML"),
        ("", "'threshold' is missing"),
        ("[[treshold]]\nmin_effect=1", "did you mean 'threshold'?"),
        ("[[threshold]]\nmin_efect = 0.1", "did you mean 'min_effect'?"),
        ("[[threshold]]\nmin_effect = 'much'", "should be a share"),
        ("[[threshold]]\nmin_effect = -0.1", "should be a share"),
        ("[[threshold]]\ncases = ['dense-k7']", "sets nothing"),
        ("[[threshold]]\ncases = []\nmin_effect = 0.1", "threshold[0].cases"),
        ("[[threshold]]\ncases = ['kernal=3']\nmin_effect = 0.1", "did you mean 'kernel'?"),
        ("[[threshold]]\nquantities = ['flops']\nmin_effect = 0.1", "cannot apply to the quantity 'flops'"),
        ("[[threshold]]\nquantities = ['memory_*']\nmin_effect = 0.1", "it takes memory_tolerance"),
        ("[[threshold]]\nquantities = ['latency_cold']\nmemory_tolerance = 0.1", "it takes min_effect"),
        ("[[threshold]]\nquantities = ['latency_*', 'parameters']\nmin_effect = 0.1", "quantity 'parameters'"),
        (f"[[threshold]]\n{'.'.join('a' * 60_000)} = 1", "more than 200 dots"),
        ("[[threshold]]\nquantities = ['latncy_steady']\nmin_effect = 0.1", "did you mean 'latency_steady'?"),
        ("threshold = 3", "threshold"),
    ],
)
def test_a_faulty_file_is_one_clear_message(tmp_path: Path, text: str, output: str) -> None:
    path = thresholds(tmp_path, text)
    with pytest.raises(UsageError) as refusal:
        read_thresholds(path)
    assert str(path) in str(refusal.value)
    assert output in str(refusal.value)


def test_a_file_that_is_no_text_or_is_not_there_is_one_clear_message(tmp_path: Path) -> None:
    path = tmp_path / "thresholds.toml"
    with pytest.raises(UsageError, match="cannot be read"):
        read_thresholds(path)
    path.write_bytes(b"\xff\xfe\x00")
    with pytest.raises(UsageError, match="UTF-8"):
        read_thresholds(path)
    path.write_bytes(b"#" * 1_000_001)
    with pytest.raises(UsageError, match="larger than"):
        read_thresholds(path)


@given(st.text(max_size=200))
def test_any_other_text_is_one_message(tmp_path_factory: pytest.TempPathFactory, text: str) -> None:
    path = tmp_path_factory.getbasetemp() / "fuzzed.toml"
    path.write_text(text, encoding="utf-8", errors="replace")
    with pytest.raises(UsageError) as refusal:  # no such text has a [[threshold]] by chance
        read_thresholds(path)
    assert str(path) in str(refusal.value)
