"""Comparison: two runs, quantity by quantity, into findings."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, cast

from niffbench.errors import FingerprintsDiffer, HeadFails, NothingMeasured, UsageError, did_you_mean, plural
from niffbench.fingerprint import Fact, differences
from niffbench.gate import invariants, latencies
from niffbench.gate.case_results import CaseResults, EarlierCases, RunCases, kind_of_device
from niffbench.gate.findings import FAILING, VERDICTS, ComparedRun, Comparison, Difference, Finding
from niffbench.gate.history import Earlier
from niffbench.gate.history import same as _same_run
from niffbench.gate.latencies import Pairing
from niffbench.gate.rules import Accepted, Environment, Grant, Rules
from niffbench.results import REGISTRY, Manifest, Run, background_load
from niffbench.results.fleet import fleet, of_one_machine
from niffbench.stats.decision import fewest_rounds
from niffbench.suite import Selection


def compare(
    base: Run | Before,
    head: Run,
    rules: Rules,
    *,
    only: Sequence[str] = (),
    across_machines: bool = False,
    pairing: Pairing | None = None,
    reference: Run | None = None,
    passing: Callable[[Run], None] = lambda _: None,
) -> Comparison:
    """Judge ``head`` against ``base``: one finding per case and quantity.

    Latencies: the unit is the round's median; :func:`niffbench.stats.decision.decide` judges all of them at once.

    Args:
        base: one run, or the runs before ``head``; then BASE is chosen case by case and metric by metric, and
            what has crept away from the history's accepted level is a regression, too.
        reference: a run whose level is the accepted one.
        across_machines: the fingerprints may differ; then no latency is judged, but each operator's ratio to
            the baseline operator within its own run is.
        passing: is shown every run before HEAD of a history that was measured in its environment, oldest first.
        pairing: both runs are one A/B run, judged by paired differences; their libraries may differ (that can
            be what is compared), the device may not.

    Raises:
        UsageError: when the suites are not the same or ``only`` fits nothing.
        HeadFails: when neither measured anything.
        NothingMeasured: when BASE alone measured nothing.
        FingerprintsDiffer: unless ``across_machines`` or ``pairing`` allows it.
    """
    before = base if isinstance(base, Before) else None
    newest = before.newest if before else cast(Run, base)
    for other in (newest, *([reference] if reference else [])):
        if other.manifest.suite.name != head.manifest.suite.name:
            raise UsageError(
                f"nothing to compare: {other.name} is a run of suite '{other.manifest.suite.name}', "
                f"{head.name} of '{head.manifest.suite.name}'"
            )
    unlike = _differences(of_one_machine(newest).manifest, head.manifest)
    changed = before is not None and before.earlier.changed_environment
    across_asked, across_machines = across_machines, across_machines or changed
    _refuse_unlike(newest, head, unlike, across_machines, pairing is not None)
    selection = Selection(only)
    new = RunCases(of_one_machine(head), selection)
    fewest, baseline = fewest_rounds(rules.alpha, paired=pairing is not None), head.manifest.suite.baseline
    notes: list[str] = list(before.earlier.notes) if before else []
    unreadable: dict[Path, str] = dict(before.everywhere.unreadable) if before else {}

    def earlier(runs: Iterable[Run]) -> EarlierCases:
        cases = EarlierCases(new, rules.tested, fewest, ratios=across_machines)
        for run in runs:
            if not cases.add(RunCases(run, selection, baseline)):
                break
        return cases

    old = earlier((run for _, run in before.earlier.read(unreadable)) if before else [newest])
    if only and not new and not old:
        labels = {record.traits.label for record in head.records}
        raise UsageError(f"--only {' '.join(only)} fits no case of either run{did_you_mean(only[0], labels)}")
    if not old.measured:
        if not new.measured:
            raise head_fails(head)
        which = f"the cases that --only {' '.join(only)} leaves" if only else "its cases"
        raise NothingMeasured(f"nothing to compare: BASE ({newest.name}) measured none of {which}")

    def unvarying(side: EarlierCases) -> list[Finding]:
        ids = [*new, *_missed(side, new)]
        return [one for id_ in ids for one in invariants.judge(id_, side, new, rules)]

    def timed(side: EarlierCases) -> list[Finding]:
        return latencies.judge(side, new, rules, pairing)

    findings = unvarying(old) + timed(old)
    sides: list[Mapping[str, CaseResults]] = [new, old]
    levels = {(finding.case, finding.quantity): finding for finding in findings}
    acknowledged = rules.accepted.environment(head.manifest.fingerprint.hash)
    ages: dict[str, int] = {}

    def hold_to(level: EarlierCases, against: list[Finding], of: str = "") -> list[Finding]:
        sides.append(level)
        levels.update({(one.case, one.quantity): one for one in against if one.base is not None})
        return _with_creep(findings, against, f"the accepted level{of}", ages)

    if reference is not None:
        level = earlier([reference])
        findings = hold_to(level, unvarying(level) + timed(level))
    elif before is not None and before.by_arrival:
        alike, every, others = (
            EarlierCases(new, rules.tested, fewest, oldest_first=True, ratios=ratios)
            for ratios in (False, False, True)
        )
        mixed = across_machines or before.everywhere.runs != before.earlier.runs
        for age, run in before.everywhere.read(unreadable, oldest_first=True):
            ages[run.name] = age
            cases = RunCases(run, selection, baseline)
            if mixed:
                every.add(cases)
            if run.manifest.fingerprint.hash == head.manifest.fingerprint.hash:
                passing(run)
                if not across_machines:
                    alike.add(cases)
            if not alike.manifests:  # before the first in HEAD's environment, which may have been worse already
                others.add(cases)
        if alike:
            findings = hold_to(alike, unvarying(alike) + timed(alike))
        if every:
            findings = hold_to(every, unvarying(every))
        if others:
            against = [one for one in timed(others) if not (acknowledged and one.is_shared)]
            findings = hold_to(others, against, "" if across_asked else " of another environment")
    if before is None or not before.by_arrival:
        notes += unreadable.values()
    else:
        findings += [_unreadable(place, why) for place, why in unreadable.items()]
    findings = list(_accepted(findings, levels, sides, rules.accepted, acknowledged))
    environment: Literal["open", "acknowledged"] | None = None
    if changed and acknowledged is not None:
        environment = "acknowledged"
        notes.append(f"this environment was acknowledged: {acknowledged.reason}")
    elif changed:
        environment = "open"
    elif before is not None and before.by_arrival and not across_machines and acknowledged is None:
        first = before.everywhere.runs[-1].manifest
        if first.fingerprint.hash != head.manifest.fingerprint.hash:
            environment = "open"
            fields = ", ".join(d.field for d in _differences(first, head.manifest) if d.tier == "must")
            notes.append(f"the history began in another environment ({fields}); nobody has acknowledged this one")
    return Comparison(
        base=_compared_run(newest),
        head=_compared_run(head),
        method=_method(across_machines, pairing, fleet(newest).several or fleet(head).several),
        alpha=rules.alpha,
        rule_out=rules.rule_out,
        differences=unlike,
        notes=(*notes, *_notes(sides, old, new, newest, rules, pairing is not None)),
        findings=tuple(sorted(findings, key=lambda finding: VERDICTS.index(finding.verdict))),
        environment=environment,
    )


def head_fails(head: Run) -> HeadFails:
    """That nothing of HEAD could be measured, and why."""
    first = next((f": {record.status}, {record.reason}" for record in head.records), "")
    return HeadFails(f"{head.name} measured nothing{first}")


@dataclass(frozen=True)
class Before:
    """The runs before HEAD, and the newest of them that can be read.

    Attributes:
        everywhere: those of every fingerprint.
        by_arrival: they are a history's.
    """

    earlier: Earlier
    everywhere: Earlier
    newest: Run
    by_arrival: bool

    @classmethod
    def of(cls, earlier: Earlier, everywhere: Earlier, *, by_arrival: bool) -> Before:
        """What there is of ``earlier``.

        Raises:
            UsageError: when none of them can be read.
        """
        notes: dict[Path, str] = {}
        for _, run in earlier.read(notes):
            return cls(earlier, everywhere, run, by_arrival)
        raise UsageError(f"no baseline that can be read: {'; '.join(notes.values())[:500]}")


def _missed(base: EarlierCases, head: RunCases) -> list[str]:
    """The cases of BASE that are not in HEAD though nobody narrowed it to others."""
    suite = head.run.manifest.suite
    asked = Selection(suite.only)
    return [
        id_
        for id_, one in base.items()
        if id_ not in head and asked.takes(one.case, one.label) and (suite.shard is None or id_ in suite.cases)
    ]


def _with_creep(
    findings: Sequence[Finding], against: Sequence[Finding], level: str, ages: Mapping[str, int]
) -> list[Finding]:
    """The findings, with those ``against`` a level that fail in the place of harmless ones.

    So do slowdowns that all share: of these each level has its own.

    Args:
        ages: how many runs ago each run of a history was.
    """
    beyond = {
        (finding.case, finding.quantity): finding
        for finding in against
        if finding.verdict in FAILING or (finding.is_shared and finding.blind)
    }
    result = []
    for finding in findings:
        crept = beyond.get((finding.case, finding.quantity))
        if crept is None or finding.verdict in FAILING or crept.run == finding.run:
            result.append(finding)
            beyond.pop((finding.case, finding.quantity), None)
    before = {(finding.case, finding.quantity): finding for finding in findings}
    for key, one in beyond.items():
        age = ages.get(one.run or "")
        ago = f", {plural(age, 'run')} ago" if age else ""
        since = f"; {before[key].verdict} since {before[key].run}" if key in before and before[key].run else ""
        gone = one.verdict == "missing"
        reason = f"{one.reason}, and was never accepted" if gone else f"beyond {level}{ago}: {one.reason}{since}"
        result.append(one.model_copy(update={"reason": reason}))
    return result


def _unreadable(place: Path, why: str) -> Finding:
    """That nobody knows whether HEAD is worse than a run of its history."""
    return Finding(
        case=f"shared {place.name}",
        label="everything",
        problem="a run of the history",
        quantity="shared_history",
        verdict="uncovered",
        reason=f"{why}; mend or remove it",
        blind=True,
    )


def _accepted(
    findings: Iterable[Finding],
    levels: Mapping[tuple[str, str], Finding],
    sides: Iterable[Mapping[str, CaseResults]],
    accepted: Accepted,
    environment: Environment | None,
) -> Iterator[Finding]:
    """The findings, with what was accepted as such; a relative limit is one of the accepted level.

    What is tested on rounds is held to a relative limit by the change that was judged, from which what all share
    is taken out; to an absolute one, as everything else, by its value. A metric that is measured no more has no
    value that could be within a limit: it is a matter of coverage. What all share is of no case, and accepted for
    all or not at all.

    Args:
        levels: of each case and quantity the finding against the level that its limit is of.
        environment: what acknowledges HEAD's; its limit is one of ratios to the baseline operator.
    """
    cases = {id_: results for side in sides for id_, results in side.items()}
    for finding in findings:
        results = cases.get(finding.case)
        named = "coverage" if finding.verdict == "missing" else finding.quantity
        case, label = (results.case, results.label) if results else (None, "")
        fitting: list[Grant] = [one.change for one in accepted.changes if one.fits(case, label, named)]
        if environment is not None and environment.up_to is not None and named.startswith("ratio_"):
            fitting = fitting or [environment]
        slower = finding.verdict in FAILING or (finding.verdict == "shifted" and finding.blind)
        if not slower or not fitting:
            yield finding
            continue
        last = fitting[-1]
        against = levels.get((finding.case, finding.quantity), finding)
        head, level = finding.head, against.base
        if finding.is_shared and finding.ratio:  # a baseline operator that got slower makes ratios smaller
            head, level = max(finding.ratio, 1 / finding.ratio), 1.0
        elif finding.is_tested and last.up_to is not None and last.up_to.relative:
            head, level = against.ratio, 1.0
        if accepted.is_over(last.until):
            why = f"accepted only until {last.until}"
        elif not last.covers(head, level):
            why = "beyond what was accepted"
        else:
            said = f"accepted: {last.reason}; {finding.reason}"
            yield finding.model_copy(update={"verdict": "accepted", "reason": said, "blind": False})
            continue
        yield finding.model_copy(update={"reason": f"{why} ({last.reason}); {finding.reason}"})


def _compared_run(run: Run) -> ComparedRun:
    manifest = run.manifest
    return ComparedRun(
        name=run.name,
        suite=manifest.suite.name,
        commit=manifest.commit,
        dirty=manifest.dirty,
        started=manifest.started,
        fingerprint=manifest.fingerprint.hash,
        rounds=_rounds(run),
    )


def _rounds(run: Run) -> int:
    return len({record.round for record in run.records})


_KIND = "kind of device"


def _differences(base: Manifest, head: Manifest) -> tuple[Difference, ...]:
    kinds: tuple[dict[str, Fact], dict[str, Fact]] = {_KIND: kind_of_device(base)}, {_KIND: kind_of_device(head)}
    tiers: list[tuple[Literal["must", "should"], dict[str, Fact], dict[str, Fact]]] = [
        ("must", base.fingerprint.must | kinds[0], head.fingerprint.must | kinds[1]),
        ("should", base.fingerprint.should, head.fingerprint.should),
    ]
    return tuple(
        Difference(tier=tier, field=name, base=one, head=two)
        for tier, first, second in tiers
        for name, (one, two) in differences(first, second).items()
    )


def _refuse_unlike(base: Run, head: Run, unlike: Sequence[Difference], across: bool, paired: bool) -> None:
    fatal = [d for d in unlike if d.tier == "must" and not across and (not paired or d.field == _KIND)]
    if fatal:
        fields = "\n".join(f"  {d.field}: {d.base} in {base.name}, {d.head} in {head.name}" for d in fatal)
        raise FingerprintsDiffer(
            f"the runs come from unlike machines or settings, so their latencies cannot be compared:\n{fields}\n"
            "  --across-machines judges what can be: FLOPs, parameters, memory and ratios within each run"
        )


def _method(across: bool, pairing: Pairing | None, of_fleet: bool) -> str:
    unit = "ratios to the baseline operator" if across else "latencies"
    of = "the medians of devices" if of_fleet else "round medians"
    test = "t test on paired log differences in ABBA order" if pairing else f"Welch's test on logs of {of}"
    return f"{unit}: {test}, less what controls share, Holm across the suite"


def _notes(
    sides: Iterable[Mapping[str, CaseResults]],
    old: EarlierCases,
    new: RunCases,
    base: Run,
    rules: Rules,
    paired: bool,
) -> Iterator[str]:
    head = new.run
    fewest = fewest_rounds(rules.alpha, paired=paired)
    judged = [
        metric for metric in REGISTRY.values() if metric.gate in ("exact", "tolerance") or metric in rules.tested
    ]
    serving = {
        id_: {m.key: old.serving(id_, m).run.run for m in judged if id_ in new and new[id_].values(m).values}
        for id_ in old
    }
    tested = {metric.key for metric in rules.tested}
    fewest_served = [_rounds(run) for runs in serving.values() for key, run in runs.items() if key in tested]
    rounds = min(fewest_served, default=_rounds(base)), _rounds(head)
    if _same_run(base.manifest, head.manifest):
        yield "BASE and HEAD are the same run: nothing but that can be seen"
    served = Counter(
        name
        for id_, runs in serving.items()
        for name in {run.name for run in runs.values()} or {old[id_].run.run.name}
    )
    if set(served) != {base.name}:
        yield "BASE is chosen case by case: " + ", ".join(f"{n} of {name}" for name, n in served.most_common(6))
    if narrowed := head.manifest.suite.narrowed:
        others = len([id_ for id_ in old if id_ not in new])
        yield f"HEAD was narrowed by {narrowed}: {plural(others, 'case')} of BASE is not judged"
    if min(rounds) < fewest:
        few = f"{rounds[0]} pairs" if paired else f"{rounds[0]} and {rounds[1]} rounds"
        yield (
            f"{few} are too few to judge a latency at alpha {rules.alpha:g}: at least {fewest} "
            f"{'pairs' if paired else 'a side'} are needed; FLOPs, parameters, memory and coverage were judged"
        )
    if base.manifest.suite.source_hash != head.manifest.suite.source_hash:
        yield f"the suite '{head.manifest.suite.name}' was edited between the runs; cases are matched by content"
    for role, run in (("BASE", base), ("HEAD", head)):
        if run.manifest.finished is None:
            yield f"{role} ({run.name}) is unfinished"
        if run.torn:
            yield f"{role} ({run.name}) ends in a torn line of {run.torn} bytes, which is left out"
        yield from (f"{role} ({run.name}): {sentence}" for sentence in fleet(run).sentences())
        if run.manifest.dirty:
            yield f"{role} ({run.name}) was measured on uncommitted changes"
    for role, side, run in (("BASE", old, base), ("HEAD", new, head)):
        beside = background_load(record for results in side.values() for record in results.records.values())
        if beside is not None:
            yield f"{role} ({run.name}): {beside}" + ("" if paired else "; ab measures both sides in turn")
    everything = [(results.case, results.label) for side in sides for results in side.values()]
    for where in rules.unused(everything):
        yield f"{where} fits no case of either run"
