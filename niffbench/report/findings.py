"""Findings: what a run shows, in plain sentences. None is written whose interval includes "no difference"."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass

from niffbench.report import metrics, text
from niffbench.report.digest import CONFIDENCE, Cell, Digest, Group, Row, aligned
from niffbench.report.metrics import Metric
from niffbench.report.plots.scaling import representative
from niffbench.report.slices import Axis, Slice
from niffbench.report.trends import Exchange, Growth, is_niff
from niffbench.stats.crossovers import Crossing, Crossover
from niffbench.stats.intervals import Interval, combination, exponential

Setting = tuple[str, ...]

_AXIS_WORDS: Mapping[Axis, str] = {
    "size": "resolution",
    "channels": "channel count",
    "batch": "batch size",
    "kernel": "kernel size",
}


@dataclass(frozen=True)
class Finding:
    """A sentence, the plot that shows it (a name, or None) and what finds its rows in the table of cases."""

    sentence: str
    plot: str | None
    rows: str


def findings(
    digest: Digest, slices: Mapping[Axis, Sequence[Slice]], growths: Sequence[Growth], exchanges: Sequence[Exchange]
) -> tuple[Finding, ...]:
    """All that the intervals support, the most asked for first."""
    found: list[Finding] = []
    settings = _settings(digest)
    best = {setting: _best_form(groups, digest.metrics[0]) for setting, groups in settings.items()}
    for setting, groups in settings.items():
        if form := best[setting]:
            found += _against_baseline(digest, setting, groups, form)
    for setting, groups in settings.items():
        if form := best[setting]:
            found += _against_published(digest, setting, groups, form)
    forms = {form for form in best.values() if form}
    found += _crossovers(slices, [e for e in exchanges if e.niff in forms], digest)
    for setting, groups in settings.items():
        found += _winners(digest, setting, groups)
    found += _exponents(slices, [g for g in growths if g.operator in {*forms, digest.baseline}])
    found += _primes(growths, digest)
    found += _counters(digest)
    return tuple(found)


def mean_ratio(base: Sequence[Cell], other: Sequence[Cell]) -> Interval:
    """The geometric mean over problems of the ratio other/base, with its interval over rounds that have them all."""
    share = 1 / len(base)
    weights = [-share] * len(base) + [share] * len(other)
    logs = combination(aligned(*base, *other), weights, shared=True, confidence=CONFIDENCE)
    return exponential(logs)


def _settings(digest: Digest) -> dict[Setting, list[Group]]:
    """Groups by what is no extent (mode, dtype, memory format, execution); at most the two with the most groups."""
    found: dict[Setting, list[Group]] = {}
    for group in digest.groups:
        p = group.problem
        found.setdefault((p.mode, p.dtype, p.memory_format, group.execution), []).append(group)
    return dict(sorted(found.items(), key=lambda item: -len(item[1]))[:2])


def _in(setting: Setting) -> str:
    """``In inference``, and whatever is not the default."""
    mode, *rest = setting
    unusual = [word for word in rest if word not in ("float32", "contiguous", "eager")]
    return "In " + ", ".join([mode if mode != "forward" else "forward passes", *unusual])


def _best_form(groups: Sequence[Group], metric: Metric) -> str | None:
    """The NIFF form of least latency over the problems that all measured forms share; a choice, not a claim."""
    found: dict[str, list[float]] = {}
    for group in groups:
        for row in group.rows:
            if is_niff(row) and row.ok and metric.key in row.cells:
                found.setdefault(row.label, []).append(row.cells[metric.key].estimate)
    if not found:
        return None
    most = max(map(len, found.values()))
    return min((label for label in found if len(found[label]) == most), key=lambda label: sum(found[label]))


def _row(group: Group, label: str) -> Row | None:
    return next((row for row in group.rows if row.label == label and row.ok), None)


def _unlike(row: Row) -> str:
    return "" if row.like_baseline else ", which computes another function"


def _range(ratios: Sequence[float], metric: Metric) -> str:
    low, high = text.times(min(ratios)), text.times(max(ratios))
    return low if low == high else f"{low} to {high}"


def _against_baseline(digest: Digest, setting: Setting, groups: Sequence[Group], form: str) -> Iterator[Finding]:
    for metric in digest.metrics:
        less: list[float] = []
        more: list[float] = []
        seen = 0
        unlike = ""
        for group in groups:
            row = _row(group, form)
            ratio = row.cells[metric.key].ratio if row and metric.key in row.cells else None
            if row is None or ratio is None or not ratio.estimate or row.label == digest.baseline:
                continue
            seen += 1
            unlike = _unlike(row)
            if ratio.excludes(1.0):
                (less if ratio.estimate < 1 else more).append(ratio.estimate)
        parts = []
        if less:
            parts.append(f"{metric.less} at {_of(len(less), seen)} ({_range([1 / r for r in less], metric)})")
        if more:
            parts.append(f"{metric.more} at {_of(len(more), seen)} ({_range(more, metric)})")
        if parts:
            unknown = seen - len(less) - len(more)
            rest = f", and not to be told apart at {unknown}" if unknown else ""
            yield Finding(
                f"{_in(setting)}, {form} is {' and '.join(parts)}{rest} in {metric.noun}, against {digest.baseline}"
                f"{unlike}.",
                "overview",
                form,
            )


def _of(some: int, all_: int) -> str:
    if some < all_:
        return f"{some} of {all_} problems"
    return "the one problem" if all_ == 1 else f"all {all_} problems" if all_ > 2 else "both problems"


def _against_published(digest: Digest, setting: Setting, groups: Sequence[Group], form: str) -> Iterator[Finding]:
    """The fastest NIFF form against the published one of the same equivalence class."""
    pairs: dict[str, list[tuple[Row, Row]]] = {}
    for group in groups:
        ours = _row(group, form)
        for row in group.rows:
            same = ours is not None and row.traits.equivalence == ours.traits.equivalence
            if ours and same and row.ok and row.label != form and "published" in row.label:
                pairs.setdefault(row.label, []).append((row, ours))
    for label, rows in pairs.items():
        said = []
        for metric in digest.metrics:
            cells = [(o.cells.get(metric.key), f.cells.get(metric.key)) for o, f in rows]
            whole = [(o, f) for o, f in cells if o is not None and f is not None]
            if not whole:
                continue
            ratio = mean_ratio([f for _, f in whole], [o for o, _ in whole])
            if metric.key in metrics.EXACT and ratio.estimate and abs(ratio.estimate - 1) > 1e-9:
                said.append(f"{text.times(ratio.estimate)} the {metric.noun}")
            elif ratio.excludes(1.0):
                said.append(f"{text.ratio(ratio)} the {metric.noun}")
        if said:
            over = f"geometric mean over {text.plural(len(rows), 'problem')}"
            yield Finding(
                f"{_in(setting)}, {label} takes {text.listing(said)} of {form} for the same function ({over}).",
                "overview",
                label.partition("/")[0],
            )


def _winners(digest: Digest, setting: Setting, groups: Sequence[Group]) -> Iterator[Finding]:
    """Which operator wins most problems, where its rounds can tell."""
    for metric in digest.metrics[:2]:
        wins: dict[str, int] = {}
        judged = 0
        for group in groups:
            winner = group.winners.get(metric.key)
            if winner is not None and winner.certain:
                judged += 1
                if not winner.tied:
                    wins[winner.row.label] = wins.get(winner.row.label, 0) + 1
        if wins:
            ranked = sorted(wins.items(), key=lambda item: -item[1])
            said = [f"{label} at {_of(number, judged)}" for label, number in ranked]
            yield Finding(
                f"{_in(setting)}, the {metric.best} of all operators is {text.listing(said)}.", "overview", ranked[0][0]
            )


def _crossovers(
    slices: Mapping[Axis, Sequence[Slice]], exchanges: Sequence[Exchange], digest: Digest
) -> Iterator[Finding]:
    """Latency crossovers, each with the FLOP crossover beside it, in a few slices that stand for all."""
    for axis, some in slices.items():
        chosen = representative(some)
        by_pair: dict[tuple[int, str, str], dict[str, Exchange]] = {}
        for exchange in exchanges:
            if any(exchange.slice is slice_ for slice_ in chosen):
                pair = (id(exchange.slice), exchange.niff, exchange.spatial)
                by_pair.setdefault(pair, {})[exchange.metric.key] = exchange
        for found in by_pair.values():
            latency = found.get("latency")
            if latency is not None and latency.crossover.outcome in ("crossover", "several"):
                yield Finding(_exchange(latency, found.get("flops"), axis), f"scaling-{axis}", latency.niff)


def _exchange(latency: Exchange, flops: Exchange | None, axis: Axis) -> str:
    crossings = latency.crossover.crossings
    word = _AXIS_WORDS[axis]
    places = text.listing([_crossing(crossing, latency) for crossing in crossings], 4)
    other = ""
    if flops is not None and len(crossings) == 1 and flops.crossover.outcome == "crossover":
        by_flops = flops.crossover.crossings[0].size
        apart = crossings[0].size / by_flops
        how = f"{text.times(apart)} too early" if apart > 1 else f"{text.times(1 / apart)} too late"
        other = f"; FLOPs alone put it at {text.digits(by_flops)}, {how}" if abs(apart - 1) > 0.05 else ""
    alike = "" if latency.alike else " (not the same function)"
    return (
        f"By {latency.metric.noun}, {latency.niff} and {latency.spatial}{alike} change places at {word} {places} "
        f"({latency.slice.fixed}){other}."
    )


def _crossing(crossing: Crossing, exchange: Exchange) -> str:
    above = exchange.niff if crossing.cheaper_above == "a" else exchange.spatial
    interval = Interval(crossing.size, crossing.low, crossing.high, CONFIDENCE, 0, "crossover")
    return f"{text.digits(crossing.size)} {text.brackets(interval)}, beyond which {above} wins".replace("  ", " ")


def _exponents(slices: Mapping[Axis, Sequence[Slice]], growths: Sequence[Growth]) -> Iterator[Finding]:
    """Exponents of latency that differ from those of the FLOPs, in one slice an axis."""
    for axis, some in slices.items():
        first = representative(some)[0]
        for growth in growths:
            fit = growth.scaling.overall
            if growth.slice is not first or growth.metric.key != "latency" or fit.theory is None:
                continue
            if fit.slope.estimate is not None and fit.slope.excludes(fit.theory):
                slower = "slower" if fit.slope.estimate < fit.theory else "faster"
                yield Finding(
                    f"{growth.operator}'s {growth.metric.noun} grows with {_AXIS_WORDS[axis]} to the power "
                    f"{text.digits(fit.slope.estimate)} {text.brackets(fit.slope)}, {slower} than its FLOPs "
                    f"({text.digits(fit.theory)}) between {fit.start:.4g} and {fit.end:.4g} ({first.fixed}).",
                    f"scaling-{axis}",
                    growth.operator,
                )


def _primes(growths: Iterable[Growth], digest: Digest) -> Iterator[Finding]:
    """Sizes with a large prime factor that take longer than their neighbours suggest: the dearest one."""
    worst: tuple[float, Growth, str] | None = None
    for growth in growths:
        for penalty in growth.scaling.penalties if growth.metric.key == "latency" else ():
            factor = penalty.factor
            dear = factor.estimate is not None and factor.estimate > 1 and factor.excludes(1.0)
            if dear and factor.estimate is not None and (worst is None or factor.estimate > worst[0]):
                what = f"{penalty.size:.4g} (largest prime factor {penalty.largest_prime_factor})"
                worst = (factor.estimate, growth, f"At {what} {growth.operator} takes {text.ratio(factor)}")
    if worst is not None:
        _, growth, start = worst
        yield Finding(
            f"{start} the {growth.metric.noun} that its FFT-friendly neighbours suggest ({growth.slice.fixed}).",
            f"scaling-{growth.slice.axis}",
            growth.operator,
        )


def _counters(digest: Digest) -> Iterator[Finding]:
    """What stock FLOP counters see of NIFF; a count, so without error."""
    shares = [row.stock_share for row in digest.rows if is_niff(row) and row.stock_share is not None]
    if shares and min(shares) < 0.995:
        low, high = text.percent(min(shares)), text.percent(max(shares))
        yield Finding(
            f"Stock FLOP counters see {low if low == high else f'{low} to {high}'} of the FLOPs of the NIFF layers.",
            None,
            "niff",
        )


def outcome(crossover: Crossover, niff: str, spatial: str) -> str:
    """A crossover's outcome in a few words, for a table."""
    if crossover.outcome == "none":
        cheaper = niff if crossover.cheaper == "a" else spatial
        return f"none in the range measured: {cheaper} wins throughout"
    if crossover.outcome == "undecided":
        return f"undecided: {crossover.reason}"
    return ""
