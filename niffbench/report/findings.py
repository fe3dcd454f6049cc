"""Findings: what a run shows, in plain sentences. None is written whose interval includes "no difference"."""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence, Set
from dataclasses import dataclass
from itertools import zip_longest
from math import exp, expm1, log, log1p
from statistics import fmean

from niffbench.case import Contender
from niffbench.niff.catalogue import FORMS
from niffbench.report import text
from niffbench.report.digest import CONFIDENCE, Cell, Digest, Group, Row, aligned, compare
from niffbench.report.facts import choices
from niffbench.report.slices import WORDS, Slice, representative
from niffbench.report.trends import Growth, Rivalry, is_niff
from niffbench.results import Metric
from niffbench.results.clock import relative_step
from niffbench.stats.crossovers import Comparison
from niffbench.stats.intervals import ONE_ROUND, Interval, combination, exponential, stretched, widened
from niffbench.suite.pairs import Axis

Setting = tuple[str, ...]
Settings = Mapping[Setting, Sequence[Group]]

KEEPING = frozenset(form.name for forms in FORMS.values() for form in forms if form.keeps_filter)
"""Forms that keep their filter between calls of inference, so do less than the published one does in each."""
LEAST = 0.005
"""Differences of a ratio below this (relative) are not worth a sentence, however certain."""
LEAST_SLOPE = 0.05
"""The same for exponents."""


@dataclass(frozen=True)
class Finding:
    """A sentence, the plot or table that shows it (its anchor), and what finds its rows in the table of cases."""

    sentence: str
    shown: str
    rows: str


def findings(
    digest: Digest,
    slices: Mapping[Axis, Sequence[Slice]],
    growths: Sequence[Growth],
    rivalries: Sequence[Rivalry],
) -> tuple[Finding, ...]:
    """All that the intervals support, the most asked for first."""
    settings = _settings(digest)
    keeping = {row.label for row in digest.rows if row.case.operator.rpartition("/")[2] in KEEPING}
    main: list[Finding] = []
    others: list[Finding] = []  # of the NIFF layers after the first
    for place, labels in enumerate(_kinds(digest)):
        best = {setting: _best_form(groups, digest.metrics[0], labels) for setting, groups in settings.items()}
        said = [
            f for setting, form in best.items() if form for f in _against_baseline(digest, setting, settings, form)
        ]
        for setting, groups in settings.items():
            cached = labels & keeping if setting[0] == "inference" else set()
            for some in (labels - cached, cached):
                if form := _best_form(groups, digest.metrics[0], some):
                    said += _against_published(digest, setting, settings, form, keeps=form in cached)
        (others if place else main).extend(said)
    for setting, groups in settings.items():
        for niff, finding in _against_originals(digest, setting, groups):
            (main if niff else others).append(finding)
        main += _networks_as_published(digest, setting, groups)
    first, rest = _changes(digest, rivalries)
    forms = set().union(*_best_forms(digest).values())
    for setting, groups in settings.items():
        main += _winners(digest, setting, groups)
    main += _exponents(slices, [g for g in growths if g.operator in {*forms, digest.baseline}])
    main += _primes(growths, digest)
    main += [Finding(sentence, "overview", label) for label, sentence in choices(digest)]
    main += _counters(digest)
    return (*first, *main, *others, *rest)


def crossover_sentences(digest: Digest, rivalries: Sequence[Rivalry]) -> list[str]:
    """What the first screen says of crossovers: one a form, rival and quantity, those in latency first."""
    return [finding.sentence for finding in _changes(digest, rivalries)[0]]


def _best_forms(digest: Digest) -> dict[Setting, set[str]]:
    """The best form of each NIFF layer in each of the settings that are spoken of."""
    return {
        setting: {form for labels in _kinds(digest) if (form := _best_form(groups, digest.metrics[0], labels))}
        for setting, groups in _settings(digest).items()
    }


