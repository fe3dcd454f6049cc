"""Sampling by rule, in turns, with a device that is played: the truth is planted, nothing depends on a clock."""

from __future__ import annotations

import random
from collections import Counter
from itertools import pairwise
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from run_worker import case_of

from niffbench.device import Processor
from niffbench.device.replay import ReplayDevice, ReplayRunner, Trace
from niffbench.results import Latency, MachineState
from niffbench.suite import Measure
from niffbench.worker import latency
from niffbench.worker.latency import QUANTA, THROTTLE_REPEATS, THROTTLE_REST, Sampler, around, turns, warm_up

MEASURE = Measure(min_time=0.1, max_time=1.0, min_samples=10, precision=0.02)


def _device(entry: dict[str, Any] | None = None, **trace: Any) -> ReplayDevice:
    return ReplayDevice(Trace.model_validate({**trace, "cases": [entry or {}]}))


def _runner(device: ReplayDevice, nominal: float = 1e-3) -> ReplayRunner:
    entry = device.trace.cases[0]
    case = case_of("depthwise", 3)
    return ReplayRunner(case=case, round=0, entry=entry, nominal=nominal, peak=1, kept=1, begun=True)


def _sample(
    device: ReplayDevice, regime: Any = "steady", measure: Measure = MEASURE, nominal: float = 1e-3
) -> Latency:
    sampler = Sampler(device, _runner(device, nominal), regime, measure)
    while not sampler.done:
        sampler.step()
    return sampler.result()


def _series(**series: Any) -> dict[str, Any]:
    return {"latency": {"steady": series}}


def test_a_quiet_series_stops_by_precision_after_its_floor() -> None:
    device = _device(_series(median=1e-3, sigma=0.01))
    result = _sample(device)
    assert result.stopped == "precision"
    assert result.flags == []
    total = sum(result.samples) * result.calls
    assert MEASURE.min_time <= total < 2 * MEASURE.min_time
    assert sum(result.blocks) == len(result.samples)


def test_a_noisy_series_goes_on_until_its_cap_and_not_much_beyond() -> None:
    result = _sample(_device(_series(median=1e-3, sigma=1.5)))
    assert result.stopped == "time"
    assert sum(result.samples) * result.calls < 1.2 * MEASURE.max_time


def test_a_tighter_precision_takes_more_samples() -> None:
    loose, tight = (
        len(_sample(_device(_series(median=1e-3, sigma=0.2)), measure=MEASURE.model_copy(update=change)).samples)
        for change in ({"precision": 0.1}, {"precision": 0.02})
    )
    assert tight > 2 * loose


def test_a_case_slower_than_the_cap_still_gets_a_sample() -> None:
    result = _sample(_device(_series(median=30.0)), nominal=30.0)
    assert len(result.samples) == 1
    assert result.stopped == "time"


class _Counted:
    """A runner of which it is known how often the device was asked to run it, by the device's own clock."""

    def __init__(self, nominal: float, guess: float, measure: Measure = MEASURE) -> None:
        self.device = _device(_series(median=nominal))
        self.sampler = Sampler(self.device, _runner(self.device, nominal), "steady", measure, guess)
        begun = self.device.clock()
        self.sampler.step()
        self.calls = round((self.device.clock() - begun) / nominal)


def test_a_long_call_that_was_made_before_is_not_warmed_up() -> None:
    assert _Counted(30.0, guess=29.0).calls == 1
    assert _Counted(30.0, guess=0.0).calls == 2  # what the first call took says nothing: it compiles and tunes


def test_a_first_call_that_makes_plans_anew_says_nothing_of_the_others(monkeypatch: pytest.MonkeyPatch) -> None:
    device = _device(_series(median=1e-5))
    timed, planning = device.timed, iter([12e-3])
    monkeypatch.setattr(device, "timed", lambda *given: (next(planning, None) or timed(*given)[0], None))
    assert _sample(device, nominal=1e-5).calls == 100


def test_a_call_that_caches_matter_to_is_warmed_up_however_short_the_sampling() -> None:
    short = MEASURE.model_copy(update={"min_time": 0.01, "max_time": 0.03, "min_samples": 1})
    assert _Counted(0.05, guess=0.05, measure=short).calls == 2


@pytest.mark.parametrize("nominal", [0.03, 0.2, 1.1])
def test_most_of_the_calls_of_a_slow_case_are_samples(nominal: float) -> None:
    device = _device(_series(median=nominal, sigma=0.3))
    result = _sample(device, measure=MEASURE.model_copy(update={"max_time": 6.0}), nominal=nominal)
    assert sum(result.samples) > 0.75 * device.clock()


