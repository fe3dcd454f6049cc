"""A view: everything a report shows of one run, worked out once for HTML and Markdown alike."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from niffbench.report import tables, text
from niffbench.report.digest import Digest, Group, gather
from niffbench.report.explorer import explorer
from niffbench.report.facts import Fact, facts, notes, notices
from niffbench.report.findings import Finding, findings, no_crossovers
from niffbench.report.plots import maps
from niffbench.report.plots.canvas import Plot, settings
from niffbench.report.plots.dots import overview
from niffbench.report.plots.palette import styles
from niffbench.report.plots.roofline import roofline
from niffbench.report.plots.scaling import scaling
from niffbench.report.plots.steps import profiled_steps, steps
from niffbench.report.plots.tradeoffs import errors, pareto
from niffbench.report.table import Table
from niffbench.report.trends import Rivalry, all_slices, growths, rivalries
from niffbench.results import Run

MOST_ROWS = 3000
"""Rows of the table of cases in a page; ``table.csv`` always has them all."""
ONE_MISSES = 20
"""Of so many intervals one misses the truth; of fewer that is nothing to count on."""


@dataclass(frozen=True)
class Section:
    """A heading, its plots, and the tables that belong to them."""

    name: str
    title: str
    plots: tuple[Plot, ...] = ()
    tables: tuple[Table, ...] = ()


@dataclass(frozen=True)
class View:
    """One run, ready to be shown."""

    digest: Digest
    facts: tuple[Fact, ...]
    notices: tuple[str, ...]
    findings: tuple[Finding, ...]
    rivalries: tuple[Rivalry, ...]
    winners: Table
    failures: Table
    sections: tuple[Section, ...]
    cases: Table
    left_out: int  # rows that only table.csv has
    explorer: Mapping[str, Any]
    no_crossovers: str

    @property
    def lost(self) -> tuple[tuple[str, str, str], ...]:
        """What failed, in short: status, how many cases, and the first reason given."""
        reasons: dict[str, list[str]] = {}
        for row in self.digest.rows:
            for status, reason in row.reasons.items():
                reasons.setdefault(status, []).append(reason)
        return tuple(
            (status, text.plural(len(r), "case"), text.clean(r[0])) for status, r in sorted(reasons.items())
        )

    @property
    def intervals(self) -> str:
        """What intervals assume and, of the many ratios in latency that a page shows, how many err; or nothing."""
        latency = self.digest.metrics[0]
        number = sum(
            (cell := row.cells.get(latency.key)) is not None
            and cell.ratio is not None
            and cell.ratio.low is not None
            for group in _fitting(self.digest.groups)
            for row in group.rows
            if row is not group.baseline
        )
        if not number:
            return ""
        miss = (
            f": of the {number:,} intervals of a ratio to {self.digest.baseline} in {latency.title} about "
            f"{round(number / ONE_MISSES):,} miss it"
        )
        return (
            "Each interval holds the truth with 95 % by itself, assuming that rounds scatter log-normally"
            f"{miss if number >= ONE_MISSES else ''}. Where one round in ten is slow 91 % to 97 % hold it, and "
            "85 % of those over three rounds that have two modes."
        )

    @property
    def plots(self) -> tuple[Plot, ...]:
        """Every plot, in the order of the page."""
        return tuple(plot for section in self.sections for plot in section.plots)


def view(run: Run) -> View:
    """Work out everything that a report shows of ``run``."""
    import matplotlib

    digest = gather(run)
    shown = list(_fitting(digest.groups))
    drawn = styles((row.label, row.kin) for row in digest.rows)
    slices = all_slices(digest)
    every = [slice_ for some in slices.values() for slice_ in some]
    fits = [fit for slice_ in every for fit in growths(digest, slice_)]
    rivals = rivalries(digest)
    with matplotlib.rc_context(dict(settings())):
        sections = [
            _section("overview", "At a glance", [overview(digest, drawn)]),
            _section("fleet", "Device by device", [], [tables.fleet(digest)]),
            _section(
                "scaling",
                "How it scales",
                [scaling(some, fits, digest, drawn) for some in slices.values()],
                [tables.exponents(fits)],
            ),
            _section(
                "crossovers",
                "Where operators change places",
                [maps.winners(digest), maps.ratios(digest)],
                [tables.crossovers(rivals)],
            ),
            _section(
                "cost",
                "What the cost is made of",
                [profiled_steps(run.path), steps(digest)],
                [tables.witnesses(digest)],
            ),
            _section(
                "roofline",
                "Against the machine",
                [roofline(digest, drawn)],
                [tables.achieved_rates(digest, shown)],
            ),
            _section("tradeoffs", "What is traded for what", [pareto(digest, drawn), errors(digest, drawn)]),
            _section("memory", "Where memory went", [], [tables.memory(digest, shown)]),
        ]
    return View(
        digest=digest,
        facts=facts(digest),
        notices=(*notices(digest), *notes(digest)),
        findings=findings(digest, slices, fits, rivals),
        rivalries=rivals,
        winners=tables.winners(digest),
        failures=tables.failures(digest),
        sections=tuple(section for section in sections if section.plots or section.tables),
        cases=tables.cases(digest, shown),
        left_out=len(digest.rows) - sum(len(group.rows) for group in shown),
        explorer=explorer(digest, shown, rivals),
        no_crossovers=no_crossovers(rivals),
    )


def _section(name: str, title: str, plots: Iterable[Plot | None], tables: Iterable[Table] = ()) -> Section:
    return Section(
        name, title, tuple(plot for plot in plots if plot), tuple(table for table in tables if table.rows)
    )


def _fitting(groups: Sequence[Group]) -> Iterable[Group]:
    """Whole groups, as many as a page has room for; one at least."""
    room = MOST_ROWS
    for place, group in enumerate(groups):
        room -= len(group.rows)
        if room < 0 and place:
            return
        yield group
