"""What a comparison looks like: on a terminal, in Markdown, as JUnit; and that nothing in a run can break it."""

from __future__ import annotations

import io
from dataclasses import replace
from pathlib import Path
from xml.etree import ElementTree

import pytest
from hypothesis import given
from hypothesis import strategies as st
from rich.console import Console
from synthetic import World, make

from niffbench.gate import simulation
from niffbench.gate.comparison import compare
from niffbench.gate.findings import ComparedRun, Comparison, Difference, Finding, Step
from niffbench.gate.rules import Rules
from niffbench.report.fitness import tables
from niffbench.report.verdicts import document, terminal
from niffbench.report.writers import junit
from niffbench.report.writers.markdown import write

WORLD = World(rounds=8, sizes=(14, 28))
EVIL = "<script>alert(1)</script> | `x` [a](http://b) @team \x1b[31m \u202e \"' & \ud800 \x00"


@pytest.fixture(scope="module")
def comparison() -> Comparison:
    """A regression, an improvement, failures on both sides, a missing and a new case."""
    base = make(replace(WORLD, sizes=(14, 28)), Path("base"))
    head = make(
        replace(WORLD, seed=1, sizes=(14, 56), slower={"global-filter": 1.1, "attention": 0.8}), Path("head")
    )
    return compare(base, head, Rules())


def finding(**fields: object) -> Finding:
    plain = {"case": "0" * 12, "label": "x", "problem": "B1", "quantity": "latency_steady", "verdict": "regressed"}
    return Finding.model_validate({**plain, "reason": "because", **fields})


def of(*findings: Finding, **fields: object) -> Comparison:
    side = ComparedRun(name="r", suite="s", commit=None, dirty=None, started="", fingerprint="0", rounds=8)
    return Comparison(base=side, head=side, method="m", alpha=0.01, rule_out=0.1, findings=findings).model_copy(
        update=fields
    )


def shown(comparison: Comparison, *, everything: bool = False, width: int = 160) -> str:
    console = Console(file=io.StringIO(), width=width, force_terminal=False)
    console.print(terminal(comparison, everything=everything))
    assert isinstance(console.file, io.StringIO)
    return console.file.getvalue()


def test_the_table_shows_what_is_pressing_first_and_hides_what_is_the_same(comparison: Comparison) -> None:
    text = shown(comparison)
    lines = [line for line in text.splitlines() if line[:1] in "✗?–✓+="]
    assert lines[0].startswith("✗ regressed")
    assert "= equivalent" not in text
    assert "= equivalent" in shown(comparison, everything=True)
    assert "98% CI" in text
    assert "+10." in text or "+9." in text
    assert comparison.headline in text
    assert "µs" in text


def test_the_table_is_readable_on_a_narrow_terminal(comparison: Comparison) -> None:
    assert max(map(len, shown(comparison, width=80).splitlines())) <= 80


def test_markdown_is_a_small_table_with_the_outcome_first(comparison: Comparison) -> None:
    text = document(comparison)
    assert text.startswith("### niffbench: ")
    assert "regression" in text.splitlines()[0]
    rows = [line for line in text.splitlines() if line.startswith("|")]
    assert len({line.replace("\\|", "").count("|") for line in rows}) == 1
    assert "<details>" in text


def test_markdown_of_a_huge_comparison_fits_a_comment() -> None:
    many = [finding(label="y" * 120, reason="z" * 200, case=f"{i:012}") for i in range(5000)]
    assert len(document(of(*many)).encode()) < 60_000


def test_junit_counts_what_it_lists(comparison: Comparison) -> None:
    root = ElementTree.fromstring(junit.write(comparison))
    suite = root[0]
    cases = suite.findall("testcase")
    assert int(suite.get("tests", "")) == len(cases) == len(comparison.findings)
    assert int(suite.get("failures", "")) == len(suite.findall("testcase/failure")) == len(comparison.failing)
    assert int(suite.get("skipped", "")) == len(suite.findall("testcase/skipped"))
    assert comparison.headline in (suite.findtext("system-out") or "")