def mean_ratio(base: Sequence[Cell], other: Sequence[Cell]) -> tuple[Interval, tuple[float, float]]:
    """The geometric mean over problems of the ratio other/base, and the least and the largest of these ratios.

    The interval is over rounds that have them all.
    """
    ratios = [ratio for pair in zip(base, other, strict=True) if (ratio := compare(*pair).estimate)]
    share = 1 / len(base)
    weights = [-share] * len(base) + [share] * len(other)
    logs = combination(aligned(*base, *other), weights, shared=True, confidence=CONFIDENCE)
    if len(ratios) < len(base):
        return exponential(logs), (0.0, 0.0)
    steps = [relative_step([*one.coarse, *two.coarse]) for one, two in zip(base, other, strict=True)]
    interval = stretched(exponential(logs), exp(fmean(map(log, ratios))))
    return widened(interval, expm1(fmean(map(log1p, steps)))), (min(ratios), max(ratios))


def _settings(digest: Digest) -> dict[Setting, list[Group]]:
    """Groups by what is no extent (mode, dtype, memory format, execution): the two with the most groups."""
    groups_of: dict[Setting, list[Group]] = {}
    for group in digest.groups:
        groups_of.setdefault(group.setting, []).append(group)
    return dict(sorted(groups_of.items(), key=lambda item: -len(item[1]))[:2])


def _in(setting: Setting) -> str:
    """``In inference``, and whatever is not the default."""
    mode, *rest = setting
    unusual = [word for word in rest if word not in ("float32", "contiguous", "eager")]
    return "In " + ", ".join([mode if mode != "forward" else "forward passes", *unusual])


def _kinds(digest: Digest) -> list[set[str]]:
    """The NIFF layers of a run in the suite's order: of each, an equivalence class, the labels of its forms."""
    labels_of: dict[str, set[str]] = {}
    for row in digest.rows:
        if is_niff(row):
            labels_of.setdefault(row.traits.equivalence, set()).add(row.label)
    return list(labels_of.values())


def _best_form(groups: Sequence[Group], metric: Metric, labels: Collection[str]) -> str | None:
    """The row of least geometric mean, among those measured most often; a choice, not a claim."""
    logs_of: dict[str, list[float]] = {}
    for group in groups:
        for row in group.rows:
            if row.ok and row.label in labels and metric.key in row.cells:
                logs_of.setdefault(row.label, []).append(log(row.cells[metric.key].estimate))
    most = max(map(len, logs_of.values()), default=0)
    full = [label for label, logs in logs_of.items() if len(logs) == most]
    return min(full, key=lambda label: sum(logs_of[label]), default=None)


def _row(group: Group, label: str) -> Row | None:
    return next((row for row in group.rows if row.label == label and row.ok), None)


def _against_baseline(digest: Digest, setting: Setting, settings: Settings, form: str) -> Iterator[Finding]:
    """The best NIFF form against the baseline, over all problems of a setting, in each quantity."""
    rows = [row for group in settings[setting] if (row := _row(group, form)) and row.label != digest.baseline]
    ratios = {m.key: [row.cells[m.key].ratio for row in rows if m.key in row.cells] for m in digest.metrics}
    alike = all(row.like_baseline for row in rows)
    yield from _against(digest, setting, form, digest.baseline, ratios, len(settings[setting]), alike=alike)


def _against(
    digest: Digest,
    setting: Setting,
    form: str,
    base: str,
    ratios: Mapping[str, Sequence[Interval | None]],
    problems: int,
    *,
    alike: bool,
) -> Iterator[Finding]:
    """One row against another in each quantity, by its ``ratios`` to ``base``, of so many ``problems``."""
    said: list[str] = []
    for metric in digest.metrics:
        of = f"its {metric.title}" if said else f"the {metric.title} of {base}"
        said += _at_problems(ratios[metric.key], of, problems)
    if said:
        unlike = "" if alike else "; the two compute different functions"
        yield Finding(f"{_in(setting)}, {form} takes {text.listing(said, len(said))}{unlike}.", "overview", form)


