"""The report's tables, as data; ``writers/`` sets them in HTML, Markdown, CSV, LaTeX and on terminals."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace

from niffbench.fingerprint import differences
from niffbench.report import text
from niffbench.report.digest import Cell, Digest, Group, Row, Winner, achieved, over_floor
from niffbench.report.findings import other_winners, outcome
from niffbench.report.plots.palette import family_colours
from niffbench.report.table import ESSENTIAL, UNLIKE, Column, Entry, Mark, Table, row_of
from niffbench.report.trends import Growth, Rivalry
from niffbench.results import REGISTRY, Metric
from niffbench.results.metrics import shown
from niffbench.stats.exponents import Exponent
from niffbench.stats.intervals import COUNTED, EXACT, Interval

MOST_FAILURES = 1000
"""Rows of the table of what failed."""
DEAR = 1.5
"""FLOPs as executed over nominal ones from which a problem has a row of its own."""

Field = tuple[Column, Callable[[Group, Row], Entry]]
"""A column of a table of cases, and how its entries are made."""

_MISSING = Entry(text.MISSING)
_PROBLEM: Field = (Column("problem", "group", "problem"), lambda group, _: Entry(group.label))
_LABEL: Field = (Column("operator", key="operator"), lambda _, case: Entry(case.label))


def _of_cases(fields: Sequence[Field], groups: Iterable[Group], name: str, title: str, caption: str = "") -> Table:
    """A table of one row a case."""
    return Table(
        name,
        title,
        tuple(column for column, _ in fields),
        tuple(
            row_of(*(made(group, case) for _, made in fields), anchor=case.id if name == "cases" else "")
            for group in groups
            for case in group.rows
        ),
        caption,
    )


def _metric(metric: Metric, importance: int, title: str = "") -> Field:
    """A column of the values of a metric."""

    def made(_: Group, case: Row) -> Entry:
        value = case.value(metric.key)
        why_not = case.cells.why_not(metric.key) if value is None else ""
        return Entry(text.quantity(value, metric.unit), why_not, value)

    return Column(title or metric.title, "figure", metric.key, metric.unit, metric.meaning, importance), made


def _figure(
    key: str, title: str, value: Callable[[Row], float | None], show: Callable[[float | None], str], hint: str = ""
) -> Field:
    """A column of numbers that are worked out of several metrics."""

    def made(_: Group, case: Row) -> Entry:
        number = value(case)
        return Entry(show(number), value=number)

    return Column(title, "figure", key, "", hint, 2), made


def winners(digest: Digest) -> Table:
    """One line a problem: the fastest, the leanest and the cheapest operator, each as a ratio to the baseline."""
    colours = family_colours(digest.families)
    rows = []
    for group in digest.groups:
        best = [_winner(group, digest, metric, colours) for metric in digest.metrics]
        if any(entry.text != text.MISSING for entry in best):
            rows.append(row_of(group.label, *best))
    return Table(
        "winners",
        "Which operator wins",
        (
            Column("problem", key="problem"),
            *(
                Column(
                    text.best(metric),
                    key=metric.key,
                    hint=f"least {metric.title}; × is its ratio to {digest.baseline}",
                    importance=ESSENTIAL - place,
                )
                for place, metric in enumerate(digest.metrics)
            ),
        ),
        tuple(rows),
        f"× is the ratio to {digest.baseline}, where that was measured, with "
        f"{text.intervals(digest.round_counts)}. After the semicolon: what wins where one thing is otherwise. "
        f"≈ names operators that the rounds cannot tell from each other; {UNLIKE} computes another function than "
        "the baseline. Memory is the total: inputs, parameters, what the operator keeps, and the peak of a call.",
    )


def _winner(group: Group, digest: Digest, metric: Metric, colours: Mapping[str, str]) -> Entry:
    winner = group.winners.get(metric.key)
    if winner is None:
        return _MISSING
    cell = winner.row.cells[metric.key]
    relative = _relative(group, winner.row, cell, metric)
    if not winner.certain:
        so_far = f"least so far: {winner.row.label}, {relative}; too few rounds"
        return Entry("undecided", so_far, marks=("quiet",))
    mark = winner.mark(winner.row)
    marks: tuple[Mark, ...] = (mark,) if mark else ()
    note = " ".join(filter(None, (relative, _tie(winner))))
    if elsewhere := other_winners(group, digest.groups, metric):
        note += f"; {text.listing(elsewhere, 3)}"
    return Entry(winner.row.label, note, cell.estimate, marks, colours.get(winner.row.kin, ""))


def _relative(group: Group, case: Row, cell: Cell, metric: Metric) -> str:
    if cell.ratio is None:
        return text.quantity(cell.estimate, metric.unit)
    if group.baseline is not None and case.id == group.baseline.id:
        return "the baseline"
    return (UNLIKE if not case.like_baseline else "") + text.ratio(cell.ratio)


def _tie(winner: Winner) -> str:
    return f"≈ {text.listing([case.label for case in winner.tied], 2)}" if winner.tied else ""


def brief_winners(digest: Digest) -> Table:
    """The same for a terminal: no intervals, and ≈ alone where others cannot be told from the winner."""
    rows = []
    for group in digest.groups:
        entries = []
        for metric in digest.metrics:
            winner = group.winners.get(metric.key)
            if winner is None or not winner.certain:
                entries += [Entry(text.MISSING if winner is None else "undecided", marks=("quiet",)), Entry("")]
                continue
            ratio = winner.row.cells[metric.key].ratio
            unlike: tuple[Mark, ...] = () if winner.row.like_baseline else ("unlike",)
            entries.append(Entry(winner.row.label, marks=("tied",) if winner.tied else ()))
            value = text.quantity(winner.row.cells[metric.key].estimate, metric.unit)
            entries.append(Entry(text.times(ratio.estimate), marks=unlike) if ratio else Entry(value))
        rows.append(row_of(group.label, *entries))
    columns = [Column("problem")]
    for place, metric in enumerate(digest.metrics):
        columns += [
            Column(text.best(metric), importance=ESSENTIAL - 2 * place),
            Column("×", "figure", f"{metric.key}_ratio", importance=ESSENTIAL - 2 * place - bool(place)),
        ]
    return Table("winners", "", tuple(columns), tuple(rows))


def cases(digest: Digest, groups: Iterable[Group] | None = None, *, briefly: bool = False) -> Table:
    """Every case: all that was measured of it.

    Args:
        briefly: only what a terminal shows.
    """
    metrics = digest.shown("terminal" if briefly else "cases")
    gradient = REGISTRY["error_gradient_l2"]
    compared = any(case.exact_gradient or case.gradients_left_out for case in digest.rows)
    if compared and not briefly and gradient not in metrics:
        metrics = (*metrics, gradient)
    fields: list[Field] = [_PROBLEM, _operator(digest)]
    for metric in metrics:
        if metric in digest.metrics:
            fields += _pair(metric, digest)
        elif metric is gradient:
            column = Column(metric.title, "figure", metric.key, hint=metric.meaning, importance=2)
            fields.append((column, lambda _, case: _gradient(case)))
        else:
            fields.append(_metric(metric, 3))
    if not briefly:
        hint = (
            "latency over the least time at this machine's measured rates, of a copy of as many bytes and of a "
            "matrix product; below 1 where these were measured beside more load than the case, or where a library "
            "needs fewer multiplications than are counted (Winograd)"
        )
        fields.append(_figure("over_floor", "over floor", lambda case: over_floor(case, digest), text.times, hint))
        fields.append((Column("status", "word", "status", importance=8), lambda _, case: _status(case)))
    return _of_cases(
        fields,
        groups if groups is not None else digest.groups,
        "cases",
        "Every case",
        f"The best of each problem is bold, where it is decided. {UNLIKE}: computes another function than "
        f"{digest.baseline}, or at another boundary. Latencies are never mixed across regimes.",
    )


def summary(digest: Digest) -> Table:
    """What a run ends with: latency, memory and FLOPs of every case; what failed says so where its latency would
    be, and shows nothing else.
    """
    by_id = {case.id: case for case in digest.rows}
    table = cases(digest, briefly=True)
    rows = []
    for each in table.rows:
        case, (problem, operator, *figures) = by_id[each.anchor], each.entries
        if not case.ok:
            figures = [Entry(case.status, marks=("failed",)), *[Entry("")] * (len(figures) - 1)]
        else:
            figures = [
                _summary_figure(entry, column) for entry, column in zip(figures, table.columns[2:], strict=True)
            ]
        rows.append(replace(each, entries=(problem, replace(operator, note=case.chosen, colour=""), *figures)))
    columns = [replace(column, title=column.title.split()[-1]) for column in table.columns]
    return replace(table, title="", caption="", columns=tuple(columns), rows=tuple(rows))


def _summary_figure(entry: Entry, column: Column) -> Entry:
    """Of intervals only those of the latencies' ratios; one star for a value and its ratio, and no bars."""
    if not column.key.endswith("_ratio"):
        return replace(entry, note="")
    if entry.text == text.MISSING:
        return Entry("")
    marks = tuple("passed" if mark == "winner" else mark for mark in entry.marks)
    return replace(entry, note=entry.note if column.key.startswith("latency") else "", marks=marks)


