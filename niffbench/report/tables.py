"""The report's tables, as data: HTML, Markdown and CSV are three ways to write one table."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal

from niffbench.fingerprint import differences
from niffbench.report import text
from niffbench.report.digest import Cell, Digest, Group, Row, Winner
from niffbench.report.findings import outcome
from niffbench.report.machine import achieved, over_floor
from niffbench.report.plots.palette import family_colours
from niffbench.report.trends import Exchange, Growth
from niffbench.results import REGISTRY, Metric
from niffbench.results.metrics import shown
from niffbench.stats.exponents import Exponent
from niffbench.stats.intervals import Interval

UNLIKE = "≁"
"""Marks a ratio to something that computes another function, or at another boundary."""

MOST_FAILURES = 1000
"""Rows of the table of what failed."""

Mark = Literal["", "best", "base", "bad", "quiet"]


@dataclass(frozen=True)
class Item:
    """One cell: what is read, a note in small print (an interval), and a number to sort by where there is one."""

    show: str
    note: str = ""
    sort: float | None = None
    mark: Mark = ""
    colour: str = ""


@dataclass(frozen=True)
class Column:
    """One column: its heading, whether it holds numbers, and what it means."""

    title: str
    numeric: bool = False
    hint: str = ""


@dataclass(frozen=True)
class Table:
    """A table. ``name`` is its anchor, ``anchors`` are its rows'; ``filters``: it is worth searching."""

    name: str
    title: str
    columns: tuple[Column, ...]
    rows: tuple[tuple[Item, ...], ...]
    caption: str = ""
    filters: bool = False
    anchors: tuple[str, ...] = field(default=())


def answers(digest: Digest) -> Table:
    """One line a problem: the fastest, the leanest and the cheapest operator, each as a ratio to the baseline."""
    colours = family_colours(digest.families)
    rows = []
    for group in digest.groups:
        winners = [_winner(group, metric, colours) for metric in digest.metrics]
        if any(item.show != text.MISSING for item in winners):
            rows.append((Item(group.label), *winners))
    return Table(
        "answers",
        "Which operator wins",
        (
            Column("problem"),
            *(
                Column(text.best(metric), hint=f"least {metric.title}; × is its ratio to {digest.baseline}")
                for metric in digest.metrics
            ),
        ),
        tuple(rows),
        f"Ratios are to {digest.baseline}, with {text.intervals(digest.rounds)}. "
        f"≈ names operators that the rounds cannot tell from the winner; {UNLIKE} computes another function than "
        "the baseline.",
        filters=len(rows) > 12,
    )


def _winner(group: Group, metric: Metric, colours: Mapping[str, str]) -> Item:
    winner = group.winners.get(metric.key)
    if winner is None:
        return Item(text.MISSING)
    cell = winner.row.cells[metric.key]
    return Item(
        winner.row.label,
        " ".join(part for part in (_relative(group, winner.row, cell, metric), _tie(winner)) if part),
        cell.estimate,
        "best",
        colours.get(winner.row.kin, ""),
    )


def _relative(group: Group, row: Row, cell: Cell, metric: Metric) -> str:
    if cell.ratio is None:
        return text.quantity(cell.estimate, metric.unit)
    if group.baseline is not None and row.id == group.baseline.id:
        return "the baseline"
    return (UNLIKE if not row.like_baseline else "") + text.ratio(cell.ratio)


def _tie(winner: Winner) -> str:
    if winner.tied:
        return f"≈ {text.listing([row.label for row in winner.tied], 2)}"
    return "" if winner.certain else "(too few rounds to be sure)"


def cases(digest: Digest, groups: Iterable[Group] | None = None) -> Table:
    """Every case: all that was measured of it."""
    colours = family_colours(digest.families)
    metrics = digest.shown("cases")
    gradient = REGISTRY["error_gradient_l2"]
    if gradient not in metrics and any(row.exact_gradient or row.gradients_left_out for row in digest.rows):
        metrics = (*metrics, gradient)
    judged = digest.metrics
    columns = [Column("problem"), Column("operator")]
    for metric in metrics:
        columns.append(Column(metric.title, True, metric.meaning))
        if metric in judged:
            columns.append(Column("×", True, f"{metric.title}: ratio to {digest.baseline}, 95 % interval"))
    columns.append(Column("over floor", True, "latency over the least time at this machine's measured rates"))
    columns.append(Column("status"))
    rows, anchors = [], []
    for group in groups if groups is not None else digest.groups:
        for row in group.rows:
            items = [Item(group.label), _operator(row, group, colours.get(row.kin, ""))]
            for metric in metrics:
                if metric in judged:
                    items += _pair(row, group, metric)
                else:
                    items.append(_gradient(row) if metric is gradient else _plain(row, metric))
            over = over_floor(row, digest)
            anchors.append(row.id)
            rows.append((*items, Item(text.times(over), sort=over), _status(row)))
    return Table(
        "cases",
        "Every case",
        tuple(columns),
        tuple(rows),
        f"The best of each problem is bold. {UNLIKE}: computes another function than {digest.baseline}, or at "
        "another boundary. Latencies are never mixed across regimes.",
        filters=True,
        anchors=tuple(anchors),
    )


