"""Suites, runs and histories as a stranger sends them, through all that reads them: a result, or one message."""

from __future__ import annotations

import contextlib
import copy
import gzip
import importlib
import json
import math
import os
import shutil
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from cli_in_process import Call, call
from conftest import Cli
from hostile import mutate, spots, toml
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from synthetic import WORLD, World, make, save

from niffbench.errors import UsageError
from niffbench.fingerprint import Fingerprint
from niffbench.gate.history import keep
from niffbench.operators.catalogue import catalogue
from niffbench.protocol import Predicted
from niffbench.results import MANIFEST, RECORDS, Ceilings, dump, read
from niffbench.session import plan
from niffbench.session.survey import Survey
from niffbench.suite import Overrides, Suite, expand, parse, resolve

__all__ = ["call"]  # a fixture

SUITE: dict[str, Any] = {
    "description": "made up",
    "baseline": "depthwise-k7",
    "rounds": 2,
    "axes": {
        "batch": [1, 8],
        "channels": [4],
        "mode": ["inference", "training"],
        "dtype": ["float32"],
        "memory_format": ["contiguous"],
        "execution": ["eager"],
    },
    "zip": [{"channels_out": [4, 4], "size": [14, [9, 12]]}],
    "operators": [
        {"name": "depthwise", "kernel": [3, 7, "H"]},
        {"name": "niff-depthwise/rfft", "options": {"mlp": "big"}},
        {"name": "attention", "size": [8]},
        {"name": "strip", "kernel": [5]},
    ],
    "exclude": [{"where": {"kernel": {"gt": "2H-1"}, "operator": "depthwise*"}, "reason": "too large"}],
    "measure": {
        "regimes": ["first", "cold", "steady"],
        "min_time": 0.1,
        "max_time": 1.0,
        "min_samples": 10,
        "precision": 0.02,
        "threads": 1,
        "case_timeout": 60.0,
    },
}
EXTENTS = st.sampled_from([1, 2, 3, 13, 4096, 2**24 - 1, 2**24, 2**24 + 1, 0, -1])
WORDS = st.sampled_from(
    [
        "H",
        "2H-1",
        "float16",
        "bfloat16",
        "float64",
        "training",
        "steady",
        "channels_last",
        "compiled",
        "big",
        "*",
        "",
    ]
)
NAMES = st.sampled_from(
    [*sorted(catalogue()), "depthwise-k7", "dense-k31", "niff-depthwise/rfft-k3", "depthwise-k"]
)
VALUES = st.one_of(
    EXTENTS,
    WORDS,
    NAMES,
    st.floats(),
    st.lists(EXTENTS, max_size=3),
    st.lists(st.tuples(EXTENTS, EXTENTS).map(list)),
)


def planned(text: str) -> plan.Plan:
    """The plan of a suite's text: nothing is predicted for the first case, and of three others two need a lot."""
    suite: Suite = expand(parse(text, "f.toml"), "f", "f.toml", text, catalogue())
    predictions = {
        case.id: Predicted(case=case.id, resident=1, peak=2**40 if number % 3 else 2**20)
        for number, case in enumerate(suite.cases[1:])
    }
    ceilings = Ceilings(copy_bandwidth=1e10, matmul={"float32": 1e11})
    survey = Survey(Fingerprint(must={}, should={}), 2**30, predictions, ceilings)
    return plan.make(suite, survey, catalogue(), resolve(suite, Overrides()))


@given(st.data())
@settings(max_examples=150)
def test_a_mutated_suite_has_a_plan_or_gets_one_clear_message(data: st.DataObject) -> None:
    suite = copy.deepcopy(SUITE)
    for _ in range(data.draw(st.integers(1, 2))):
        container, key = data.draw(st.sampled_from(spots(suite)))
        container[key] = data.draw(VALUES)
    text = "\n".join(f"{key} = {toml(value)}" for key, value in suite.items())
    with contextlib.suppress(UsageError):
        made = planned(text)
        assert made.seconds > 0
        assert math.isfinite(made.seconds)
        assert made.forecasts
        return
    with pytest.raises(UsageError, match=r"\Af\.toml: .+\Z"):
        planned(text)


def test_the_suite_that_is_mutated_has_a_plan() -> None:
    assert len(planned("\n".join(f"{key} = {toml(value)}" for key, value in SUITE.items())).forecasts) > 20


def huge() -> Iterator[tuple[str, dict[str, Any], str]]:
    many = list(range(1, 10_001))
    yield "axes", {"axes": {"channels": many, "size": many}}, "multiply to 300,000,000 cases, more than 100,000"
    every = {"batch": many, "channels": many, "size": many, "kernel": many, "channels_out": many}
    yield "all of them", {"axes": every, "operators": [{"name": "depthwise"}] * 1000}, "multiply to "
    rules = [{"where": {"channels": many}, "reason": "why not"}] * 10
    some = {"axes": {"channels": many, "size": 14}, "exclude": rules, "operators": [{"name": "depthwise-k7"}]}
    yield "exclusions", some, "100,000 conditions of exclusions are too many for 10,000 cases"


