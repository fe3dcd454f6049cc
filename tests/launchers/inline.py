"""The launcher ``inline``: workers on a replay device, in this process: a round takes milliseconds."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from niffbench import protocol
from niffbench.device import open_device
from niffbench.launch.base import Launcher
from niffbench.worker.main import work


@dataclass
class InlineWorker(Launcher):
    """All replies to one task, made when it starts."""

    replies: list[Any] = field(default_factory=list)
    is_queued = False

    def send(self, message: Any) -> None:
        self.replies.append(protocol.read(protocol.write(message)))

    def start(self, task: protocol.Task, wake: int) -> InlineWorker:
        worker = InlineWorker()
        work(task, open_device(task.settings.device, None), worker)  # type: ignore[arg-type]
        return worker

    def __enter__(self) -> InlineWorker:
        return self

    def __exit__(self, *_: object) -> None:
        self.kill()

    def next(self, deadline: float) -> Any:
        return self.replies.pop(0)

    def arrived(self) -> list[Any]:
        return []

    def kill(self) -> None:
        self.replies.clear()


LAUNCHER = InlineWorker()
