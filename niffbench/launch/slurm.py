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
from collections.abc import Collection, Iterable, Iterator, Sequence
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
from niffbench.errors import UsageError
from niffbench.launch import relay
from niffbench.launch.base import Request, WorkerBroken, WorkerEnd
from niffbench.results import read_manifest

FOLDER = "slurm"
"""In a run's directory: of each task what it is to do and, line by line, what it says."""
PARCEL, REPLIES = "task.json", "replies.jsonl"
WORKERS = 4
LOOKING = 3.0
"""Seconds between two questions to Slurm."""
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


class SlurmLauncher(relay.EngineLauncher):
    """Submits tasks through submitit, all that are known of at once as one array."""

    def __init__(self) -> None:
        super().__init__()
        self._announced: dict[tuple[Any, ...], tuple[Path, str]] = {}
        self._states: dict[str, str] = {}
        self._looked = 0
        self._looked_at = 0.0
        self._lock = threading.Lock()
        self._submitting = threading.Lock()
        self._left = 0
        self._silent: Counter[str] = Counter()  # tasks that left nothing, by node
        self.has_arrived = False  # whether any task's words have
        self._run = self._name = ""
        self._writes = self._is_ended = False

    @property
    def leftovers(self) -> str | None:
        return relay.not_cancelled(self._left, f"`squeue --me --name={self._name}` shows them")

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
        self.__init__()  # type: ignore[misc]
        self._request = request
        self._files = [file.absolute() for file in request.files]
        self._environment = relay.environment(self._files)
        self.workers = request.workers or WORKERS
        directory = request.directory.resolve()  # by whichever way it is named again
        self._run = f"niffbench-{hashlib.sha256(str(directory).encode()).hexdigest()[:8]}"
        self._name = f"{self._run}-{token_hex(3)}"
        try:  # the survey of a new run comes before its directory
            directory.parent.mkdir(parents=True, exist_ok=True)
            self._survey = Path(tempfile.mkdtemp(prefix=f".{directory.name}-", dir=directory.parent))
        except OSError as error:
            raise UsageError(f"{directory.parent}: cannot be written ({error.strerror})") from error
        try:
            yield
        finally:
            self._left = self._cancel(f"--name={self._name}")
            shutil.rmtree(self._survey, ignore_errors=True)
            with contextlib.suppress(UsageError):  # without a run there is nothing of it to remove
                if self._writes and read_manifest(directory).finished:  # what it says of hosts is nobody's
                    shutil.rmtree(directory / FOLDER, ignore_errors=True)

    def announce(self, tasks: Sequence[protocol.Task]) -> None:
        """Submit them all, as arrays of which so many tasks run at once as there are workers."""
        for first in range(0, len(tasks), MOST_TASKS):
            lot = tasks[first : first + MOST_TASKS]
            for task, one in zip(lot, self._submit(lot), strict=True):
                self._announced[_key(task)] = one

    def left_behind(self, directory: Path) -> Iterable[Sequence[protocol.Reply]]:
        """What tasks of earlier sessions wrote. Whoever asks has the run's lock: what still runs is ended."""
        if self._run:
            self._writes = True
            lines = (_slurm("squeue", "--me", "--noheader", "--format=%A|%j") or "").splitlines()
            jobs = [line.strip().partition("|")[::2] for line in lines]
            if earlier := {job for job, name in jobs if self._is_old(name)}:
                self._cancel(*sorted(earlier))
        for path in sorted((directory / FOLDER).glob(f"*/{REPLIES}")):
            replies = []
            for line in path.read_bytes().splitlines():
                with contextlib.suppress(ValidationError):  # the relay's own, and one that was cut short
                    replies.append(protocol.read(line))
            if replies:
                yield replies

    def _is_old(self, name: str) -> bool:
        return name.startswith(f"{self._run}-") and name != self._name

    def end_all(self) -> None:
        self._is_ended = True
        if self._name:
            _slurm("scancel", "--me", f"--name={self._name}")

    def nodes(self) -> Collection[str] | None:
        partition = self._request.options.get("partition")
        where = [f"--partition={partition}"] if partition else []
        every = _slurm("sinfo", *where, "--noheader", "--Node", "--format=%N")
        return None if every is None else every.split()

    def start(self, task: protocol.Task, wake: int) -> SlurmWorker:
        key = _key(task)
        for other in [] if key in self._announced else list(self._announced):
            if other[:3] == key[:3] and {*other[3]} > {*key[3]}:  # of its cases some have become needless
                self.cancel(self._announced.pop(other)[1])
        folder, job = self._announced.pop(key) if key in self._announced else self._submit([task])[0]
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
        done = _slurm("squeue", "--me", f"--name={self._name}", "--noheader", "--array", "--format=%i|%T")
        if done is not None:  # else the network stalls, or the controller is being restarted
            self._states = dict(line.strip().partition("|")[::2] for line in done.splitlines() if line.strip())
            self._looked += 1

    def cause(self, job: str) -> str:
        """Why a job is in the queue no more, as the predicate of a sentence."""
        text = _slurm("scontrol", "show", "job", "--oneliner", job)
        why = ", ".join(filter(None, (_field(key, text) for key in ("JobState", "Reason"))))
        return f"was ended by Slurm before it was done ({why or 'it is not in the queue any more'})"

    def cancel(self, job: str) -> None:
        """End a job now, and not after the time that Slurm gives it to end by itself."""
        if not self._is_ended:
            _slurm("scancel", "--signal=KILL", job)
            _slurm("scancel", job)

    def _cancel(self, *which: str) -> int:
        """Cancel jobs, given by their ids or a name; returns how many are still there after a while."""
        queue = [f"--jobs={','.join(which)}"] if which[0].isdecimal() else list(which)
        if _slurm("squeue", "--me", *queue, "--noheader") == "":
            return 0
        _slurm("scancel", "--signal=KILL", *which)
        _slurm("scancel", *which)
        ends = time.monotonic() + ENDING
        while (left := _slurm("squeue", "--me", *queue, "--noheader", "--array")) and time.monotonic() < ends:
            time.sleep(0.5)
        return max(1, len(self._states)) if left is None else len(left.splitlines())

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
            return list(zip(folders, [str(job.job_id) for job in jobs], strict=True))

    def _write(self, task: protocol.Task) -> Path:
        """A folder of its own for a task, with what it is to do."""
        place = self._survey
        if task.kind == "round":
            self._writes = True  # and has the run's lock
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
        if self.avoided:
            more["exclude"] = ",".join(filter(None, [options.pop("exclude", ""), *sorted(self.avoided)]))
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


def _slurm(*command: str) -> str | None:
    """What one of Slurm's programs prints; None when it fails or does not answer."""
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=20, check=False)
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
            write(protocol.write(relay.Gone(cause=f"was ended by Slurm ({error})", taken=True)))


class SlurmWorker:
    """A task of an array; its lines are read from its file as they come."""

    def __init__(self, launcher: SlurmLauncher, folder: Path, job: str, wake: int) -> None:
        self._launcher = launcher
        self._folder = folder
        self._job = job
        self._mailbox = relay.Mailbox(launcher.numbers)
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
        node = None
        if self._mailbox.node is None:
            cause += (
                " and left nothing in the run's folder; is that on a file system that every node sees, and "
                "niffbench installed where the nodes find it?"
            )
            node, times = self._launcher.note_silent(self._job)
            if self._launcher.is_anything_amiss():
                where = "a node" if node is None else f"node {self._launcher.numbers.of(node)}"
                self._mailbox.messages.append(protocol.Refused(message=f"--on slurm: {where}: a task {cause}"))
                return
            node = node if times >= enough else None
        self._mailbox.lose(relay.Gone(cause=cause, taken=True, node=node))
