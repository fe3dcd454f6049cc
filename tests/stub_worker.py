"""A worker that measures nothing: it speaks the protocol of sessions with the standard library alone, so it starts
in milliseconds. ``STUB_WORKER`` holds its script, JSON:

    {"pause": 0.001, "free": 1000, "must": {"device": "fake"}, "predict": {"depthwise": 100},
     "start": "exit", "faults": [{"kernel": 7, "round": 0, "height": 14, "do": "kill", "once": "FILE"}]}

``pause``: seconds a case takes; ``slow``: {round: seconds that each of its cases takes, it says, once}. ``note``:
what it says of its round. ``start``: what happens instead of hello,
``ceilings`` instead of their measurement (``fail``: it says why there are none), beside which ``others`` use that
share of the processor. ``nodes`` and ``cards``: what the engine calls its machine, and its device's identity, of
each round in turn. ``racks``, ``refusing`` and ``modules``: facts, what is refused, and hashes of the user's
files, of the machine that the launcher names in ``STUB_NODE`` ("": none). ``disturbed``: the factor on what a
device takes while a worker is on another, of which they know by locks in ``folder``; ``absent`` and ``other``: the
numbers of one that is not there and of one of another kind. A fault strikes the cases and rounds it fits (keys
left out fit all), each time, or only until ``once`` exists.
"""

from __future__ import annotations

import argparse
import fcntl
import getpass
import hashlib
import json
import os
import random
import signal
import sys
import time
from pathlib import Path


