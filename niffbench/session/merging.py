"""The parts of a suite that were measured apart (``--shard``), put together into one run."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Sequence
from pathlib import Path

from niffbench.errors import FingerprintsDiffer, UsageError, plural
from niffbench.fingerprint import differences
from niffbench.results import RECORDS, Manifest, Run, ShardEcho, dump
from niffbench.session import directory as place
from niffbench.session.journal import JournalLost


def merge(runs: Sequence[Run], out: Path) -> None:
    """Write the run that ``runs``, all the parts of a suite, are together into ``out``, which must be vacant.

    Records are taken as they are, in the order of rounds and of the suite. ``out`` appears whole or not at all.

    Raises:
        UsageError: a part is missing, incomplete or there twice, or of another suite; ``out`` cannot be used.
        FingerprintsDiffer: parts were measured on unlike machines.
        JournalLost: what is merged cannot be written.
    """
    place.check_vacant(out)
    shards = _checked(runs)
    order = [
        case
        for _, case in sorted(
            pair for run, shard in shards for pair in zip(shard.positions, run.manifest.suite.cases, strict=False)
        )
    ]
    gridded = set(order)
    # What a part measured beyond its share of the suite comes after it.
    order += [case for run, _ in shards for case in run.manifest.suite.cases if case not in gridded]
    rank = {case: number for number, case in enumerate(order)}
    every = [record for run in runs for record in (*run.records, *run.probes)]
    records = sorted(every, key=lambda record: (record.round, rank.get(record.id, len(rank))))
    place.make(out.parent)
    try:
        draft = Path(tempfile.mkdtemp(prefix=f".{out.name}-", dir=out.parent))
        try:
            with (draft / RECORDS).open("wb") as file:
                file.writelines(dump(record) for record in records)
            place.write_manifest(draft, _manifest([run for run, _ in shards], order))
            draft.chmod(0o755)
            if out.exists():
                out.rmdir()
            draft.rename(out)
        except BaseException:
            shutil.rmtree(draft, ignore_errors=True)
            raise
    except OSError as error:
        raise JournalLost(f"{out}: cannot be written ({error.strerror})") from error


def _checked(runs: Sequence[Run]) -> list[tuple[Run, ShardEcho]]:
    """The runs by their number, each with its shard: complete, of one suite and of like machines."""
    shards: dict[str, tuple[Run, ShardEcho]] = {}
    first = runs[0]
    for run in runs:
        shard = run.manifest.suite.shard
        if shard is None:
            raise UsageError(f"{run.path}: is no part of a suite (it was measured without --shard)")
        if unlike := _unlike(first.manifest, run.manifest):
            raise UsageError(f"{run.path}: {unlike}, unlike {first.path}")
        if shard.name in shards:
            raise UsageError(f"{run.path}: is part {shard.name}, and so is {shards[shard.name][0].path}")
        shards[shard.name] = run, shard
        if missing := run.manifest.records - len(run.records):
            raise UsageError(
                f"{run.path}: lacks {plural(missing, 'record')} of {run.manifest.records}; "
                f"`niffbench run --resume` measures them"
            )
        if changes := differences(first.manifest.fingerprint.must, run.manifest.fingerprint.must):
            facts = "; ".join(f"{key} {ours!r} and {theirs!r}" for key, (ours, theirs) in changes.items())
            raise FingerprintsDiffer(f"{first.path} and {run.path} were measured on unlike machines: {facts}")
    count = int(next(iter(shards)).partition("/")[2])
    names = [f"{number}/{count}" for number in range(1, count + 1)]
    if absent := [name for name in names if name not in shards]:
        raise UsageError(f"part {', '.join(absent)} of '{first.manifest.suite.name}' is missing")
    return [shards[name] for name in names]


def _unlike(one: Manifest, other: Manifest) -> str | None:
    """The first thing that makes two runs parts of different wholes."""
    ours, theirs = one.suite, other.suite
    assert ours.shard is not None
    assert theirs.shard is not None
    facts = {
        "niffbench": (one.niffbench, other.niffbench),
        "the suite": (ours.name, theirs.name),
        "the text of the suite": (ours.source_hash, theirs.source_hash),
        "--only": (ours.only, theirs.only),
        "the number of parts": (ours.shard.name.partition("/")[2], theirs.shard.name.partition("/")[2]),
        "the number of rounds": (one.rounds, other.rounds),
        "how it was measured": (ours.measure, theirs.measure),
        "the commit": (one.commit, other.commit),
    }
    return next((f"{key} is {was!r}" for key, (is_, was) in facts.items() if is_ != was), None)


def _manifest(runs: Sequence[Run], cases: list[str]) -> Manifest:
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
            "started": min(manifest.started for manifest in manifests),
            "finished": max(manifest.finished or manifest.started for manifest in manifests),
            "wall": sum(walls) if walls else None,
            "refining": refining or None,
            "notes": notes,
        }
    )