def _against_originals(
    digest: Digest, setting: Setting, groups: Sequence[Group]
) -> Iterator[tuple[bool, Finding]]:
    """Each network, in its fastest form, against the original that it was made from; whether it is NIFF's."""
    kinds: dict[tuple[str, str], dict[str, list[tuple[Row, Row]]]] = {}
    for group in groups:
        for row in group.rows:
            if row.ok and (original := _original(group, row)) is not None:
                kind = kinds.setdefault((row.traits.equivalence, original.label), {})
                kind.setdefault(row.label, []).append((original, row))
    for (_, base), pairs_of in kinds.items():
        form = _best_form(groups, digest.metrics[0], pairs_of)
        if form is None:
            continue
        pairs = pairs_of[form]
        ratios = {
            m.key: [
                compare(one.cells[m.key], two.cells[m.key])
                for one, two in pairs
                if m.key in one.cells and m.key in two.cells
            ]
            for m in digest.metrics
        }
        for finding in _against(digest, setting, form, base, ratios, len(groups), alike=False):
            yield pairs[0][1].kin == "niff", finding


def _original(group: Group, row: Row) -> Row | None:
    """What ``row`` was made from, with the same settings as far as both have them, where it was measured."""
    options = set(row.case.options)
    return next(
        (
            o
            for o in group.rows
            if o.ok and o is not row and o.case.operator == row.traits.base and options.issuperset(o.case.options)
        ),
        None,
    )


def _at_problems(ratios: Sequence[Interval | None], of: str, problems: int) -> list[str]:
    """By how much a quantity differs from the baseline's where its interval leaves no doubt, and at how many."""
    sure = [r.estimate for r in ratios if r is not None and r.estimate and r.excludes(1.0) and _worth(r.estimate)]
    sides = [side for side in ([r for r in sure if r < 1], [r for r in sure if r > 1]) if side]
    places = [(_range(side), text.of_problems(len(side), problems)) for side in sides]
    return [f"{places[0][0]} {of} at {places[0][1]}", *(f"{r} at {at}" for r, at in places[1:])] if places else []


def _range(ratios: Sequence[float]) -> str:
    low, high = text.times(min(ratios)), text.times(max(ratios))
    return low if low == high else f"{low} to {high}"


def _worth(ratio: float) -> bool:
    """Whether a difference, however certain, is worth a sentence."""
    return abs(log(ratio)) >= LEAST


def _against_published(
    digest: Digest, setting: Setting, settings: Settings, form: str, *, keeps: bool
) -> Iterator[Finding]:
    """The fastest NIFF form that keeps its filter, or that does not, against the published one of its class."""
    pairs: dict[str, list[tuple[Row, Row]]] = {}
    for group in settings[setting]:
        ours = _row(group, form)
        for row in group.rows:
            same = ours is not None and row.traits.equivalence == ours.traits.equivalence
            if ours and same and row.ok and row.label != form and row.traits.published:
                pairs.setdefault(row.label, []).append((row, ours))
    for label, rows in pairs.items():
        said = _means(digest, rows)
        if said:
            over = f"geometric mean over {text.plural(len(rows), 'problem')}, and their range"
            best = f"{form}, which keeps its filter or what makes it," if keeps else form
            yield Finding(
                f"{_in(setting)}, {label} takes {text.listing(said)} of {best} for the same function ({over}).",
                "overview",
                label.partition("/")[0],
            )


def _networks_as_published(digest: Digest, setting: Setting, groups: Sequence[Group]) -> Iterator[Finding]:
    """All networks in their published form together, against the same in ``auto``, its filters kept or not."""
    for execution in ("auto", "auto-cached"):
        pairs = [
            (row, same)
            for group in groups
            for row in group.rows
            if row.ok and ("execution", "published") in row.case.options
            if (same := _executed(group, row, execution)) is not None
        ]
        if said := _means(digest, pairs):
            networks = text.plural(len({row.case.operator for row, _ in pairs}), "network")
            problems = text.plural(len({row.case.problem for row, _ in pairs}), "problem")
            yield Finding(
                f"{_in(setting)}, networks as published take {text.listing(said)} of the same in {execution} "
                f"(geometric mean over {networks} at {problems}, and their range).",
                "overview",
                "execution=published",
            )


