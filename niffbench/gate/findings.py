"""Findings: one verdict per case and quantity, and what they add up to."""

from __future__ import annotations

from collections import Counter
from typing import Literal

from pydantic import BaseModel, ConfigDict

from niffbench.errors import plural
from niffbench.fingerprint import Fact
from niffbench.results import REGISTRY

SCHEMA = 1

Verdict = Literal["regressed", "improved", "equivalent", "inconclusive", "incomparable", "missing", "new"]
VERDICTS: tuple[Verdict, ...] = (
    "regressed",
    "missing",
    "inconclusive",
    "incomparable",
    "improved",
    "new",
    "equivalent",
)
"""Every verdict, the most pressing first."""

FAILING: frozenset[Verdict] = frozenset({"regressed", "missing"})
"""Verdicts that fail a gate. Improvements never do."""


class _Model(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, ser_json_inf_nan="null")


class Finding(_Model):
    """The verdict on one quantity of one case.

    ``base`` and ``head`` are in the quantity's unit (latency: seconds, the geometric mean of the round medians),
    ``ratio`` is head/base with the ends of its interval, all None where there is none. ``p_adjusted`` is Holm's
    (latency only), ``min_effect`` the relative change below which nothing is called. ``blind`` marks a verdict
    that leaves open whether the case got slower by as much as the rules want ruled out.
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

    @property
    def pressing(self) -> bool:
        """Whether this finding keeps a gate from passing."""
        return self.verdict in FAILING or self.blind


class Step(_Model):
    """A change of level in a history: it came after commit ``since`` and with ``commit`` at the latest.

    ``ratio`` is the new level over the old one, with the ends of its interval; ``started`` is when the first run
    at the new level began.
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


class Subject(_Model):
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

    ``method`` names how latencies were compared. ``notes`` are sentences for the reader, ``steps`` what the
    history shows, if there is one; neither decides anything.
    """

    schema_version: int = SCHEMA
    base: Subject
    head: Subject
    method: str
    alpha: float
    rule_out: float
    differences: tuple[Difference, ...] = ()
    notes: tuple[str, ...] = ()
    findings: tuple[Finding, ...]
    steps: tuple[Step, ...] = ()

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
    def exit_code(self) -> int:
        """1 when something regressed or vanished; else 5 when a slowdown could have gone unseen; else 0.

        The number of findings never becomes the exit code, and improvements never fail.
        """
        return 1 if self.failing else 5 if self.blind else 0

    @property
    def headline(self) -> str:
        """The outcome in one sentence."""
        if self.failing:
            cases = len({finding.case for finding in self.failing})
            return f"{plural(len(self.failing), 'regression')} in {cases} of {plural(self._cases(), 'case')}"
        if self.blind:
            return (
                f"no regression shown, but {len(self.blind)} of {self._measured():,} latencies could hide "
                f"a slowdown of {self.rule_out:.0%}: too few rounds or too much noise"
            )
        return f"no regression in {plural(self._cases(), 'case')}"

    def _cases(self) -> int:
        return len({finding.case for finding in self.findings})

    def _measured(self) -> int:
        others = {"coverage", *(key for key, metric in REGISTRY.items() if metric.gate in ("exact", "tolerance"))}
        return sum(finding.quantity not in others for finding in self.findings)
