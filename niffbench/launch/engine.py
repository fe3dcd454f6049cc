"""What launchers of workers on an engine's nodes share: which nodes are fit, and what is heard of a worker."""

from __future__ import annotations

from collections import deque

from pydantic import ValidationError

from niffbench import protocol
from niffbench.anonymize import anonymize
from niffbench.errors import plural
from niffbench.launch.base import Launcher, WorkerEnd
from niffbench.launch.relay import LINE, At, Gone


class EngineLauncher(Launcher):
    """Starts workers on the nodes of an engine."""

    is_here = False
    tries = 3

    def __init__(self) -> None:
        self.reset()

    def reset(self) -> None:
        """Forget the run before."""
        self.avoided: set[str] = set()

    def avoid(self, *nodes: str) -> bool:
        every = self.nodes()
        if every is not None and self.avoided.union(nodes).issuperset(every):
            return False
        self.avoided.update(nodes)
        return True


class Mailbox:
    """What came of a worker elsewhere: messages that nobody took yet, and its end once that is known.

    Attributes:
        node: what the engine calls its machine; None while it is queued.
    """

    def __init__(self) -> None:
        self.messages: deque[protocol.Reply] = deque()
        self.node: str | None = None
        self.end: WorkerEnd | None = None

    def put(self, line: bytes) -> None:
        """Take a line of the relay's."""
        try:
            if line.startswith((b'{"type":"at"', b'{"type":"gone"')):
                own = LINE.validate_json(line)
                if isinstance(own, At):
                    self.node = own.node
                else:
                    self.lose(own)
                return
            message = protocol.read(line)
        except ValidationError:
            self.end = WorkerEnd("sent what is no message")
            return
        if isinstance(message, protocol.Refused) and self.node is not None:
            message = message.model_copy(update={"node": self.node})
        self.messages.append(message)

    def lose(self, gone: Gone) -> None:
        """The worker is gone, as the relay or the engine says; the relay knows better why."""
        cause = anonymize(" ".join(gone.cause.split()))[:300]
        self.end = self.end or WorkerEnd(cause, gone.last_lines, gone.taken, gone.recalled, gone.node)

    def take(self) -> protocol.Reply | WorkerEnd | None:
        """The next of it; None while there is none."""
        return self.messages.popleft() if self.messages else self.end


def not_cancelled(number: int, how: str) -> str | None:
    """What to say of workers that go on though they were asked to end; None where there are none."""
    return f"{plural(number, 'worker')} may still be running: {how}" if number else None
