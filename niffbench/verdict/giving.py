"""Giving a verdict: the steps one after the other, each within its share, gathered after every one."""

from __future__ import annotations

import json
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict
from pathlib import Path

from niffbench.session.directory import make
from niffbench.session.interrupts import Interrupts
from niffbench.verdict import archive
from niffbench.verdict.job import GRACE, Job, Outcome, Settings, StepResult, killing
from niffbench.verdict.page import page
from niffbench.verdict.steps import Step

LEAST = 1.0
"""Seconds below which no step is begun."""

STEPS = "steps.json"
PAGE = "verdict.md"


def give(
    out: Path, settings: Settings, steps: Sequence[Step], stop: Interrupts, say: Callable[[StepResult], None]
) -> list[StepResult]:
    """Do ``steps`` and leave in ``out`` an archive of all results, a page and a list of the steps.

    What an earlier call left there stays, but for steps that are done again. Returns this call's steps.
    """
    began = time.monotonic()
    make(out)
    with tempfile.TemporaryDirectory(prefix="niffbench-verdict-") as place:
        folder = Path(place)
        archive.unpack(out, folder)
        results = [result for result in _earlier(folder) if result.name not in {step.name for step in steps}]
        before = len(results)

        def gather(running: StepResult | None = None) -> None:
            listed = [*results, running] if running else results
            written = json.dumps([asdict(result) for result in listed], indent=1).encode()
            archive.save(folder / STEPS, written)
            archive.pack(folder, out)
            archive.save(out / STEPS, written)

        job = Job(settings, folder, stop, gather, began + 60 * settings.minutes - min(GRACE, 6 * settings.minutes))
        with killing(job):
            for number, step in enumerate(steps):
                if stop.requested:
                    break
                results.append(_done(job, step, steps[number:], gather))
                say(results[-1])
                archive.save(folder / PAGE, page(settings, folder, results).encode())
                gather()
                archive.save(out / PAGE, (folder / PAGE).read_bytes())
        return results[before:]


def _done(
    job: Job, step: Step, remaining: Sequence[Step], gather: Callable[[StepResult | None], None]
) -> StepResult:
    """Do one step in its share of the time left: as large as its estimate's of those of all ``remaining`` ones."""
    began = time.monotonic()
    left = max(job.deadline - began, 0.0)
    allowed = left * step.estimate / sum(other.estimate for other in remaining)
    job.until = began + allowed
    running = StepResult(step.name, step.group, "running", step.estimate, allowed, 0.0, "")
    job.gather = lambda: gather(running)
    outcome = Outcome("cut", "no time was left")
    if allowed >= min(LEAST, step.estimate):
        try:
            outcome = step.do(job)
        except Exception as error:  # whatever it is, the other steps are worth doing
            outcome = Outcome("failed", f"{type(error).__name__}: {error}")
    taken = time.monotonic() - began
    return StepResult(step.name, step.group, outcome.status, step.estimate, allowed, taken, outcome.detail)


def _earlier(folder: Path) -> list[StepResult]:
    path = folder / STEPS
    return [StepResult(**result) for result in json.loads(path.read_bytes())] if path.exists() else []