@settings(max_examples=60, deadline=None)
@given(
    st.floats(1e-7, 10.0),
    st.floats(0, 2),
    st.floats(0, 0.2),
    st.floats(0.001, 0.5),
    st.integers(1, 50),
)
def test_sampling_always_ends_and_says_why(
    median: float, sigma: float, min_time: float, max_time: float, least: int
) -> None:
    measure = Measure(min_time=min_time, max_time=max_time, min_samples=least)
    result = _sample(_device(_series(median=median, sigma=sigma)), measure=measure, nominal=median)
    spent = sum(result.samples) * result.calls
    assert 1 <= len(result.samples) <= latency.MOST_SAMPLES
    assert result.stopped in ("precision", "time", "count")
    if result.stopped == "precision":
        assert len(result.samples) >= least
        assert spent >= min_time * 0.999
    if result.stopped == "time":
        assert spent >= max_time * 0.999


@pytest.mark.parametrize("nominal", [1e-7, 3e-6, 1e-3, 0.5])
@pytest.mark.parametrize("quantum", [5e-8, 5e-7, 1e-5])
def test_the_timers_step_is_below_a_thousandth_of_a_sample(nominal: float, quantum: float) -> None:
    result = _sample(_device(_series(median=nominal, sigma=0, between=0), quantum=quantum), nominal=nominal)
    assert nominal * result.calls >= QUANTA * quantum * 0.999
    assert result.calls == 1 or nominal * (result.calls - 1) < max(QUANTA * quantum, 1e-3)


def test_cold_samples_are_single_calls() -> None:
    device = _device({"latency": {"cold": {"median": 1e-6}}})
    assert _sample(device, "cold", nominal=1e-6).calls == 1


def test_a_launch_queue_limits_the_calls_of_a_sample(monkeypatch: pytest.MonkeyPatch) -> None:
    device = _device(_series(median=1e-6))
    monkeypatch.setattr(device, "calls_lasting", lambda runner, seconds, call: 5)
    assert _sample(device, nominal=1e-6).calls == 5


@pytest.mark.parametrize(
    ("entry", "flag"),
    [
        (_series(samples=[[0.001]]), "stuck"),
        (_series(samples=[[0.0]]), "stuck"),
        (_series(samples=[[3e-6]]), "coarse"),
        (_series(samples=[[0.001, float("nan"), 0.0011]]), "invalid"),
        (_series(samples=[[0.001, -1.0]]), "invalid"),
        (_series(median=1e-3, sigma=0.01, drift=0.002), "drift"),
        (_series(median=1e-3, flags=["launch-bound"]), "launch-bound"),
    ],
)
def test_what_is_wrong_with_a_series_is_flagged(entry: dict[str, Any], flag: str) -> None:
    result = _sample(_device(entry))
    assert flag in result.flags
    assert result.samples


def test_a_broken_timer_is_no_precision() -> None:
    for samples in ([0.0], [float("nan")], [-1.0]):
        assert _sample(_device(_series(samples=[samples]))).stopped == "time"


HELD_BACK = {"sm_clock": 900.0, "throttle": ["hw_thermal_slowdown"]}
FINE = {"sm_clock": 1900.0, "throttle": []}


def test_a_throttled_block_is_dropped_and_repeated_after_a_rest() -> None:
    """The first two blocks are 100 × too slow; they must leave no trace in the samples."""
    recorded = [[0.1] * 4 + [0.001] * 5000]
    device = _device(
        {"latency": {"steady": {"samples": recorded}}, "states": [HELD_BACK, HELD_BACK, FINE]},
        highest_clock=1980.0,
    )
    sampler = Sampler(device, _runner(device, 0.01), "steady", MEASURE)
    while not sampler.done:
        sampler.step()
    actual = sampler.result()
    assert set(actual.samples) == {0.001}
    assert "throttled" not in actual.flags
    state = around(sampler.states)
    assert state is not None
    assert state.throttle == ["hw_thermal_slowdown"]
    assert state.sm_clock == 900.0


def test_patience_with_a_throttled_card_ends_and_the_series_is_labelled() -> None:
    device = _device({"latency": {"steady": {"median": 1e-3}}, "states": [HELD_BACK]})
    result = _sample(device)
    assert "throttled" in result.flags
    assert result.stopped in ("precision", "time")
    rests = sum(THROTTLE_REST * 2**repeat for repeat in range(THROTTLE_REPEATS))
    assert rests < device.clock() < rests + 5 * MEASURE.max_time


def test_the_warm_up_calls_at_least_once_and_long_enough() -> None:
    device = _device()
    runner = _runner(device, 1e-3)
    assert warm_up(device, runner) == pytest.approx(1e-3)
    assert latency.WARM_TIME <= device.clock() < 1.2 * latency.WARM_TIME
    before = device.clock()
    warm_up(device, runner, time=0.005)
    assert device.clock() - before == pytest.approx(0.005)
    slow = _runner(device, 50.0)
    before = device.clock()
    warm_up(device, slow)
    assert device.clock() - before == pytest.approx(50.0)


