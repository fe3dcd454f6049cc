"""Latencies: all of a suite's at once, because the chance of a false alarm is that of the suite."""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Iterable, Iterator, Sequence
from dataclasses import dataclass
from math import exp, isnan, log, nan
from statistics import fmean, median

import numpy as np

from niffbench.gate.case_results import CaseResults, EarlierCases, RoundValues, RunCases, ratio_name, shared_name
from niffbench.gate.findings import Finding, Verdict
from niffbench.gate.rules import Rules
from niffbench.results import Member, Metric, is_control
from niffbench.results.clock import Timed, coarse, relative_step
from niffbench.stats.decision import Decision, decide, shared_shift
from niffbench.stats.fleet import replicates
from niffbench.stats.power import noise, paired_noise, smallest_effect


@dataclass(frozen=True)
class Pairing:
    """How the rounds of both sides belong together: round i of base and of head are neighbours in time.

    Attributes:
        base_first: of each pair, whether base ran first.
    """

    base_first: tuple[bool, ...]


@dataclass(frozen=True)
class _Question:
    """One latency to be judged: its rounds on both sides, the least change that counts, and which run is BASE.

    Attributes:
        step: the clock's, relative to the latency.
    """

    results: CaseResults
    quantity: str
    base: RoundValues
    head: RoundValues
    min_effect: float
    step: float
    run: str
    baseline: str | None


def judge(base: EarlierCases, head: RunCases, rules: Rules, pairing: Pairing | None = None) -> list[Finding]:
    """The findings on every latency of the cases both sides measured.

    With ``base.ratios`` each latency is divided by that of the baseline operator in the same round of the same
    run, which is what two machines may have in common. What the controls share in a round is taken out, and is a
    finding of its own where it changed. The decision is :func:`niffbench.stats.decision.decide`'s, over the suite.
    """
    baseline = head.run.manifest.suite.baseline if base.ratios else None
    findings: list[Finding] = []
    questions: list[_Question] = []
    for id_, results in head.items():
        if id_ not in base or not base[id_].ok or not results.ok:
            continue
        for metric in rules.tested:
            quantity = ratio_name(metric) if base.ratios else metric.key
            earlier = base.serving(id_, metric)
            measured = [base.judged(one, metric) for one in (earlier, results)]
            run = earlier.run.run.name
            if measured.count(None) == 1 and all(one.values(metric).attempted for one in (earlier, results)):
                side = "BASE" if measured[0] is None else "HEAD"
                reason = f"{side} has no record of the baseline operator beside it"
                findings.append(results.finding(quantity, "incomparable", reason, run=run, blind=True))
                continue
            one, two = (values if values and values.attempted else None for values in measured)
            if one and two:
                effect = rules.min_effect_of(results.case, results.label, quantity)
                step = _step((earlier, results), metric, ratios=base.ratios)
                questions.append(_Question(results, quantity, one, two, effect, step, run, baseline))
            elif one:
                findings.append(results.finding(quantity, "missing", "measured only in BASE", run=run))
            elif two:
                findings.append(results.finding(quantity, "new", "measured only in HEAD", run=run))
    return [*findings, *_decided(questions, rules, pairing)]


def _step(sides: Sequence[CaseResults], metric: Metric, *, ratios: bool) -> float:
    """The step of the clock, relative to the values, as samples of series tell for which it is too coarse.

    Medians do not tell, once what controls share is taken out of them. Elsewhere it is of no account.
    """
    clocks: dict[str, list[Timed]] = {}
    for side in sides:
        clocks.setdefault(side.run.run.manifest.fingerprint.hash, []).extend(coarse(side.ok, metric))
    step = relative_step(*clocks.values())
    if ratios:  # what they are to was timed, too
        baselines = [one for side in sides if (one := side.run.baseline_of(side.case)) is not None]
        step += _step(baselines, metric, ratios=False)
    return step


def _decided(questions: Sequence[_Question], rules: Rules, pairing: Pairing | None) -> Iterator[Finding]:
    if not questions:
        return
    values: list[Sides] = [(dict(question.base.values), dict(question.head.values)) for question in questions]
    shifts = _take_out_shared(questions, values)
    measured = [*values, *(shift.sides for shift in shifts)]
    of_fleet = [pairing is None and _is_fleet(question) for question in questions] + [False] * len(shifts)
    sides = [
        _by_member(one, questions[number]) if of_fleet[number] else _rounds(one, pairing)
        for number, one in enumerate(measured)
    ]
    decisions = decide(
        [base for base, _ in sides],
        [head for _, head in sides],
        paired=pairing is not None,
        base_first=pairing.base_first if pairing else None,
        alpha=rules.alpha,
        min_effect=[question.min_effect for question in questions] + [rules.min_effect] * len(shifts),
        confidence=1 - 2 * rules.alpha,  # the interval that lies inside the margin when a case is equivalent
        steps=[question.step for question in questions] + [shift.step for shift in shifts],
        unit=["devices" if fleet else "pairs" if pairing else "rounds" for fleet in of_fleet],
    )
    for number, question in enumerate(questions):
        could_show = _could_show(*sides[number], rules, pairing, question.min_effect, len(decisions))
        yield _finding(question, values[number], decisions[number], *sides[number], rules, could_show)
    for shift, decision in zip(shifts, decisions[len(questions) :], strict=True):
        if decision.verdict in ("regressed", "improved"):
            yield shift.finding(decision, rules, paired=pairing is not None)