def _executed(group: Group, row: Row, execution: str) -> Row | None:
    """The same network as ``row``, in another execution, where it was measured."""
    options = {**dict(row.case.options), "execution": execution}
    return next(
        (
            o
            for o in group.rows
            if o.ok and o.case.operator == row.case.operator and dict(o.case.options) == options
        ),
        None,
    )


def _means(digest: Digest, pairs: Sequence[tuple[Row, Row]]) -> list[str]:
    """How many times each quantity the first of ``pairs`` take of the second, where that leaves no doubt."""
    said = []
    for metric in digest.metrics:
        cells = [(one.cells.get(metric.key), two.cells.get(metric.key)) for one, two in pairs]
        whole = [(one, two) for one, two in cells if one is not None and two is not None]
        if not whole:
            continue
        ratio, (least, most) = mean_ratio([two for _, two in whole], [one for one, _ in whole])
        exact = all(cell.counted for pair in whole for cell in pair)
        if ratio.estimate and _worth(ratio.estimate) and (exact or ratio.excludes(1.0)):
            mean = text.times(ratio.estimate) if exact else text.ratio(ratio)
            notes = [f"{text.times(least)} to {text.times(most)}"] if len(whole) > 1 else []
            notes += [f"at {len(whole)} of them"] if len(whole) < len(pairs) else []
            spread = f" ({', '.join(notes)})" if notes else ""
            said.append(f"{mean}{spread} the {metric.title}")
    return said


def _winners(digest: Digest, setting: Setting, groups: Sequence[Group]) -> Iterator[Finding]:
    """Which operator wins most problems, where its rounds can tell, and at how many they cannot."""
    for metric in digest.metrics[:2]:
        winners = [winner for group in groups if (winner := group.winners.get(metric.key))]
        wins = Counter(winner.row.label for winner in winners if winner.decided)
        if wins.total() * 2 >= max(len(winners), 1):
            ranked = wins.most_common()
            said = [f"{label} at {text.of_problems(number, len(groups))}" for label, number in ranked]
            yield Finding(
                f"{_in(setting)}, the {text.best(metric)} of all operators is {text.listing(said)}"
                f"{text.others(len(winners) - wins.total(), len(groups) - len(winners))}.",
                "overview",
                ranked[0][0],
            )


def one_change(group: Group, other: Group) -> str:
    """What the problem of ``other`` has otherwise, in a word or two, where that is one thing beside its extents.

    ``batch 8``, ``training``; empty where it is nothing, several things, or another map or width.
    """
    here, there = group.problem, other.problem
    same_extents = (here.channels, here.channels_out, here.height, here.width) == (
        there.channels,
        there.channels_out,
        there.height,
        there.width,
    )
    changed = [word for word, now in zip(other.setting, group.setting, strict=True) if word != now]
    changed += [f"batch {there.batch}"] if there.batch != here.batch else []
    return changed[0] if same_extents and len(changed) == 1 else ""


def other_winners(group: Group, groups: Iterable[Group], metric: Metric) -> list[str]:
    """Where one thing is otherwise and another operator wins: ``batch 8: depthwise-k7``. Decided on both sides."""
    winner = group.winners.get(metric.key)
    if winner is None or not winner.decided:
        return []
    return [
        f"{change}: {there.row.label}"
        for other in groups
        if (there := other.winners.get(metric.key)) and there.decided and there.row.label != winner.row.label
        if (change := one_change(group, other))
    ]


def _other_crossovers(rivalry: Rivalry, rivalries: Iterable[Rivalry]) -> list[str]:
    """Where one thing is otherwise and the two change places elsewhere, or do not: ``training: 21 to 23``."""
    sentences: list[str] = []
    for other in rivalries:
        if (other.metric, other.axis, other.form, other.rival) != (
            rivalry.metric, rivalry.axis, rivalry.form, rivalry.rival
        ):  # fmt: skip
            continue
        change = one_change(rivalry.group, other.group)
        if change and len(rivalry.crossovers) == len(other.crossovers) == 1:
            here, there = rivalry.crossovers[0], other.crossovers[0]
            if there.below >= here.above or there.above <= here.below:
                sentences.append(f"{change}: between {there.below:g} and {there.above:g}")
        elif change and (better := other.compared.comparison.better):
            sentences.append(f"{change}: {other.form if better == 'form' else other.rival} throughout")
    return sentences