def _operator(digest: Digest) -> Field:
    colours = family_colours(digest.families)

    def made(group: Group, case: Row) -> Entry:
        is_base = group.baseline is not None and case.id == group.baseline.id
        note = ["baseline"] if is_base else []
        note += [case.traits.boundary] if case.traits.boundary != "none" else []
        note += [f"chose {case.chosen}"] if case.chosen else []
        marks: tuple[Mark, ...] = ("baseline",) if is_base else ()
        return Entry(case.label, ", ".join(note), marks=marks, colour=colours.get(case.kin, ""))

    return Column("operator", key="operator"), made


def _gradient(case: Row) -> Entry:
    """The worst gradient's error and whose it is, beside it that in float64; what was not compared, and why."""
    worst, exact = case.value("error_gradient_l2"), case.value("error_gradient_exact")
    reason = text.clean(case.gradients_left_out or "")
    in_float64 = f"{text.power_of_ten(exact)} in float64" if exact is not None else ""
    if worst is not None:
        note = ", ".join(filter(None, (text.clean(case.gradient, 60), in_float64, reason)))
        return Entry(text.power_of_ten(worst), note, worst)
    if exact is not None:
        return Entry(in_float64, ", ".join(filter(None, (text.clean(case.exact_gradient, 60), reason))), exact)
    return Entry("not compared", reason, marks=("quiet",)) if reason else _MISSING


