"""Noise: what a machine's rounds of the same code say about the changes it can show."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import isnan, nan

from niffbench.errors import HeadFails, UsageError, did_you_mean, plural
from niffbench.gate.ab import base_first
from niffbench.gate.case_results import CaseResults, RoundValues, RunCases
from niffbench.gate.rules import Rules
from niffbench.results import REGISTRY, Run
from niffbench.results.clock import coarse, relative_step
from niffbench.results.fleet import of_one_machine
from niffbench.stats.decision import Decision, decide, fewest_rounds
from niffbench.stats.fleet import replicates
from niffbench.stats.power import Fitness, Noise, fitness, noise, paired_noise
from niffbench.suite import Selection

FEWEST_PAIRS = 3
"""Pairs from which the noise of their differences can be estimated, the order taken out."""


@dataclass(frozen=True)
class Aim:
    """What a gate is wanted to show: a slowdown of ``effect`` with probability ``power``, by ``rounds`` a side."""

    effect: float = 0.05
    power: float = 0.9
    rounds: int = 8


@dataclass(frozen=True)
class Noisy:
    """One latency of one case: its round medians in seconds, by round (NaN: none), and their noise.

    ``paired`` is the noise of the differences of neighbours in time, None for too few rounds. Of a fleet the
    medians are the devices' and the noise is that between them; these are no neighbours.
    """

    results: CaseResults
    quantity: str
    medians: tuple[float, ...]
    rounds: Noise
    paired: Noise | None
    of_devices: bool = False


@dataclass(frozen=True)
class Assessment:
    """What rounds of the same code say.

    ``check`` and ``ab``: whether either gate is fit for the aim on this machine; ``ab`` None for too few rounds.

    Attributes:
        alarms: neighbouring rounds judged as an A/B run of the same code with itself, one decision per
            latency; empty for too few pairs. Whatever of them is not equivalent or inconclusive is a false
            alarm.
    """

    run: Run
    aim: Aim
    rules: Rules
    cases: tuple[Noisy, ...]
    check: Fitness
    ab: Fitness | None
    alarms: tuple[Decision, ...]

    @property
    def false_alarms(self) -> int:
        """How many latencies were called changed although nothing was."""
        return sum(decision.verdict in ("regressed", "improved") for decision in self.alarms)

    @property
    def fit(self) -> bool:
        """Whether either gate can be relied on here."""
        return "fit" in (self.check.verdict, self.ab.verdict if self.ab else "")


def assess(run: Run, rules: Rules, aim: Aim, only: Sequence[str] = ()) -> Assessment:
    """Estimate the noise of every latency of a run, and what it lets a gate see.

    Raises:
        UsageError: when ``only`` fits nothing.
        HeadFails: when no case was measured in two rounds.
        FingerprintsDiffer: when its nodes are unlike.
    """
    run_cases = RunCases(of_one_machine(run), Selection(only))
    if only and not run_cases:
        labels = {record.traits.label for record in run.records}
        raise UsageError(f"--only {' '.join(only)} fits no case of {run.name}{did_you_mean(only[0], labels)}")
    cases = tuple(
        noisy
        for results in run_cases.values()
        for metric in rules.tested
        if (noisy := _noisy(results, metric.key, results.values(metric), run.manifest.rounds)) is not None
    )
    if not cases:
        left_out = [
            why
            for results in run_cases.values()
            for metric in rules.tested
            for why in results.values(metric).left_out
        ]
        beside = f" ({plural(len(left_out), 'round')} left out, as {left_out[0]})" if left_out else ""
        raise HeadFails(f"{run.name}: no case was measured in two rounds, so its noise is unknown{beside}")
    limits = {"effect": aim.effect, "alpha": rules.alpha, "power": aim.power, "min_effect": rules.min_effect}
    check = fitness([case.rounds for case in cases], aim.rounds, **limits)
    paired = [case.paired for case in cases if case.paired is not None]
    ab = fitness(paired, aim.rounds, **limits) if len(paired) == len(cases) else None
    return Assessment(run, aim, rules, cases, check, ab, _alarms(cases, rules))


def _noisy(results: CaseResults, quantity: str, measured: RoundValues, rounds: int) -> Noisy | None:
    """Of a fleet, the noise between its devices: their rounds are no neighbours in time."""
    [medians] = replicates([measured.values], [measured.members])
    if len(medians) < 2:
        return None
    if len(set(measured.members.values())) > 1:
        of_devices = tuple(medians.values())
        return Noisy(results, quantity, of_devices, noise([of_devices]), None, of_devices=True)
    values = tuple(medians.get(number, nan) for number in range(rounds))
    base, head, first = _pairs(values)
    whole = [i for i in range(len(first)) if not (isnan(base[i]) or isnan(head[i]))]
    paired = None
    if len(whole) >= FEWEST_PAIRS and len({first[i] for i in whole}) == 2:
        paired = paired_noise(base, head, first)
    return Noisy(results, quantity, values, noise([values]), paired)


def _pairs(values: Sequence[float]) -> tuple[list[float], list[float], list[bool]]:
    """Rounds 0, 1, 2, 3 … read as base, head, head, base …: an A/B run of the same code with itself."""
    count = len(values) // 2
    order = [base_first(pair) for pair in range(count)]
    base = [values[2 * pair + (not order[pair])] for pair in range(count)]
    head = [values[2 * pair + order[pair]] for pair in range(count)]
    return base, head, order


def _alarms(cases: Sequence[Noisy], rules: Rules) -> tuple[Decision, ...]:
    if any(case.of_devices for case in cases):
        return ()
    sides = [_pairs(case.medians) for case in cases]
    order = sides[0][2]
    if len(order) < fewest_rounds(rules.alpha, paired=True):
        return ()
    return decide(
        [base for base, _, _ in sides],
        [head for _, head, _ in sides],
        paired=True,
        base_first=order,
        alpha=rules.alpha,
        min_effect=rules.min_effect,
        steps=[relative_step(coarse(case.results.ok, REGISTRY[case.quantity])) for case in cases],
    )
