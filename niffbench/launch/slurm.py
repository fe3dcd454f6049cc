"""Workers as tasks of Slurm's job arrays, which write what they say into files of the run's folder.

Files, on a folder that every node sees, need nobody to listen: when the session's machine is lost the array goes
on, and the session that resumes the run finds what it finished.
"""

from __future__ import annotations

import contextlib
import hashlib
import importlib
import io
import os
import re
import select
import shutil
import signal
import subprocess
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from math import ceil, inf
from pathlib import Path
from secrets import token_hex
from types import FrameType, TracebackType
from typing import Any

from pydantic import ValidationError

from niffbench import protocol
from niffbench.anonymize import anonymize
from niffbench.device import uses_accelerator
from niffbench.errors import UsageError, plural
from niffbench.launch import relay
from niffbench.launch.base import Request, WorkerBroken, WorkerEnd
from niffbench.launch.engine import EngineLauncher, Mailbox, not_cancelled

FOLDER = "slurm"
"""In a run's directory: of each task what it is to do and, line by line, what it says."""
PARCEL, REPLIES = "task.json", "replies.jsonl"
WORKERS = 4
LOOKING = 3.0
"""Seconds between two questions to Slurm."""
ANSWERING = 20.0
"""Seconds that it has to answer one, and a quarter of them once the session ends."""
WAITING = 10.0
"""Seconds that a reason why tasks wait must last to be worth a word."""
PAUSES = (3.0, 10.0, 30.0, 60.0)
"""Seconds until a task is submitted again that was not taken, as by a controller that is busy."""
STARTING = 300.0
"""Seconds that a task may run before a word of it is here."""
SETTING_UP = 900.0
"""Seconds that a task has beside those of its cases."""
LONGEST = 43200.0
"""Seconds of a task, unless ``--launcher-option time`` says otherwise."""
ENDING = 15.0
"""Seconds that cancelled tasks get to be gone, and that a task is warned before its time is up."""
MOST_TASKS = 1000
"""Of one array; Slurm's own limit is 1001 unless a site changed it."""
OURS = {"None", "JobArrayTaskLimit"}
"""Reasons of Slurm's why tasks wait that are no news: it has not looked yet; no more at once were asked for."""
HOPELESS = re.compile(
    r"PartitionTimeLimit|PartitionNodeLimit|BadConstraints|AccountNotAllowed|QOSNotAllowed|Invalid(Account|QOS)"
    r"|(QOS|Assoc)Max\w+PerJob(Limit)?|QOSMin\w+"
)
"""Those that hold for a task as it is, whatever becomes of others."""


