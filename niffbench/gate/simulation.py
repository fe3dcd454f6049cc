"""Simulation: how often does a rule cry wolf over unchanged code, and how often does it see a slowdown?

Rules judge synthetic samples whose truth is known: ours (:mod:`niffbench.stats.decision`, the very functions
that judge real runs) and, beside it, the rules that other tools ship. What is simulated of those is their
decision on the samples they take by default, not their whole measuring: see each rule.

The log of a sample is the sum of its process's level, with the standard deviation ``run_sd`` (half of the
variance shared by all cases of the process, half a case's own), of the machine's drift over the processes in
the order they run, and of noise within the process, by the scenario (standard deviation 0.5 %).

A false alarm is any case called changed, in either direction, when nothing changed; power is the share of
suites in which one case, slowed down among unchanged ones, is called slower.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Literal

import numpy as np
from numpy.typing import NDArray
from scipy.signal import lfilter
from scipy.special import ndtr, stdtr
from scipy.stats import mannwhitneyu

from niffbench.stats.contrasts import BoolArray, FloatArray, contrast, in_order
from niffbench.stats.decision import ALPHA, MIN_EFFECT, judge, shared_shift

Order = Literal["base then head", "ABBA"]
Logs = NDArray[np.float32]  # six digits are plenty for percents, and half the memory
Calls = tuple[BoolArray, BoolArray]  # slower, faster: both of shape (suites, cases)

CASES = 60
"""Cases of a simulated suite."""
CONTROLS = 20
"""Of these, the last so many, torch's own convolutions."""
RUN_SDS = (0.0, 0.0025, 0.005, 0.01, 0.02, 0.05, 0.1, 0.15)
"""Standard deviations between processes, of the logs."""
EFFECTS = (0.03, 0.05, 0.1, 0.15)
"""Slowdowns whose detection is simulated."""

_WITHIN = 0.005
_CHUNK = 4_000_000  # samples drawn at a time


@dataclass(frozen=True)
class Scenario:
    """How samples are made; what is zero plays no part.

    Attributes:
        autocorrelation: AR(1) coefficient of the samples of a process.
        drift: largest change of the log over a process, its size and sign drawn anew for each; ``mode_share``
            and ``mode_gap``: a process spends a share of its samples, drawn between 0 and ``mode_share``, in a
            mode slower by ``mode_gap``.
        machine_drift: change of the log over the whole measurement; measured one after the other, the sides
            differ by half of it.
        machine_shift: all cases of HEAD are slower by so much.
        slow_rounds: a case's round is slower by ``round_gap`` with this probability.
    """

    name: str
    description: str
    autocorrelation: float = 0.0
    drift: float = 0.0
    mode_share: float = 0.0
    mode_gap: float = 0.0
    machine_drift: float = 0.0
    machine_shift: float = 0.0
    slow_rounds: float = 0.0
    round_gap: float = 0.0


SCENARIOS = (
    Scenario("log-normal", "independent samples"),
    Scenario("autocorrelated", "samples repeat each other: AR(1) with coefficient 0.7", autocorrelation=0.7),
    Scenario("drifting", "each process speeds up or slows down by up to 2 % while it runs", drift=0.02),
    Scenario(
        "bimodal",
        "each process spends 0 to 60 % of its samples in a mode 5 % slower",
        mode_share=0.6,
        mode_gap=0.05,
    ),
    Scenario("slow rounds", "one round in ten is 30 % slower", slow_rounds=0.1, round_gap=0.3),
    Scenario("bimodal rounds", "half of the rounds are 10 % slower", slow_rounds=0.5, round_gap=0.1),
    Scenario("shifted machine", "everything of HEAD is 5 % slower, controls included", machine_shift=0.05),
    Scenario("warming machine", "the machine slows down by 8 % while both sides are measured", machine_drift=0.08),
)


@dataclass(frozen=True)
class Rule:
    """A decision rule with the samples it takes: ``processes`` a side and ``samples`` a process.

    ``summarise`` reduces logs of shape (suites, cases, processes, samples) to what is judged, and must commute
    with adding a constant; ``judge`` takes both sides' summaries and whether each base process ran before its
    partner.
    """

    name: str
    description: str
    processes: int
    samples: int
    order: Order
    summarise: Callable[[Logs], Logs]
    judge: Callable[[FloatArray, FloatArray, BoolArray], Calls]


@dataclass(frozen=True)
class Row:
    """One rule in one scenario: shares of ``suites`` simulated suites of CASES cases.

    Attributes:
        case_alarms: unchanged cases called changed.
        suite_alarms: suites with any such call.
        power: per effect of ``effects``, suites in which the one slowed case is called slower.
    """

    rule: str
    scenario: str
    run_sd: float
    suites: int
    case_alarms: float
    suite_alarms: float
    effects: tuple[float, ...]
    power: tuple[float, ...]


