"""What reports say is so: every sentence on an example is checked by arithmetic that shares nothing with ours."""

from __future__ import annotations

import json
import re
from dataclasses import replace
from math import exp
from pathlib import Path
from random import Random

import pytest
from check_sentences import Records, faults, quotients, read
from synthetic import WORLD, Noise, World, make

from niffbench import results
from niffbench.report.digest import gather
from niffbench.report.findings import findings
from niffbench.report.trends import all_slices, growths, rivalries

REPORTS = Path(__file__).parents[2] / "reports"
EXAMPLE = REPORTS / "quick-example"
EXAMPLES = ["quick-example", "full-example", "networks-example", "h200-kernels", "h200-stages"]


@pytest.fixture(scope="module")
def said() -> list[str]:
    """All sentences on the example, those that a page folds away too."""
    return sentences(results.read(EXAMPLE))


def sentences(run: results.Run) -> list[str]:
    digest = gather(run)
    slices = all_slices(digest)
    fits = [fit for some in slices.values() for slice_ in some for fit in growths(digest, slice_)]
    return [finding.sentence for finding in findings(digest, slices, fits, rivalries(digest))]


@pytest.mark.parametrize("name", EXAMPLES)
def test_every_sentence_on_an_example_is_so(name: str) -> None:
    said = sentences(results.read(REPORTS / name))
    assert len(said) > 10
    assert faults(read(REPORTS / name), said) == {}


@pytest.mark.parametrize("name", EXAMPLES)
def test_every_printed_ratio_is_the_quotient_of_the_printed_values(name: str) -> None:
    page = (REPORTS / name / "report.html").read_text()
    ratios = quotients(page)
    assert len(ratios) > 100
    assert [ratio for ratio, fits in ratios.items() if not fits] == []
    changed = quotients(re.sub(r"(\d)×(?=[ <])", lambda digit: f"{(int(digit[1]) + 3) % 10}×", page))
    assert sum(not fits for fits in changed.values()) > len(changed) / 5  # or the above would prove nothing


def test_where_a_crossover_is_known_most_closely_it_is_named_first(said: list[str]) -> None:
    pattern = r"([\w-]+) has less steady latency up to kernel size (\d+), ([\w/-]+) from (\d+) on"
    gaps: dict[tuple[str, str], list[float]] = {}
    for below, up_to, above, since in (m.groups() for sentence in said if (m := re.match(pattern, sentence))):
        gaps.setdefault((below, above), []).append(int(since) / int(up_to))
    several = [of_pair for of_pair in gaps.values() if len(set(of_pair)) > 1]
    assert len(several) > 2
    assert all(of_pair == sorted(of_pair) for of_pair in several)


def test_a_sentence_with_another_number_is_found_out(said: list[str]) -> None:
    """Otherwise the above would prove nothing. Of each kind of number: a factor, a kernel, a count of problems."""
    records = read(EXAMPLE)
    changes = (
        (r"takes ([\d.]+)×", lambda m: f"takes {float(m[1]) * 1.1:.3g}×"),
        (r"up to kernel size (\d+),", "up to kernel size 27,"),
        (r"is ([\w/-]+) at (\d)", lambda m: f"is {m[1]} at {int(m[2]) + 1}"),
        (r"chose native", "chose dft"),
    )
    for pattern, change in changes:
        changed = [re.sub(pattern, change, sentence, count=1) for sentence in said if re.search(pattern, sentence)]
        assert changed, pattern
        assert set(faults(records, changed)) == set(changed), pattern


def planted(kind: str, rounds: int) -> results.Run:
    """Curves that no power law draws: cliffs, several crossovers, ties, missing and slow rounds, steps."""
    operators = [
        replace(planted, kernels=(5, 9, 13, 15, 21)) if planted.kernels else planted
        for planted in WORLD
        if planted.operator in ("niff-depthwise/rfft", "niff-depthwise/cached", "depthwise", "strip")
    ]
    world = World(
        sizes=(28,),
        batches=(1, 8),
        modes=("inference", "training"),
        operators=tuple(operators),
        faults=(),
        rounds=rounds,
        baseline="depthwise-k9",
        noise=Noise(0.01),
    )
    run, records = make(world, Path("made-up")), []
    for record in run.records:
        case, memory, kernel = record.case, record.memory, record.case.kernel or 0
        of_case, of_round = Random(f"{kind}{case.id}"), Random(f"{kind}{case.id}/{record.round}")
        factor = {
            "cliff": 40.0 if kernel >= 15 else 1.0,
            "several": exp(of_case.gauss(0, 1.5)) if kernel else 1.0,
            "ties": (13 / kernel) ** 2 * of_case.choice((0.99, 1.0, 1.3, 0.7)) if kernel else 1.0,
            "slow": 1.3 if of_round.random() < 0.1 else 1.0,
            "bimodal": of_round.choice((1.0, 1.25)),
            "uneven": 30.0 if kernel else 1.0,
        }.get(kind, 1.0)
        if kind == "missing" and of_case.random() < 0.2:
            continue
        if kind == "uneven" and case.problem.batch == 8:  # fewer kernels, of strips too few to compare; a failure
            if kernel > (5 if case.operator == "strip" else 13):
                continue
            if case.operator.startswith("niff") and case.problem.mode == "training":
                records.append(replace(record, status="oom", reason="too large", latency={}, memory=None))
                continue
        if kind == "missing" and of_round.random() < 0.15:
            records.append(replace(record, status="crashed", reason="it fell", latency={}, memory=None))
            continue
        if kind == "memory" and kernel and memory:
            memory = replace(memory, peak=round(memory.peak * of_case.choice((0.2, 1, 2, 6))))
        series = {
            name: replace(one, samples=[factor * sample for sample in one.samples])
            for name, one in record.latency.items()
        }
        records.append(replace(record, latency=series, memory=memory))
    return replace(run, records=tuple(records))


@pytest.mark.parametrize(
    ("kind", "rounds"),
    [
        ("cliff", 3),
        ("several", 5),
        ("ties", 9),
        ("missing", 5),
        ("slow", 3),
        ("bimodal", 5),
        ("memory", 1),
        ("uneven", 5),
    ],
)
def test_every_sentence_on_a_planted_truth_is_so(kind: str, rounds: int) -> None:
    """But those on FLOPs, which closed forms know at values that no made-up record has, and on exponents."""
    run = planted(kind, rounds)
    said = [one for one in sentences(run) if not re.search("has fewer FLOPs|to the power|prime factor", one)]
    records = Records([json.loads(results.dump(record)) for record in run.records], rounds)
    assert len(said) > 3
    assert faults(records, said) == {}
    if kind in ("several", "memory"):
        assert any(re.search(r"from \d+ to \d+, |, [\w/-]+ at \d+, ", one) for one in said), "several crossovers"
    if kind == "cliff":
        assert any("jumps" in one for one in said)
    if kind == "uneven":
        assert sum("(3 to 5 at a problem, between 5 and 21), at both problems" in one for one in said) == 1
        assert sum("at 1 of 2 problems, not compared at the other" in one for one in said) == 3