class SlurmLauncher(EngineLauncher):
    """Submits tasks through submitit, all that are known of at once as one array."""

    def reset(self) -> None:
        super().reset()
        self._announced: dict[tuple[Any, ...], tuple[Path, str]] = {}
        self._states: dict[str, str] = {}
        self._looked = 0
        self._looked_at = 0.0
        self._lock = threading.Lock()
        self._submitting = threading.Lock()
        self._left = 0
        self._silent: Counter[str] = Counter()  # tasks that left nothing, by node
        self.has_arrived = False  # whether any task's words have
        self._name = ""  # of this session's jobs
        self._since: dict[str, float] = {}  # by reason, when tasks were first seen to wait for it
        self._said: set[str] = set()
        self._hopeless: dict[str, str] = {}  # the reason by job
        self._has_submitted = self._measures = False  # any task, and one of a round
        self._is_ended = self._is_left = self._is_silent = False

    @property
    def leftovers(self) -> str | None:
        which = f"--me --name={self._name}"
        how = f"`squeue {which}` shows them, `scancel {which}` ends them"
        if self._is_left and self._left:
            return f"{plural(self._left, 'task')} of Slurm's go on: {how}"
        return not_cancelled(self._left, how)

    @contextmanager
    def open(self, request: Request) -> Iterator[None]:
        """See that there is a Slurm, and make a folder for the survey.

        Raises:
            UsageError: without Slurm or submitit, or where the controller does not answer.
        """
        try:
            self._submitit = importlib.import_module("submitit")
        except ImportError as error:
            raise UsageError("--on slurm: submitit is not installed; pip install 'niffbench[slurm]'") from error
        programs = ("sbatch", "squeue", "scancel", "scontrol")
        if lacking := [program for program in programs if shutil.which(program) is None]:
            raise UsageError(f"--on slurm: there is no {lacking[0]} here; run this where jobs are submitted")
        if " UP" not in (_slurm("scontrol", "ping") or ""):  # sbatch itself would try for a minute
            raise UsageError("--on slurm: no controller answers; `scontrol ping` says more")
        self.reset()
        self._request = request
        self._files = [file.absolute() for file in request.files]
        self._environment = relay.environment(self._files)
        self.workers = request.workers or WORKERS
        directory = request.directory.resolve()
        self._name = f"{_name(directory)}-{token_hex(3)}"
        try:  # the survey of a new run comes before its directory
            directory.parent.mkdir(parents=True, exist_ok=True)
            self._survey = Path(tempfile.mkdtemp(prefix=f".{directory.name}-", dir=directory.parent))
        except OSError as error:
            raise UsageError(f"{directory.parent}: cannot be written ({error.strerror})") from error
        try:
            yield
        finally:
            which = f"--name={self._name}"
            self._left = self._count(self._queue(which)) if self._is_left else self._cancel(which)
            shutil.rmtree(self._survey, ignore_errors=True)

    def announce(self, tasks: Sequence[protocol.Task]) -> None:
        """Submit them all, as arrays of which so many tasks run at once as there are workers."""
        with contextlib.suppress(UsageError):  # those that are not taken are submitted again one by one
            for first in range(0, len(tasks), MOST_TASKS):
                lot = tasks[first : first + MOST_TASKS]
                for task, one in zip(lot, self._submit(lot), strict=True):
                    self._announced[_key(task)] = one

    def left_behind(self, directory: Path) -> Iterable[Sequence[protocol.Reply]]:
        """What tasks of earlier sessions wrote."""
        if (directory / FOLDER).is_dir():
            lines = (_slurm("squeue", "--me", "--noheader", "--format=%A|%j") or "").splitlines()
            jobs = [line.strip().partition("|")[::2] for line in lines]
            if earlier := {job for job, name in jobs if name.startswith(f"{_name(directory)}-")}:
                self._cancel(*sorted(earlier))
        for path in sorted((directory / FOLDER).glob(f"*/{REPLIES}")):
            replies = []
            for line in path.read_bytes().splitlines():
                with contextlib.suppress(ValidationError):  # the relay's own, and one that was cut short
                    replies.append(protocol.read(line))
            if replies:
                yield replies

    def forget(self, directory: Path) -> None:
        """What tasks wrote says on which hosts they were, which is nobody's."""
        if self._name:  # those that others were quicker than still write
            self._left = self._cancel(f"--name={self._name}")
        shutil.rmtree(directory / FOLDER, ignore_errors=True)

    def end_all(self) -> None:
        self._is_ended = True
        if self._name and not self._is_left:
            _slurm("scancel", "--me", f"--name={self._name}", timeout=ANSWERING / 4)

    def leave_all(self) -> None:
        self._is_left = self._measures  # nobody would read what was surveyed

    def nodes(self) -> Collection[str] | None:
        partition = self._request.options.get("partition")
        where = [f"--partition={partition}"] if partition else []
        every = _slurm("sinfo", *where, "--noheader", "--Node", "--format=%N")
        return None if every is None else every.split()

    def avoid(self, *nodes: str) -> bool:
        if is_avoided := super().avoid(*nodes):
            for array in {job.partition("_")[0] for _, job in list(self._announced.values())}:
                _slurm("scontrol", "update", f"JobId={array}", f"ExcNodeList={self._excluded()}")
        return is_avoided

    def _excluded(self) -> str:
        return ",".join(filter(None, [self._request.options.get("exclude"), *sorted(self.avoided)]))

    def start(self, task: protocol.Task, wake: int) -> SlurmWorker:
        key = _key(task)
        for other in [] if key in self._announced else list(self._announced):
            if other[:3] == key[:3] and {*other[3]} > {*key[3]}:  # of its cases some have become needless
                self.cancel(self._announced.pop(other)[1])
        folder, job = self._announced.pop(key) if key in self._announced else self._submit_patiently(task, wake)
        return SlurmWorker(self, folder, job, wake)

    def is_anything_amiss(self) -> bool:
        """Whether the tasks that ended have all left nothing, and not by a chance."""
        return self._silent.total() > 1 and not self.has_arrived

    def note_silent(self, job: str) -> tuple[str | None, int]:
        """Count a task that ended and left nothing; returns its node, and how many of its tasks did."""
        node = _field("NodeList", _slurm("scontrol", "show", "job", "--oneliner", job))
        self._silent[node or ""] += 1
        return node, self._silent[node or ""]

    def state(self, job: str) -> tuple[str | None, int]:
        """What Slurm says of a job, None when it is not in the queue; and how often Slurm has answered."""
        with self._lock:
            if time.monotonic() - self._looked_at >= LOOKING:
                self._looked_at = time.monotonic()
                self._look()
            return self._states.get(job), self._looked

    def _look(self) -> None:
        jobs = self._queue(f"--name={self._name}", "--format=%i|%T|%r")
        if jobs is not None:
            fields = [(*line.split("|"), "", "")[:3] for line in jobs]
            self._states = {job: state for job, state, _ in fields}
            self._looked += 1
            # Further words name nodes.
            reasons = {job: reason.partition(",")[0] for job, state, reason in fields if state == "PENDING"}
            self._explain({job: reason for job, reason in reasons.items() if reason not in OURS})

    def _explain(self, reasons: Mapping[str, str]) -> None:
        """Say why tasks wait, given by job, where that has been so for a while and is news."""
        now, tasks = time.monotonic(), Counter(reasons.values())
        self._since = {reason: self._since.get(reason, now) for reason in tasks}
        lasting = {reason for reason, since in self._since.items() if now - since >= WAITING}
        hopeless = set(filter(HOPELESS.fullmatch, lasting))
        self._hopeless = {job: reason for job, reason in reasons.items() if reason in hopeless}
        if lasting - hopeless - self._said:
            why = [f"{reason} ({plural(tasks[reason], 'task')})" for reason in sorted(lasting)]
            self._request.say(f"queued: {', '.join(why)}")
        self._said = lasting

    def hopeless(self, job: str) -> str | None:
        """Why a job that waits always will."""
        return self._hopeless.get(job)

    def cause(self, job: str) -> str:
        """Why a job is in the queue no more, as the predicate of a sentence."""
        text = _slurm("scontrol", "show", "job", "--oneliner", job)
        why = ", ".join(filter(None, (_field(key, text) for key in ("JobState", "Reason"))))
        return f"was ended by Slurm before it was done ({why or 'it is not in the queue any more'})"

    def cancel(self, job: str) -> None:
        """End a job now, and not after the time that Slurm gives it to end by itself."""
        if not (self._is_ended or self._is_left or self._is_silent):
            _slurm("scancel", "--signal=KILL", job)
            _slurm("scancel", job)

    def _cancel(self, *which: str) -> int:
        """Cancel jobs, given by their ids or a name; returns how many are still there after a while."""
        queue = [f"--jobs={','.join(which)}"] if which[0].isdecimal() else list(which)
        if (left := self._queue(*queue)) == []:
            return 0
        if left is not None:
            _slurm("scancel", "--signal=KILL", *which)
        _slurm("scancel", *which, timeout=ANSWERING / 4)  # in vain perhaps, where nobody answers
        ends = time.monotonic() + ENDING
        while left and (left := self._queue(*queue)) and time.monotonic() < ends:
            time.sleep(0.5)
        return self._count(left)

    def _queue(self, *which: str) -> list[str] | None:
        """A line for each task of mine in the queue; None when that cannot be known."""
        patience = ANSWERING / 4 if self._is_silent else ANSWERING
        printed = _slurm("squeue", "--me", *which, "--noheader", "--array", timeout=patience)
        self._is_silent = printed is None  # the network stalls, or the controller is being restarted
        return None if printed is None else [line.strip() for line in printed.splitlines() if line.strip()]

    def _count(self, queue: Sequence[str] | None) -> int:
        """How many tasks are in the queue; where that cannot be known, as many as when it last could."""
        return max(1, len(self._states)) if queue is None else len(queue)

    def _submit_patiently(self, task: protocol.Task, wake: int) -> tuple[Path, str]:
        """Submit a task, and again a few times if tasks like it were taken before."""
        poll = select.poll()
        poll.register(wake, select.POLLIN)
        for pause in PAUSES:
            try:
                return self._submit([task])[0]
            except UsageError:
                if not self._has_submitted or poll.poll(1000 * pause):
                    raise
        return self._submit([task])[0]

    def _submit(self, tasks: Sequence[protocol.Task]) -> list[tuple[Path, str]]:
        """Submit tasks as one array; returns the folder and the job of each."""
        with self._submitting:
            try:
                folders = [self._write(task) for task in tasks]
            except OSError as error:
                raise WorkerBroken(f"{self._request.directory}: cannot be written ({error.strerror})") from error
            executor = self._submitit.AutoExecutor(folder=folders[0].parent / "jobs", cluster="slurm")
            executor.update_parameters(**self._parameters(tasks))
            try:
                with contextlib.redirect_stderr(io.StringIO()):  # submitit prints what it raises
                    jobs = executor.map_array(serve, [str(folder) for folder in folders])
            except Exception as error:
                said = re.findall(r"sbatch: (?:error: )?(.*)", str(error)) or [" ".join(str(error).split())]
                raise UsageError(f"--on slurm: sbatch takes no task: {anonymize(said[0])[:300]}") from error
            self._has_submitted = True
            return list(zip(folders, [str(job.job_id) for job in jobs], strict=True))

    def _write(self, task: protocol.Task) -> Path:
        """A folder of its own for a task, with what it is to do."""
        place = self._survey
        if task.kind == "round":
            self._measures = True
            place = self._request.directory.absolute() / FOLDER
            place.mkdir(exist_ok=True)
        folder = Path(tempfile.mkdtemp(prefix=f"{task.kind}-{task.round}-", dir=place))
        draft = folder / f"{PARCEL}.tmp"
        draft.write_bytes(relay.pack(task, self._environment, self._files, self._request.cpus))
        draft.rename(folder / PARCEL)
        (folder / REPLIES).touch()  # a network's file system remembers for a while what is not there
        return folder

    def _parameters(self, tasks: Sequence[protocol.Task]) -> dict[str, Any]:
        """What each task of an array gets."""
        request = self._request
        options = {key.replace("_", "-"): value for key, value in request.options.items()}
        longest = max(len(task.cases) * task.settings.measure.case_timeout for task in tasks)
        gpus = request.gpus
        if gpus is None:
            gpus = int(bool(uses_accelerator(tasks[0].settings.device)))
        more: dict[str, Any] = {"no-requeue": True}
        if request.cpus is None and not gpus:  # as in a local run, a worker has the machine to itself
            more["exclusive"] = True
        if excluded := self._excluded():
            options["exclude"] = excluded
        return {
            "name": self._name,
            "timeout_min": ceil(min(longest + SETTING_UP, LONGEST) / 60),
            "slurm_array_parallelism": self.workers,
            "slurm_signal_delay_s": int(ENDING),
            "slurm_additional_parameters": {**more, **options},
            **({"gpus_per_node": gpus} if gpus else {}),
            **({"cpus_per_task": request.cpus} if request.cpus else {}),
            # What sbatch is told of cores srun does not take over, from 22.05 up to 23.02.
            **({"slurm_srun_args": [f"--cpus-per-task={request.cpus}"]} if request.cpus else {}),
        }