def ours(
    *,
    rounds: int = 8,
    alpha: float = ALPHA,
    min_effect: float = MIN_EFFECT,
    controls: int = CONTROLS,
    name: str = "niffbench check",
) -> Rule:
    """Our rule for two runs, of ``rounds`` fresh processes a side with 15 samples each.

    What the last ``controls`` cases share in a round is taken out; nothing without any.
    """

    def decide(base: FloatArray, head: FloatArray, _: BoolArray) -> Calls:
        base, head = _less_shared(base, head, controls)
        result = judge(contrast((base, head), (-1.0, 1.0), shared=False), alpha=alpha, min_effect=min_effect)
        return result.higher, result.lower

    text = (
        f"{rounds} processes a side, Welch on logs of medians, Holm at {alpha:g}, at least {100 * min_effect:g} %"
    )
    return Rule(name, text, rounds, 15, "base then head", _medians, decide)


def ours_paired(
    *,
    pairs: int = 8,
    alpha: float = ALPHA,
    min_effect: float = MIN_EFFECT,
    controls: int = CONTROLS,
    name: str = "niffbench ab",
) -> Rule:
    """Our rule for one machine: ``pairs`` of fresh processes in ABBA order with 15 samples each."""

    def decide(base: FloatArray, head: FloatArray, base_first: BoolArray) -> Calls:
        base, head = _less_shared(base, head, controls)
        result = judge(in_order(head - base, base_first), alpha=alpha, min_effect=min_effect)
        return result.higher, result.lower

    text = f"{pairs} ABBA pairs of processes, paired t on logs, Holm at {alpha:g}, at least {100 * min_effect:g} %"
    return Rule(name, text, pairs, 15, "ABBA", _medians, decide)


def _less_shared(base: FloatArray, head: FloatArray, controls: int) -> tuple[FloatArray, FloatArray]:
    """Both sides less what their last ``controls`` cases share in a round; of a control what the others do."""
    if not controls:
        return base, head
    first = base.shape[-2] - controls
    shifts = shared_shift(base[..., first:, :], head[..., first:, :])
    one, two = (side - shift[..., None, :] for side, shift in zip((base, head), shifts, strict=True))
    for control in range(first, base.shape[-2]):
        others = [i for i in range(first, base.shape[-2]) if i != control]
        shifts = shared_shift(base[..., others, :], head[..., others, :])
        one[..., control, :] = base[..., control, :] - shifts[0]
        two[..., control, :] = head[..., control, :] - shifts[1]
    return one, two


def _medians(logs: Logs) -> Logs:
    return np.asarray(np.median(logs, axis=-1))


def _pooled(logs: Logs) -> Logs:
    return logs.reshape(*logs.shape[:-2], -1)


def _mann_whitney(base: FloatArray, head: FloatArray, _: BoolArray, *, level: float, factor: float) -> Calls:
    p_value = mannwhitneyu(head, base, axis=-1, method="auto").pvalue
    shift = np.median(head, axis=-1) - np.median(base, axis=-1)
    called = p_value < level
    return called & (shift > np.log(factor)), called & (shift < -np.log(factor))


def _pooled_t(base: FloatArray, head: FloatArray, _: BoolArray, *, level: float) -> Calls:
    one, two = np.exp(base), np.exp(head)
    n = one.shape[-1]
    shift = two.mean(axis=-1) - one.mean(axis=-1)
    error = np.sqrt((one.var(axis=-1, ddof=1) + two.var(axis=-1, ddof=1)) / n)
    called = 2 * stdtr(2 * n - 2, -np.abs(shift) / error) < level
    return called & (shift > 0), called & (shift < 0)


def _bootstrap(base: FloatArray, head: FloatArray, _: BoolArray, *, level: float, threshold: float) -> Calls:
    # With 100 samples the bootstrap distribution of a mean is normal to within its own resampling error,
    # so its limit of infinitely many resamples is used: a z interval with the plug-in variance.
    one, two = np.exp(base), np.exp(head)
    mean = one.mean(axis=-1)
    change = two.mean(axis=-1) / mean - 1
    error = np.sqrt(two.var(axis=-1) + (1 + change) ** 2 * one.var(axis=-1)) / mean / np.sqrt(one.shape[-1])
    significant = 2 * ndtr(-np.abs(change) / error) < level
    reach = 1.959964 * error
    return significant & (change - reach > threshold), significant & (change + reach < -threshold)


RULES = (
    ours(),
    ours(controls=0, name="niffbench check, no controls"),
    ours_paired(),
    ours_paired(controls=0, name="niffbench ab, no controls"),
    Rule(
        "google/benchmark",
        "compare.py: Mann–Whitney at 0.05 on 9 repetitions in one process",
        1,
        9,
        "base then head",
        _pooled,
        partial(_mann_whitney, level=0.05, factor=1.0),
    ),
    Rule(
        "asv",
        "Mann–Whitney at 0.002 on 2 processes of 5 samples, and a ratio of medians of at least 1.1",
        2,
        5,
        "base then head",
        _pooled,
        partial(_mann_whitney, level=0.002, factor=1.1),
    ),
    Rule(
        "pyperf",
        "compare_to: pooled t at 0.05 on 20 processes of 3 values",
        20,
        3,
        "base then head",
        _pooled,
        partial(_pooled_t, level=0.05),
    ),
    Rule(
        "criterion-like",
        "bootstrap of the mean at 0.05 on 100 samples of one process, and an interval beyond ±1 %",
        1,
        100,
        "base then head",
        _pooled,
        partial(_bootstrap, level=0.05, threshold=0.01),
    ),
)