def _could_show(
    base: Sequence[float], head: Sequence[float], rules: Rules, pairing: Pairing | None, least: float, cases: int
) -> float | None:
    """The smallest slowdown that these rounds would have shown."""
    try:
        noisy = noise((base, head)) if pairing is None else paired_noise(base, head, pairing.base_first)
    except ValueError:  # too few
        return None
    rounds = min(sum(not isnan(value) for value in side) for side in (base, head))
    paired = pairing is not None
    return smallest_effect(noisy.sd, rounds, alpha=rules.alpha, cases=cases, min_effect=least, paired=paired)


Sides = tuple[dict[int, float], dict[int, float]]
"""Values by round, of BASE and of HEAD."""

FEWEST_CONTROLS = 3


@dataclass(frozen=True)
class _Shift:
    """What the controls share in each round of one quantity, and of which BASE."""

    quantity: str
    run: str
    sides: Sides
    controls: int
    step: float
    baseline: str | None

    def finding(self, decision: Decision, rules: Rules, *, paired: bool) -> Finding:
        """A verdict of its own, whatever the cases' are.

        In an A/B run both sides had the same machine, so that what slows everything is HEAD's. Of two runs it may
        be the machine, torch or HEAD; who wants to know measures them in turn.
        """
        ratio = decision.ratio
        size = "" if ratio.estimate is None else f" by {100 * (ratio.estimate - 1):+.1f} %"
        whose = "HEAD's code or environment" if paired else "the machine or torch"
        reason = f"{self.controls} controls, torch's own convolutions, changed together{size}: {whose}"
        if self.baseline is not None:
            size = "" if ratio.estimate is None else f" by {100 * (1 / ratio.estimate - 1):+.1f} %"
            reason = f"the baseline operator {self.baseline} changed{size} against {self.controls} other controls"
        verdict: Verdict = decision.verdict if paired else "shifted"
        slower = ratio.estimate is not None and (ratio.estimate > 1) == (self.baseline is None)
        return Finding(
            case=f"shared {self.run}",
            label="everything",
            problem=f"{self.controls} controls",
            quantity=self.quantity,
            verdict=verdict,
            reason=f"{reason}; it is taken out of what each case is judged by",
            ratio=ratio.estimate,
            low=ratio.low,
            high=ratio.high,
            p_adjusted=decision.p_adjusted,
            min_effect=rules.min_effect,
            blind=verdict == "shifted" and slower,
            run=self.run,
        )


def _take_out_shared(questions: Sequence[_Question], values: list[Sides]) -> list[_Shift]:
    """Divide every value by what the controls share in its round; returns that.

    A control is divided by what the others share, if these are FEWEST_CONTROLS: of two, one that changes would
    change the third. Values of a round of which so many do not tell are left out, though none remain: how fast
    the machine was is not known there, and a slowdown may be its own. Where fewer have any value, on either side,
    values stay as they are, as in a suite without controls.
    """
    shifts = []
    groups: dict[tuple[str, str], list[int]] = {}
    for number, question in enumerate(questions):
        groups.setdefault((question.quantity, question.run), []).append(number)
    for (quantity, run), members in groups.items():
        if _is_scattered([questions[n] for n in members]):
            continue
        measured = [n for n in members if is_control(questions[n].results.any.traits) and any(values[n])]
        if len(measured) < FEWEST_CONTROLS:
            continue
        controls = _telling(measured, values)
        if not controls:
            for n in members:
                values[n] = ({}, {})
            continue
        shared = _shared(controls, values)
        corrected = {}
        for n in members:
            others = _telling([other for other in controls if other != n], values) if n in controls else []
            mine = _shared(others, values) if others else shared
            corrected[n] = tuple(
                {r: v / mine[s][r] for r, v in values[n][s].items() if r in mine[s]} for s in (0, 1)
            )
        for n, (base, head) in corrected.items():
            values[n] = (base, head)
        baseline = questions[members[0]].baseline
        step = median(questions[n].step for n in controls)
        shifts.append(_Shift(shared_name(quantity), run, shared, len(controls), step, baseline))
    return shifts