def _operator(row: Row, group: Group, colour: str) -> Item:
    is_base = group.baseline is not None and row.id == group.baseline.id
    note = ["baseline"] if is_base else []
    note += [row.traits.boundary] if row.traits.boundary != "none" else []
    note += [f"chose {row.chosen}"] if row.chosen else []
    return Item(row.label, ", ".join(note), mark="base" if is_base else "",
                colour=colour)  # fmt: skip


def _gradient(row: Row) -> Item:
    """The worst gradient's error and whose it is, beside it that in float64; what was not compared, and why."""
    worst, exact = row.value("error_gradient_l2"), row.value("error_gradient_exact")
    reason = text.clean(row.gradients_left_out or "")
    in_float64 = f"{text.power_of_ten(exact)} in float64" if exact is not None else ""
    if worst is not None:
        note = ", ".join(filter(None, (text.clean(row.gradient, 60), in_float64, reason)))
        return Item(text.power_of_ten(worst), note, sort=worst)
    if exact is not None:
        return Item(in_float64, ", ".join(filter(None, (text.clean(row.exact_gradient, 60), reason))), sort=exact)
    return Item("not compared", reason, mark="quiet") if reason else Item(text.MISSING)


def _pair(row: Row, group: Group, metric: Metric) -> tuple[Item, Item]:
    """A value and its ratio to the baseline; a row that failed shows only what needs no running."""
    cell = row.cells.get(metric.key)
    if cell is None:
        return Item(text.MISSING, row.cells.why_not(metric.key)), Item(text.MISSING)
    winner = group.winners.get(metric.key)
    mark: Mark = "best" if winner and winner.holds(row) and row.ok else "" if row.ok else "quiet"
    ends = "" if cell.exact else _ends(cell.value, metric)
    value = Item(text.quantity(cell.estimate, metric.unit), ends, cell.estimate, mark)
    if cell.ratio is None:
        return value, Item(text.MISSING)
    unlike = "" if row.like_baseline else UNLIKE
    return value, Item(
        unlike + text.times(cell.ratio.estimate), text.brackets(cell.ratio), cell.ratio.estimate, mark
    )


def _ends(interval: Interval, metric: Metric) -> str:
    if interval.low is None or interval.high is None:
        return ""
    low, high = text.quantity(interval.low, metric.unit), text.quantity(interval.high, metric.unit)
    return f"[{low}, {high}]" if low != high else ""


def _plain(row: Row, metric: Metric) -> Item:
    value = row.value(metric.key)
    return Item(text.quantity(value, metric.unit), sort=value)


def _status(row: Row) -> Item:
    flags = [f"{flag} ({number})" if number > 1 else flag for flag, number in sorted(row.flags.items())]
    return Item(row.status, ", ".join(flags), mark="" if row.status == "ok" else "bad")


def failures(digest: Digest) -> Table:
    """What failed and what was skipped, and why; the suite's own exclusions too."""
    rows: list[tuple[Item, ...]] = []
    for group in digest.groups:
        for row in group.rows:
            needed, available = (text.size_of(row.value(key)) for key in ("needed", "available"))
            bytes_ = f" (needs {needed}, has {available})" if row.value("needed") else ""
            for status, reason in row.reasons.items():
                rounds = f"{row.statuses[status]} of {sum(row.statuses.values())}"
                what = (row.label, group.label, rounds, reason + bytes_)
                rows.append((Item(status, mark="bad"), *map(Item, what)))
    for excluded in digest.run.manifest.suite.excluded:
        what = (excluded.label, excluded.problem, "", excluded.reason)
        rows.append((Item("excluded", mark="quiet"), *(Item(text.clean(part, 200)) for part in what)))
    left_out = len(rows) - MOST_FAILURES
    return Table(
        "failures",
        "What failed, what was skipped",
        (Column("status"), Column("operator"), Column("problem"), Column("rounds"), Column("reason")),
        tuple(rows[:MOST_FAILURES]),
        f"{text.plural(left_out, 'row')} left out for space; table.csv has them." if left_out > 0 else "",
        filters=len(rows) > 12,
    )