def _pair(metric: Metric, digest: Digest) -> tuple[Field, Field]:
    """A value and its ratio to the baseline; a case that failed shows only what needs no running."""
    place = digest.metrics.index(metric)
    importance = ESSENTIAL - 2 * place
    hint = f"{metric.title}: ratio to {digest.baseline}, 95 % interval"
    return (
        (
            Column(metric.title, "figure", metric.key, metric.unit, metric.meaning, importance),
            lambda group, case: value_entry(group, case, metric),
        ),
        (
            Column("×", "figure", f"{metric.key}_ratio", hint=hint, importance=importance - bool(place)),
            lambda group, case: ratio_entry(group, case, metric),
        ),
    )


def _marks(group: Group, case: Row, metric: Metric) -> tuple[Mark, ...]:
    winner = group.winners.get(metric.key)
    mark = winner.mark(case) if winner and case.ok else None
    return ("quiet",) if not case.ok else (mark,) if mark else ()


def value_entry(group: Group, case: Row, metric: Metric) -> Entry:
    """A case's value of a metric, with its interval, and marked where it is the best of its group."""
    cell = case.cells.get(metric.key)
    if cell is None:
        return Entry(text.MISSING, case.cells.why_not(metric.key))
    note = _choices(cell) if cell.by_choice else ends(cell.value, metric)
    return Entry(text.quantity(cell.estimate, metric.unit), note, cell.estimate, _marks(group, case, metric))


def ratio_entry(group: Group, case: Row, metric: Metric) -> Entry:
    """Its ratio to the baseline, with its interval, and marked where the two are unlike."""
    cell = case.cells.get(metric.key)
    if cell is None or cell.ratio is None:
        return _MISSING
    unlike: tuple[Mark, ...] = () if case.like_baseline else ("unlike",)
    marks = tuple(mark for mark in _marks(group, case, metric) if mark != "tied")
    return Entry(
        text.times(cell.ratio.estimate), text.brackets(cell.ratio), cell.ratio.estimate, (*unlike, *marks)
    )


def _choices(cell: Cell) -> str:
    """What was counted in how many rounds: ``1 MFLOP in 2 rounds (dft), 3 MFLOP in 1 (native)``."""
    (first, number, chosen), *others = cell.by_choice
    named = [(text.quantity(first, cell.metric.unit), text.plural(number, "round"), chosen)]
    named += [(text.quantity(value, cell.metric.unit), str(n), words) for value, n, words in others[:3]]
    return ", ".join(
        f"{value} in {n}" + (f" ({text.clean(words, 30)})" if words else "") for value, n, words in named
    )