def case_id(case: dict) -> str:
    problem = {key: value for key, value in case["problem"].items() if key != "tf32" or value}
    text = json.dumps({**case, "problem": problem}, sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(text.encode()).hexdigest()[:12]


def record(case: dict, number: int, **more: object) -> dict:
    kernel = f"-k{case['kernel']}" if case["kernel"] else ""
    traits = {"label": case["operator"] + kernel, "family": "fake", "boundary": "zero", "equivalence": "fake"}
    measured = {"latency": {"steady": {"samples": [0.001, 0.002]}}, "elapsed": 0.002, "measuring": 0.001}
    return {
        "case": case,
        "id": case_id(case),
        "round": number,
        "status": "ok",
        "traits": traits,
        **measured,
        **more,
    }


class Stub:
    def __init__(self, descriptor: int) -> None:
        self.descriptor = descriptor
        self.script = json.loads(os.environ.get("STUB_WORKER", "{}"))
        self.task = json.loads(sys.stdin.readline())

    def send(self, **message: object) -> None:
        data = json.dumps(message).encode() + b"\n"
        try:
            while data:
                data = data[os.write(self.descriptor, data) :]
        except BrokenPipeError:
            sys.exit(0)

    def happen(self, what: str, case: dict) -> None:
        """Let a fault happen; returns for those that leave the worker alive."""
        number = self.task["round"]
        if what == "kill":
            print("about to be killed", file=sys.stderr, flush=True)
            os.kill(os.getpid(), signal.SIGKILL)
        elif what == "segv":
            os.kill(os.getpid(), signal.SIGSEGV)
        elif what == "exit":
            user = getpass.getuser()
            places = Path.home() / "secret" / "file.py", f"/tmp/torchinductor_{user}", f"/scratch/{user}"
            print("\x1b[31mgiving up\x1b[0m in", *places, flush=True)
            os._exit(3)
        elif what == "hang":
            time.sleep(3600)
        elif what == "garbage":
            os.write(self.descriptor, b"what?\n")
            time.sleep(3600)
        elif what == "end":
            self.send(type="end")
            sys.exit(0)
        elif what == "stranger":
            self.send(type="finished", record=record({**case, "kernel": 99}, number))
        elif what == "oom":
            lost = {"status": "oom", "reason": "out of memory", "needed": 9, "available": 3, "latency": {}}
            self.send(type="finished", record=record(case, number, **lost))
        elif what == "flood":
            os.write(2, b"x" * 1_000_000)
            os._exit(4)

    def fault(self, case: dict) -> str | None:
        facts = {
            **case["problem"],
            "kernel": case["kernel"],
            "operator": case["operator"],
            "round": self.task["round"],
        }
        for fault in self.script.get("faults", ()):
            if all(facts[key] == value for key, value in fault.items() if key not in ("do", "once")):
                if "once" in fault:
                    if Path(fault["once"]).exists():
                        continue
                    Path(fault["once"]).touch()
                return fault["do"]
        return None

    def survey(self) -> None:
        for case in self.task["cases"]:
            self.send(type="begin", case=case_id(case), stage="predict")
            if (what := self.fault({**case})) and self.script.get("survey_faults"):
                self.happen(what, case)
            peak = self.script.get("predict", {}).get(case["operator"])
            self.send(type="predicted", case=case_id(case), resident=0, peak=peak, reason=None if peak else "fake")
        if dtypes := self.task["ceilings"]:
            self.happen(self.script.get("ceilings", ""), {})
            ceilings = {"copy_bandwidth": 1e10, "matmul": dict.fromkeys(dtypes, 1e11)}
            if self.script.get("ceilings") == "fail":
                self.send(type="roofline", reason="out of memory")
            else:
                self.send(type="roofline", ceilings=ceilings, others=self.script.get("others"))

    def round(self) -> None:
        if note := self.script.get("note"):
            self.send(type="note", text=note)
        cases = list(self.task["cases"])
        random.Random(f"{self.task['settings']['seed']}/{self.task['round']}").shuffle(cases)
        for case in cases:
            self.send(type="begin", case=case_id(case), stage="build")
            self.send(type="begin", case=case_id(case), stage="steady")
            time.sleep(3600 if self.task["kind"] == "busy" else self.script.get("pause", 0.0))
            what = self.fault(case)
            if what is not None:
                self.happen(what, case)
            if what not in ("oom", "stranger"):
                cost = {"closed": 4, "closed_forward": 4, "steps": [], "bytes_floor": 8, "bytes_own": 8}
                numerics = {"l2": 1e-8, "max": 1e-8, "tolerance": 1e-5}
                more = {"cost": cost, "numerics": numerics} if self.script.get("cost") else {}
                if chosen := self.script.get("chosen", {}).get(case["operator"]):
                    more["chosen"] = chosen
                if (once := self.script.get("slow", {}).get(str(self.task["round"]))) is not None:
                    more |= {"elapsed": once + 0.002, "measuring": 0.001, "once": once}
                if factor := self.slowness():
                    more["latency"] = {"steady": {"samples": [0.001 * factor] * 2}}
                self.send(type="finished", record=record(case, self.task["round"], **more))

    def be_seen(self) -> None:
        if "disturbed" in self.script:
            self.own = Path(self.script["folder"], f"open-{self.task['place']}")
            fcntl.flock(os.open(self.own, os.O_RDWR | os.O_CREAT), fcntl.LOCK_SH)

    def slowness(self) -> float | None:
        if "disturbed" not in self.script:
            return None
        for other in set(self.own.parent.glob("open-*")) - {self.own}:
            with other.open() as file:
                try:
                    fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                except BlockingIOError:
                    return self.script["disturbed"]
        return 1.0

    def run(self) -> None:
        if start := self.script.get("start"):
            self.happen(start, {})
        named = os.environ.get("STUB_NODE")
        if refusal := self.script.get("refuse") or self.script.get("refusing", {}).get(named):
            self.send(type="refused", message=refusal, exit_code=2, node=named)
            sys.exit(2)
        must = self.script.get("racks", {}).get(named) or self.script.get("must", {"device": "fake"})
        nodes, cards = (self.script.get(key) or [None] for key in ("nodes", "cards"))
        if (devices := self.task["devices"]) and self.task["place"] == self.script.get("absent"):
            self.send(type="refused", message=f"there is no fake:{self.task['place']}")
            sys.exit(2)
        if devices:
            cards = [f"card {self.task['place']}"]
            must = {"device": "another"} if self.task["place"] == self.script.get("other") else must
            self.be_seen()
        should = {"gpu_id": card} if (card := cards[self.task["round"] % len(cards)]) else {}
        modules = self.script.get("modules", {}).get(named or "", [])
        self.send(
            type="hello",
            modules=[{"operator": "mine", "file": "mine.py", "sha256": sha} for sha in modules],
            fingerprint={"must": must, "should": should},
            free_memory=self.script.get("free"),
            node=named or nodes[self.task["round"] % len(nodes)],
            device=f"fake:{self.task['place']}" if devices else None,
        )
        self.survey() if self.task["kind"] == "survey" else self.round()
        self.send(type="end")


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("--reply-fd", type=int, required=True)
    Stub(parser.parse_args().reply_fd).run()
