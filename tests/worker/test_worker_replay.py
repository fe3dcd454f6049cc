"""The worker end to end on a replay: planted series, memory, clocks and failures come out as they went in."""

from __future__ import annotations

import itertools
import json
import signal
import time
from pathlib import Path
from typing import Any

import pytest
from run_worker import QUICK, Said, case_of, work

from niffbench.case import Case
from niffbench.results import REGIMES
from niffbench.suite import Measure

ALL = Measure(regimes=["first", "cold", "steady", "wall", "graph"], min_time=0.02, max_time=0.2, min_samples=10)
A, B, C = (case_of("depthwise", kernel, channels=16, size=14) for kernel in (3, 5, 7))
LARGER = case_of("depthwise", 7, channels=32, size=14)


def _play(
    tmp_path: Path, trace: dict[str, Any], cases: list[Case] | None = None, measure: Measure = ALL, **task: Any
) -> Said:
    path = tmp_path / "trace.json"
    path.write_text(json.dumps(trace))
    return work(cases or [A, B, C], device=f"replay:{path}", measure=measure, **task)


def _by_case(said: Said) -> dict[str, Any]:
    return {record.id: record for record in said.records}


def test_recorded_figures_come_out_as_they_went_in(tmp_path: Path) -> None:
    memory = {
        "resident": 100,
        "peak": 70,
        "output": 30,
        "saved": 20,
        "predicted": 50,
        "reserved": 90,
        "device_delta": -5,
    }
    entry = {
        "label": "depthwise-k5",
        "latency": {"first": {"samples": [[0.5]]}, "steady": {"samples": [[0.001, 0.0011], [0.009]]}},
        "memory": memory,
        "numerics": {"l2": 1e-7, "max": 2e-7},
        "states": [{"sm_clock": 1500.0, "temperature": 55.0, "power": 250.0, "throttle": ["sw_power_cap"]}],
    }
    said = _play(tmp_path, {"like": "cuda", "watts": 100.0, "cases": [entry]}, round=0)
    record = _by_case(said)[B.id]
    assert record.status == "ok"
    assert list(record.latency["first"].samples) == [0.5]
    assert set(record.latency["steady"].samples) == {0.001, 0.0011}
    assert tuple(record.latency) == REGIMES
    assert record.latency["wall"].calls == 1
    assert record.latency["graph"].launch_share is not None
    output = {key: getattr(record.memory, key) for key in memory}
    assert output == memory
    assert record.memory.workspace == 20
    assert (record.numerics.l2, record.numerics.max) == (1e-7, 2e-7)
    assert record.machine.sm_clock == 1500.0
    assert record.machine.throttle == ["sw_power_cap"]
    assert record.energy == pytest.approx(100.0 * 0.00105, rel=0.2)
    assert set(_by_case(_play(tmp_path, {"cases": [entry]}, round=1))[B.id].latency["steady"].samples) == {0.009}


def test_what_hangs_on_a_series_may_fail_without_it(tmp_path: Path) -> None:
    """A counter that cannot be read costs its own figure, and the record says so."""
    broken = {
        "label": "depthwise-k5",
        "failure": {"kind": "error", "stage": "energy", "message": "no such counter"},
    }
    result = _by_case(_play(tmp_path, {"like": "cuda", "watts": 100.0, "cases": [broken]}))
    record = result[B.id]
    assert record.status == "ok"
    assert {regime for regime, series in record.latency.items() if series.samples} == {*ALL.regimes}
    assert record.energy is None
    assert record.reason == "no energy: RuntimeError: no such counter"
    assert result[A.id].energy > 0


def test_the_same_task_gives_the_same_records(tmp_path: Path) -> None:
    first, second = (_by_case(_play(tmp_path, {"seed": 4}, seed=9, round=1)) for _ in range(2))
    assert first == second


def test_a_worker_starts_in_well_under_a_second_of_processor_time(tmp_path: Path) -> None:
    """No torch: what is timed here is the processor's time of the whole process, not the wall."""
    import resource

    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    assert _play(tmp_path, {}).status == 0
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    assert after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime < 1.5