def ends(interval: Interval, metric: Metric) -> str:
    """``[1.2 ms, 1.3 ms]``, or ``[not determined]``; empty where there is no interval or no width."""
    if interval.low is None or interval.high is None or interval.method in (EXACT, COUNTED):
        return ""
    if not interval.is_determined:
        return "[not determined]"
    low, high = text.quantity(interval.low, metric.unit), text.quantity(interval.high, metric.unit)
    return f"[{low}, {high}]" if low != high else ""


def _status(case: Row) -> Entry:
    flags = [f"{flag} ({number})" if number > 1 else flag for flag, number in sorted(case.flags.items())]
    return Entry(case.status, ", ".join(flags), marks=() if case.status == "ok" else ("failed",))


def failures(digest: Digest) -> Table:
    """What failed and what was skipped, and why; the suite's own exclusions too."""
    rows = []
    for group in digest.groups:
        for case in group.rows:
            needed, available = (text.size_of(case.value(key)) for key in ("needed", "available"))
            room = f" (needs {needed}, has {available})" if case.value("needed") else ""
            for status, reason in case.reasons.items():
                rounds = f"{case.statuses[status]} of {sum(case.statuses.values())}"
                rows.append(
                    row_of(Entry(status, marks=("failed",)), case.label, group.label, rounds, reason + room)
                )
    for excluded in digest.run.manifest.suite.excluded:
        what = (excluded.label, excluded.problem, "", excluded.reason)
        rows.append(row_of(Entry("excluded", marks=("quiet",)), *(text.clean(part, 200) for part in what)))
    left_out = len(rows) - MOST_FAILURES
    return Table(
        "failures",
        "What failed, what was skipped",
        (
            Column("status", "word"),
            Column("operator"),
            Column("problem"),
            Column("rounds", "word", importance=5),
            Column("reason", "prose"),
        ),
        tuple(rows[:MOST_FAILURES]),
        text.left_out(left_out, "row").strip(),
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
            row_of(
                growth.operator,
                growth.metric.title,
                growth.slice.axis,
                growth.slice.fixed,
                Entry(text.digits(fit.slope.estimate), text.brackets(fit.slope), fit.slope.estimate),
                Entry(text.plain(None if fit.theory is None else round(fit.theory, 6)), value=fit.theory),
                Entry(spread, value=max(local, default=None)),
                Entry(_large_prime(growth.scaling.large_prime), _penalties(growth)),
                Entry(f"{fit.start:.4g} to {fit.end:.4g}", f"{fit.sizes} values", fit.sizes),
                Entry(text.percent(fit.misfit), value=fit.misfit),
            )
        )
    columns = (
        Column("operator"),
        Column("quantity"),
        Column("axis"),
        Column("held fixed"),
        _number("exponent", "log–log slope over all FFT-friendly values, 95 % interval over rounds"),
        _number("theory", "the same slope of the closed-form FLOPs (latency) or the predicted peak (memory)"),
        _number("local slopes", "smallest and largest slope between neighbouring values"),
        _number("large primes", "exponent of sizes with a large prime factor; their cost against neighbours"),
        _number("range"),
        _number("misfit", "largest distance of a point from the fitted line"),
    )
    return Table(
        "exponents",
        "Scaling exponents",
        columns,
        tuple(rows),
        "An interval says how well a slope is known, not that one power law holds: see local slopes and misfit.",
    )


def _number(title: str, hint: str = "") -> Column:
    return Column(title, "figure", hint=hint)


def _large_prime(fit: Exponent | None) -> str:
    return text.plain(fit.slope.estimate) if fit is not None else text.MISSING


def _penalties(growth: Growth) -> str:
    penalties = [p for p in growth.scaling.penalties if p.factor.estimate is not None]
    return ", ".join(f"{text.times(p.factor.estimate)} at {p.size:.4g}" for p in penalties[:4])


