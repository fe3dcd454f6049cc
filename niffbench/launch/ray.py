"""Workers on the nodes of a Ray cluster, an existing one or one of this machine that ends with the run."""

from __future__ import annotations

import contextlib
import importlib
import os
import re
import select
import signal
import socket
import threading
import time
from collections.abc import Collection, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from math import inf
from types import TracebackType
from typing import Any

from niffbench import protocol
from niffbench.anonymize import anonymize
from niffbench.device import uses_accelerator
from niffbench.errors import UsageError, did_you_mean, plural
from niffbench.launch import relay
from niffbench.launch.base import Request, WorkerBroken, WorkerEnd
from niffbench.launch.engine import EngineLauncher, Mailbox, not_cancelled

OPTIONS = ("address",)
ANSWERING = 10.0
"""Seconds that an address has to answer at all."""
CONNECTING = 60.0
"""Seconds that the nodes of a cluster have to answer."""
LOOKING = 5.0
"""Seconds between two looks at the head of the cluster."""
HEADLESS = 30.0
"""Seconds that it may be away, to be restarted say, and so may the last node with room for a worker."""
ENDING = 5.0
"""Seconds that a worker that has said all has to end."""
_RECONNECTING = "RAY_gcs_rpc_server_reconnect_timeout_s"
"""Seconds without a head after which Ray ends the session's process, 60 unless set: a report is drawn first."""
_LOOPBACK = "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER"
"""Set to 0 before Ray is imported, it lets a Ray of one machine use the loopback address alone."""
_STORE = 100_000_000  # bytes of shared memory for objects, which are lines of JSON