def test_drift_throttling_and_broken_timers_are_labelled(tmp_path: Path) -> None:
    trace = {
        "like": "cuda",
        "cases": [
            {"label": "*-k3", "latency": {"steady": {"median": 1e-3, "sigma": 0.005, "drift": 0.01}}},
            {"label": "*-k5", "states": [{"throttle": ["hw_slowdown"]}]},
            {
                "label": "*-k7",
                "latency": {
                    "steady": {"samples": [[0.0]]},
                    "cold": {"samples": [[float("nan"), 0.1]]},
                    "graph": {"samples": [[0.0]]},
                },
            },
        ],
    }
    result = _by_case(_play(tmp_path, trace))
    assert "drift" in result[A.id].latency["steady"].flags
    assert "throttled" in result[B.id].latency["steady"].flags
    assert result[B.id].machine.throttle == ["hw_slowdown"]
    assert "stuck" in result[C.id].latency["steady"].flags
    assert "invalid" in result[C.id].latency["cold"].flags
    assert "stuck" in result[C.id].latency["graph"].flags
    assert result[C.id].latency["graph"].launch_share is None
    assert all(record.status == "ok" for record in result.values())


def test_a_broken_timer_costs_neither_the_worker_nor_the_energy(
    tmp_path: Path,
) -> None:
    broken = {"label": "*-k5", "latency": {"steady": {"samples": [[float("nan")]]}}}
    result = _by_case(_play(tmp_path, {"watts": 100.0, "cases": [broken]}))
    assert all(record.status == "ok" for record in result.values())
    assert min(result[A.id].energy, result[B.id].energy) > 0


@pytest.mark.parametrize(("asked", "round_"), [(True, 1), (False, 0)])
def test_energy_is_counted_in_one_round_and_only_where_the_suite_wants_it(
    tmp_path: Path, asked: bool, round_: int
) -> None:
    said = _play(tmp_path, {"watts": 100.0}, measure=ALL.model_copy(update={"energy": asked}), round=round_)
    assert {record.energy for record in said.records} == {None}


def test_what_was_sampled_beside_busy_neighbours_is_flagged(tmp_path: Path) -> None:
    """One case a problem, so that none takes turns with another."""
    calm, busy, short, untold = (case_of("depthwise", 3, channels=16, size=size) for size in (8, 9, 10, 11))
    trace = {
        "cases": [
            {"problem": "B1 16@8", "states": [{"others": 0.02}]},
            {"problem": "B1 16@9", "states": [{"others": 0.4}]},
            {"problem": "B1 16@10", "states": [{"others": 0.4}]},
        ]
    }
    long = ALL.model_copy(update={"min_time": 1.2, "max_time": 2.0})
    result = _by_case(_play(tmp_path, trace, [calm, busy, untold], long))
    assert result[calm.id].machine.others == pytest.approx(0.02, abs=0.001)
    assert result[busy.id].machine.others == pytest.approx(0.4, abs=0.001)
    assert result[untold.id].machine.others is None
    flagged = {id_: {regime for regime, s in r.latency.items() if "busy" in s.flags} for id_, r in result.items()}
    assert flagged == {calm.id: set(), busy.id: {"cold", "steady"}, untold.id: set()}
    hasty = _play(tmp_path, trace, [short], ALL).only()
    assert hasty.machine.others is None
    assert not any("busy" in series.flags for series in hasty.latency.values())


def test_the_operators_of_a_problem_take_turns_in_an_order_drawn_from_the_seed(tmp_path: Path) -> None:
    """No operator has the machine to itself while another waits: what drifts meets all of them."""

    def turns(seed: int) -> list[tuple[str, ...]]:
        said = _play(tmp_path, {}, measure=Measure(regimes=["steady"], min_time=0.4, max_time=4), seed=seed)
        steady = [m.case for m in said.of("begin") if m.stage == "steady"]
        return [tuple(steady[place : place + 3]) for place in range(0, 9, 3)]

    once = turns(1)
    assert all(sorted(turn) == sorted((A.id, B.id, C.id)) for turn in once)
    assert len(set(once)) > 1
    assert once == turns(1)
    assert once != turns(2)