def crossovers(rivalries: Sequence[Rivalry]) -> Table:
    """Where each NIFF form and spatial operator change places: one line a pair and slice, a column a quantity."""
    nouns = {rivalry.metric.key: rivalry.metric.title for rivalry in rivalries}
    lines: dict[tuple[str, str, str, str], dict[str, Rivalry]] = {}
    for rivalry in rivalries:
        place = (rivalry.form, rivalry.rival, rivalry.axis, rivalry.fixed)
        lines.setdefault(place, {})[rivalry.metric.key] = rivalry
    rows = []
    for (form, rival, axis, fixed), by_metric in lines.items():
        unlike: tuple[Mark, ...] = () if next(iter(by_metric.values())).alike else ("unlike",)
        names = (form, Entry(rival, marks=unlike), axis, fixed)
        rows.append(row_of(*names, *(_crossing(by_metric.get(key)) for key in nouns)))
    return Table(
        "crossovers",
        "Crossovers",
        (
            Column("NIFF form"),
            Column("spatial operator"),
            Column("axis"),
            Column("held fixed"),
            *(_number(noun, f"between which two values the order in {noun} changes") for noun in nouns.values()),
        ),
        tuple(rows),
        "The two neighbouring measured values between which the order changes, both decided at 95 %; nothing is "
        f"known of what lies between. {UNLIKE}: not the same function as the NIFF form.",
    )


def _crossing(rivalry: Rivalry | None) -> Entry:
    if rivalry is None:
        return _MISSING
    if not rivalry.crossovers:
        return Entry(outcome(rivalry.compared.comparison, "NIFF", rivalry.rival), marks=("quiet",))
    sides = {"form": "NIFF", "rival": rivalry.rival}
    first, *others = rivalry.crossovers
    rest = [f"{sides[first.better_above]} wins above"]
    rest += [f"and {one.below:g}–{one.above:g}, {sides[one.better_above]} wins above" for one in others]
    undecided = [f"{order.at:g}" for order in rivalry.compared.comparison.orders if order.better is None]
    rest += [f"undecided at {', '.join(undecided)}"] if undecided else []
    return Entry(f"{first.below:g}–{first.above:g}", "; ".join(rest), first.below)


def witnesses(digest: Digest) -> Table:
    """The three witnesses of each operator's FLOPs, and what stock counters see; one line an operator and mode."""
    rows = []
    seen: set[tuple[str, str]] = set()
    for group in digest.groups:
        for case in group.rows:
            cost = case.cost
            if cost is None:
                continue
            doubts = [*([cost.disagreement] if cost.disagreement else []), *cost.notes]
            executed = _share(cost.executed, cost.flops)
            dear = executed is not None and executed >= DEAR
            if not doubts and not dear:  # one problem stands for all; a doubt stands for itself
                if (case.label, group.problem.mode) in seen:
                    continue
                seen.add((case.label, group.problem.mode))
            stock = _share(cost.stock_torch, cost.closed)
            stock_fvcore = _share(cost.stock_fvcore, cost.closed_forward)
            rows.append(
                row_of(
                    case.label,
                    group.label,
                    Entry(text.flops(cost.closed), value=cost.closed),
                    Entry(_agrees(cost.counted, cost.closed), value=cost.counted),
                    Entry(_agrees(cost.fvcore, cost.closed_forward), value=cost.fvcore),
                    Entry("as stated" if executed == 1 else text.times(executed), value=cost.executed),
                    Entry(text.percent(stock), value=stock),
                    Entry(text.percent(stock_fvcore), value=stock_fvcore),
                    text.clean(text.listing(cost.missed, 6)) if cost.missed else text.MISSING,
                    Entry(text.clean("; ".join(doubts), 300), marks=("quiet",)),
                )
            )
    columns = (
        Column("operator"),
        Column("at"),
        _number("closed form"),
        _number("counted", "FlopCounterMode with formulas for FFTs and complex products"),
        _number("fvcore ×2", "with handlers, forward only, against the closed form of the forward pass"),
        _number("executed", REGISTRY["flops_executed"].meaning),
        _number("stock counter sees", "torch's FlopCounterMode as it comes"),
        _number("stock fvcore sees", "fvcore as it comes, ×2, forward only"),
        Column("counted as nothing"),
        Column("disagreement and notes", "prose"),
    )
    return Table(
        "witnesses",
        "Three witnesses of the FLOPs",
        columns,
        tuple(rows),
        "Real FLOPs: a multiply-add is 2, a complex product 6, an FFT nominally 5 N log2 N, half for real data; "
        f"executed, over these, where that is known, and of every problem from {DEAR:g}× on.",
    )


def _share(part: int | None, whole: int) -> float | None:
    return part / whole if part is not None and whole else None


def _agrees(count: int | None, closed: int) -> str:
    if count is None:
        return text.MISSING
    return "agrees" if count == closed else text.flops(count)