def test_turns_interleave_in_random_order_and_end() -> None:
    left = Counter(dict.fromkeys("abcd", 6) | {"d": 2})
    taken: list[str] = []

    def step(one: str) -> bool:
        taken.append(one)
        left[one] -= 1
        return left[one] == 0

    done = list(turns("abcd", random.Random(1), step))
    assert sorted(done) == list("abcd")
    assert done[0] == "d"
    assert Counter(taken) == {"a": 6, "b": 6, "c": 6, "d": 2}
    rounds = ["".join(taken[:4]), "".join(taken[4:8])] + [taken[8 + 3 * i : 11 + 3 * i] for i in range(4)]
    assert all(len(set(once)) == len(once) for once in rounds)
    assert len({"".join(once) for once in rounds[2:]}) > 1


@pytest.mark.parametrize("regime", ["cold", "steady"])
def test_a_call_that_is_no_sample_comes_before_every_block(regime: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """Before the first the warm-up; before each further one a call, because the others have had the caches since.

    Cold samples are flushed each for itself, so that they need a call before the first block alone.
    """
    device, log = _device({"latency": {regime: {"median": 1e-3, "sigma": 0.2}}}), []
    timed, samples = device.timed, device.samples
    monkeypatch.setattr(device, "timed", lambda *given: (log.append("call"), timed(*given))[1])
    monkeypatch.setattr(device, "samples", lambda *given: (log.append("block"), samples(*given))[1])
    result = _sample(device, regime)
    assert len(result.blocks) > 2
    before = [earlier for earlier, later in pairwise(["", *log]) if later == "block"]
    assert before == ["call", *(["call" if regime == "steady" else "block"] * (len(result.blocks) - 1))]


def test_samples_are_kept_as_they_came() -> None:
    """In their order, the slowest and the fastest among them: nothing is sorted, trimmed or summed up."""
    recorded = [0.003, 0.001, 0.9, 0.002, 0.0001, 0.0015]
    result = _sample(_device(_series(samples=[recorded])))
    assert len(result.samples) > len(recorded)
    assert list(result.samples) == [recorded[place % len(recorded)] for place in range(len(result.samples))]


def test_samples_are_kept_to_six_digits() -> None:
    result = _sample(_device(_series(samples=[[0.00123456789, 0.00123411111]])))
    assert set(result.samples) == {0.00123457, 0.00123411}


def test_the_launch_share_is_what_a_graph_saves() -> None:
    device = _device()
    runner = _runner(device, 1e-3)
    assert latency.launch_share(device, runner, 0.25e-3, 10) == pytest.approx(0.75)
    assert latency.launch_share(device, runner, 2e-3, 10) == 0.0


def test_neither_a_cold_allocator_nor_a_hiccup_counts_as_launches(monkeypatch: pytest.MonkeyPatch) -> None:
    device = _device()
    real, slow = device.timed, iter([9.0, 3.0, 2.0, 1.0, 1.0, 1.0])

    def timed(runner: ReplayRunner, calls: int = 1) -> tuple[float, object]:
        seconds, output = real(runner, calls)
        return seconds * next(slow), output

    monkeypatch.setattr(device, "timed", timed)
    assert latency.launch_share(device, _runner(device, 1e-3), 0.25e-3, 10) == pytest.approx(0.75)


@pytest.mark.parametrize("graph", [0.0, float("nan"), float("inf"), -1e-3])
def test_a_graph_that_a_broken_timer_timed_has_no_launch_share(graph: float) -> None:
    device = _device()
    assert latency.launch_share(device, _runner(device), graph, 10) is None


@pytest.mark.parametrize("eager", [0.0, float("nan"), float("inf"), -1e-3])
def test_an_eager_call_that_a_broken_timer_timed_has_no_launch_share(
    monkeypatch: pytest.MonkeyPatch, eager: float
) -> None:
    device = _device()
    monkeypatch.setattr(device, "timed", lambda runner, calls=1: (eager, None))
    assert latency.launch_share(device, _runner(device), 1e-3, 10) is None


def test_the_machine_around_a_case_is_at_its_worst() -> None:
    assert around([]) is None
    states = [
        MachineState(load=0.1, sm_clock=1900, temperature=50, power=300, throttle=["sw_power_cap"]),
        MachineState(load=0.9, sm_clock=1500, temperature=70, power=200, throttle=["hw_slowdown"]),
    ]
    assert around(states) == MachineState(
        load=0.9, sm_clock=1500, temperature=70, power=300, throttle=["hw_slowdown", "sw_power_cap"]
    )


def test_others_are_watched_from_the_first_block_to_the_last() -> None:
    readings = [Processor(10.0, 100.0), Processor(10.1, 100.2), Processor(10.5, 102.0)]
    state = around([MachineState(load=0.1)], readings)
    assert state == MachineState(load=0.1, others=0.25)
    for too_short in ([], readings[:1], readings[:2]):
        state = around([MachineState(load=0.1)], too_short)
        assert state == MachineState(load=0.1)