@pytest.mark.parametrize(("changes", "output"), [each[1:] for each in huge()], ids=[each[0] for each in huge()])
def test_a_suite_of_more_than_anyone_measures_is_refused_before_it_is_expanded(
    changes: dict[str, Any], output: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def no_case(*_: object) -> None:
        raise AssertionError("a case was made")

    monkeypatch.setattr(importlib.import_module("niffbench.suite.expand"), "Case", no_case)
    text = "\n".join(f"{key} = {toml(value)}" for key, value in {**SUITE, "zip": [], **changes}.items())
    begun = time.process_time()
    with pytest.raises(UsageError, match=output):
        planned(text)
    print(f"{time.process_time() - begun:.2f} s")


COMMANDS = (
    ("check", "base", "head"),
    ("check", "head", "base", "--across-machines", "--json"),
    ("check", "head", "--history", "history"),
    ("check", "head", "--baseline", "."),
    ("export", "head", "--format", "csv"),
    ("export", "head", "--format", "pytest-benchmark"),
    ("export", "head", "--format", "github-action-benchmark"),
)
SOBER = {0, 1, 2, 3, 4, 5}  # of an exit status; 70 is a fault of niffbench


@given(st.data())
@settings(max_examples=25, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_a_mutated_run_is_judged_and_exported_or_refused(call: Call, tmp_path: Path, data: st.DataObject) -> None:
    place = tmp_path
    shutil.rmtree(place / "history", ignore_errors=True)  # the last example's
    for name in ("base", "head"):
        save(make(World(sizes=(14,), rounds=2, samples=4), place / name))
    path = place / "head" / data.draw(st.sampled_from([MANIFEST, RECORDS, RECORDS]))
    first, *rest = path.read_text().splitlines() if path.name == RECORDS else [path.read_text()]
    document = json.loads(first)
    for _ in range(data.draw(st.integers(1, 2))):
        mutate(document, data)
    path.write_text("\n".join([json.dumps(document), *rest, ""]))
    for command in COMMANDS:
        done = call(*command)
        assert done.returncode in SOBER, (command, done.stderr)
        assert "Traceback" not in done.stderr
        if done.returncode == 2:
            assert sum(line.startswith("niffbench: ") for line in done.stderr.splitlines()) == 1, done.stderr


def test_a_name_or_a_fact_begins_no_line_of_its_own(call: Call, tmp_path: Path) -> None:
    """In the log of a CI system ``::error`` at the start of a line is a command."""
    evil = "x\n::error title=owned::\u202egnp\x1b[31m" + "y" * 200_000
    for number in (1, 2):
        run = make(World(rounds=1, sizes=(14,), seed=number), tmp_path / f"run-{number}")
        suite = run.manifest.suite.model_copy(update={"name": evil * number})
        must = {**run.manifest.fingerprint.must, evil: evil * number}
        prints = Fingerprint(must=must, should={})
        save(replace(run, manifest=run.manifest.model_copy(update={"suite": suite, "fingerprint": prints})))
        save(
            replace(
                run,
                path=tmp_path / f"same-{number}",
                manifest=run.manifest.model_copy(update={"fingerprint": prints}),
            )
        )
    for arguments in (("run-1", "run-2"), ("same-1", "same-2"), ("run-1", "--baseline", ".")):
        done = call("check", *arguments)
        assert done.returncode in (2, 3, 4), done.stderr
        assert len(done.stderr) < 10_000
        assert not any(line.lstrip().startswith("::") for line in done.stderr.splitlines())
        assert not set(done.stderr) & set("\u202e\x1b")


def test_a_label_begins_no_command_of_a_ci_system(cli: Cli, tmp_path: Path) -> None:
    """The steps of a history begin with it."""
    for day in range(1, 13):
        world = World(rounds=2, sizes=(14,), samples=3, faults=(), seed=day, operators=WORLD[-1:])
        run = make(replace(world, slower={"attention": 2.0 if day > 6 else 1.0}), tmp_path / "made")
        records = [replace(r, traits=replace(r.traits, label="::error title=owned::")) for r in run.records]
        manifest = run.manifest.model_copy(update={"started": f"2026-03-{day:02}T10:00:00Z"})
        keep(tmp_path / "kept", replace(run, records=tuple(records), manifest=manifest))
    done = cli("check", "--history", "kept", env={"CI": "true"})
    assert done.returncode == 0, done.stderr
    assert "::error" in done.stdout
    assert not any(line.lstrip().startswith("::") for line in done.stdout.splitlines())


def test_a_pipe_in_the_place_of_a_file_ends_at_once(call: Call, tmp_path: Path) -> None:
    save(make(World(rounds=1, sizes=(14,)), tmp_path / "run"))
    (tmp_path / "run" / RECORDS).unlink()
    os.mkfifo(tmp_path / "run" / RECORDS)
    os.mkfifo(tmp_path / "pipe.toml")
    assert call("check", "run", "run").returncode == 2
    assert call("check", "run", "run", "--thresholds", "pipe.toml").returncode == 2
    assert "regular file" in call("report", "run").stderr
    (tmp_path / "run" / RECORDS).unlink()
    (tmp_path / "run" / RECORDS).symlink_to(RECORDS)
    assert "regular file" in call("check", "run", "run").stderr


def test_a_packed_journal_that_unpacks_to_a_thousand_times_is_refused(tmp_path: Path) -> None:
    run = make(World(rounds=1, sizes=(14,)), tmp_path / "run")
    save(run)
    (tmp_path / "run" / RECORDS).unlink()
    with gzip.open(tmp_path / "run" / f"{RECORDS}.gz", "wb") as file:
        for record in run.records:
            file.write(dump(record)[:-1] + b" " * 3_000_000 + b"\n")
    with pytest.raises(UsageError, match="holds more than"):
        read(run.path)


def test_a_key_of_many_parts_is_refused_at_once() -> None:
    with pytest.raises(UsageError, match="more than 200 dots"):
        parse(".".join("a" * 60_000) + " = 1", "evil.toml")
