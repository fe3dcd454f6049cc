"""A campaign: one run, from an empty directory or from what was left of it, to the last record."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path

from niffbench import __version__
from niffbench.errors import FingerprintsDiffer, UsageError
from niffbench.fingerprint import differences
from niffbench.launch.local import WORKER
from niffbench.operators.base import Operator
from niffbench.results import (
    COMPRESSED,
    RECORDS,
    SCHEMA,
    ExcludedCase,
    Manifest,
    Record,
    SuiteEcho,
    read,
    read_manifest,
)
from niffbench.session import directory as place
from niffbench.session import plan as planning
from niffbench.session import provenance
from niffbench.session.interrupts import Interrupted, Interrupts
from niffbench.session.journal import Journal, JournalLost
from niffbench.session.lock import Lock
from niffbench.session.manager import Manager
from niffbench.session.progress import RunProgress
from niffbench.session.settings import Overrides, Settings, kind_of, resolve
from niffbench.session.survey import Survey, survey
from niffbench.session.worker_session import Observer
from niffbench.suite import DeviceType, Suite

SuiteLoader = Callable[[DeviceType | None], Suite]
"""Reads the suite for a kind of device; None where that is not known yet, or is neither."""


@dataclass(frozen=True)
class Prepared:
    """A suite on a machine: everything that can be known before anything is measured."""

    suite: Suite
    settings: Settings
    survey: Survey
    plan: planning.Plan


def prepare(
    load: SuiteLoader,
    overrides: Overrides,
    operators: Mapping[str, Operator],
    stop: Interrupts,
    *,
    command: Sequence[str] = WORKER,
    meanwhile: Callable[[], None] | None = None,
) -> Prepared:
    """Survey the machine and plan the suite on it; nothing is written. Raises what :func:`survey` raises.

    ``meanwhile`` is called while the worker starts, and left in the middle at an interrupt.
    """

    def tearable() -> None:
        if meanwhile is not None:
            with suppress(Interrupted), stop.at_any_moment():
                meanwhile()

    suite = load(kind_of(overrides.device))
    settings = resolve(suite, overrides)
    try:
        found = survey(suite.cases, settings, stop, command=command, meanwhile=tearable)
        if settings.device == "auto" and (kind := kind_of(found.fingerprint.must.get("device"))) is not None:
            suite = load(kind)
            settings = replace(settings, device=kind)
        return Prepared(suite, settings, found, _plan(suite, found, operators, settings, stop))
    except Interrupted:
        raise Interrupted("interrupted before anything was measured") from None


@dataclass
class RunSession:
    """A run's directory, locked, and what is missing. ``began`` (``time.monotonic``): when work on it did."""

    directory: Path
    settings: Settings
    plan: planning.Plan
    manifest: Manifest
    done: tuple[Record, ...]
    began: float
    written: int = 0  # records, in this sitting

    @property
    def standing(self) -> RunProgress:
        """How far it has come."""
        return RunProgress(self.directory, self.manifest, len(self.done) + self.written)

    def measure(
        self,
        operators: Mapping[str, Operator],
        stop: Interrupts,
        *,
        observer: Observer | None = None,
        command: Sequence[str] = WORKER,
    ) -> None:
        """Measure what is missing; the manifest says afterwards how long it took and whether it is complete.

        Raises what :meth:`Manager.run` raises.
        """
        before = self.manifest.wall or 0.0
        with Journal(self.directory) as journal:
            manager = Manager(
                self.settings,
                self.plan,
                self.manifest.fingerprint,
                operators,
                journal,
                stop,
                done=self.done,
                started=self.began - before,
                observer=observer,
                command=command,
            )
            try:
                manager.run()
            except JournalLost:  # then the manifest cannot be written either
                raise
            except BaseException:
                self._conclude(before, manager)
                raise
            self._conclude(before, manager)

    def _conclude(self, before: float, manager: Manager) -> None:
        self.written = manager.written
        self.manifest = self.manifest.model_copy(
            update={
                "wall": before + time.monotonic() - self.began,
                "finished": None if self.standing.missing else _now(),
                "notes": list(dict.fromkeys([*self.manifest.notes, *manager.notes])),
            }
        )
        place.write_manifest(self.directory, self.manifest)


@contextmanager
def begin(out: Path, prepared: Prepared, argv: Sequence[str], began: float) -> Iterator[RunSession]:
    """A new run in ``out``, which must be vacant. Raises UsageError when it is not, or cannot be made."""
    place.make(out)
    with Lock(out):
        if not place.is_vacant(out):
            raise UsageError(f"--out {out}: is not empty any more; name a new directory, or --resume it")
        manifest = _manifest(prepared, argv)
        place.write_manifest(out, manifest)
        yield RunSession(out, prepared.settings, prepared.plan, manifest, (), began)


