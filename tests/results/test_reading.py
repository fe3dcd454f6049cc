"""Reading a run: what was written comes back, and what nobody wrote is refused with file and line."""

from __future__ import annotations

import contextlib
import copy
import gzip
import json
import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hostile import mutate
from hypothesis import given, settings
from hypothesis import strategies as st
from synthetic import World, make, save

from niffbench import report
from niffbench.commands.run_output import _as_json, _head, _remarks
from niffbench.errors import NothingMeasured, UsageError
from niffbench.gate.comparison import compare
from niffbench.gate.rules import Rules
from niffbench.report.digest import gather
from niffbench.results import COMPRESSED, MANIFEST, RECORDS, SCHEMA, Latency, Run, dump, parse, read, reading
from niffbench.session.directory import RunProgress
from niffbench.session.outcome import outcome

WORLD = World(sizes=(14, 28), rounds=2, samples=4)


@pytest.fixture
def run(tmp_path: Path) -> Run:
    return save(make(WORLD, tmp_path / "run"))


def complaint(directory: Path) -> str:
    with pytest.raises(UsageError) as caught:
        read(directory)
    message = str(caught.value)
    assert message.startswith(str(directory))
    assert "\n" not in message
    return message


def test_what_was_written_comes_back(run: Run) -> None:
    again = read(run.path)
    assert again.records == run.records
    assert again.manifest == run.manifest
    assert again.torn == 0


@pytest.mark.parametrize(
    "path",
    sorted(path.parent for path in (Path(__file__).parents[2] / "reports").glob("*/run.json")),
    ids=lambda path: str(path.name),
)
def test_runs_that_are_kept_can_be_read_shown_and_checked(path: Path) -> None:
    run = read(path)
    assert report.terminal(run)
    findings = compare(run, run, Rules()).findings
    assert {finding.label for finding in findings} == {record.traits.label for record in run.records}
    assert not [finding for finding in findings if finding.verdict == "regressed"]


def test_where_it_was_measured_is_written_only_where_there_is_something_to_say(run: Run) -> None:
    record = run.records[0]
    assert not {b'"node"', b'"device_id"'} & set(dump(record).replace(b":", b",").split(b","))
    placed = replace(record, node=2, device_id="0123456789ab")
    assert dump(placed).startswith(dump(record)[:-2])
    assert parse(dump(placed)) == placed
    assert (record.member, placed.member) == (None, (2, "0123456789ab"))
    edit(run, 0, node=0)
    assert complaint(run.path).endswith("line 1: key 'node': the run has 0 nodes, counted from 0, got 0")


def test_a_run_of_the_schema_before_is_read(run: Run) -> None:
    """It lacks what came since."""
    manifest = json.loads((run.path / MANIFEST).read_text())
    assert manifest["schema_version"] == SCHEMA
    (run.path / MANIFEST).write_text(json.dumps({**manifest, "schema_version": SCHEMA - 1}))
    edit(run, 0, traits={"label": "a", "family": "a", "boundary": "zero", "equivalence": "a"})
    assert read(run.path).records[0].traits.base is None


def test_a_packed_journal_is_read(run: Run) -> None:
    journal = run.path / RECORDS
    (run.path / COMPRESSED).write_bytes(gzip.compress(journal.read_bytes()))
    journal.unlink()
    assert read(run.path).records == run.records


def test_a_broken_clocks_samples_survive(run: Run) -> None:
    odd = replace(run.records[0], latency={"steady": Latency(samples=[0.0, -1.0, math.inf, math.nan, 1e-9])})
    samples = list(parse(dump(odd)).latency["steady"].samples)
    assert samples[:3] == [0.0, -1.0, math.inf]
    assert math.isnan(samples[3])


def test_a_torn_last_line_is_left_out_and_counted(run: Run) -> None:
    with (run.path / RECORDS).open("ab") as file:
        file.write(b'{"case": {"oper')
    again = read(run.path)
    assert again.records == run.records
    assert again.torn == 15


def test_a_run_without_a_record(run: Run) -> None:
    (run.path / RECORDS).unlink()
    assert read(run.path).records == ()


