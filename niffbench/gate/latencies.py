"""Latencies: all of a suite's at once, because the chance of a false alarm is that of the suite."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from math import exp, isnan, log, nan
from statistics import fmean

from niffbench.gate.case_results import CaseResults, EarlierCases, RoundValues, RunCases, ratio_name
from niffbench.gate.findings import Finding, Verdict
from niffbench.gate.rules import Rules
from niffbench.results import Metric
from niffbench.stats.decision import Decision, decide


@dataclass(frozen=True)
class Pairing:
    """How the rounds of both sides belong together: round i of base and of head are neighbours in time.

    ``base_first``: of each pair, whether base ran first.
    """

    base_first: tuple[bool, ...]


@dataclass(frozen=True)
class _Question:
    """One latency to be judged: its rounds on both sides, the least change that counts, and which run is BASE."""

    results: CaseResults
    quantity: str
    base: RoundValues
    head: RoundValues
    min_effect: float
    run: str


def judge(
    base: EarlierCases, head: RunCases, rules: Rules, *, ratios: bool, pairing: Pairing | None
) -> list[Finding]:
    """The findings on every latency of the cases both sides measured.

    ``ratios``: judge each latency divided by that of the baseline operator in the same round of the same run,
    which is what two machines may have in common. Thresholds and rules come from ``rules``; the decision is
    :func:`niffbench.stats.decision.decide`'s, over the whole suite.
    """
    findings: list[Finding] = []
    questions: list[_Question] = []
    for id_, results in head.items():
        if id_ not in base or not base[id_].ok or not results.ok:
            continue
        for metric in rules.tested:
            quantity = ratio_name(metric) if ratios else metric.key
            earlier = base.serving(id_, metric)
            measured = [_within_run(one, metric) if ratios else one.values(metric) for one in (earlier, results)]
            run = earlier.run.run.name
            one, two = (values if values and values.attempted else None for values in measured)
            if one and two:
                effect = rules.min_effect_of(results.case, results.label, quantity)
                questions.append(_Question(results, quantity, one, two, effect, run))
            elif one:
                findings.append(results.finding(quantity, "missing", "measured only in BASE", run=run))
            elif two:
                findings.append(results.finding(quantity, "new", "measured only in HEAD", run=run))
    return [*findings, *_answers(questions, rules, pairing)]


def _within_run(results: CaseResults, metric: Metric) -> RoundValues | None:
    """The latency over that of the baseline operator, round by round; None without one, and for itself."""
    baseline = results.run.baseline_of(results.case)
    if baseline is None or baseline is results:
        return None
    own, other = results.values(metric), baseline.values(metric)
    shared = [number for number in own.values if number in other.values]
    return RoundValues(
        {number: own.values[number] / other.values[number] for number in shared},
        own.left_out + tuple(f"{text} (baseline)" for text in other.left_out),
    )


def _answers(questions: Sequence[_Question], rules: Rules, pairing: Pairing | None) -> Iterator[Finding]:
    if not questions:
        return
    values = [_rounds(question, pairing) for question in questions]
    decisions = decide(
        [base for base, _ in values],
        [head for _, head in values],
        paired=pairing is not None,
        base_first=pairing.base_first if pairing else None,
        alpha=rules.alpha,
        min_effect=[question.min_effect for question in questions],
        confidence=1 - 2 * rules.alpha,  # the interval that lies inside the margin when a case is equivalent
    )
    for question, decision, (base, head) in zip(questions, decisions, values, strict=True):
        yield _finding(question, decision, base, head, rules)


def _rounds(question: _Question, pairing: Pairing | None) -> tuple[list[float], list[float]]:
    if pairing is None:
        return list(question.base.values.values()), list(question.head.values.values())
    pairs = range(len(pairing.base_first))
    return [question.base.values.get(i, nan) for i in pairs], [question.head.values.get(i, nan) for i in pairs]


def _finding(
    question: _Question, decision: Decision, base: Sequence[float], head: Sequence[float], rules: Rules
) -> Finding:
    left_out = [f"BASE {text}" for text in question.base.left_out]
    left_out += [f"HEAD {text}" for text in question.head.left_out]
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
        base=_centre(one),
        head=_centre(two),
        ratio=ratio.estimate,
        low=ratio.low,
        high=ratio.high,
        p_adjusted=decision.p_adjusted,
        min_effect=question.min_effect,
        rounds=(len(one), len(two)),
        run=question.run,
        blind=verdict in ("inconclusive", "incomparable")
        and slowest >= 1 + max(rules.rule_out, question.min_effect),
    )


def _centre(values: Sequence[float]) -> float | None:
    return exp(fmean(map(log, values))) if values else None