def _told(controls: Sequence[int], values: Sequence[Sides]) -> list[list[int]]:
    """The rounds of either side that FEWEST_CONTROLS of ``controls`` were measured in."""
    counts = [Counter(r for n in controls for r in values[n][side]) for side in (0, 1)]
    return [sorted(r for r, number in count.items() if number >= FEWEST_CONTROLS) for count in counts]


def _telling(controls: Sequence[int], values: Sequence[Sides]) -> list[int]:
    """Those of ``controls`` that tell of rounds of both sides, if there are FEWEST_CONTROLS."""
    rounds = [set(told) for told in _told(controls, values)]
    telling = [n for n in controls if all(rounds[side] & values[n][side].keys() for side in (0, 1))]
    return telling if len(telling) == len(controls) else _telling(telling, values)


def _shared(controls: Sequence[int], values: Sequence[Sides]) -> Sides:
    """What ``controls`` that tell share in each round they tell of."""
    rounds = _told(controls, values)
    base, head = (
        np.log([[values[n][side].get(r, nan) for r in rounds[side]] for n in controls]) for side in (0, 1)
    )
    shifts = shared_shift(base, head)
    one, two = (dict(zip(rounds[s], map(float, np.exp(shifts[s])), strict=True)) for s in (0, 1))
    return one, two


def _is_scattered(questions: Sequence[_Question]) -> bool:
    """Whether a round of either side is of several devices, which then share nothing in it."""
    return any(
        are_scattered((number, values.members.get(number)) for values in side for number in values.values)
        for side in ([question.base for question in questions], [question.head for question in questions])
    )


def are_scattered(measured: Iterable[tuple[int, Member | None]]) -> bool:
    """Whether a round, each given by number with a device that measured in it, is of several devices."""
    owners: dict[int, Member | None] = {}
    return any(owners.setdefault(number, owner) != owner for number, owner in measured)


def _is_fleet(question: _Question) -> bool:
    """Whether several devices measured a side: then these are what is compared, not their rounds."""
    return any(len(set(side.members.values())) > 1 for side in (question.base, question.head))


def _by_member(values: Sides, question: _Question) -> tuple[list[float], list[float]]:
    """Each device's median on either side, one where one device measured a side."""
    members = [
        {number: (side, values_of.members.get(number)) for number in values_of.values}
        for side, values_of in enumerate((question.base, question.head))
    ]
    base, head = (list(one.values()) for one in replicates(values, members))
    return base, head


def _rounds(values: Sides, pairing: Pairing | None) -> tuple[list[float], list[float]]:
    if pairing is None:
        return list(values[0].values()), list(values[1].values())
    pairs = range(len(pairing.base_first))
    return [values[0].get(i, nan) for i in pairs], [values[1].get(i, nan) for i in pairs]


def _finding(
    question: _Question,
    judged: Sides,
    decision: Decision,
    base: Sequence[float],
    head: Sequence[float],
    rules: Rules,
    could_show: float | None,
) -> Finding:
    left_out: list[str] = []
    for name, measured, kept in zip(("BASE", "HEAD"), (question.base, question.head), judged, strict=True):
        unknown = sorted(measured.values.keys() - kept.keys())
        left_out += [f"{name} {text}" for text in measured.left_out]
        left_out += [
            f"{name} round {number} has fewer than three controls that both sides measured" for number in unknown
        ]
    shown = left_out[:3] + ["…"] * (len(left_out) > 3)
    one, two = ([value for value in side if not isnan(value)] for side in (base, head))
    verdict: Verdict = decision.verdict
    if left_out and min(len(one), len(two)) < 2:
        verdict = "incomparable"
    ratio = decision.ratio
    # An untested case rules nothing out, however narrow its few rounds look.
    slowest = ratio.high if decision.p_value is not None and ratio.high is not None else float("inf")
    return question.results.finding(
        question.quantity,
        verdict,
        "; ".join([decision.reason, *shown]),
        base=_centre(question.base.values.values()),
        head=_centre(question.head.values.values()),
        ratio=ratio.estimate,
        low=ratio.low,
        high=ratio.high,
        p_adjusted=decision.p_adjusted,
        min_effect=question.min_effect,
        could_show=could_show,
        rounds=(len(one), len(two)),
        run=question.run,
        blind=verdict in ("inconclusive", "incomparable")
        and slowest >= 1 + max(rules.rule_out, question.min_effect),
    )


def _centre(values: Collection[float]) -> float | None:
    return exp(fmean(map(log, values))) if values else None
