"""Findings: one verdict per case and quantity, and what they add up to."""

from __future__ import annotations

import json
from collections import Counter
from math import isfinite
from typing import Any, Literal, get_args

from pydantic import BaseModel, ConfigDict

from niffbench.errors import plural
from niffbench.fingerprint import Fact
from niffbench.results import REGISTRY
from niffbench.stats.power import half_and_most
from niffbench.units import percents

SCHEMA = 3

Verdict = Literal[
    "regressed",
    "missing",
    "shifted",
    "uncovered",
    "inconclusive",
    "incomparable",
    "accepted",
    "improved",
    "new",
    "equivalent",
]
VERDICTS: tuple[Verdict, ...] = get_args(Verdict)
"""Every verdict, the most pressing first."""

FAILING: frozenset[Verdict] = frozenset({"regressed", "missing"})
"""Verdicts that fail a gate. Improvements never do."""


class _Model(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, ser_json_inf_nan="null")


class Finding(_Model):
    """The verdict on one quantity of one case.

    ``base`` and ``head`` are in the quantity's unit, as measured (latency: seconds, the geometric mean of the
    round medians). ``ratio`` is the change that was judged, with the ends of its interval, all None where there is
    none: head/base, of a latency less what the controls of the suite share, if it has enough of them.

    Attributes:
        p_adjusted: Holm's (latency only), ``min_effect`` the relative change below which nothing is called.
            ``blind`` marks a verdict that leaves open whether the case got slower by as much as the rules want
            ruled out.
        run: the one that served as BASE.
        could_show: the smallest slowdown that the rounds would have shown with probability
            :data:`niffbench.stats.power.POWER`; None where there is none, and of what is no latency.
    """

    case: str
    label: str
    problem: str
    quantity: str
    verdict: Verdict
    reason: str
    base: float | None = None
    head: float | None = None
    ratio: float | None = None
    low: float | None = None
    high: float | None = None
    p_adjusted: float | None = None
    min_effect: float | None = None
    rounds: tuple[int, int] | None = None
    blind: bool = False
    run: str | None = None
    could_show: float | None = None

    @property
    def is_shared(self) -> bool:
        """Whether it is of no case, but of what all cases share."""
        return self.quantity.startswith("shared_")

    @property
    def is_tested(self) -> bool:
        """Whether it is of a quantity that is judged by a test on rounds."""
        metric = REGISTRY.get(self.quantity)
        return metric.gate == "test" if metric else self.quantity.startswith("ratio_")

    @property
    def pressing(self) -> bool:
        """Whether this finding keeps a gate from passing."""
        return self.verdict in FAILING or self.blind


class Step(_Model):
    """A change of level in a history: it came after commit ``since`` and with ``commit`` at the latest.

    Attributes:
        ratio: the new level over the old one, with the ends of its interval; ``started`` is when the first run
            at the new level began.
        open: it was for the worse, and the newest level is still beyond the one before it; what all share is no
            longer open once it is accepted.
        machine_known: False for a latency where it is not known how fast the machine was at either run: the step
            may be the machine's.
    """

    case: str
    label: str
    problem: str
    quantity: str
    started: str
    since: str | None
    commit: str | None
    ratio: float | None
    low: float | None
    high: float | None
    open: bool = False
    machine_known: bool = True


class ComparedRun(_Model):
    """One side of a comparison, as much of it as may be published."""

    name: str
    suite: str
    commit: str | None
    dirty: bool | None
    started: str
    fingerprint: str
    rounds: int


class Difference(_Model):
    """A field of the fingerprint on which both sides disagree; ``tier`` is ``must`` or ``should``."""

    tier: Literal["must", "should"]
    field: str
    base: Fact
    head: Fact