def exponents(growths: Sequence[Growth]) -> Table:
    """The measured exponent of every curve, the theoretical one beside it, and the range of local slopes."""
    rows = []
    for growth in growths:
        fit = growth.scaling.overall
        if fit.slope.estimate is None:
            continue
        local = [step.slope.estimate for step in growth.scaling.steps if step.slope.estimate is not None]
        spread = f"{text.digits(min(local))} to {text.digits(max(local))}" if len(local) > 1 else text.MISSING
        rows.append(
            (
                Item(growth.operator),
                Item(growth.metric.title),
                Item(growth.slice.axis),
                Item(growth.slice.fixed),
                Item(text.digits(fit.slope.estimate), text.brackets(fit.slope), fit.slope.estimate),
                Item(text.plain(fit.theory), sort=fit.theory),
                Item(spread, sort=max(local, default=None)),
                Item(_large_prime(growth.scaling.large_prime), _penalties(growth)),
                Item(f"{fit.start:.4g} to {fit.end:.4g}", f"{fit.sizes} values", fit.sizes),
                Item(text.percent(fit.misfit), sort=fit.misfit),
            )
        )
    return Table(
        "exponents",
        "Scaling exponents",
        (
            Column("operator"),
            Column("quantity"),
            Column("axis"),
            Column("held fixed"),
            Column("exponent", True, "log–log slope over all FFT-friendly values, 95 % interval over rounds"),
            Column(
                "theory", True, "the same slope of the closed-form FLOPs (latency) or the predicted peak (memory)"
            ),
            Column("local slopes", True, "smallest and largest slope between neighbouring values"),
            Column(
                "large primes", True, "exponent of sizes with a large prime factor; their cost against neighbours"
            ),
            Column("range", True),
            Column("misfit", True, "largest distance of a point from the fitted line"),
        ),
        tuple(rows),
        "An interval says how well a slope is known, not that one power law holds: see local slopes and misfit.",
        filters=len(rows) > 12,
    )


def _large_prime(fit: Exponent | None) -> str:
    return text.plain(fit.slope.estimate) if fit is not None else text.MISSING


def _penalties(growth: Growth) -> str:
    found = [p for p in growth.scaling.penalties if p.factor.estimate is not None]
    return ", ".join(f"{text.times(p.factor.estimate)} at {p.size:.4g}" for p in found[:4])


def crossovers(exchanges: Sequence[Exchange]) -> Table:
    """Where each NIFF form and spatial operator change places: one line a pair and slice, a column a quantity."""
    keys = list(dict.fromkeys(exchange.metric.key for exchange in exchanges))
    nouns = {exchange.metric.key: exchange.metric.title for exchange in exchanges}
    lines: dict[tuple[str, str, str, str], dict[str, Exchange]] = {}
    for exchange in exchanges:
        place = (exchange.niff, exchange.spatial, exchange.slice.axis, exchange.slice.fixed)
        lines.setdefault(place, {})[exchange.metric.key] = exchange
    rows = []
    for (niff, spatial, axis, fixed), found in lines.items():
        alike = next(iter(found.values())).alike
        names = (Item(niff), Item(("" if alike else UNLIKE) + spatial), Item(axis), Item(fixed))
        rows.append((*names, *(_crossing(found.get(key)) for key in keys)))
    return Table(
        "crossovers",
        "Crossovers",
        (
            Column("NIFF form"),
            Column("spatial operator"),
            Column("axis"),
            Column("held fixed"),
            *(Column(nouns[key], True, f"where the two cost the same in {nouns[key]}") for key in keys),
        ),
        tuple(rows),
        f"Interpolated between measured values on log–log scales; 95 % intervals over rounds. {UNLIKE}: not the "
        "same function as the NIFF form.",
        filters=len(rows) > 12,
    )


def _crossing(exchange: Exchange | None) -> Item:
    if exchange is None:
        return Item(text.MISSING)
    found = exchange.crossover
    if not found.crossings:
        return Item(outcome(found, "NIFF", exchange.spatial), mark="quiet")
    first = found.crossings[0]
    ends = f"[{text.digits(first.low)}, {text.digits(first.high)}]" if first.low < first.high else ""
    rest = [f"and {text.digits(crossing.size)}" for crossing in found.crossings[1:3]]
    above = "NIFF" if first.cheaper_above == "a" else exchange.spatial
    return Item(text.digits(first.size), " ".join([ends, *rest, f"{above} wins above"]).strip(), first.size)


