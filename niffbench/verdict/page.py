"""The page of a verdict: what the card said, in Markdown."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

from niffbench.report import text
from niffbench.report.digest import Digest, Row, gather
from niffbench.report.findings import outcome
from niffbench.report.trends import rivalries
from niffbench.results import is_busy, read
from niffbench.verdict.job import Settings, StepResult
from niffbench.verdict.steps import KERNELS, headline_name, test_results

REGIMES = ("steady", "graph", "cold", "wall")
"""Of the headline's columns, where they were measured."""


FEWEST = 3
"""Kernel sizes from which on a crossover is looked for: between two far ones it may lie anywhere."""


def page(settings: Settings, folder: Path, results: Sequence[StepResult]) -> str:
    """The whole page."""
    lines = ["# The GPU's verdict", ""]
    if settings.is_rehearsal:
        lines += [f"A rehearsal on {settings.device.partition(':')[0]}: no figure here is one of a GPU.", ""]
    # Those of earlier calls, too.
    headlines = sorted(
        {*map(headline_name, settings.suites), *(path.name for path in folder.glob("runs/suite-*"))}
    )
    for name in headlines:
        lines += [f"## Headline: {name.removeprefix('suite-')}", "", *_guarded(headline, folder, name), ""]
    for name in (*headlines, KERNELS):
        lines += [f"## Crossover kernel size: {name}", "", *_guarded(crossovers, folder, name), ""]
    lines += ["## Witnesses of time", "", *_guarded(witnesses, folder, "witnesses.json"), ""]
    lines += ["## Assumptions", "", *_guarded(assumptions, folder, "assumptions.json"), ""]
    lines += ["## Tests", "", *_guarded(failures, folder, "tests"), ""]
    lines += ["## Steps", "", *steps(results), ""]
    return "\n".join(lines)


def _guarded(part: Any, folder: Path, name: str) -> list[str]:
    """A part of the page; where it has nothing to read, or breaks on it, it says so and the rest is written."""
    if not (folder / name).exists() and not (folder / "runs" / name / "run.json").exists():
        return ["Not measured."]
    try:
        return list(part(folder, name))
    except Exception as error:
        return [f"Cannot be told: {type(error).__name__}: {text.markdown(error)}"]


def table(header: str, rows: Iterable[Sequence[object]]) -> Iterator[str]:
    """Lines of a table; a column whose head ends with ``:`` is set to the right."""
    heads = header.split("|")
    yield "| " + " | ".join(head.strip().rstrip(":") for head in heads) + " |"
    yield "|" + "|".join("--:" if head.strip().endswith(":") else "---" for head in heads) + "|"
    for row in rows:
        yield "| " + " | ".join(str(cell).replace("|", "/") for cell in row) + " |"


def headline(folder: Path, name: str) -> Iterator[str]:
    """Every case: its latencies, memory, energy, FLOPs, and the cold call's distance to the floor."""
    digest = gather(read(folder / "runs" / name))
    regimes = [regime for regime in REGIMES if regime in digest.regimes]
    heads = ["problem", "operator", *(f"{regime}:" for regime in regimes)]
    heads += ["peak memory:", "total memory:", "energy:", "FLOPs:", "distance to the floor:"]
    rows = (
        (
            group.label,
            row.label,
            *(text.seconds(row.value(f"latency_{regime}")) for regime in regimes),
            text.size_of(row.value("memory_peak")),
            text.size_of(row.value("memory_total")),
            "–" if (energy := row.value("energy")) is None else f"{text.digits(energy * 1e3)} mJ",
            text.flops(row.value("flops")),
            text.times(_distance(digest, row)),
        )
        for group in digest.groups
        for row in group.rows
        if row.ok
    )
    yield from table("|".join(heads), rows)
    lost = [(group.label, row) for group in digest.groups for row in group.rows if not row.ok]
    yield from (
        line
        for label, row in lost
        for line in ("", f"{label} {row.label}: {text.markdown('; '.join(row.reasons.values()))}")
    )
    if digest.missing:
        yield from ("", f"{text.plural(digest.missing, 'record')} missing.")


def _distance(digest: Digest, row: Row) -> float | None:
    """The cold latency over the time of one read and one write of what must be moved, at a copy's bandwidth.

    ``cold``: with the data still in a cache a call may be faster than that.
    """
    cold, least = row.value("latency_cold"), row.value("bytes_floor")
    ceilings = digest.ceilings
    if not (cold and least and ceilings) or is_busy(ceilings.others):
        return None
    return cold / (least / ceilings.copy_bandwidth)


def crossovers(folder: Path, name: str) -> Iterator[str]:
    """From which kernel size on NIFF's forms are cheaper than spatial ones: in latency, memory, FLOPs."""
    digest = gather(read(folder / "runs" / name))
    rows = []
    for rivalry in rivalries(digest):
        if rivalry.axis == "kernel" and len(rivalry.compared.pair.values) >= FEWEST:
            crossings = [f"{crossing.below:g} to {crossing.above:g}" for crossing in rivalry.crossovers]
            said = ", ".join(crossings) or outcome(rivalry.compared.comparison, rivalry.form, rivalry.rival)
            rows.append((rivalry.fixed, rivalry.form, rivalry.rival, rivalry.metric.title, said))
    if not rows:
        yield "Too few kernel sizes were measured."
        return
    yield from table("where | NIFF | spatial | quantity | between k", rows)


def witnesses(folder: Path, name: str) -> Iterator[str]:
    """Our medians beside other tools', and the time in which the host enqueues a call."""
    rows = json.loads((folder / name).read_bytes())
    cells = [
        (
            row["operator"],
            row["regime"],
            text.seconds(row["ours"]),
            row["tool"],
            text.seconds(row["theirs"]),
            text.MISSING if row["difference"] is None else f"{row['difference']:+.1%}".replace("%", " %"),
            text.seconds(row["host"]),
        )
        for row in rows
    ]
    yield from table("operator | regime | ours: | tool | theirs: | difference: | host, a call:", cells)
    yield from ("", "Where the host takes longer than the call, a tool whose queue runs dry measures the host.")
    for tool, reason in sorted({(row["tool"], row["reason"]) for row in rows if row["reason"]}):
        yield from ("", f"{tool}: {text.markdown(reason, 300)}")


def assumptions(folder: Path, name: str) -> Iterator[str]:
    """Every claim about CUDA and what the card says to it."""
    rows = [
        (finding["claim"], finding["verdict"], finding["evidence"])
        for finding in json.loads((folder / name).read_bytes())
    ]
    yield from table("claim | verdict | evidence", rows)


def failures(folder: Path, name: str) -> Iterator[str]:
    """The tests that failed, those of compiling too."""
    results = [*test_results(folder / name), *test_results(folder / "compile")]
    failed = [(test, text.markdown(reason, 300)) for kind, test, reason in results if kind == "failed"]
    if not failed:
        yield f"No test failed of {text.plural(len(results), 'test')}."
        return
    yield from table("failed | how", failed)


def steps(results: Iterable[StepResult]) -> Iterator[str]:
    """Every step beside what it should have taken."""
    rows = (
        (
            result.name,
            result.status,
            f"{result.estimate:.0f} s",
            f"{result.allowed:.0f} s",
            f"{result.seconds:.1f} s",
            text.clean(result.detail, 200),
        )
        for result in results
    )
    return table("step | became | estimate: | share: | took: | detail", rows)