class Comparison(_Model):
    """Two sides, the rules they were judged by, and every finding, the most pressing first.

    ``method`` names how latencies were compared.

    Attributes:
        notes: sentences for the reader, ``steps`` what the history shows, if there is one; they decide nothing
            unless ``fail_on_step``.
        environment: what became of a HEAD whose machine, libraries and settings are not those that its history
            began with, or None; once acknowledged it is of note for the first run there only.
    """

    schema_version: int = SCHEMA
    base: ComparedRun
    head: ComparedRun
    method: str
    alpha: float
    rule_out: float
    differences: tuple[Difference, ...] = ()
    notes: tuple[str, ...] = ()
    findings: tuple[Finding, ...]
    steps: tuple[Step, ...] = ()
    fail_on_step: bool = False
    environment: Literal["open", "failing", "acknowledged"] | None = None

    @property
    def counts(self) -> dict[Verdict, int]:
        """How many findings there are of each verdict; those with none are left out."""
        seen = Counter(finding.verdict for finding in self.findings)
        return {verdict: seen[verdict] for verdict in VERDICTS if seen[verdict]}

    @property
    def failing(self) -> tuple[Finding, ...]:
        """The findings that fail a gate."""
        return tuple(finding for finding in self.findings if finding.verdict in FAILING)

    @property
    def blind(self) -> tuple[Finding, ...]:
        """The findings that leave open whether the case got slower by ``rule_out``."""
        return tuple(finding for finding in self.findings if finding.blind)

    @property
    def open_steps(self) -> tuple[Step, ...]:
        """The steps that fail a gate."""
        return tuple(step for step in self.steps if step.open) if self.fail_on_step else ()

    @property
    def could_show(self) -> tuple[float, float] | None:
        """The smallest slowdowns shown in half, and in nine of ten, of the latencies; None without any."""
        return half_and_most(
            [f.could_show for f in self.findings if f.quantity.startswith(("latency_", "ratio_")) and f.rounds]
        )

    @property
    def exit_code(self) -> int:
        """1 when something regressed or vanished; else 5 when a slowdown could have gone unseen; else 0.

        The number of findings never becomes the exit code, and improvements never fail.
        """
        if self.failing or self.open_steps or self.environment == "failing":
            return 1
        uncovered = any(finding.verdict == "uncovered" for finding in self.findings)
        unseen = bool(self.blind) and self.environment != "acknowledged"
        return 5 if unseen or uncovered or self.environment == "open" else 0

    @property
    def headline(self) -> str:
        """The outcome in one sentence."""
        parts = []
        if self.failing:
            own = [finding for finding in self.failing if not finding.is_shared]
            cases = len({finding.case for finding in own})
            if own:
                parts.append(f"{plural(len(own), 'regression')} in {cases} of {plural(self._cases(), 'case')}")
            if shared := [finding for finding in self.failing if finding.is_shared]:
                worst = max(shared, key=lambda finding: finding.ratio or 0.0)
                parts.append(f"a regression of all: {worst.reason.partition(';')[0]}")
        if self.open_steps:
            parts.append(f"{plural(len(self.open_steps), 'step')} of the history still stands")
        if self.environment is not None:
            fields = ", ".join(d.field for d in self.differences if d.tier == "must")
            what = {
                "acknowledged": "a change that was acknowledged",
                "failing": "it fails until it is acknowledged",
                "open": "a new baseline" if fields else "not acknowledged yet",
            }[self.environment]
            parts.append(f"another environment than before{f' ({fields[:200]})' if fields else ''}: {what}")
        uncovered = {(one.case, one.is_shared) for one in self.findings if one.verdict == "uncovered"}
        if cases := sum(not shared for _, shared in uncovered):
            parts.append(f"{plural(cases, 'case')} of the suite had nothing to be compared with")
        if unreadable := len(uncovered) - cases:
            parts.append(f"{plural(unreadable, 'run')} of the history cannot be read")
        shifted = [finding for finding in self.findings if finding.verdict == "shifted"]
        if shifted:
            worst = max(shifted, key=lambda finding: finding.blind)
            parts.append(f"{worst.reason.partition(';')[0]}")
        blind = [finding for finding in self.blind if finding.verdict not in ("uncovered", "shifted")]
        if blind and not self.failing:
            parts.append(
                f"{len(blind)} of {self._measured():,} latencies could hide "
                f"a slowdown of {percents(self.rule_out)}: too few rounds or too much noise"
            )
        if self.failing or self.open_steps or self.environment == "failing":
            return "; ".join(parts)
        if parts:
            return "no regression shown, but " + "; ".join(parts)
        return f"no regression in {plural(self._cases(), 'case')}"

    def for_machines(self) -> dict[str, Any]:
        """Everything, as plain data, the outcome first."""
        shown = self.could_show and [effect if isfinite(effect) else None for effect in self.could_show]
        outcome = {
            "exit_code": self.exit_code,
            "headline": self.headline,
            "counts": self.counts,
            "could_show": shown,
        }
        return {"schema_version": self.schema_version, **outcome, **json.loads(self.model_dump_json())}

    def _cases(self) -> int:
        return len({finding.case for finding in self.findings if not finding.is_shared})

    def _measured(self) -> int:
        others = {"coverage", *(key for key, metric in REGISTRY.items() if metric.gate in ("exact", "tolerance"))}
        return sum(finding.quantity not in others and not finding.is_shared for finding in self.findings)