def memory(digest: Digest, groups: Iterable[Group]) -> Table:
    """All that was measured of each case's memory."""
    metrics = [metric for metric in shown("memory") if any(metric.key in case.cells for case in digest.rows)]
    groups = [
        replace(group, rows=tuple(case for case in group.rows if any(m.key in case.cells for m in metrics)))
        for group in groups
    ]
    fields = [_metric(metric, 2, metric.title.removesuffix(" memory")) for metric in metrics]
    caption = "Median of rounds; measured in a pass that never times."
    return _of_cases([_PROBLEM, _LABEL, *fields], groups, "footprint", "Memory of every case", caption)


def achieved_rates(digest: Digest, groups: Iterable[Group]) -> Table:
    """What each case achieved, for the roofline plot."""
    groups = [
        replace(group, rows=tuple(case for case in group.rows if case.ok and achieved(case, digest)))
        for group in groups
    ]

    def rate(place: int) -> Callable[[Row], float | None]:
        return lambda case: (achieved(case, digest) or (None, None))[place]

    fields = (
        _PROBLEM,
        _LABEL,
        _figure("intensity", "FLOP/byte", _intensity, text.plain,
                "arithmetic intensity over the form's own traffic"),
        _figure("flop_rate", "achieved FLOP/s", rate(0), lambda value: text.rate(value, "FLOP/s")),
        _figure("byte_rate", "achieved B/s", rate(1), lambda value: text.rate(value, "B/s")),
        _figure("over_floor", "over floor", lambda case: over_floor(case, digest), text.times,
                "latency over the least time of its FLOPs and least traffic"),
    )  # fmt: skip
    return _of_cases(fields, groups, "achieved", "Achieved rates")


def _intensity(case: Row) -> float | None:
    return case.cost.flops / case.cost.bytes_own if case.cost and case.cost.bytes_own else None


def fleet(digest: Digest) -> Table:
    """One line a device of a fleet: how far it is from the others, and in which state it was."""
    rows = []
    for one in digest.fleet.members:
        ratio = one.shift.ratio if one.shift else None
        slowest = f"{one.shift.slowest_in} of {one.shift.cases}" if one.shift else text.MISSING
        rows.append(
            row_of(
                Entry(f"{one.name}, straggler", marks=("failed",)) if one.is_straggler else Entry(one.name),
                _number_entry(one.cases),
                _number_entry(one.records),
                Entry(text.times(ratio.estimate if ratio else None), text.brackets(ratio)),
                Entry(slowest),
                _number_entry(one.sm_clock, " MHz"),
                _number_entry(one.temperature, " °C"),
                Entry(text.percent(one.throttled), value=one.throttled),
                _number_entry(one.flagged),
                _number_entry(one.failed),
            )
        )
    columns = (
        Column("device"),
        _number("cases"),
        _number("records"),
        _number("× others", f"{digest.regime} latency over that of the others, over cases"),
        _number("slowest in", "cases in which it was slower than each of the others"),
        _number("SM clock", "median of its rounds"),
        _number("temperature", "median of its rounds"),
        _number("throttled", "share of its rounds with a reason for throttling"),
        _number("flagged", "rounds whose main series is flagged"),
        _number("failed", "records of no measurement"),
    )
    caption = (
        f"{digest.regime} latency of each device over that of the others, with 95 % intervals. A straggler is "
        "slower by more than the others differ among themselves; of fleets without one at most 5 % have any named."
    )
    return Table("fleet", "Device by device", columns, tuple(rows), text.capital(caption))


def _number_entry(value: float | None, unit: str = "") -> Entry:
    return Entry(text.MISSING if value is None else f"{value:,.0f}{unit}", value=value)


def fingerprints(digests: Sequence[Digest]) -> Table:
    """The machines side by side; what must match and does not is marked."""
    prints = [digest.run.manifest.fingerprint for digest in digests]
    rows = []
    for tier, facts in (("must", [one.must for one in prints]), ("should", [one.should for one in prints])):
        unlike = {key for other in facts[1:] for key in differences(facts[0], other)}
        for key in sorted({key for side in facts for key in side}):
            marks: tuple[Mark, ...] = ("failed",) if key in unlike else ()
            values = [Entry(text.clean(side.get(key, text.MISSING)), marks=marks) for side in facts]
            rows.append(row_of(Entry(f"{tier} match", marks=("quiet",)), text.clean(key), *values))
    return Table(
        "fingerprint",
        "Fingerprint",
        (Column("tier"), Column("fact"), *(Column(digest.name) for digest in digests)),
        tuple(rows),
        "Runs whose first tier differs must not be compared in latency." if len(digests) > 1 else "",
    )