@pytest.mark.parametrize("field", ["label", "problem", "reason"])
def test_text_from_a_run_cannot_break_any_output(field: str) -> None:
    hostile = of(
        finding(**{field: EVIL}),
        notes=(EVIL,),
        differences=(Difference(tier="must", field=EVIL, base=EVIL, head=1),),
        environment="failing",
    )
    ElementTree.fromstring(junit.write(hostile))
    assert "\x1b" not in shown(hostile)
    text = document(hostile)
    assert "<script>" not in text
    assert "@team" not in text
    assert "http://" not in text
    rows = [line for line in text.splitlines() if line.startswith("|")]
    assert len({line.replace("\\|", "").count("|") for line in rows}) == 1


@given(
    st.text(), st.floats(), st.floats(), st.sampled_from(["latency_steady", "flops", "memory_peak", "coverage"])
)
def test_any_finding_can_be_said_in_every_output(text: str, base: float, ratio: float, quantity: str) -> None:
    strange = of(
        finding(
            label=text,
            reason=text,
            base=base,
            head=base,
            ratio=ratio,
            low=ratio,
            high=ratio,
            p_adjusted=0.5,
            quantity=quantity,
        )
    )
    shown(strange)
    document(strange)
    ElementTree.fromstring(junit.write(strange))
    strange.model_dump_json()


def test_a_regression_of_all_is_none_of_a_case() -> None:
    shared = finding(case="shared b", quantity="shared_steady", reason="4 controls changed; more", ratio=1.08)
    both = of(finding(), shared).headline
    assert "1 regression in 1 of 1 case" in both
    assert "4 controls changed" in both
    alone = of(finding(verdict="equivalent"), shared)
    assert alone.exit_code == 1
    assert "4 controls changed" in alone.headline
    assert "of 1 case" not in alone.headline


def test_a_share_that_was_asked_for_is_said_in_full() -> None:
    blind = finding(
        verdict="inconclusive", blind=True, base=1.0, head=1.0, ratio=1.0, low=0.9, high=1.2, p_adjusted=1
    )
    strict = of(blind, alpha=0.001, rule_out=0.005)
    assert "a slowdown of 0.5%" in strict.headline
    assert "99.8% CI" in document(strict)
    assert "slowdowns of 0.5%" in document(strict)


def test_steps_of_a_history_are_told_everywhere() -> None:
    step = Step(
        case="0" * 12,
        label="x",
        problem="B1",
        quantity="latency_steady",
        started="2026-01-01",
        since="a" * 40,
        commit="b" * 40,
        ratio=1.1,
        low=1.05,
        high=1.15,
    )
    output = of(finding(verdict="equivalent"), steps=(step,))
    assert "+10.0 %" in shown(output)
    assert "bbbbbbbbbb" in document(output)
    assert output.exit_code == 0


def test_the_number_of_regressions_is_never_the_exit_code() -> None:
    many = of(*(finding(case=f"{i:012}") for i in range(256)))
    assert many.exit_code == 1
    assert of(finding(verdict="improved")).exit_code == 0
    assert of(finding(verdict="inconclusive")).exit_code == 0
    assert of(finding(verdict="inconclusive", blind=True)).exit_code == 5
    assert of(finding(verdict="inconclusive", blind=True), finding(verdict="missing")).exit_code == 1


def test_rates_are_tabled_per_rule_and_scenario() -> None:
    rules, scenarios = simulation.RULES[:2], simulation.SCENARIOS[:2]
    rows = simulation.table(rules=rules, scenarios=scenarios, run_sds=(0.0, 0.01), suites=5)
    alarms, power = tables(rows)
    for table in (alarms, power):
        assert [column.title for column in table.columns][2:] == ["run-to-run sd 0 %", "run-to-run sd 1 %"]
        assert len(table.rows) == len(rules) * len(scenarios)
        assert all(entry.text for row in table.rows for entry in row.entries)
        assert write(table).count("\n| niffbench") == len(table.rows)
    assert "3% / 5% / 10%" in power.title