LAUNCHER = SlurmLauncher()


def _key(task: protocol.Task) -> tuple[Any, ...]:
    """What makes two tasks the same but for what was learned in the meantime."""
    return task.kind, task.round, task.settings.model_dump_json(), tuple(case.id for case in task.cases)


def _name(directory: Path) -> str:
    """What the names of a run's jobs begin with, by whichever way its directory is named."""
    return f"niffbench-{hashlib.sha256(str(directory.resolve()).encode()).hexdigest()[:8]}"


def _slurm(*command: str, timeout: float = ANSWERING) -> str | None:
    """What one of Slurm's programs prints; None when it fails or does not answer."""
    try:
        done = subprocess.run(
            command, capture_output=True, text=True, errors="replace", timeout=timeout, check=False
        )
    except (OSError, subprocess.SubprocessError):
        return None
    return done.stdout if done.returncode == 0 else None


def _field(key: str, text: str | None) -> str | None:
    """What ``scontrol`` says under ``key``."""
    match = re.search(rf"\b{key}=(\S+)", text or "")
    return None if match is None or match[1] in ("None", "(null)") else match[1]


class Ended(BaseException):
    """Slurm takes the task away: its time is up, or somebody else needs the node."""


def serve(folder: str) -> None:
    """On a node: run the task in ``folder``, and write there what the worker says."""

    def end(number: int, frame: FrameType | None) -> None:
        raise Ended(signal.Signals(number).name)

    for number in (signal.SIGTERM, signal.SIGUSR2, signal.SIGUSR1):
        signal.signal(number, end)
    place = Path(folder)
    with (place / REPLIES).open("ab") as file:

        def write(line: bytes) -> None:
            file.write(line)
            file.flush()
            os.fsync(file.fileno())

        try:
            for line in relay.relay((place / PARCEL).read_bytes(), os.environ.get("SLURMD_NODENAME", "unnamed")):
                write(line)
        except Ended as error:
            recalled = str(error) == "SIGTERM"  # as of one that is preempted or cancelled; USR2 tells of the limit
            why = "preempted or cancelled" if recalled else "its time limit is near"
            gone = relay.Gone(cause=f"was ended by Slurm ({error}: {why})", taken=True, recalled=recalled)
            write(protocol.write(gone))