def test_the_operators_of_a_problem_are_set_up_in_an_order_drawn_from_the_seed(tmp_path: Path) -> None:
    def order(seed: int) -> tuple[str, ...]:
        return tuple(m.case for m in _play(tmp_path, {}, seed=seed).of("begin") if m.stage == "build")

    first = order(1)
    assert first == order(1)
    assert {order(seed) for seed in range(2, 5)} != {first}


def test_networks_of_one_original_are_measured_before_those_of_another_are_set_up(tmp_path: Path) -> None:
    """Whole networks are large: records come as it goes, and no more than one original and its kin is held."""
    names = [f"{base}{tail}" for base in ("resnet18", "mobilenet_v2") for tail in ("", "-k7", "-kmap")]
    cases = [case_of(f"network/{name}", channels=3, size=64) for name in names]
    for seed in range(3):
        said = _play(tmp_path, {}, cases, Measure(regimes=["steady"], min_time=0.4, max_time=4), seed=seed)
        bases = ["resnet18" in {case.id: case.operator for case in cases}[m.case] for m in said.of("begin")]
        assert sum(one != next_ for one, next_ in itertools.pairwise(bases)) == 1
        built = [place for place, m in enumerate(said.of("begin")) if m.stage == "build"]
        sampled = [place for place, m in enumerate(said.of("begin")) if m.stage == "steady"]
        assert built[2] < sampled[0] < built[3]  # but the three of one original do take turns
        assert len(said.records) == 6


def test_originals_are_apart_though_nothing_made_from_them_is_left_to_measure(tmp_path: Path) -> None:
    """As after an interruption, or with ``--only``."""
    cases = [case_of(f"network/{name}", channels=3, size=64) for name in ("resnet18", "mobilenet_v2")]
    measure = Measure(regimes=["steady"], min_time=0.4, max_time=4)
    output = [message.case for message in _play(tmp_path, {}, cases, measure).of("begin")]
    assert len(list(itertools.groupby(output))) == 2


def test_a_wrong_case_is_not_timed(tmp_path: Path) -> None:
    said = _play(tmp_path, {"cases": [{"label": "*-k5", "numerics": {"l2": 0.1, "max": 0.1}}]})
    assert _by_case(said)[B.id].status == "wrong"
    assert _by_case(said)[B.id].latency == {}


def test_a_wrong_gradient_is_not_timed_in_training(tmp_path: Path) -> None:
    wrong, fine = (case_of("depthwise", kernel, channels=16, size=14, mode="training") for kernel in (5, 7))
    numerics = {"l2": 1e-7, "max": 1e-7, "gradient": {"name": "weight", "l2": 0.1, "max": 0.2}}
    said = _play(tmp_path, {"cases": [{"label": "*-k5", "numerics": numerics}]}, [B, wrong, fine])
    result = _by_case(said)
    assert (result[B.id].status, result[B.id].numerics.gradient) == ("ok", None)
    assert result[wrong.id].status == "wrong"
    assert result[wrong.id].reason.startswith("gradient of weight: ")
    assert (result[wrong.id].numerics.gradient.l2, result[wrong.id].numerics.gradient.max) == (0.1, 0.2)
    assert result[wrong.id].latency == {}
    assert result[fine.id].status == "ok"
    assert 0 < result[fine.id].numerics.gradient.l2 < result[fine.id].numerics.gradient.tolerance