def edit(run: Run, line: int, **changes: Any) -> None:
    """Change keys of one record, given as ``a__b=value`` for nested ones."""
    lines = (run.path / RECORDS).read_bytes().splitlines()
    record = json.loads(lines[line])
    for path, value in changes.items():
        *parents, last = path.split("__")
        inner = record
        for parent in parents:
            inner = inner[parent]
        inner[last] = value
    lines[line] = json.dumps(record).encode()
    (run.path / RECORDS).write_bytes(b"\n".join(lines) + b"\n")


@pytest.mark.parametrize(
    ("changes", "output"),
    [
        ({"status": "fine"}, "key 'status'"),
        ({"extra": 1}, "key 'extra'"),
        ({"round": 2}, "the run has 2 rounds, counted from 0, got 2"),
        ({"round": -1}, "key 'round'"),
        ({"round": 1}, "a second record of case"),
        ({"id": "0123456789ab"}, "key 'id': the case's id is"),
        ({"case__kernel": 9}, "key 'id'"),
        ({"case__problem__batch": 10**400}, "line 1"),
        ({"case__problem__height": 0}, "every extent is between 1 and"),
        ({"case__problem__dtype": "float31"}, "key 'case.problem.dtype'"),
        ({"case__problem__colour": "red"}, "key 'case.problem.colour'"),
        ({"parameters": -1}, "key 'parameters'"),
        ({"elapsed": math.inf}, "key 'elapsed'"),
        ({"measuring": math.nan}, "key 'measuring'"),
        ({"measuring": -1.0}, "key 'measuring'"),
        ({"parameters": 2**70}, "key 'parameters'"),
        ({"latency": {"warm": {"samples": []}}}, "key 'latency.warm"),
        ({"latency": {"steady": {"samples": ["fast"]}}}, "key 'latency.steady.samples.0'"),
        ({"latency": {"steady": {"samples": [0] * 1_000_001}}}, "key 'latency.steady.samples'"),
        ({"traits__boundary": "open"}, "key 'traits.boundary'"),
    ],
)
def test_a_record_nobody_wrote(run: Run, changes: dict[str, Any], output: str) -> None:
    edit(run, 0, **changes)
    message = complaint(run.path)
    assert output in message
    assert f"{RECORDS}, line " in message


def test_a_case_that_is_not_the_suites(run: Run) -> None:
    stranger = make(replace(WORLD, sizes=(77,)), run.path).records[0]
    with (run.path / RECORDS).open("ab") as file:
        file.write(dump(stranger))
    assert f"case {stranger.id} is not one of the run's suite" in complaint(run.path)


@pytest.mark.parametrize(
    "line", [b"\n", b"{}\n", b"[]\n", b"null\n", b"\xff\n", b'{"case": ' + b"[" * 100_000 + b"\n"]
)
def test_a_line_that_is_no_record(run: Run, line: bytes) -> None:
    content = (run.path / RECORDS).read_bytes()
    (run.path / RECORDS).write_bytes(line + content)
    assert f"{RECORDS}, line 1:" in complaint(run.path)


def test_a_line_without_end(run: Run) -> None:
    (run.path / RECORDS).write_bytes(b"x" * 32_000_001)
    assert "is longer than 32,000,000 bytes" in complaint(run.path)


