"""Comparison: two runs, quantity by quantity, into findings."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import chain
from typing import Literal

from niffbench.errors import FingerprintsDiffer, NothingMeasured
from niffbench.fingerprint import Fact, differences
from niffbench.gate import invariants, latencies
from niffbench.gate.case_results import RunCases
from niffbench.gate.findings import VERDICTS, Comparison, Difference, Subject
from niffbench.gate.latencies import Pairing
from niffbench.gate.rules import Rules
from niffbench.results import Manifest, Run, background_load
from niffbench.stats.decision import fewest_rounds
from niffbench.suite import Selection


def compare(
    base: Run,
    head: Run,
    rules: Rules,
    *,
    only: Sequence[str] = (),
    across_machines: bool = False,
    pairing: Pairing | None = None,
) -> Comparison:
    """Judge ``head`` against ``base``: one finding per case and quantity.

    Latencies: the unit is the round's median; :func:`niffbench.stats.decision.decide` judges all of them at once.
    ``across_machines``: the fingerprints may differ; then no latency is judged, but each operator's ratio
    to the baseline operator within its own run is. ``pairing``: both runs are one A/B run, judged by paired
    differences; their libraries may differ (that can be what is compared), the device may not.

    Raises NothingMeasured when the suites are not the same or a side measured nothing, and FingerprintsDiffer.
    """
    if base.manifest.suite.name != head.manifest.suite.name:
        raise NothingMeasured(
            f"nothing to compare: {base.name} is a run of suite '{base.manifest.suite.name}', "
            f"{head.name} of '{head.manifest.suite.name}'"
        )
    unlike = _differences(base.manifest, head.manifest)
    _refuse_unlike(base, head, unlike, across_machines, pairing is not None)
    selection = Selection(only)
    sides = RunCases(base, selection), RunCases(head, selection)
    for role, side in zip(("BASE", "HEAD"), sides, strict=True):
        if not side.measured:
            which = f"the cases that --only {' '.join(only)} leaves" if only else "its cases"
            raise NothingMeasured(f"nothing to compare: {role} ({side.run.name}) measured none of {which}")
    same_device = _device(base.manifest) == _device(head.manifest)
    ids = list(dict.fromkeys(chain(sides[1], sides[0])))
    findings = [finding for id_ in ids for finding in invariants.judge(id_, *sides, rules, memory=same_device)]
    findings += latencies.judge(*sides, rules, ratios=across_machines, pairing=pairing)
    return Comparison(
        base=_subject(base),
        head=_subject(head),
        method=_method(across_machines, pairing),
        alpha=rules.alpha,
        rule_out=rules.rule_out,
        differences=unlike,
        notes=tuple(_notes(sides, rules, pairing is not None)),
        findings=tuple(sorted(findings, key=lambda finding: VERDICTS.index(finding.verdict))),
    )


def _subject(run: Run) -> Subject:
    manifest = run.manifest
    return Subject(
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


def _device(manifest: Manifest) -> str:
    return manifest.device.partition(":")[0]


_KIND = "kind of device"


def _differences(base: Manifest, head: Manifest) -> tuple[Difference, ...]:
    kinds: tuple[dict[str, Fact], dict[str, Fact]] = {_KIND: _device(base)}, {_KIND: _device(head)}
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
            "--across-machines judges what can be: FLOPs, parameters, memory and ratios within each run"
        )


def _method(across: bool, pairing: Pairing | None) -> str:
    unit = "ratios to the baseline operator" if across else "latencies"
    if pairing is not None:
        return f"{unit}: t test on paired log differences in ABBA order, Holm across the suite"
    return f"{unit}: Welch's test on logs of round medians, Holm across the suite"


def _notes(sides: tuple[RunCases, RunCases], rules: Rules, paired: bool) -> Iterator[str]:
    base, head = (side.run for side in sides)
    fewest = fewest_rounds(rules.alpha, paired=paired)
    rounds = [_rounds(run) for run in (base, head)]
    if min(rounds) < fewest:
        told = f"{rounds[0]} pairs" if paired else f"{rounds[0]} and {rounds[1]} rounds"
        yield (
            f"{told} are too few to judge a latency at alpha {rules.alpha:g}: at least {fewest} "
            f"{'pairs' if paired else 'a side'} are needed; FLOPs, parameters, memory and coverage were judged"
        )
    if base.manifest.suite.source_hash != head.manifest.suite.source_hash:
        yield f"the suite '{head.manifest.suite.name}' was edited between the runs; cases are matched by content"
    for role, run in (("BASE", base), ("HEAD", head)):
        if run.manifest.finished is None:
            yield f"{role} ({run.name}) is unfinished"
        if run.torn:
            yield f"{role} ({run.name}) ends in a torn line of {run.torn} bytes, which is left out"
        if run.manifest.dirty:
            yield f"{role} ({run.name}) was measured on uncommitted changes"
    for role, side in zip(("BASE", "HEAD"), sides, strict=True):
        beside = background_load(record for results in side.values() for record in results.records.values())
        if beside is not None:
            yield f"{role} ({side.run.name}): {beside}" + ("" if paired else "; ab measures both sides in turn")
    everything = [(results.case, results.label) for side in sides for results in side.values()]
    for where in rules.unused(everything):
        yield f"{where} fits no case of either run"