def _changes(digest: Digest, rivalries: Sequence[Rivalry]) -> tuple[list[Finding], list[Finding]]:
    """Where a form and a spatial operator change places, and where one of them has less throughout.

    Latency comes first: of the best forms, then of the others. Then those of the best forms in memory, and in
    FLOPs where latency has none. Of each quantity first one for each axis, NIFF layer (in latency: form) and
    spatial operator, where it is known most closely, with the fewest values undecided; then the others.
    """
    best = _best_forms(digest)
    forms = set().union(*best.values())
    flops = {r.compared.pair: r for r in rivalries if r.metric.key == "flops"}
    first: dict[tuple[str, Axis, str, str], Finding] = {}
    rest: list[Finding] = []

    def take(some: Iterable[Rivalry]) -> None:
        for rivalry in some:
            family = rivalry.metric.family
            by_flops = flops.get(rivalry.compared.pair) if family == "latency" else None
            sentence = crossover_sentence(rivalry, by_flops, _other_crossovers(rivalry, rivalries))
            finding = Finding(sentence, "crossovers", rivalry.form)
            layer = rivalry.form if rivalry.form not in forms else rivalry.form.partition("/")[0]
            if first.setdefault((family, rivalry.axis, layer, rivalry.rival), finding) is not finding:
                rest.append(finding)

    changing = [rivalry for rivalry in rivalries if rivalry.crossovers]
    changing.sort(
        key=lambda rivalry: (
            max(one.above / one.below for one in rivalry.crossovers),
            sum(order.better is None for order in rivalry.compared.comparison.orders),
        )
    )
    latency = [rivalry for rivalry in changing if rivalry.metric.family == "latency"]
    timed = {rivalry.compared.pair for rivalry in latency}
    take(rivalry for rivalry in latency if rivalry.form in forms)
    leading = [*first.values(), *_throughout(_settings(digest), best, rivalries)]
    first_of_best = len(first)
    take(rivalry for rivalry in latency if rivalry.form not in forms)
    others = [rivalry for rivalry in changing if rivalry.form in forms]
    take(rivalry for rivalry in others if rivalry.metric.family == "memory")
    take(r for r in others if r.metric.family == "flops" and r.compared.pair not in timed)
    return [*leading, *list(first.values())[first_of_best:]], rest


def _throughout(
    settings: Settings, best: Mapping[Setting, set[str]], rivalries: Sequence[Rivalry]
) -> Iterator[Finding]:
    """Where a best form and a spatial operator change places in latency at no kernel, and who has less.

    Problems differ in the kernels that were measured, so that these are named only where all decided ones agree.
    """
    pairs: dict[tuple[Setting, str, str], list[Rivalry]] = {}
    timed = [rivalry for rivalry in rivalries if rivalry.metric.family == "latency" and rivalry.axis == "kernel"]
    for rivalry in timed:
        compared = rivalry.compared.comparison.orders  # none where fewer than two values are
        if compared and rivalry.form in best.get(rivalry.group.setting, ()):
            pairs.setdefault((rivalry.group.setting, rivalry.form, rivalry.rival), []).append(rivalry)
    for (setting, form, rival), every in pairs.items():
        sides = {comparison.better for one in every if (comparison := one.compared.comparison).better is not None}
        if len(sides) != 1 or any(one.crossovers for one in every):
            continue
        decided = [one for one in every if one.compared.comparison.better is not None]
        sizes = [{order.at for order in one.compared.comparison.orders} for one in decided]
        less, more = (form, rival) if sides == {"form"} else (rival, form)
        alike = "" if all(one.alike for one in every) else "; the two compute different functions"
        yield Finding(
            f"{_in(setting)}, {less} has less {every[0].metric.title} than {more} at every kernel size measured "
            f"({_sizes(sizes)}), at {text.of_problems(len(decided), len(settings[setting]))}"
            f"{text.others(len(every) - len(decided), len(settings[setting]) - len(every))}{alike}.",
            "crossovers",
            form,
        )


