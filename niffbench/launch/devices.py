"""Workers as processes of this machine, one for each of several devices, each on cores of its own."""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import TracebackType

from niffbench import protocol
from niffbench.device import several
from niffbench.errors import UsageError
from niffbench.launch import local
from niffbench.launch.base import Launcher, Request, Worker, WorkerBroken, WorkerEnd


class DevicesLauncher(Launcher):
    """Gives each worker the device that was free for the longest, so that all get their turn.

    Attributes:
        devices: those of the run that is open, as ``--device`` would name each.
    """

    def __init__(self) -> None:
        self.devices: list[str] = []
        self._free: deque[int] = deque()
        self._lock = threading.Lock()

    @contextmanager
    def open(self, request: Request) -> Iterator[None]:
        """Take the devices that ``request.device`` names, as ``cuda:0-7``.

        Raises:
            UsageError: when it names none, or what is asked is nothing of this launcher's.
        """
        self.devices = several(request.device)
        asked: dict[str, object] = {"--gpus-per-worker": request.gpus, "--cpus-per-worker": request.cpus}
        asked["--launcher-option"] = request.options or None
        if wrong := [option for option, value in asked.items() if value is not None]:
            raise UsageError(f"{wrong[0]}: goes with --on ray or --on slurm, not with --devices")
        self.workers = min(request.workers or len(self.devices), len(self.devices))
        self._free = deque(range(len(self.devices)))
        yield

    def start(self, task: protocol.Task, wake: int) -> Worker:
        """Start a worker on the next device; a task that says its place gets that one."""
        with self._lock:
            if not self._free or (task.devices and task.place not in self._free):
                raise WorkerBroken("no device is free")
            place = task.place if task.devices else self._free[0]
            self._free.remove(place)
        settings = task.settings.model_copy(update={"device": self.devices[place]})
        try:
            placed = task.model_copy(update={"settings": settings, "devices": self.devices, "place": place})
            return _DeviceWorker(local.LAUNCHER.start(placed, wake), lambda: self._give_back(place))
        except BaseException:
            self._give_back(place)
            raise

    def _give_back(self, place: int) -> None:
        with self._lock:
            self._free.append(place)


class _DeviceWorker:
    """A local worker whose end frees its device."""

    is_queued = False

    def __init__(self, worker: Worker, free: Callable[[], None]) -> None:
        self._worker, self._free = worker, free

    def __enter__(self) -> _DeviceWorker:
        self._worker.__enter__()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        try:
            self._worker.__exit__(kind, error, trace)
        finally:
            self._free()

    def next(self, deadline: float) -> protocol.Reply | WorkerEnd | None:
        return self._worker.next(deadline)

    def arrived(self) -> list[protocol.Reply]:
        return self._worker.arrived()

    def kill(self) -> None:
        self._worker.kill()


LAUNCHER = DevicesLauncher()
