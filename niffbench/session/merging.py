"""The parts of a suite that were measured apart (``--shard``), put together into one run."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from niffbench.errors import FingerprintsDiffer, UsageError, plural
from niffbench.fingerprint import Fingerprint, differences
from niffbench.results import RECORDS, Manifest, Record, Run, dump
from niffbench.session import directory as place
from niffbench.session.journal import JournalLost

_MOST_NAMED = 40
"""Parts that are missing, of which all are named in a message."""


def merge(runs: Sequence[Run], out: Path, *, fleet: bool = False) -> None:
    """Write the run that ``runs``, all the parts of a suite, are together into ``out``, which must be vacant.

    Records are taken as they are, in the order of rounds and of the suite. ``out`` appears whole or not at all.

    Args:
        fleet: Each run is another device's, of one kind of machine or of several. Whole suites are taken too, one
            after the other in further rounds, and nodes get numbers.

    Raises:
        UsageError: a part is missing, incomplete or there twice, or of another suite; ``out`` cannot be used.
        FingerprintsDiffer: parts were measured on unlike machines, which ``fleet`` allows.
        JournalLost: what is merged cannot be written.
    """
    place.check_vacant(out)
    wholes = _wholes(runs) if fleet else [_checked(runs)]
    orders = [_order(whole) for whole in wholes]
    for whole, order in zip(wholes, orders, strict=True):
        if order != orders[0]:
            raise UsageError(f"{whole[0].path}: its cases are others than those of {wholes[0][0].path}")
    parts = [run for whole in wholes for run in whole]
    rounds = sum(whole[0].manifest.rounds for whole in wholes)
    every, nodes = _numbered(wholes, rounds, fleet=fleet)
    rank = {case: number for number, case in enumerate(orders[0])}
    records = sorted(every, key=lambda record: (record.round, rank.get(record.id, len(rank))))
    manifest = _manifest(parts, orders[0], rounds).model_copy(update={"nodes": nodes})
    place.make(out.parent)
    try:
        draft = Path(tempfile.mkdtemp(prefix=f".{out.name}-", dir=out.parent))
        try:
            with (draft / RECORDS).open("wb") as file:
                file.writelines(dump(record) for record in records)
            place.write_manifest(draft, manifest)
            draft.chmod(0o755)
            if out.exists():
                out.rmdir()
            draft.rename(out)
        except BaseException:
            shutil.rmtree(draft, ignore_errors=True)
            raise
    except OSError as error:
        raise JournalLost(f"{out}: cannot be written ({error.strerror})") from error


def _order(whole: Sequence[Run]) -> list[str]:
    """The cases of a suite in its order; what a part measured beyond its share comes after them."""
    placed = [
        (position, case)
        for run in whole
        for position, case in zip(_positions(run), run.manifest.suite.cases, strict=False)
    ]
    order = [case for _, case in sorted(placed)]
    gridded = set(order)
    return order + [case for run in whole for case in run.manifest.suite.cases if case not in gridded]


def _positions(run: Run) -> Sequence[int]:
    shard = run.manifest.suite.shard
    return range(len(run.manifest.suite.cases)) if shard is None else shard.positions


def _numbered(
    wholes: Sequence[Sequence[Run]], rounds: int, *, fleet: bool
) -> tuple[list[Record], list[Fingerprint]]:
    """The records of all, each suite in rounds of its own, with the numbers of their nodes; and these.

    Of a ``fleet`` a run that numbers no nodes is one; the same card in two such runs is one device of one node.
    """
    records: list[Record] = []
    nodes: list[Fingerprint] = []
    bases: dict[str, int] = {}
    cards: dict[str, str] = {}  # the id of a card in the first run that has it
    first, first_probe = 0, rounds
    for whole in wholes:
        own = whole[0].manifest.rounds
        for run in whole:
            every = (*run.records, *run.probes)
            ids = {record.device_id for record in every if record.device_id}
            card = run.manifest.fingerprint.should.get("gpu_id") if len(ids) == 1 else None
            same = {} if card is None else {id_: cards.setdefault(str(card), id_) for id_ in ids}
            base = 0
            if run.manifest.nodes:
                nodes += run.manifest.nodes
            elif fleet:
                base = bases.setdefault(f"of {run.path}" if card is None else str(card), len(nodes))
                nodes += [run.manifest.fingerprint] if base == len(nodes) else []
            for record in every:
                number = record.round + (first if record.round < own else first_probe - own)
                device = same.get(record.device_id or "", record.device_id)
                node = None if record.node is None else len(nodes) - len(run.manifest.nodes) + record.node
                if fleet and not run.manifest.nodes:
                    node = base
                records.append(replace(record, round=number, node=node, device_id=device))
        first += own
        first_probe += max((probe.round - own + 1 for run in whole for probe in run.probes), default=0)
    return records, nodes


def _wholes(runs: Sequence[Run]) -> list[list[Run]]:
    """The runs in sets that are the whole suite: those of all of it, and for each kind of machine its parts."""
    paths: dict[Path, Path] = {}
    kinds: dict[str, list[Run]] = {}
    wholes: list[list[Run]] = []
    for run in runs:
        if (resolved := run.path.resolve()) in paths or any(_same(run, whole[0]) for whole in wholes):
            raise UsageError(f"{run.path}: is there twice")
        paths[resolved] = run.path
        _check(runs[0], run)
        if run.manifest.suite.shard is None:
            wholes.append([run])
        else:
            kinds.setdefault(run.manifest.fingerprint.hash, []).append(run)
    return [*wholes, *(_checked(parts) for parts in kinds.values())]


def _same(one: Run, other: Run) -> bool:
    """Whether two directories hold one run."""
    return (one.manifest.started, one.manifest.seed, one.records) == (
        other.manifest.started,
        other.manifest.seed,
        other.records,
    )


def _check(first: Run, run: Run) -> None:
    """Raise UsageError unless ``run`` is complete and of the same suite as ``first``."""
    if unlike := _unlike(first.manifest, run.manifest):
        raise UsageError(f"{run.path}: {unlike}, unlike {first.path}")
    if missing := run.manifest.records - len(run.records):
        raise UsageError(
            f"{run.path}: lacks {plural(missing, 'record')} of {run.manifest.records}; "
            f"`niffbench run --resume` measures them"
        )


def _checked(runs: Sequence[Run]) -> list[Run]:
    """The runs by their number: complete, all parts of one suite, on like machines."""
    shards: dict[str, Run] = {}
    first = runs[0]
    first_count = first.manifest.suite.shard.count if first.manifest.suite.shard else ""
    for run in runs:
        shard = run.manifest.suite.shard
        if shard is None:
            raise UsageError(
                f"{run.path}: is no part of a suite (it was measured without --shard); --fleet takes whole runs"
            )
        _check(first, run)
        if shard.count != first_count:
            raise UsageError(f"{run.path}: the number of parts is {shard.count!r}, unlike {first.path}")
        if run.manifest.rounds != first.manifest.rounds:
            raise UsageError(f"{run.path}: the number of rounds is {run.manifest.rounds}, unlike {first.path}")
        if shard.name in shards:
            raise UsageError(f"{run.path}: is part {shard.name}, and so is {shards[shard.name].path}")
        shards[shard.name] = run
        if changes := differences(first.manifest.fingerprint.must, run.manifest.fingerprint.must):
            facts = "; ".join(f"{key} {ours!r} and {theirs!r}" for key, (ours, theirs) in changes.items())
            raise FingerprintsDiffer(
                f"{first.path} and {run.path} were measured on unlike machines: {facts}; "
                "--fleet puts unlike machines side by side, each with all parts of its own"
            )
    names = [f"{number}/{first_count}" for number in range(1, int(first_count) + 1)]
    if absent := [name for name in names if name not in shards]:
        suite, on = first.manifest.suite.name, first.manifest.fingerprint.machine
        listed = ", ".join(absent[:_MOST_NAMED]) + (", …" if len(absent) > _MOST_NAMED else "")
        raise UsageError(f"part {listed} of '{suite}' is missing on {on}, beside {first.path}")
    return [shards[name] for name in names]


def _unlike(one: Manifest, other: Manifest) -> str | None:
    """The first thing that makes two runs parts of different wholes."""
    ours, theirs = one.suite, other.suite
    facts = {
        "niffbench": (one.niffbench, other.niffbench),
        "the suite": (ours.name, theirs.name),
        "the text of the suite": (ours.source_hash, theirs.source_hash),
        "--only": (ours.only, theirs.only),
        "how it was measured": (ours.measure, theirs.measure),
        "the commit": (one.commit, other.commit),
    }
    return next((f"{key} is {was!r}" for key, (is_, was) in facts.items() if is_ != was), None)


def _manifest(runs: Sequence[Run], cases: list[str], rounds: int) -> Manifest:
    """That of the whole: the first part's, over the time of all of them."""
    manifests = [run.manifest for run in runs]
    first = manifests[0]
    walls = [manifest.wall for manifest in manifests if manifest.wall is not None]
    refining = sum(manifest.refining or 0.0 for manifest in manifests)
    excluded = {(left.label, left.problem): left for manifest in manifests for left in manifest.suite.excluded}
    notes = [f"merged from {', '.join(run.path.resolve().name for run in runs)}"]
    notes += dict.fromkeys(note for manifest in manifests for note in manifest.notes)
    return first.model_copy(
        update={
            "suite": first.suite.model_copy(
                update={"cases": cases, "excluded": list(excluded.values()), "shard": None}
            ),
            "devices": {key: name for manifest in manifests for key, name in manifest.devices.items()},
            "settings": first.settings.model_copy(update={"rounds": rounds}),
            "started": min(manifest.started for manifest in manifests),
            "finished": max(manifest.finished or manifest.started for manifest in manifests),
            "wall": sum(walls) if walls else None,
            "refining": refining or None,
            "notes": notes,
        }
    )