def _sizes(measured: Sequence[Set[float]]) -> str:
    """Those measured at each problem: ``3, 7 and 11`` where they are the same, else how many and between which."""
    union = sorted(set().union(*measured))
    if all(len(sizes) == len(union) for sizes in measured):
        return text.listing([f"{at:g}" for at in union], 9)
    least, most = min(map(len, measured)), max(map(len, measured))
    number = f"{least}" if least == most else f"{least} to {most}"
    return f"{number} at a problem, between {union[0]:g} and {union[-1]:g}"


def crossover_sentence(rivalry: Rivalry, flops: Rivalry | None = None, elsewhere: Sequence[str] = ()) -> str:
    """Where two change places in one quantity; where in FLOPs if that is somewhere else; what would change it."""
    alike = "" if rivalry.alike else "; not the same function"
    other = ""
    if flops is not None and len(rivalry.crossovers) == len(flops.crossovers) == 1:
        one, by_flops = rivalry.crossovers[0], flops.crossovers[0]
        if one.below >= by_flops.above or one.above <= by_flops.below:
            other = f"; FLOPs alone put the crossover between {by_flops.below:g} and {by_flops.above:g}"
    otherwise = f"; {text.listing(elsewhere, 3)}" if elsewhere else ""
    return f"{_stretches(rivalry)} ({rivalry.fixed}{alike}){other}{otherwise}."


def _stretches(rivalry: Rivalry) -> str:
    """Who has less from where to where, by measured values; those that decide nothing; jumps."""
    names: dict[Contender, str] = {"form": rivalry.form, "rival": rivalry.rival}
    crossovers = rivalry.crossovers
    below = names["rival" if crossovers[0].better_above == "form" else "form"]
    fewer = "fewer" if rivalry.metric.family == "flops" else "less"
    up_to = f"up to {WORDS[rivalry.axis]} {crossovers[0].below:g}"
    said = [f"{below} has {fewer} {rivalry.metric.title} {up_to}"]
    for one, after in zip_longest(crossovers, crossovers[1:]):
        where = f"from {one.above:g} on" if after is None else _from_to(one.above, after.below)
        said.append(f"{names[one.better_above]} {where}")
    if rivalry.compared.quantity == "latency":
        said.append(
            f"at least {text.percent(crossovers[0].confidence)} sure of {'both' if len(said) == 2 else 'all'}"
        )
    undecided = {order.at for order in rivalry.compared.comparison.orders if order.better is None}
    undecided.update(tie for one in crossovers for tie in one.ties)
    doubts = [f"undecided at {text.listing([f'{at:g}' for at in sorted(undecided)], 6)}"] if undecided else []
    single = len(crossovers) == 1
    for one in crossovers:
        if not one.adjacent and not one.ties:
            where = "in between" if single else f"between {one.below:g} and {one.above:g}"
            doubts.append(f"nothing measured {where}")
    jumps = [
        f"; {names[cliff.side]} jumps {text.times(cliff.ratio)} "
        f"between {'them' if single else f'{one.below:g} and {one.above:g}'}, where its FLOPs "
        f"{'grow' if cliff.expected >= 1 else 'fall to'} {text.times(cliff.expected)}"
        for one in crossovers
        if (cliff := one.cliff) is not None and cliff.ratio > cliff.expected
    ]
    return ", ".join(said) + (f" ({'; '.join(doubts)})" if doubts else "") + "".join(jumps)


def _from_to(first: float, last: float) -> str:
    return f"at {first:g}" if first == last else f"from {first:g} to {last:g}"