class RayLauncher(EngineLauncher):
    """Each worker is a task whose results, lines, are streamed back as they come."""

    def reset(self) -> None:
        super().reset()
        self._kept_running = 0
        self._lock = threading.Lock()
        self._looked_at = inf
        self._silent_since: float | None = None
        self._full_since: float | None = None
        self.is_headless = False  # since then nothing is asked of Ray: it would wait, and end the process
        self.is_roomless = False  # no node is left on which a worker could ever be started

    @property
    def leftovers(self) -> str | None:
        return not_cancelled(self._kept_running, "Ray did not answer; `ray list tasks` shows them")

    @contextmanager
    def open(self, request: Request) -> Iterator[None]:
        """Connect, see what room there is, and hold every node's environment to this one.

        Raises:
            UsageError: without Ray, a cluster that answers, room for a worker, or like environments.
        """
        address = request.options.get("address") or os.environ.get("RAY_ADDRESS") or "local"
        if address == "local":
            os.environ.setdefault(_LOOPBACK, "0")
        else:
            os.environ.setdefault(_RECONNECTING, "600")
        try:
            self._ray = importlib.import_module("ray")
        except ImportError as error:
            raise UsageError("--on ray: Ray is not installed; pip install 'niffbench[ray]'") from error
        for key in request.options:
            if key not in OPTIONS:
                raise UsageError(f"--launcher-option {key}: is none of Ray's{did_you_mean(key, OPTIONS)}")
        self.reset()
        self._is_client = address.startswith("ray://")
        # Ray would name it anew each time, and a resumed run take it for another machine.
        self._node = "own" if address == "local" else None
        self._files = [file.absolute() for file in request.files]
        self._environment = relay.environment(self._files)
        with _signals_kept():
            self._connect(address)
        try:
            nodes = [node for node in self._ray.nodes() if node["Alive"]]
            sizes = [(node["Resources"].get("CPU", 0.0), node["Resources"].get("GPU", 0.0)) for node in nodes]
            room = room_for(request, sizes)
            self.workers, self._threads = room.workers, room.threads
            self._resources = {"num_cpus": room.cpus, "num_gpus": room.gpus}
            self._check(nodes)
            client = address.removeprefix("ray://") if self._is_client else None
            self._head = client or self._ray.get_runtime_context().gcs_address
            self._looked_at = time.monotonic()
            yield
        finally:
            if not self.is_headless:  # else Ray's own end would wait for it
                with _signals_kept():
                    self._ray.shutdown()

    def _connect(self, address: str) -> None:
        # Ray's own messages are for who writes programs of it; what a worker prints comes with its end.
        quiet = {"logging_level": "ERROR", "log_to_driver": False, "configure_logging": True}
        own: dict[str, Any] = {}
        if address == "local":
            own = {"include_dashboard": False, "object_store_memory": _STORE}
        if re.fullmatch(r"(ray://)?[^:/]+:\d+", address):  # Ray itself would try for minutes
            try:
                _dial(address.removeprefix("ray://"))
            except OSError as error:
                raise UsageError(
                    f"--on ray: no cluster answers at '{address}' ({error.strerror or error})"
                ) from error
        try:
            self._ray.init(address=address, **quiet, **own)
        except Exception as error:  # Ray raises what its transport does
            text = anonymize(" ".join(str(error).split()))[:300]
            raise UsageError(f"--on ray: no cluster answers at '{address}' ({text})") from error

    def _check(self, nodes: list[dict[str, Any]]) -> None:
        """Raise UsageError for the nodes on which something else would measure than here."""
        affinity = importlib.import_module("ray.util.scheduling_strategies").NodeAffinitySchedulingStrategy
        ask = self._ray.remote(relay.environment).options
        answers = []
        for node in nodes:
            there = affinity(node["NodeID"], soft=False)
            answers.append(ask(num_cpus=0, max_retries=0, scheduling_strategy=there).remote(self._files))
        ends = time.monotonic() + CONNECTING
        faults = []
        for number, (node, answer) in enumerate(zip(nodes, answers, strict=True)):
            try:
                theirs = self._ray.get(answer, timeout=max(1.0, ends - time.monotonic()))
                difference = relay.unlike(theirs, self._environment)
            except Exception as error:  # whatever keeps it from answering
                if self._is_gone(node["NodeID"], error):
                    continue
                difference = f"does not answer ({anonymize(_last_line(error))})"
            if difference is not None:
                faults.append(f"node {number} of {len(nodes)}: {difference}")
        if faults:
            raise UsageError(f"--on ray: {' | '.join(faults[:5])}")

    def _is_gone(self, node: str, error: Exception) -> bool:
        """Whether a node died before it could answer: then nothing will be measured on it."""
        errors = self._ray.exceptions
        if isinstance(error, errors.TaskUnschedulableError | errors.NodeDiedError):
            return True
        return not any(one["Alive"] and one["NodeID"] == node for one in self._ray.nodes())

    def look(self, interval: float = LOOKING) -> None:
        """See every so many seconds whether the head of the cluster is there, and a node with room."""
        with self._lock:
            if self.is_headless or time.monotonic() - self._looked_at < interval:
                return
            self._looked_at = time.monotonic()
            try:
                _dial(self._head)
                self._silent_since = None
            except OSError:  # not since it answered last, when perhaps nobody had asked for long
                self._silent_since = self._silent_since or self._looked_at
                self.is_headless = self._looked_at - self._silent_since > HEADLESS
                return
            is_full = self.avoided.issuperset(self.nodes())
            self._full_since = (self._full_since or self._looked_at) if is_full else None
            self.is_roomless = self._full_since is not None and self._looked_at - self._full_since > HEADLESS

    @property
    def share(self) -> str:
        """What each worker has for itself."""
        return f"{plural(self._resources['num_cpus'], 'core')} and {plural(self._resources['num_gpus'], 'GPU')}"

    def _await_head(self) -> None:
        """Raise WorkerBroken when it is gone: what is asked of Ray meanwhile would wait for it without end."""
        self.look(0.0)
        while not self.is_headless and self._silent_since is not None:
            time.sleep(1.0)
            self.look(0.0)
        if self.is_headless:
            raise WorkerBroken("the head of the Ray cluster does not answer any more")

    def nodes(self) -> Collection[str]:
        asked = {"CPU": self._resources["num_cpus"], "GPU": self._resources["num_gpus"]}
        return [
            one["NodeID"]
            for one in self._ray.nodes()
            if one["Alive"] and all(one["Resources"].get(name, 0) >= number for name, number in asked.items())
        ]

    def start(self, task: protocol.Task, wake: int) -> RayWorker:
        options: dict[str, Any] = {**self._resources, "num_returns": "streaming", "max_retries": 0}
        if self.avoided:
            options["label_selector"] = {"ray.io/node-id": f"!in({','.join(sorted(self.avoided))})"}
        parcel = relay.pack(task, self._environment, self._files, self._threads)
        self._await_head()
        try:
            engine_task = (ClientTask if self._is_client else Task)(options, parcel, self._node)
        except Exception as error:
            raise WorkerBroken(f"Ray takes no task ({anonymize(_last_line(error))})") from error
        return RayWorker(self, engine_task, wake)

    def note_kept_running(self) -> None:
        """One more worker did not end when it was asked to."""
        self._kept_running += 1


