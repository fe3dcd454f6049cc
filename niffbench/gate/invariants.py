"""Invariants of a case, which every round should find alike: coverage, FLOPs, parameters, memory."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from statistics import fmean

from niffbench.gate.findings import Finding, Verdict
from niffbench.gate.rules import Rules
from niffbench.gate.sides import BYTES, EXACT, Known, Side
from niffbench.results import in_words


def judge(id_: str, base: Side, head: Side, rules: Rules, *, memory: bool) -> Iterator[Finding]:
    """The findings on one case. ``memory``: whether bytes of both sides mean the same (one kind of device)."""
    yield _coverage(id_, base, head)
    one, two = base.get(id_), head.get(id_)
    if one is None or two is None or not one.ok or not two.ok:
        return
    for name, read in EXACT.items():
        if one.chosen != two.chosen and name.startswith("flops"):
            yield two.finding(name, "incomparable", f"BASE chose {_choices(one)}, HEAD {_choices(two)}")
            continue
        yield from _interval(two, name, one.values(read), two.values(read), 0.0)
    for name, read in BYTES.items():
        values = one.values(read), two.values(read)
        if memory:
            yield from _interval(two, name, *values, rules.memory_tolerance_of(two.case, two.label, name))
        elif any(values):
            yield two.finding(name, "incomparable", "memory of unlike kinds of device")


def _choices(known: Known) -> str:
    return " or ".join(sorted(in_words(chosen) or "nothing that is known" for chosen in known.chosen))


def _coverage(id_: str, base: Side, head: Side) -> Finding:
    if id_ not in head:
        one, gone = base[id_], head.absence(id_)
        if one.ok:
            return one.finding("coverage", "missing", f"measured in BASE, in HEAD it {gone}")
        return one.finding("coverage", "incomparable", f"BASE: {one.failure()}; in HEAD it {gone}")
    two = head[id_]
    if id_ not in base:
        return two.finding("coverage", "new", "only in HEAD" + (f": {two.failure()}" if two.failures else ""))
    return _reliability(base[id_], two)


def _reliability(one: Known, two: Known) -> Finding:
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
    known: Known, quantity: str, base: Sequence[int], head: Sequence[int], tolerance: float
) -> Iterator[Finding]:
    """Judge by the least and the largest ratio any two rounds give; nothing where neither side has a value."""
    if not base and not head:
        return
    if not base or not head:
        verdict: Verdict = "missing" if base else "new"
        yield known.finding(quantity, verdict, f"known only in {'BASE' if base else 'HEAD'}")
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
    yield known.finding(
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
    )


def _ratio(head: float, base: float) -> float:
    if base == head:
        return 1.0
    return head / base if base else float("inf")
