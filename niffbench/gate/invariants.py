"""Invariants of a case, which every round should find alike: coverage, FLOPs, parameters, memory."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from statistics import fmean

from niffbench.gate.case_results import CaseResults, EarlierCases, RunCases, kind_of_device
from niffbench.gate.findings import Finding, Verdict
from niffbench.gate.rules import Rules
from niffbench.results import REGISTRY, in_words


def judge(id_: str, base: EarlierCases, head: RunCases, rules: Rules) -> Iterator[Finding]:
    """The findings on one case. Bytes of both sides mean the same only on one kind of device."""
    yield _coverage(id_, base, head)
    one, two = base.get(id_), head.get(id_)
    if one is None or two is None or not one.ok or not two.ok:
        return
    for metric in REGISTRY.values():
        if metric.gate not in ("exact", "tolerance"):
            continue
        one = base.serving(id_, metric)
        base_values, head_values = (tuple(results.values(metric).values.values()) for results in (one, two))
        if metric.family == "flops" and one.chosen != two.chosen:
            yield two.finding(
                metric.key,
                "incomparable",
                f"BASE chose {_choices(one)}, HEAD {_choices(two)}",
                run=one.run.run.name,
            )
        elif metric.family == "memory" and kind_of_device(one.run.run.manifest) != kind_of_device(
            head.run.manifest
        ):
            if base_values or head_values:
                yield two.finding(metric.key, "incomparable", "memory of unlike kinds of device")
        else:
            exact = metric.gate == "exact"
            tolerance = 0.0 if exact else rules.memory_tolerance_of(two.case, two.label, metric.key)
            yield from _interval(two, metric.key, base_values, head_values, tolerance, one.run.run.name)


def _choices(results: CaseResults) -> str:
    return " or ".join(sorted(in_words(chosen) or "nothing that is known" for chosen in results.chosen))


def _coverage(id_: str, base: EarlierCases, head: RunCases) -> Finding:
    if id_ not in head:
        one, gone = base[id_], head.absence(id_)
        run = one.run.run.name
        if one.ok:
            return one.finding("coverage", "missing", f"measured in BASE, in HEAD it {gone}", run=run)
        return one.finding("coverage", "incomparable", f"BASE: {one.failure()}; in HEAD it {gone}", run=run)
    two = head[id_]
    earlier = base.get(id_)
    if earlier is None or (not earlier.ok and all(record.status == "skipped" for record in earlier.failures)):
        if earlier is None and base.lacks(id_):
            return two.finding("coverage", "new", "only in HEAD" + (f": {two.failure()}" if two.failures else ""))
        reason = "no earlier run has a record of it" if earlier is None else f"BASE: {earlier.failure()}"
        if earlier is not None and not two.ok:
            return two.finding("coverage", "incomparable", f"{reason}; HEAD: {two.failure()}")
        return two.finding("coverage", "uncovered", f"nothing to compare it with: {reason}", blind=True)
    return _reliability(earlier, two).model_copy(update={"run": earlier.run.run.name})


def _reliability(one: CaseResults, two: CaseResults) -> Finding:
    """Whether a case fails more or less often. One that fails now and then on both sides shows no change."""
    if not one.failures and not two.failures:
        return two.finding("coverage", "equivalent", "measured in every round of both")
    if not one.failures:
        return two.finding("coverage", "regressed", f"measured in BASE, now {two.failure()}")
    if not two.failures:
        return two.finding("coverage", "improved", f"measured in HEAD, was {one.failure()}")
    reason = f"BASE: {one.failure()}; HEAD: {two.failure()}"
    verdicts: dict[tuple[bool, bool], Verdict] = {
        (True, True): "inconclusive",
        (True, False): "regressed",
        (False, True): "improved",
        (False, False): "incomparable",
    }
    return two.finding("coverage", verdicts[bool(one.ok), bool(two.ok)], reason)


def _interval(
    results: CaseResults, quantity: str, base: Sequence[float], head: Sequence[float], tolerance: float, run: str
) -> Iterator[Finding]:
    """Judge by the least and the largest ratio any two rounds give; nothing where neither side has a value."""
    if not base and not head:
        return
    if not base or not head:
        verdict: Verdict = "missing" if base else "new"
        yield results.finding(quantity, verdict, f"known only in {'BASE' if base else 'HEAD'}", run=run)
        return
    low, high = _ratio(min(head), max(base)), _ratio(max(head), min(base))
    limit = 1 + tolerance
    if low > limit:
        verdict, reason = (
            "regressed",
            f"more by over {tolerance:.3g}" if tolerance else "more; any difference counts",
        )
    elif high < 1 / limit:
        verdict, reason = "improved", f"less by over {tolerance:.3g}" if tolerance else "less"
    elif low >= 1 / limit and high <= limit:
        verdict, reason = "equivalent", f"within ±{tolerance:.3g}" if tolerance else "equal"
    else:
        verdict, reason = "inconclusive", "rounds of one side disagree among themselves"
    one, two = fmean(base), fmean(head)
    yield results.finding(
        quantity,
        verdict,
        reason,
        base=one,
        head=two,
        ratio=_ratio(two, one),
        low=low,
        high=high,
        min_effect=tolerance,
        rounds=(len(base), len(head)),
        run=run,
    )


def _ratio(head: float, base: float) -> float:
    if base == head:
        return 1.0
    return head / base if base else float("inf")