def test_a_package_of_more_than_anyone_measured(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    content = (run.path / RECORDS).read_bytes()
    (run.path / RECORDS).unlink()
    (run.path / COMPRESSED).write_bytes(gzip.compress(content))
    monkeypatch.setattr(reading, "MAX_UNPACKED_BYTES", len(content))
    assert len(read(run.path).records) == len(run.records)
    monkeypatch.setattr(reading, "MAX_UNPACKED_BYTES", len(content) - 1)
    assert f"{COMPRESSED}: holds more than" in complaint(run.path)


@pytest.mark.parametrize(
    "damage",
    [b"no gzip", gzip.compress(b"{}\n" * 1000, mtime=0)[:-20], b"\x1f\x8b\x08" + b"\0" * 50],
    ids=["no gzip", "cut", "a header alone"],
)
def test_a_damaged_package(run: Run, damage: bytes) -> None:
    (run.path / RECORDS).unlink()
    (run.path / COMPRESSED).write_bytes(damage)
    complaint(run.path)


@pytest.mark.parametrize(
    ("content", "output"),
    [
        (None, f"is not a run (it has no {MANIFEST})"),
        (b"", "run.json: "),
        (b"{}", "key 'schema_version': Field required"),
        (b'{"schema_version": 99}', f"schema 99 is newer than this niffbench knows ({SCHEMA}); upgrade niffbench"),
        (b'{"schema_version": 0}', "schema 0 is older"),
        (b'{"schema_version": 1}', "key 'niffbench': Field required"),
        (b"\xff\xfe{", "run.json: "),
        (b"[" * 100_000, "run.json: "),
    ],
)
def test_a_manifest_that_is_none(run: Run, content: bytes | None, output: str) -> None:
    (run.path / MANIFEST).unlink()
    if content is not None:
        (run.path / MANIFEST).write_bytes(content)
    assert output in complaint(run.path)


@pytest.mark.parametrize("name", ["nothing", "x" * 5000])
def test_a_directory_that_is_none(tmp_path: Path, name: str) -> None:
    with pytest.raises(UsageError):
        read(tmp_path / name)


@given(st.data())
@settings(max_examples=120, deadline=None)
def test_a_mutated_run_is_read_or_refused(tmp_path_factory: pytest.TempPathFactory, data: st.DataObject) -> None:
    directory = tmp_path_factory.mktemp("run")
    save(make(replace(WORLD, sizes=(14,), rounds=1), directory))
    lines = (directory / RECORDS).read_bytes().splitlines()
    manifest, record = json.loads((directory / MANIFEST).read_text()), json.loads(lines[0])
    target = copy.deepcopy(data.draw(st.sampled_from([manifest, record])))
    mutate(target, data)
    text = json.dumps(target)
    if "schema_version" in target or "cases" in text:
        (directory / MANIFEST).write_text(text)
    else:
        (directory / RECORDS).write_bytes(b"\n".join([text.encode(), *lines[1:]]) + b"\n")
    with contextlib.suppress(UsageError):
        run = read(directory)
        assert all(one.id == one.case.id for one in run.records)
        used(run)


def used(run: Run) -> None:
    """What is done with a run that was read: its end on the terminal and in JSON, its digest, a comparison."""
    result = outcome(run)
    head = _head(RunProgress.of(run.path, run.manifest, len(run.records)), None, "again")
    json.loads(json.dumps({**head, **_as_json(run, result)}, allow_nan=False))
    _remarks(run, result)
    gather(run)
    with contextlib.suppress(NothingMeasured):
        compare(run, run, Rules())


@pytest.mark.usefixtures("undrawn")
@given(st.data())
@settings(max_examples=4, deadline=None)
def test_a_mutated_record_is_reported_or_refused(
    tmp_path_factory: pytest.TempPathFactory, data: st.DataObject
) -> None:
    directory = tmp_path_factory.mktemp("run")
    save(make(replace(WORLD, sizes=(14,), rounds=1), directory))
    lines = (directory / RECORDS).read_bytes().splitlines()
    record = json.loads(lines[0])
    mutate(record, data)
    (directory / RECORDS).write_bytes(b"\n".join([json.dumps(record).encode(), *lines[1:]]) + b"\n")
    with contextlib.suppress(UsageError):
        report.write(read(directory), directory)


@given(st.binary(max_size=300))
@settings(max_examples=60, deadline=None)
def test_any_bytes_are_read_or_refused(tmp_path_factory: pytest.TempPathFactory, content: bytes) -> None:
    directory = tmp_path_factory.mktemp("run")
    save(make(replace(WORLD, sizes=(14,), rounds=1), directory))
    (directory / RECORDS).write_bytes(content)
    with contextlib.suppress(UsageError):
        read(directory)