def witnesses(digest: Digest) -> Table:
    """The three witnesses of each operator's FLOPs, and what stock counters see; one line an operator and mode."""
    rows = []
    seen: set[tuple[str, str]] = set()
    for group in digest.groups:
        for row in group.rows:
            cost = row.cost
            if cost is None:
                continue
            doubts = [*([cost.disagreement] if cost.disagreement else []), *cost.notes]
            if not doubts:  # one problem stands for all; a doubt stands for itself
                if (row.label, group.problem.mode) in seen:
                    continue
                seen.add((row.label, group.problem.mode))
            stock = _share(cost.stock_torch, cost.closed)
            stock_fvcore = _share(cost.stock_fvcore, cost.closed_forward)
            rows.append(
                (
                    Item(row.label),
                    Item(group.label),
                    Item(text.flops(cost.closed), sort=cost.closed),
                    Item(_agrees(cost.counted, cost.closed), sort=cost.counted),
                    Item(_agrees(cost.fvcore, cost.closed_forward), sort=cost.fvcore),
                    Item(text.percent(stock), sort=stock),
                    Item(text.percent(stock_fvcore), sort=stock_fvcore),
                    Item(text.clean(text.listing(cost.missed, 6)) if cost.missed else text.MISSING),
                    Item(text.clean("; ".join(doubts), 300), mark="quiet"),
                )
            )
    return Table(
        "witnesses",
        "Three witnesses of the FLOPs",
        (
            Column("operator"),
            Column("at"),
            Column("closed form", True),
            Column("counted", True, "FlopCounterMode with formulas for FFTs and complex products"),
            Column("fvcore ×2", True, "with handlers, forward only, against the closed form of the forward pass"),
            Column("stock counter sees", True, "torch's FlopCounterMode as it comes"),
            Column("stock fvcore sees", True, "fvcore as it comes, ×2, forward only"),
            Column("counted as nothing"),
            Column("disagreement and notes"),
        ),
        tuple(rows),
        "Real FLOPs: a multiply-add is 2, a complex product 6, an FFT nominally 5 N log2 N, half for real data.",
        filters=len(rows) > 12,
    )


def memory(digest: Digest, groups: Iterable[Group] | None = None) -> Table:
    """All that was measured of each case's memory."""
    metrics = [metric for metric in shown("memory") if any(metric.key in row.cells for row in digest.rows)]
    rows = [
        (Item(group.label), Item(row.label), *(_plain(row, metric) for metric in metrics))
        for group in (groups if groups is not None else digest.groups)
        for row in group.rows
        if any(metric.key in row.cells for metric in metrics)
    ]
    return Table(
        "footprint",
        "Memory of every case",
        (
            Column("problem"),
            Column("operator"),
            *(Column(metric.title.removesuffix(" memory"), True, metric.meaning) for metric in metrics),
        ),
        tuple(rows),
        "Median of rounds; measured in a pass that never times.",
        filters=len(rows) > 12,
    )


def _share(part: int | None, whole: int) -> float | None:
    return part / whole if part is not None and whole else None


def _agrees(count: int | None, closed: int) -> str:
    if count is None:
        return text.MISSING
    return "agrees" if count == closed else text.flops(count)


def achieved_rates(digest: Digest, groups: Iterable[Group] | None = None) -> Table:
    """What each case achieved, for the roofline plot."""
    rows = []
    for group in groups if groups is not None else digest.groups:
        for row in group.rows:
            done = achieved(row, digest) if row.ok else None
            if done is None or row.cost is None:
                continue
            intensity = row.cost.closed / row.cost.bytes_own if row.cost.bytes_own else None
            over = over_floor(row, digest)
            rows.append(
                (
                    Item(group.label),
                    Item(row.label),
                    Item(text.plain(intensity), sort=intensity),
                    Item(text.rate(done[0], "FLOP/s"), sort=done[0]),
                    Item(text.rate(done[1], "B/s"), sort=done[1]),
                    Item(text.times(over), sort=over),
                )
            )
    return Table(
        "achieved",
        "Achieved rates",
        (
            Column("problem"),
            Column("operator"),
            Column("FLOP/byte", True, "arithmetic intensity over the form's own traffic"),
            Column("achieved FLOP/s", True),
            Column("achieved B/s", True),
            Column("over floor", True, "latency over the least time of its FLOPs and least traffic"),
        ),
        tuple(rows),
        filters=len(rows) > 12,
    )


def fingerprints(digests: Sequence[Digest]) -> Table:
    """The machines side by side; what must match and does not is marked."""
    prints = [digest.run.manifest.fingerprint for digest in digests]
    must = {key for other in prints[1:] for key in differences(prints[0].must, other.must)}
    should = {key for other in prints[1:] for key in differences(prints[0].should, other.should)}
    rows = []
    for tier, unlike, facts in (
        ("must match", must, [fingerprint.must for fingerprint in prints]),
        ("should match", should, [fingerprint.should for fingerprint in prints]),
    ):
        for key in sorted({key for side in facts for key in side}):
            mark: Mark = "bad" if key in unlike else ""
            values = [Item(text.clean(side.get(key, text.MISSING)), mark=mark) for side in facts]
            rows.append((Item(tier, mark="quiet"), Item(text.clean(key)), *values))
    return Table(
        "fingerprint",
        "Fingerprint",
        (Column("tier"), Column("fact"), *(Column(digest.name) for digest in digests)),
        tuple(rows),
        "Runs whose first tier differs must not be compared in latency." if len(digests) > 1 else "",
    )
