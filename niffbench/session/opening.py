"""The opening of a run: from a suite, or from what is there of one, to a session in a directory."""

from __future__ import annotations

import os
import sys
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from functools import partial
from pathlib import Path

from niffbench import __version__, launch, protocol
from niffbench.anonymize import anonymize
from niffbench.device import kind_of
from niffbench.errors import UsageError
from niffbench.fingerprint import Fingerprint, differences
from niffbench.launch.base import Request
from niffbench.operators.catalogue import catalogue
from niffbench.results import (
    COMPRESSED,
    MANIFEST,
    RECORDS,
    SCHEMA,
    ExcludedCase,
    Manifest,
    ModuleSource,
    Run,
    ShardEcho,
    SubjectSource,
    SuiteEcho,
    machine_runs,
    next_machine,
    read,
    read_manifest,
)
from niffbench.session import directory as place
from niffbench.session import plan as planning
from niffbench.session import provenance
from niffbench.session.interrupts import Interrupted, Interrupts
from niffbench.session.journal import Journal
from niffbench.session.lock import Lock, device_lock
from niffbench.session.nodes import Nodes, avoid_those_of
from niffbench.session.refine import Refinement
from niffbench.session.run_session import RunSession, Unheard
from niffbench.session.survey import Survey, survey
from niffbench.session.worker_session import TaskRefused
from niffbench.suite import DeviceType, Overrides, Settings, Suite, resolve

Opening = Callable[[Interrupts, float, Request], AbstractContextManager[RunSession]]
"""Opens a run's session, and the place where its workers run; the time is when work on it began
(``time.monotonic``)."""
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
    wanted: Overrides | Settings,
    stop: Interrupts,
    fingerprint: Fingerprint | None = None,
    *,
    ceilings: bool = True,
    counts_ahead: bool = True,
) -> Prepared:
    """Survey the machine and plan the suite on it; nothing is written. Raises what :func:`survey` raises.

    Args:
        wanted: what a command line overrides, or all settings of another run.
        fingerprint: of the machine that it is to be; None for any.
        ceilings: measure what the machine can do at best, too.
        counts_ahead: see :func:`survey`.
    """
    suite = load(kind_of(wanted.device))
    settings = wanted if isinstance(wanted, Settings) else resolve(suite, wanted)
    try:
        # Of a round of an A/B run nobody reads them.
        ceilings = ceilings and os.environ.get("NIFFBENCH_ROOFLINE") != "0"
        surveyed = survey(
            suite.cases,
            settings,
            stop,
            modules=suite.modules,
            ceilings=ceilings,
            fingerprint=fingerprint,
            counts_ahead=counts_ahead,
        )
        if settings.device == "auto" and (kind := kind_of(surveyed.fingerprint.must.get("device"))) is not None:
            suite = load(kind)
            settings = settings.model_copy(update={"device": kind})
        return Prepared(suite, settings, surveyed, _plan(suite, surveyed, settings, stop))
    except Interrupted:
        raise Interrupted("interrupted before anything was measured") from None
    except TaskRefused as refused:
        raise (refused if refused.node is None else refused.at("node 0")) from None


@contextmanager
def begin(out: Path, prepared: Prepared, argv: Sequence[str], began: float) -> Iterator[RunSession]:
    """A new run in ``out``, which must be vacant.

    Raises:
        UsageError: when it is not, or cannot be made.
    """
    place.make(out)
    with Lock(out), device_lock(_device(prepared.survey.fingerprint, prepared.settings)) as shared:
        if not place.is_vacant(out):
            raise UsageError(f"--out {out}: is not empty any more; name a new directory, or --resume it")
        manifest = _manifest(prepared, argv)
        if shared is not None:
            manifest = manifest.model_copy(update={"notes": [*manifest.notes, shared]})
        place.write_manifest(out, manifest)
        suite = prepared.suite
        refinement = _refinement(suite, prepared.settings)
        session = RunSession(out, manifest, prepared.settings, prepared.plan, (), began, refinement, suite.modules)
        yield session
        if session.manifest.finished is not None:
            launch.launcher(prepared.settings.launcher).forget(out)