LAUNCHER = RayLauncher()


@dataclass(frozen=True)
class Room:
    """How many workers a cluster has room for, and what each has for itself.

    Attributes:
        threads: None: as many as its node has physical cores, since it has that alone, as in a local run.
    """

    workers: int
    cpus: int
    gpus: int
    threads: int | None


def room_for(request: Request, nodes: Sequence[tuple[float, float]]) -> Room:
    """Divide a cluster, given by each node's cores and GPUs.

    Raises:
        UsageError: where not one worker has room.
    """
    accelerated = uses_accelerator(request.device)
    gpus = request.gpus
    if gpus is None:
        gpus = 1 if (any(there for _, there in nodes) if accelerated is None else accelerated) else 0
    # Of each node that has them: its cores, and how many workers its GPUs are enough for.
    fit = [(cores, there // gpus if gpus else inf) for cores, there in nodes if cores]
    fit = [(cores, most) for cores, most in fit if most]
    if not fit:
        raise UsageError(f"--gpus-per-worker {gpus}: no node of the cluster has so many")
    shares = [cores // most if most < inf else cores for cores, most in fit]
    cpus = request.cpus or max(1, int(min(shares)))
    each = [int(min(cores // cpus, most)) for cores, most in fit]
    if not any(each):
        raise UsageError(f"--cpus-per-worker {cpus}: no node of the cluster has so many")
    workers = min(request.workers or sum(each), sum(each))
    return Room(workers, cpus, gpus, request.cpus or (None if max(each) == 1 else cpus))


def _relay(parcel: bytes, node: str | None) -> Iterator[bytes]:
    """On a node, of that name if not Ray's own: the lines of a worker there."""
    ray = importlib.import_module("ray")
    yield from relay.relay(parcel, node or ray.get_runtime_context().get_node_id())


class Task:
    """A task of Ray's that runs a worker.

    Args:
        options: What it reserves, and where it may not be.
        parcel: What the worker is to do.
        node: Where it is; None: by Ray's name.
    """

    def __init__(self, options: dict[str, Any], parcel: bytes, node: str | None) -> None:
        self._ray = importlib.import_module("ray")
        self._lines = self._ray.remote(_relay).options(**options).remote(parcel, node)

    def lines(self) -> Iterator[bytes]:
        """Its lines as they come; the last says how it ended."""
        errors = self._ray.exceptions
        try:
            for line in self._lines:
                yield self._ray.get(line)
            gone = relay.Gone(cause="ended without a word", taken=True)
        except errors.TaskCancelledError:
            gone = relay.Gone(cause="was cancelled", taken=True)
        except (errors.RayTaskError, errors.RuntimeEnvSetupError) as error:
            gone = relay.Gone(cause=f"could not be run there: {_last_line(error)}")
        except Exception as error:  # the worker's process, its node or the cluster
            gone = relay.Gone(cause=f"was lost with its node or process ({type(error).__name__})", taken=True)
        yield protocol.write(gone)

    def cancel(self) -> None:
        """End the worker and all that it started, now."""
        self._ray.cancel(self._lines, force=True)


class Courier:
    """On a node of a cluster that Ray's client reaches: a task whose lines are asked for one by one.

    The client itself refuses to stream results (``Worker.call_remote`` of ``ray.util.client`` 2.60).
    """

    def __init__(self, options: dict[str, Any], parcel: bytes, node: str | None) -> None:
        self._task = Task(options, parcel, node)
        self._lines = self._task.lines()

    def next(self) -> bytes:
        """The next line; nothing after the last."""
        return next(self._lines, b"")

    def cancel(self) -> None:
        """End the worker and all that it started, now."""
        self._task.cancel()


class ClientTask:
    """The same by way of a courier."""

    def __init__(self, options: dict[str, Any], parcel: bytes, node: str | None) -> None:
        self._ray = importlib.import_module("ray")
        courier = self._ray.remote(Courier).options(num_cpus=0, max_concurrency=2)
        self._courier = courier.remote(options, parcel, node)

    def lines(self) -> Iterator[bytes]:
        """Its lines as they come; the last says how it ended."""
        try:
            while line := self._ray.get(self._courier.next.remote()):
                yield line
        except Exception as error:  # the courier's process, its node or the cluster
            cause = f"was lost with its node or process ({type(error).__name__})"
            yield protocol.write(relay.Gone(cause=cause, taken=True))

    def cancel(self) -> None:
        """End the worker and all that it started, now."""
        self._ray.get(self._courier.cancel.remote(), timeout=ANSWERING)


class RayWorker:
    """A task of Ray's; a thread waits for its lines."""

    def __init__(self, launcher: RayLauncher, task: Task | ClientTask, wake: int) -> None:
        self._launcher = launcher
        self._task = task
        self._mailbox = Mailbox()
        self._is_through = False
        self._lock = threading.Lock()
        self._bell, self._ring = os.pipe()
        os.set_blocking(self._bell, False)
        self._poll = select.poll()
        self._poll.register(self._bell, select.POLLIN)
        self._poll.register(wake, select.POLLIN)
        self._wake = wake
        self._listener = threading.Thread(target=self._listen, daemon=True)
        self._listener.start()

    def __enter__(self) -> RayWorker:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._is_through:  # cancelled a moment too early, it would take Ray's process with it, which others use
            self._listener.join(ENDING)
        self.kill()
        self._listener.join(10.0)
        if self._listener.is_alive():  # then its descriptors are its own
            self._launcher.note_kept_running()
            return
        os.close(self._bell)
        os.close(self._ring)

    @property
    def is_queued(self) -> bool:
        return self._mailbox.node is None and self._mailbox.end is None

    def next(self, deadline: float) -> protocol.Reply | WorkerEnd | None:
        """The next message, the worker's end, or None at ``deadline``, a wake-up or when it is queued no more."""
        while True:
            with self._lock:
                was_queued = self.is_queued
                if (message := self._mailbox.take()) is not None:
                    self._is_through = isinstance(message, protocol.End)
                    return message
            left = deadline - time.monotonic()
            if left <= 0:
                return None
            ready = self._poll.poll(1000 * min(left, LOOKING))
            if any(descriptor == self._wake for descriptor, _ in ready):
                return None
            with contextlib.suppress(BlockingIOError):
                os.read(self._bell, 4096)
            if was_queued and not self.is_queued and not self._mailbox.messages:
                return None
            self._launcher.look()
            if self._launcher.is_headless:
                with self._lock:
                    self._mailbox.lose(relay.Gone(cause="was lost with the head of its cluster", taken=True))
            elif self._launcher.is_roomless and self.is_queued:
                text = f"--on ray: no node that is left has {self._launcher.share}"
                self._mailbox.messages.append(protocol.Refused(message=text))

    def arrived(self) -> list[protocol.Reply]:
        with self._lock:
            replies = list(self._mailbox.messages)
            self._mailbox.messages.clear()
        return replies

    def kill(self) -> None:
        if self._launcher.is_headless:
            return
        with contextlib.suppress(Exception):  # it is gone already, or so is the cluster
            self._task.cancel()

    def _listen(self) -> None:
        """Put every line into the mailbox."""
        for line in self._task.lines():
            with self._lock:
                self._mailbox.put(line)
            os.write(self._ring, b"!")


def _dial(address: str) -> None:
    """Raise OSError unless somebody listens at ``HOST:PORT``."""
    host, _, port = address.rpartition(":")
    socket.create_connection((host, int(port)), timeout=ANSWERING).close()


def _last_line(error: BaseException) -> str:
    """What an error says in the end: Ray puts tracebacks of other processes before it."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return (lines[-1] if lines else type(error).__name__)[:300]


@contextmanager
def _signals_kept() -> Iterator[None]:
    """Ray, when it starts and ends, takes signals for itself that are the session's."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    numbers = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
    before = {number: signal.getsignal(number) for number in numbers}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
