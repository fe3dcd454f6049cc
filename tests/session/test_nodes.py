"""What is written of the machines and devices of a run: numbers and digests, never a name."""

from __future__ import annotations

from pathlib import Path

from run_session import Attempt, asked, keys, suite_of

from niffbench.results import MANIFEST, RECORDS, frame, read

SUITE = suite_of(rounds=4)
NODES, CARDS = ["rack7-a", "rack7-b", "rack7-a"], ["card-x", "card-y", "card-z"]


def test_nodes_get_numbers_and_devices_digests_and_no_name_is_written(tmp_path: Path) -> None:
    run = Attempt(tmp_path / "run", SUITE, {"nodes": NODES, "cards": CARDS}).begin()
    where = {record.round: record.member for record in run.records}
    assert {member[0] for member in where.values() if member} == {0, 1}
    assert (where[0], where[1]) == (where[3], where[1])  # the fourth round is the first worker's again
    assert where[0] != where[2]  # one node, two cards
    assert len({member[1] for member in where.values() if member}) == 3
    assert [fingerprint.should["gpu_id"] for fingerprint in run.manifest.nodes] == CARDS[:2]
    written = (tmp_path / "run" / RECORDS).read_text() + (tmp_path / "run" / MANIFEST).read_text()
    assert not [name for name in (*NODES, "card-z") if name in written]
    assert list(frame(run)["node"].unique()) == [0, 1]


def test_a_lost_worker_is_lost_somewhere(tmp_path: Path) -> None:
    faults = [{"round": 1, "kernel": 7, "height": 14, "do": "kill"}]
    run = Attempt(tmp_path / "run", SUITE, {"nodes": NODES, "faults": faults}).begin()
    [lost] = [record for record in run.records if record.status == "crashed"]
    assert lost.node == 1


def test_a_run_elsewhere_says_nothing_of_the_same_devices(tmp_path: Path) -> None:
    """The same card has another digest in another run."""
    runs = [
        Attempt(tmp_path / str(seed), SUITE, {"cards": ["card-x"]}, overrides=asked(seed=seed)).begin()
        for seed in (1, 2)
    ]
    ids = {record.device_id for run in runs for record in run.records}
    assert len(ids) == 2
    assert None not in ids
    assert [run.manifest.nodes for run in runs] == [[], []]


def test_one_machine_has_no_number(tmp_path: Path) -> None:
    run = Attempt(tmp_path / "run", SUITE).begin()
    assert {record.member for record in run.records} == {None}
    assert keys(read(run.path)) == keys(run)


def test_a_resumed_run_knows_a_node_by_its_device(tmp_path: Path) -> None:
    """What an engine calls it may be another name by then."""
    attempt = Attempt(tmp_path / "run", SUITE, {"nodes": ["a", "b"], "cards": ["card-x", "card-y"]})
    run = attempt.begin()
    journal = tmp_path / "run" / RECORDS
    journal.write_bytes(b"".join(journal.read_bytes().splitlines(keepends=True)[:-6]))
    attempt.script = {"nodes": ["d", "c"], "cards": ["card-x", "card-y"]}
    again = attempt.resume()
    assert {(r.round, r.member) for r in again.records} == {(r.round, r.member) for r in run.records}
    assert len(again.manifest.nodes) == 2


def test_a_resumed_run_knows_a_node_by_its_name_and_a_new_card_of_it(tmp_path: Path) -> None:
    attempt = Attempt(tmp_path / "run", SUITE, {"nodes": ["rack7-a", "rack7-b"]})
    run = attempt.begin()
    journal = tmp_path / "run" / RECORDS
    journal.write_bytes(b"".join(journal.read_bytes().splitlines(keepends=True)[:-6]))
    attempt.script |= {"cards": ["card-new", "card-newer"]}
    again = attempt.resume()
    assert {(r.round, r.node) for r in again.records} == {(r.round, r.node) for r in run.records}
    assert len(again.manifest.nodes) == 2
    assert "rack7" not in "".join(path.read_text() for path in (tmp_path / "run").iterdir())