@contextmanager
def resume(
    directory: Path,
    load: SuiteLoader,
    stop: Interrupts,
    began: float,
    request: Request | None = None,
    *,
    device: str | None = None,
    launcher: str | None = None,
) -> Iterator[RunSession]:
    """What is left of the run in ``directory``; ``device`` only says where it is now, a replay file moved, say.

    ``launcher`` may be another than the one that the run was begun with. It is opened for ``request``, where there
    is one, once the directory is locked, and only if something is to be measured.

    A torn last line is repaired, but not before all else is known to be right: nothing is changed in a run that
    cannot be resumed.

    Raises:
        UsageError: when ``directory`` is no run, is being written to, or its suite has changed since.
        FingerprintsDiffer: on another machine.
        Interrupted: by Ctrl-C; and what :func:`survey` raises.
    """
    begun = read_manifest(directory)
    update = {"device": device or begun.device, "launcher": launcher or begun.settings.launcher}
    settings = begun.settings.model_copy(update=update)
    engine = launch.launcher(settings.launcher)
    with Lock(directory), device_lock(_device(begun.fingerprint, settings)) as shared, ExitStack() as opened:
        if not (directory / RECORDS).exists() and (directory / COMPRESSED).exists():
            raise UsageError(f"{directory}: its records are packed; unpack {COMPRESSED} to resume it")
        with stop.at_any_moment():
            run = read(directory)
        manifest = run.manifest
        suite = load(kind_of(manifest.fingerprint.must.get("device")))
        _check_unchanged(directory, manifest, suite)
        names = dict.fromkeys((manifest.settings.launcher, settings.launcher))  # when it was begun, and now
        engines = [launch.launcher(name) for name in names]
        unheard = _unheard(run, [one for each in engines for one in each.left_behind(directory)])
        is_whole = manifest.records <= len(run.records) + len(unheard)
        is_idle = is_whole and (settings.refine is None or manifest.finished is not None)
        if not is_idle:
            if request is not None:
                opened.enter_context(engine.open(request))
            avoid_those_of(_others(directory), engine)
        surveyed = _survey_rest(suite, run, unheard, settings, stop)
        plan = _plan(suite, surveyed, settings, stop)
        unlike = {fingerprint.hash: fingerprint for fingerprint in (*manifest.unlike, *surveyed.unlike)}
        notes = [*manifest.notes, *([shared] if shared else [])]
        with Journal(directory) as journal:
            torn = journal.repair()
        if torn is not None:
            fate = (
                f"kept in {torn.side_file.name}" if torn.side_file else "whole but for its newline, and completed"
            )
            notes.append(f"the journal's last line was torn ({torn.bytes:,} bytes, {fate})")
            with stop.at_any_moment():
                run = read(directory)
        # A killed run could not write down how long it took; its records know of most of it.
        refining, spent = manifest.refining or 0.0, manifest.wall or 0.0
        if not (manifest.nodes or manifest.devices):  # which may have measured at once
            refining = max(refining, sum(record.elapsed for record in run.probes))
            spent = max(spent, refining + sum(record.elapsed for record in run.records))
        manifest = manifest.model_copy(
            update={
                "schema_version": SCHEMA,
                "wall": spent,
                "refining": refining or None,
                "notes": notes,
                "unlike": list(unlike.values()),
            }
        )
        place.write_manifest(directory, manifest)
        done = (*run.records, *run.probes)
        refinement = None if is_idle else _refinement(suite, settings)
        session = RunSession(directory, manifest, settings, plan, done, began, refinement, suite.modules, unheard)
        yield session
        if session.manifest.finished is not None:
            for each in engines:
                each.forget(directory)


def other_machines(
    first: RunSession, load: SuiteLoader, device: str | None = None
) -> Iterator[tuple[Path, Opening]]:
    """The runs of other machines that a run's session met, those that are not finished, one after another.

    Each is whole, by itself, inside the directory of the first, and has its settings. What one of them meets comes
    after it.

    Yields:
        its directory, and how it is opened.
    """
    passed: set[str] = set()
    while True:
        runs = {path: read_manifest(path) for path in (first.directory, *machine_runs(first.directory))}
        begun = {manifest.fingerprint.hash: path for path, manifest in runs.items()}
        met = {one.hash: one for manifest in runs.values() for one in (manifest.fingerprint, *manifest.unlike)}
        ahead = [one for one in met.values() if one.hash not in passed]
        if not ahead:
            return
        passed.add(ahead[0].hash)
        path = begun.get(ahead[0].hash)
        if path is None:
            yield next_machine(first.directory), partial(_begin_beside, first, load, ahead[0])
        elif path != first.directory and runs[path].finished is None:
            launcher = first.settings.launcher
            yield path, partial(resume, path, load, device=device, launcher=launcher)


@contextmanager
def _begin_beside(
    first: RunSession,
    load: SuiteLoader,
    fingerprint: Fingerprint,
    stop: Interrupts,
    began: float,
    request: Request,
) -> Iterator[RunSession]:
    """A new run on another machine than that of ``first``, which its session met."""
    others = (first.directory, *machine_runs(first.directory))
    engine = launch.launcher(first.settings.launcher)
    with engine.open(request):
        avoid_those_of(others, engine)
        prepared = prepare(load, first.settings, stop, fingerprint)
        with begin(next_machine(first.directory), prepared, first.manifest.argv, began) as session:
            yield session


def _others(directory: Path) -> list[Path]:
    """The runs of other machines than that of a run: inside its directory, or beside it in that of the first."""
    own = directory.absolute()
    is_first = own not in machine_runs(own.parent) or not (own.parent / MANIFEST).exists()
    first = own if is_first else own.parent
    return [path for path in (first, *machine_runs(first)) if path != own]