def _exponents(slices: Mapping[Axis, Sequence[Slice]], growths: Sequence[Growth]) -> Iterator[Finding]:
    """Exponents of latency that differ from those of the FLOPs, in one slice an axis."""
    for axis, some in slices.items():
        first = representative(some)[0]
        for growth in growths:
            fit = growth.scaling.overall
            if growth.slice is not first or growth.metric.family != "latency" or fit.theory is None:
                continue
            apart = None if fit.slope.estimate is None else fit.slope.estimate - fit.theory
            if (
                fit.slope.estimate is not None
                and apart
                and abs(apart) >= LEAST_SLOPE
                and fit.slope.excludes(fit.theory)
            ):
                slower = "slower" if fit.slope.estimate < fit.theory else "faster"
                yield Finding(
                    f"{growth.operator}'s {growth.metric.title} grows with {WORDS[axis]} to the power "
                    f"{text.digits(fit.slope.estimate)} {text.brackets(fit.slope)}, {slower} than its FLOPs "
                    f"({text.digits(fit.theory)}) between {fit.start:.4g} and {fit.end:.4g} ({first.fixed}).",
                    f"scaling-{axis}",
                    growth.operator,
                )


def _primes(growths: Iterable[Growth], digest: Digest) -> Iterator[Finding]:
    """Sizes with a large prime factor that take longer than their neighbours suggest: the dearest one."""
    worst: tuple[float, Growth, str] | None = None
    for growth in growths:
        for penalty in growth.scaling.penalties if growth.metric.family == "latency" else ():
            factor = penalty.factor
            dear = factor.estimate is not None and factor.estimate > 1 and factor.excludes(1.0)
            if dear and factor.estimate is not None and (worst is None or factor.estimate > worst[0]):
                what = f"{penalty.size:.4g} (largest prime factor {penalty.largest_prime_factor})"
                worst = (factor.estimate, growth, f"At {what} {growth.operator} takes {text.ratio(factor)}")
    if worst is not None:
        _, growth, start = worst
        yield Finding(
            f"{start} the {growth.metric.title} that its FFT-friendly neighbours suggest ({growth.slice.fixed}).",
            f"scaling-{growth.slice.axis}",
            growth.operator,
        )


def _counters(digest: Digest) -> Iterator[Finding]:
    """What stock FLOP counters see of NIFF; a count, so without error."""
    every = (row.value("stock_counter_share") for row in digest.rows if is_niff(row))
    shares = [share for share in every if share is not None]
    if shares and min(shares) < 0.995:
        low, high = text.percent(min(shares)), text.percent(max(shares))
        seen = low if low == high else f"{low} to {high}"
        yield Finding(
            f"Stock FLOP counters see {seen} of the FLOPs of the NIFF layers.",
            "witnesses",
            "niff",
        )


def no_crossovers(rivalries: Iterable[Rivalry]) -> str:
    """What is said where no crossover in latency is: that there is none, or that rounds leave it open."""
    timed = [rivalry.compared.comparison for rivalry in rivalries if rivalry.metric.family == "latency"]
    if not timed:
        return "Nothing was measured along an axis that a form of NIFF and a spatial convolution have in common."
    if any(comparison.crossovers for comparison in timed):
        return ""
    undecided = [comparison for comparison in timed if comparison.outcome == "undecided"]
    if undecided:
        return (
            f"None in latency is certain: of {text.plural(len(timed), 'pair')} of a form of NIFF and a spatial "
            f"convolution {len(undecided):,} {left_open(undecided)}."
        )
    return "A form of NIFF and a spatial convolution change places in latency nowhere in what was measured."


def left_open(undecided: Sequence[Comparison]) -> str:
    """What is said of pairs of whom it is not known who is better everywhere."""
    if all(comparison.reason == ONE_ROUND for comparison in undecided):
        were = "was" if len(undecided) == 1 else "were"
        return f"{were} measured in one round alone, by which no latency is judged; measure several rounds"
    return "cannot be told apart at some value"


def outcome(comparison: Comparison, niff: str, spatial: str) -> str:
    """What came of a comparison without a crossover, in a few words, for a table."""
    names = {"form": niff, "rival": spatial}
    if comparison.better is not None:
        return f"none in the range measured: {names[comparison.better]} wins throughout"
    if comparison.outcome == "undecided":
        winner = next((names[order.better] for order in comparison.orders if order.better is not None), None)
        elsewhere = "" if winner is None else f", elsewhere {winner} wins"
        return f"undecided: {comparison.reason}{elsewhere}"
    return ""