class SlurmWorker:
    """A task of an array; its lines are read from its file as they come."""

    def __init__(self, launcher: SlurmLauncher, folder: Path, job: str, wake: int) -> None:
        self._launcher = launcher
        self._folder = folder
        self._job = job
        self._mailbox = Mailbox()
        self._offset = 0
        self._pause = 0.1
        self._missed = self._seen = 0
        self._started = inf  # when it was first seen to run
        self._poll = select.poll()
        self._poll.register(wake, select.POLLIN)

    def __enter__(self) -> SlurmWorker:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._mailbox.end is None:
            self.kill()

    @property
    def is_queued(self) -> bool:
        return self._mailbox.node is None and self._mailbox.end is None

    def next(self, deadline: float) -> protocol.Reply | WorkerEnd | None:
        """The next message, the worker's end, or None at ``deadline``, a wake-up or when it is queued no more."""
        while True:
            was_queued = self.is_queued
            self._read()
            if (message := self._mailbox.take()) is not None:
                return message
            left = deadline - time.monotonic()
            if left <= 0 or (was_queued and not self.is_queued):
                return None
            if self._poll.poll(1000 * min(self._pause, left)):
                return None
            self._pause = min(2 * self._pause, 1.0)
            self._ask()

    def arrived(self) -> list[protocol.Reply]:
        self._read()
        replies = list(self._mailbox.messages)
        self._mailbox.messages.clear()
        return replies

    def kill(self) -> None:
        self._launcher.cancel(self._job)

    def _read(self) -> None:
        """Put the whole lines that are new into the mailbox.

        The file is opened each time: only then a network's file system asks for what is new.
        """
        with contextlib.suppress(FileNotFoundError), (self._folder / REPLIES).open("rb") as file:
            file.seek(self._offset)
            data = file.read()
            whole = data[: data.rfind(b"\n") + 1]
            self._offset += len(whole)
            for line in whole.splitlines():
                self._mailbox.put(line)
                self._launcher.has_arrived = True
            if whole:
                self._pause = 0.1

    def _ask(self) -> None:
        """Whether Slurm has the job still; twice not, and it is gone, and what it said last is here."""
        state, looked = self._launcher.state(self._job)
        if looked == self._seen or state is not None:
            self._seen, self._missed = looked, 0 if state is not None else self._missed
            if reason := self._launcher.hopeless(self._job):
                asked = "--launcher-option sets time, partition, account and qos"
                refused = protocol.Refused(message=f"--on slurm: a task would wait for ever: {reason}; {asked}")
                self._mailbox.messages.append(refused)
            if state == "RUNNING" and self.is_queued:
                self._started = min(self._started, time.monotonic())
                if time.monotonic() - self._started > STARTING:
                    self.kill()
                    self._lose(f"ran for {STARTING:g} s", enough=1)
            return
        self._seen, self._missed = looked, self._missed + 1
        if self._missed < 2:
            return
        self._read()
        if self._mailbox.end is not None or self._mailbox.messages:
            return
        self._lose(self._launcher.cause(self._job), enough=2)

    def _lose(self, cause: str, *, enough: int) -> None:
        """The task is gone. A node on which ``enough`` of them were and left nothing is of no use."""
        node, recalled = None, "PREEMPTED" in cause
        if self._mailbox.node is None and not recalled:
            cause += (
                " and left nothing in the run's folder; is that on a file system that every node sees, and "
                "niffbench installed where the nodes find it?"
            )
            node, times = self._launcher.note_silent(self._job)
            if self._launcher.is_anything_amiss():
                self._mailbox.messages.append(protocol.Refused(message=f"--on slurm: a task {cause}", node=node))
                return
            node = node if times >= enough else None
        self._mailbox.lose(relay.Gone(cause=cause, taken=True, recalled=recalled, node=node))
