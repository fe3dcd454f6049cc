"""A process that has loaded what workers load, and forks one for each task: half a second instead of three.

It has called nothing of torch, so that a fork finds no threads; who needs a process that has loaded nothing starts
one (:func:`run_worker.work` with a ``prelude``).
"""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
from collections.abc import Mapping
from functools import cache
from pathlib import Path


@cache
def _server() -> socket.socket:
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    command = [sys.executable, "-P", __file__, str(theirs.fileno())]
    paths = [str(Path(__file__).parents[1]), os.environ.get("PYTHONPATH", "")]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, paths)), "KINETO_LOG_LEVEL": "99"}
    subprocess.Popen(command, pass_fds=(theirs.fileno(),), env=environment)
    theirs.close()
    ours.settimeout(60)
    return ours


def start(environment: Mapping[str, str], given: int, printed: int, reply: int) -> None:
    """Fork a worker that reads its task from ``given``, prints to ``printed`` and answers on ``reply``."""
    socket.send_fds(_server(), [json.dumps(dict(environment)).encode()], [given, printed, reply])


def status() -> int:
    """The exit status of the worker that was started last; waits for its end."""
    return int(_server().recv(64))


def _serve(line: socket.socket) -> None:
    from niffbench.worker import main, torch_evaluator  # noqa: F401 - what takes the time

    while True:
        environment, descriptors, _, _ = socket.recv_fds(line, 2**20, 3)
        if not environment:
            return
        child = os.fork()
        if child == 0:
            given, printed, reply = descriptors
            for one, standard in ((given, 0), (printed, 1), (printed, 2)):
                os.dup2(one, standard)
            line.close()
            os.environ.clear()
            os.environ.update(json.loads(environment))
            sys.path[:0] = os.environ["PYTHONPATH"].split(os.pathsep)
            ended = main.main(["--reply-fd", str(reply)])
            sys.stdout.flush()
            os._exit(ended)
        for descriptor in descriptors:
            os.close(descriptor)
        _, ended = os.waitpid(child, 0)
        line.send(str(os.waitstatus_to_exitcode(ended)).encode())


if __name__ == "__main__":
    _serve(socket.socket(fileno=int(sys.argv[1])))
