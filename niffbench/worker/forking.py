"""Workers without the wait: a process that has loaded what a worker loads, and has called none of it, forks them.

Each fork has threads, plans, caches and choices of its own, as a process that is started has; only where libraries
lie in memory is the same in all of them. At last it may be a worker itself, which is like any that was started.
``python -m niffbench.worker.forking`` has a line to a session as its standard input: it gets the descriptors of a
worker's task, output and replies, and gives back the number of the process and, of a fork that has ended, its exit
status.
"""

from __future__ import annotations

import gc
import os
import socket
import sys
import threading
import traceback

from niffbench import protocol
from niffbench.device.host import die_with_parent
from niffbench.niff.native import build
from niffbench.worker import main as worker


def serve(line: socket.socket) -> None:
    """Fork one worker after another, until this process is to be one, or nobody is at the other end any more."""
    while True:
        wish, descriptors, _, _ = socket.recv_fds(line, 1, 3)
        if not descriptors:
            return
        if wish == protocol.ITSELF:
            _be_worker(line, *descriptors)
        child = os.fork()
        if child == 0:
            os.setsid()
            _be_worker(line, *descriptors)
        for descriptor in descriptors:
            os.close(descriptor)
        _, status = os.waitpid(child, 0)
        line.send(str(os.waitstatus_to_exitcode(status)).encode())


def _be_worker(line: socket.socket, task: int, output: int, reply: int) -> None:
    status = 1
    try:
        die_with_parent()
        line.send(str(os.getpid()).encode())
        line.close()
        for descriptor, place in ((task, 0), (output, 1), (output, 2)):
            os.dup2(descriptor, place)
        status = worker.main(["--reply-fd", str(reply)])
    except BaseException:
        traceback.print_exc()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(status)


if __name__ == "__main__":
    die_with_parent()
    worker.quiet_libraries()
    gc.disable()
    compiling = threading.Thread(target=build.unavailable)  # while this one loads
    compiling.start()
    from torch import _dynamo as _dynamo  # which fake tensors load

    from niffbench.cost import witness as witness
    from niffbench.device import cpu as cpu
    from niffbench.worker import torch_evaluator as torch_evaluator

    compiling.join()
    gc.freeze()  # or each fork would copy all of it when it collects
    serve(socket.socket(fileno=0))
    os._exit(0)