def _unheard(run: Run, left_behind: Iterable[Sequence[protocol.Reply]]) -> list[Unheard]:
    """What workers that outlived their session finished of ``run`` on its machine."""
    cases, machine = set(run.manifest.suite.cases), run.manifest.fingerprint.must
    done = {(record.id, record.round) for record in run.records}
    unheard = []
    for hello, *messages in left_behind:
        if isinstance(hello, protocol.Hello) and not differences(machine, hello.fingerprint.must):
            for message in messages:
                record = message.record if isinstance(message, protocol.Finished) else None
                if record is None or (record.id, record.round) in done:
                    continue
                if record.id in cases and record.round < run.manifest.rounds:
                    done.add((record.id, record.round))
                    unheard.append(Unheard(hello, record))
    return unheard


def _refinement(suite: Suite, settings: Settings) -> Refinement | None:
    return None if settings.refine is None else Refinement(suite, settings.refine, catalogue())


def _survey_rest(
    suite: Suite, run: Run, unheard: Sequence[Unheard], settings: Settings, stop: Interrupts
) -> Survey:
    """Ask again what is not in the manifest, for the cases that lack a record."""
    manifest = run.manifest
    records = Counter(record.id for record in (*run.records, *(one.record for one in unheard)))
    left = [case for case in suite.cases if records[case.id] < manifest.rounds]
    if not left:
        return Survey(manifest.fingerprint, ceilings=manifest.ceilings)
    try:
        surveyed = survey(
            left,
            settings,
            stop,
            modules=suite.modules,
            ceilings=False,
            fingerprint=manifest.fingerprint,
            counts_ahead=True,
        )
    except TaskRefused as refused:
        node = refused.node
        raise (refused if node is None else refused.at(Nodes(manifest, run.path).name(node))) from None
    changed = [one.file for one, before in zip(surveyed.modules, manifest.modules, strict=False) if one != before]
    if changed:
        raise UsageError(f"{run.path}: {changed[0]} was edited since the run began; begin a new run")
    return replace(surveyed, ceilings=manifest.ceilings)


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


def _plan(suite: Suite, surveyed: Survey, settings: Settings, stop: Interrupts) -> planning.Plan:
    with stop.at_any_moment():
        return planning.make(suite, surveyed, catalogue(), settings)


def _device(fingerprint: Fingerprint, settings: Settings) -> str | None:
    """What runs on one device have in common: the card's identity, or the kind of device.

    None of a replay, and of a device that is not this machine's.
    """
    kind = kind_of(settings.device) if launch.launcher(settings.launcher).is_here else None
    return None if kind is None else str(fingerprint.should.get("gpu_id") or kind)


def _subject(suite: Suite, sources: Sequence[ModuleSource]) -> tuple[SubjectSource, Path]:
    """The code that is measured: what the suite's first row of one's own, or from outside the package, is from."""
    for row in suite.modules:
        name = row.source.rpartition(":")[0]
        if (path := provenance.located(name, row.folders)) is not None:
            said = next((source.version for source in sources if source.operator == row.operator), None)
            return SubjectSource(module=Path(name).name, version=said), path
    operators = catalogue()
    package = Path(__file__).parents[1]
    for operator in dict.fromkeys(case.operator for case in suite.cases):
        module = sys.modules.get(type(operators[operator]).__module__) if operator in operators else None
        file = getattr(module, "__file__", None)
        if module is not None and file is not None and package not in Path(file).parents:
            top = sys.modules.get(module.__name__.partition(".")[0])
            version = getattr(top, "__version__", None)
            return SubjectSource(module=module.__name__, version=version and str(version)), Path(file)
    return SubjectSource(module="niffbench", version=__version__), package / "__init__.py"


def _manifest(prepared: Prepared, argv: Sequence[str]) -> Manifest:
    suite, settings = prepared.suite, prepared.settings
    subject, file = _subject(suite, prepared.survey.modules)
    revision = provenance.revision(file, os.environ)
    own = provenance.revision(Path(__file__).parents[1] / "__init__.py", {})
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
            shard=ShardEcho(name=str(suite.shard), positions=list(suite.positions)) if suite.shard else None,
            added=list(suite.added),
            commit=provenance.revision(suite.file, {}).commit if suite.file else None,
            text=anonymize(suite.text),
        ),
        settings=settings.model_copy(update={"device": provenance.reduced([settings.device])[0]}),
        fingerprint=prepared.survey.fingerprint,
        argv=provenance.reduced(argv),
        subject=subject,
        commit=revision.commit,
        dirty=revision.dirty,
        niffbench_commit=own.commit,
        niffbench_dirty=own.dirty,
        started=datetime.now(UTC).isoformat(timespec="seconds"),
        ceilings=prepared.survey.ceilings,
        notes=[note for note in (prepared.survey.note, revision.note) if note],
        modules=list(prepared.survey.modules),
        unlike=list({one.hash: one for one in prepared.survey.unlike}.values()),
        ci=provenance.ci(os.environ),
    )