@pytest.mark.parametrize("stage", ["build", "first", "memory", "cold", "steady"])
def test_out_of_memory_costs_one_case_and_is_told_in_bytes(tmp_path: Path, stage: str) -> None:
    failure = {"kind": "oom", "stage": stage, "requested": 12345, "available": 678}
    said = _play(tmp_path, {"cases": [{"label": "*-k5", "failure": failure}]})
    result = _by_case(said)
    assert {record.status for key, record in result.items() if key != B.id} == {"ok"}
    assert (result[B.id].status, result[B.id].needed, result[B.id].available) == ("oom", 12345, 678)
    assert said.status == 0


@pytest.mark.parametrize("stage", ["first", "memory", "cold", "steady", "wall", "graph"])
def test_what_runs_out_of_memory_only_beside_others_is_measured_alone(tmp_path: Path, stage: str) -> None:
    """Whatever holds the others' memory is given up by then, or the second try would fail as the first did."""
    trace = {
        "like": "cuda",
        "cases": [{"label": "*-k5", "failure": {"kind": "oom", "stage": stage, "crowded": True}}],
    }
    for seed in (0, 2, 3, 5):  # it is set up last, between others, first, and first with them in another order
        said = _play(tmp_path, trace, [A, B, C, LARGER], seed=seed)
        assert [record.status for record in said.records] == ["ok"] * 4
        record = _by_case(said)[B.id]
        assert all(record.latency[regime].samples for regime in REGIMES)
        assert "not captured" not in record.latency["graph"].flags
        assert record.elapsed >= record.measuring


def test_a_graph_that_does_not_fit_alone_either_is_not_captured(tmp_path: Path) -> None:
    trace = {"like": "cuda", "cases": [{"label": "*-k5", "failure": {"kind": "oom", "stage": "graph"}}]}
    record = _by_case(_play(tmp_path, trace))[B.id]
    assert (record.status, record.latency["graph"].flags) == ("ok", ["not captured"])
    assert record.latency["steady"].samples


@pytest.mark.parametrize(("regimes", "together"), [(["steady"], 3), (["steady", "graph"], 2)])
def test_graphs_stay_in_memory_when_cases_are_held_together(
    tmp_path: Path, regimes: list[Any], together: int
) -> None:
    """Three cases of 100 bytes and a peak of 50: all fit in 400, but with the memory of their graphs only two."""
    memory = {"resident": 100, "predicted": 50, "peak": 50}
    trace = {"like": "cuda", "free_memory": 400, "cases": [{"memory": memory}]}
    measure = ALL.model_copy(update={"regimes": regimes})
    stages = [m.stage for m in _play(tmp_path, trace, measure=measure).of("begin")]
    assert stages[: stages.index("steady")].count("build") == together


def test_what_dominates_a_case_that_ran_out_of_memory_is_skipped_naming_it(tmp_path: Path) -> None:
    failure = {"kind": "oom", "stage": "memory", "requested": 1, "available": 0}
    trace = {"cases": [{"label": "*-k7", "problem": "B1 16@14", "failure": failure}]}
    for seed in range(6):  # until the smaller one's turn comes first
        result = _by_case(_play(tmp_path, trace, [C, LARGER], seed=seed))
        assert result[C.id].status == "oom"
        if result[LARGER.id].status == "skipped":
            assert (
                result[LARGER.id].reason
                == "at least as large as depthwise-k7 at B1 16@14, which does not fit in memory"
            )
            return
    pytest.fail("the larger case came first six times, or was never skipped")


def test_what_the_file_predicts_is_held_against_the_device(tmp_path: Path) -> None:
    trace = {"free_memory": 1000, "cases": [{"memory": {"resident": 900, "predicted": 200, "peak": 1}}]}
    record = _play(tmp_path, trace, [A]).only()
    assert (record.status, record.needed, record.available) == ("skipped", 1100, 1000)
    assert record.reason == "needs 1.07 KiB by prediction, 1000 B available"


def test_a_lost_gpu_ends_the_process_with_that_case_to_blame(tmp_path: Path) -> None:
    said = _play(tmp_path, {"cases": [{"label": "*-k5", "failure": {"kind": "lost", "stage": "steady"}}]})
    assert said.status > 0
    last = said.messages[-1]
    assert (last.type, last.case, last.stage) == ("begin", B.id, "steady")
    assert "CUDA error" in said.printed