@contextmanager
def resume(
    directory: Path,
    load: SuiteLoader,
    operators: Mapping[str, Operator],
    stop: Interrupts,
    began: float,
    *,
    device: str | None = None,
    command: Sequence[str] = WORKER,
    meanwhile: Callable[[], None] | None = None,
) -> Iterator[RunSession]:
    """What is left of the run in ``directory``; ``device`` only says where it is now, a replay file moved, say.

    ``meanwhile`` is called while the worker starts, and not left in the middle: parting needs what it imports.

    A torn last line is repaired, but not before all else is known to be right: nothing is changed in a run that
    cannot be gone on with. Raises UsageError when ``directory`` is no run, is being written to, or its suite has
    changed since; FingerprintsDiffer on another machine; Interrupted; and what :func:`survey` raises.
    """
    read_manifest(directory)
    with Lock(directory):
        if not (directory / RECORDS).exists() and (directory / COMPRESSED).exists():
            raise UsageError(f"{directory}: its records are packed; unpack {COMPRESSED} to resume it")
        with stop.at_any_moment():
            run = read(directory)
        manifest = run.manifest
        suite = load(kind_of(manifest.fingerprint.must.get("device")))
        _check_unchanged(directory, manifest, suite)
        settings = Settings(
            device=device or manifest.device,
            rounds=manifest.rounds,
            seed=manifest.seed,
            measure=manifest.suite.measure,
            memory_limit=manifest.memory_limit,
            budget=manifest.budget,
        )
        found = _survey_rest(suite, run.records, manifest, settings, stop, command, meanwhile)
        plan = _plan(suite, found, operators, settings, stop)
        notes = list(manifest.notes)
        with Journal(directory) as journal:
            torn = journal.repair()
        if torn is not None:
            fate = f"kept in {torn.kept.name}" if torn.kept else "whole but for its newline, and completed"
            notes.append(f"the journal's last line was torn ({torn.bytes:,} bytes, {fate})")
            with stop.at_any_moment():
                run = read(directory)
        # A killed run could not write down how long it took; its records know of most of it.
        spent = max(manifest.wall or 0.0, sum(record.elapsed for record in run.records))
        manifest = manifest.model_copy(update={"schema_version": SCHEMA, "wall": spent, "notes": notes})
        place.write_manifest(directory, manifest)
        yield RunSession(directory, settings, plan, manifest, run.records, began)


def _survey_rest(
    suite: Suite,
    done: Sequence[Record],
    manifest: Manifest,
    settings: Settings,
    stop: Interrupts,
    command: Sequence[str],
    meanwhile: Callable[[], None] | None,
) -> Survey:
    """Ask again what is not in the manifest, for the cases that lack a record."""
    counts: dict[str, int] = {}
    for record in done:
        counts[record.id] = counts.get(record.id, 0) + 1
    left = [case for case in suite.cases if counts.get(case.id, 0) < manifest.rounds]
    if not left:
        return Survey(manifest.fingerprint, ceilings=manifest.ceilings)
    found = survey(left, settings, stop, ceilings=False, command=command, meanwhile=meanwhile)
    if unlike := differences(manifest.fingerprint.must, found.fingerprint.must):
        told = "; ".join(f"{key} was {was!r} and is {now!r}" for key, (was, now) in unlike.items())
        raise FingerprintsDiffer(f"this is not the machine the run was begun on, so it cannot go on here: {told}")
    return replace(found, ceilings=manifest.ceilings)


def _check_unchanged(directory: Path, manifest: Manifest, suite: Suite) -> None:
    echo = manifest.suite
    if manifest.niffbench != __version__:
        raise UsageError(f"{directory}: was begun with niffbench {manifest.niffbench}, this is {__version__}")
    if suite.name != echo.name:
        raise UsageError(f"{directory}: is a run of '{echo.name}', not of '{suite.name}'")
    if suite.source_hash != echo.source_hash:
        raise UsageError(f"{directory}: suite '{suite.name}' was edited since the run began; begin a new run")
    if [case.id for case in suite.cases] != echo.cases:
        raise UsageError(f"{directory}: suite '{suite.name}' stands for other cases now; begin a new run")


def _plan(
    suite: Suite, found: Survey, operators: Mapping[str, Operator], settings: Settings, stop: Interrupts
) -> planning.Plan:
    with stop.at_any_moment():
        return planning.make(
            suite,
            found,
            operators,
            measure=settings.measure,
            rounds=settings.rounds,
            memory_limit=settings.memory_limit,
        )


def _manifest(prepared: Prepared, argv: Sequence[str]) -> Manifest:
    suite, settings, checkout = prepared.suite, prepared.settings, provenance.checkout()
    return Manifest(
        niffbench=__version__,
        suite=SuiteEcho(
            name=suite.name,
            description=suite.description,
            baseline=suite.baseline,
            source_hash=suite.source_hash,
            measure=settings.measure,
            cases=[case.id for case in suite.cases],
            excluded=[
                ExcludedCase(label=left_out.label, problem=left_out.case.problem.label, reason=left_out.reason)
                for left_out in suite.excluded
            ],
            only=list(suite.only),
        ),
        rounds=settings.rounds,
        seed=settings.seed,
        device=provenance.reduced([settings.device])[0],
        fingerprint=prepared.survey.fingerprint,
        argv=provenance.reduced(argv),
        commit=checkout.commit,
        dirty=checkout.dirty,
        started=_now(),
        budget=settings.budget,
        memory_limit=settings.memory_limit,
        ceilings=prepared.survey.ceilings,
        notes=[prepared.survey.note] if prepared.survey.note else [],
        ci=provenance.ci(os.environ),
    )


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds")