def simulate(
    rule: Rule,
    scenario: Scenario,
    run_sd: float,
    *,
    effects: Sequence[float] = EFFECTS,
    suites: int = 400,
    cases: int = CASES,
    seed: int = 0,
) -> Row:
    """Let ``rule`` judge simulated suites of unchanged code, then the same with their first case slowed down.

    The same seed gives the same row. An effect multiplies times, so it adds to the logs of the summaries, and
    one draw of the noise serves all effects.
    """
    generator = np.random.default_rng([seed, *rule.name.encode(), *scenario.name.encode(), round(1e6 * run_sd)])
    chunk = max(1, _CHUNK // (2 * cases * rule.processes * rule.samples))
    alarms = alarmed = 0
    seen = np.zeros(len(effects))
    for done in range(0, suites, chunk):
        size = min(chunk, suites - done)
        base, head, base_first = _draw(generator, rule, scenario, run_sd, size, cases)
        slower, faster = rule.judge(base, head, base_first)
        called = slower | faster
        alarms += int(called.sum())
        alarmed += int(called.any(axis=-1).sum())
        for i, effect in enumerate(effects):
            changed = head.copy()
            changed[:, 0] += np.log1p(effect)
            seen[i] += int(rule.judge(base, changed, base_first)[0][:, 0].sum())
    return Row(
        rule.name,
        scenario.name,
        run_sd,
        suites,
        alarms / (suites * cases),
        alarmed / suites,
        tuple(effects),
        tuple((seen / suites).tolist()),
    )


def table(
    *,
    rules: Sequence[Rule] = RULES,
    scenarios: Sequence[Scenario] = SCENARIOS,
    run_sds: Sequence[float] = RUN_SDS,
    effects: Sequence[float] = EFFECTS,
    suites: int = 400,
    seed: int = 0,
) -> tuple[Row, ...]:
    """All rules in all scenarios, rule by rule."""
    return tuple(
        simulate(rule, scenario, run_sd, effects=effects, suites=suites, seed=seed)
        for rule in rules
        for scenario in scenarios
        for run_sd in run_sds
    )


def _draw(
    generator: np.random.Generator, rule: Rule, scenario: Scenario, run_sd: float, suites: int, cases: int
) -> tuple[FloatArray, FloatArray, BoolArray]:
    """Both sides' summaries of unchanged code, and whether each base process ran before its partner."""
    n = rule.processes
    if rule.order == "ABBA":
        base_first = np.arange(n) % 2 == 0
        base_at = 2 * np.arange(n) + np.where(base_first, 0, 1)
        head_at = 2 * np.arange(n) + np.where(base_first, 1, 0)
    else:
        base_first, base_at, head_at = np.ones(n, dtype=bool), np.arange(n), n + np.arange(n)
    sides: list[FloatArray] = []
    for at in (base_at, head_at):
        shared = generator.standard_normal((suites, 1, n))
        own = generator.standard_normal((suites, cases, n))
        level = run_sd * np.sqrt(0.5) * (shared + own) + scenario.machine_drift * (at + 0.5) / (2 * n)
        logs = _within(generator, scenario, (suites, cases, n, rule.samples))
        if at is head_at:
            level = level + np.log1p(scenario.machine_shift)
        if scenario.slow_rounds:
            slow = generator.random((suites, cases, n)) < scenario.slow_rounds
            level = level + np.log1p(scenario.round_gap) * slow
        logs += level[..., None].astype(np.float32)
        sides.append(np.asarray(rule.summarise(logs), dtype=np.float64))
    return sides[0], sides[1], base_first


def _within(generator: np.random.Generator, scenario: Scenario, shape: tuple[int, int, int, int]) -> Logs:
    """Logs of the samples of processes whose level is zero."""
    noise = generator.standard_normal(shape, dtype=np.float32)
    if scenario.autocorrelation:
        rho = np.float32(scenario.autocorrelation)
        noise[..., 1:] *= np.sqrt(1 - rho**2)  # stationary from the first sample on
        noise = np.asarray(lfilter(np.ones(1, np.float32), np.array([1, -rho], np.float32), noise, axis=-1))
    logs = np.float32(_WITHIN) * noise
    leading = (*shape[:-1], 1)
    if scenario.drift:
        slope = generator.uniform(-scenario.drift, scenario.drift, leading).astype(np.float32)
        logs += slope * np.linspace(0, 1, shape[-1], dtype=np.float32)
    if scenario.mode_gap:
        share = generator.uniform(0, scenario.mode_share, leading).astype(np.float32)
        slow = generator.random(shape, dtype=np.float32) < share
        logs += np.float32(np.log1p(scenario.mode_gap)) * slow
    return logs