@pytest.mark.parametrize(
    ("failure", "status"),
    [({"kind": "signal", "signal": "SIGABRT"}, -signal.SIGABRT), ({"kind": "exit", "status": 9}, 9)],
)
def test_a_death_leaves_the_case_it_was_on(tmp_path: Path, failure: dict[str, Any], status: int) -> None:
    said = _play(tmp_path, {"cases": [{"label": "*-k5", "failure": {**failure, "stage": "memory"}}]})
    assert said.status == status
    assert (said.messages[-1].case, said.messages[-1].stage) == (B.id, "memory")


def test_an_error_and_an_unsupported_case_have_their_reasons(tmp_path: Path) -> None:
    trace = {
        "cases": [
            {"label": "*-k3", "failure": {"kind": "unsupported", "stage": "first"}},
            {"label": "*-k5", "failure": {"kind": "error", "stage": "cold", "message": "in /home/me/x.py: no"}},
        ]
    }
    result = _by_case(_play(tmp_path, trace))
    assert result[A.id].status == "unsupported"
    assert "not implemented" in result[A.id].reason
    assert result[B.id].status == "crashed"
    assert result[B.id].reason == "RuntimeError: in x.py: no"


def test_a_graph_that_cannot_be_captured_is_said_and_the_rest_is_kept(tmp_path: Path) -> None:
    trace = {"like": "cuda", "cases": [{"label": "*-k5", "failure": {"kind": "error", "stage": "graph"}}]}
    result = _by_case(_play(tmp_path, trace))
    assert result[B.id].status == "ok"
    assert list(result[B.id].latency["graph"].samples) == []
    assert result[B.id].latency["graph"].flags == ["not captured"]
    assert result[B.id].latency["steady"].samples
    assert result[A.id].latency["graph"].samples


def test_a_cpu_has_no_regime_graph(tmp_path: Path) -> None:
    assert set(_play(tmp_path, {"like": "cpu"}, [A]).only().latency) == {
        "first",
        "cold",
        "steady",
    }  # steady is wall


def test_a_regime_not_asked_for_is_not_recorded(tmp_path: Path) -> None:
    only = QUICK.model_copy(update={"regimes": ["steady"]})
    assert set(_play(tmp_path, {}, [A], only).only().latency) == {"steady"}
    first = QUICK.model_copy(update={"regimes": ["first"]})
    assert set(_play(tmp_path, {}, [A], first).only().latency) == {"first"}


def test_a_replay_file_that_is_none_is_refused(tmp_path: Path) -> None:
    said = _play(tmp_path, {"quantum": -1})
    assert said.status == 2
    assert "quantum" in said.of("refused")[0].message


def test_a_survey_of_a_replay(tmp_path: Path) -> None:
    ceilings = {"copy_bandwidth": 1e12, "matmul": {"float32": 2e13}}
    trace = {"ceilings": ceilings, "cases": [{"label": "*-k3", "memory": {"resident": 5, "predicted": 6}}]}
    said = _play(tmp_path, trace, [A, B], kind="survey", ceilings=["float32"])
    predicted = {m.case: (m.resident, m.peak) for m in said.of("predicted")}
    assert predicted[A.id] == (5, 6)
    assert predicted[B.id][0] > 5
    assert said.of("roofline")[0].ceilings.copy_bandwidth == 1e12


def test_time_is_virtual_but_accounted_for(tmp_path: Path) -> None:
    """An hour of samples takes no time here, and shows as elapsed."""
    begun = time.monotonic()
    hour = {"cases": [{"latency": {"steady": {"median": 360.0}}}]}
    record = _play(tmp_path, hour, [A], Measure(min_time=3600, max_time=36000, regimes=["steady"])).only()
    assert record.measuring >= 3600
    assert record.elapsed >= record.measuring
    assert time.monotonic() - begun < 60
