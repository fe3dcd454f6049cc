"""The GPU's verdict in one go, for whoever has a card: ``python tests/gpu_verdict.py --out DIR``.

Within 25 minutes (``--minutes``): the tests marked ``cuda``; the suites with dtypes, layouts and TF32, cut to
the time; A/A on the smallest suite; a profile of one NIFF layer in every form; every assumption about CUDA
confirmed or corrected; all of it gathered, compressed, without a hostname. A step that fails or is cut stops no
other, and is said.

``--dry-run`` rehearses every step on a CPU in well under a minute: suites on a replayed card, the rest with tiny
settings. ``--steps`` does some of the steps, and adds to what DIR holds already.
"""

from __future__ import annotations

import argparse
import gzip
import json
import os
import shutil
import signal
import socket
import statistics
import subprocess
import sys
import tarfile
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, field
from functools import partial
from pathlib import Path

HERE = Path(__file__).resolve().parent
ROOT = HERE.parent
TRACE = HERE / "data" / "replay_cuda.json"
MINUTES = 25.0
GRACE = 25.0
"""Seconds that an interrupted step gets to write down what it has."""

TESTS = ("machine", "memory", "clocks", "layers", "operators", "compile")
"""The test files in order: what takes longest comes last, where time may run out."""

EXACT = {"NVIDIA_TF32_OVERRIDE": "0"}
TF32 = {"TORCH_ALLOW_TF32_CUBLAS_OVERRIDE": "1"}

NIFF = ("niff-depthwise/published", "niff-depthwise/rfft", "niff-depthwise/cached")
SPATIAL = ("depthwise-k7", "depthwise-k31", "dense-k3", "dense-k7")
RESNET = ("channels=64", "channels=128", "channels=256", "channels=512")


@dataclass(frozen=True)
class Plan:
    """One measured suite: ``axes`` are lines of TOML added to its axes, ``only`` what it is cut to."""

    name: str
    suite: str
    seconds: float
    only: tuple[str, ...] = ()
    axes: str = ""
    rounds: int = 3
    environment: Mapping[str, str] = field(default_factory=lambda: EXACT)


PLANS = (
    Plan("stages", "stages", 250, ("batch=8", *NIFF, *SPATIAL)),
    Plan("kernels", "kernels", 120, (*NIFF, "depthwise-k*", "size=28", "size=56", "mode=inference"), "batch = 32"),
    Plan(
        "stages-layouts",
        "stages",
        110,
        ("batch=8", "mode=inference", *RESNET, "niff-depthwise/rfft", "depthwise-k7", "dense-k3"),
        'dtype = ["float32", "float16", "bfloat16"]\nmemory_format = ["contiguous", "channels_last"]',
        rounds=2,
    ),
    Plan(
        "stages-tf32",
        "stages",
        45,
        ("batch=8", "mode=inference", *RESNET, "niff-depthwise/rfft", "depthwise-k7", "dense-k3", "dense-k7"),
        environment=TF32,
    ),
    Plan("resolution", "resolution", 90, (*NIFF, "depthwise-k7", "dense-k3", "mode=inference")),
    Plan("channels", "channels", 60, (*NIFF, "depthwise-k7", "dense-k3", "mode=inference", "size=28")),
    Plan("networks", "networks", 80, ("mode=inference",), rounds=2),
    Plan("training", "training", 60, rounds=2),
    Plan("full", "full", 75, ("batch=8", "niff-full/*", "dense-k*"), rounds=2),
)
"""In the order of their worth; seconds are of the whole 25 minutes."""


@dataclass
class Step:
    """What became of one step. ``status``: done, cut (time ran out, what there is was kept), failed."""

    name: str
    status: str
    seconds: float
    detail: str


@dataclass
class Job:
    """Where results go, the time there is, and on what."""

    out: Path
    until: float
    scale: float
    dry: bool
    done: list[Step] = field(default_factory=list)

    @property
    def left(self) -> float:
        """Seconds left."""
        return self.until - time.monotonic()

    def empty(self, name: str) -> Path:
        """A place for a step's results; what an earlier call left there is gone."""
        place = self.out / name
        shutil.rmtree(place, ignore_errors=True)
        return place

    def spawn(
        self, name: str, command: Sequence[str], seconds: float, environment: Mapping[str, str] | None = None
    ) -> tuple[int | None, str]:
        """Run a command for at most ``seconds`` of the whole time, interrupt it after them; status and output.

        The status is None when it had to be interrupted.
        """
        allowed = min(seconds * self.scale, self.left - GRACE)
        if allowed < 3:
            return None, "no time was left"
        path = os.pathsep.join(filter(None, (str(ROOT), os.environ.get("PYTHONPATH"))))
        log = self.out / "logs" / f"{name}.txt"
        log.parent.mkdir(parents=True, exist_ok=True)
        with log.open("w+", encoding="utf-8") as file:
            process = subprocess.Popen(
                [sys.executable, *command],
                cwd=ROOT,
                env={**os.environ, "PYTHONPATH": path, "NO_COLOR": "1", "COLUMNS": "120", **(environment or {})},
                stdout=file,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )
            status: int | None
            try:
                status = process.wait(allowed)
            except subprocess.TimeoutExpired:
                status = None
                process.send_signal(signal.SIGINT)
                try:
                    process.wait(GRACE)
                except subprocess.TimeoutExpired:
                    os.killpg(process.pid, signal.SIGKILL)
                    process.wait()
            file.seek(0)
            return status, file.read()

    def cli(
        self, name: str, arguments: Sequence[str], seconds: float, environment: Mapping[str, str] | None = None
    ) -> tuple[int | None, str]:
        """The same for a command of niffbench."""
        return self.spawn(name, ["-m", "niffbench.cli", *arguments], seconds, environment)

    def note(self, name: str, status: str, began: float, detail: str) -> None:
        """Keep and print what became of a step."""
        step = Step(name, status, time.monotonic() - began, detail)
        self.done.append(step)
        print(f"{status:<7} {name:<16} {step.seconds:5.0f} s  {detail}", flush=True)


def doctor(job: Job) -> None:
    """What machine this is."""
    began = time.monotonic()
    arguments = ["doctor", "--device", "cpu" if job.dry else "cuda", "--json"]
    status, text = job.cli("doctor", arguments, 30)
    job.note("doctor", _status(status), began, _last(text) if status else "see logs/doctor.txt")


def tests(job: Job) -> None:
    """The tests marked ``cuda``, the longest last. In a rehearsal they skip, saying why."""
    began = time.monotonic()
    report = job.out / "tests.xml"
    files = [str(HERE / f"test_cuda_{name}.py") for name in (TESTS[:2] if job.dry else TESTS)]
    command = ["-m", "pytest", "-m", "cuda", "-p", "no:cacheprovider", f"--junitxml={report}", *files]
    status, text = job.spawn("tests", command, 270)
    job.note("tests", _status(status), began, _last(text))


def measured(job: Job, plan: Plan) -> None:
    """One suite, cut to its share of the time."""
    began = time.monotonic()
    source = ROOT / "suites" / f"{plan.suite}.toml"
    if not source.exists():
        job.note(plan.name, "cut", began, f"there is no suite '{plan.suite}'")
        return
    suite, place = plan.suite, job.empty(f"runs/{plan.name}")
    if plan.axes:
        derived = job.out / "suites" / f"{plan.name}.toml"
        derived.parent.mkdir(parents=True, exist_ok=True)
        derived.write_text(source.read_text().replace("[axes]\n", f"[axes]\n{plan.axes}\n", 1))
        suite = str(derived)
    budget = min(plan.seconds * job.scale, job.left - GRACE)
    arguments = ["run", suite, "--out", str(place), "--device", f"replay:{TRACE}" if job.dry else "cuda"]
    arguments += ["--rounds", "1" if job.dry else str(plan.rounds), "--time-budget", f"{max(budget, 5):.0f}s"]
    if job.dry:
        arguments += [
            "--min-time",
            "1ms",
            "--max-time",
            "2ms",
            *(["--no-report"] if plan.name != "kernels" else []),
        ]
    arguments += [part for pattern in plan.only for part in ("--only", pattern)]
    # A budget is an estimate: half as long again, then the run is interrupted and keeps what it has.
    status, text = job.cli(plan.name, arguments, 1.5 * plan.seconds, plan.environment)
    job.note(plan.name, _status(status, (130,)), began, _said(text, place, plan))


def _said(text: str, place: Path, plan: Plan) -> str:
    """What was measured, and to what it was cut."""
    if not (place / "run.json").exists():
        return _last(text)
    from niffbench.results import read

    run = read(place)
    good = sum(record.status == "ok" for record in run.records)
    total = len(run.manifest.suite.cases) * plan.rounds
    cut = f"; cut to {' '.join(plan.only)}" if plan.only else ""
    return f"{good} of {total} records{cut}"


def fitness(job: Job) -> None:
    """A/A on the smallest suite: how small a change can this machine show?"""
    began = time.monotonic()
    arguments = ["aa", "smoke", "--rounds", "2" if job.dry else "8", "--out", str(job.empty("runs/aa"))]
    arguments += ["--device", f"replay:{TRACE}" if job.dry else "cuda", "--only", "mode=inference"]
    arguments += ["--only", "niff-depthwise/rfft", "--only", "depthwise-k7"]
    status, text = job.cli("aa", arguments, 100, EXACT)
    job.note("aa", _status(status, (5,)), began, _last(text))


def profiles(job: Job) -> None:
    """Every form of one NIFF layer, taken apart."""
    from niffbench.niff.catalogue import FORMS

    began = time.monotonic()
    place = "cpu" if job.dry else "cuda"
    forms = [f"niff-depthwise/{form.name}" for form in FORMS["depthwise"] if place in form.devices]
    problem = (
        ["--channels", "8", "--size", "14"] if job.dry else ["--channels", "64", "--size", "56", "--batch", "32"]
    )
    out = job.empty("profile")
    arguments = ["profile", *(forms[:1] if job.dry else forms), *problem, "--device", place, "--out", str(out)]
    status, text = job.cli("profile", arguments, 50, EXACT)
    job.note("profile", _status(status), began, _last(text))


def assumptions(job: Job) -> None:
    """Every claim about CUDA, checked in a process of its own."""
    began = time.monotonic()
    place, found = "cpu" if job.dry else "cuda", job.out / "assumptions.json"
    command = [str(HERE / "gpu_verdict.py"), "--check", place, "--out", str(found)]
    status, text = job.spawn("assumptions", command, 60)
    detail = _last(text)
    if status == 0:
        verdicts = [finding["verdict"] for finding in json.loads(found.read_text())]
        detail = ", ".join(f"{verdicts.count(kind)} {kind}" for kind in dict.fromkeys(verdicts))
    job.note("assumptions", _status(status), began, detail)


def check(place: str, out: Path) -> int:
    """Check the assumptions in this process and write them down."""
    import torch
    from gpu_assumptions import Card, check_all, float32_exactly

    from niffbench.device import open_device
    from niffbench.results import Ceilings
    from niffbench.worker.ceilings import measure

    device = open_device(place)
    with float32_exactly():
        if place == "cpu":
            ceilings = Ceilings(copy_bandwidth=1e10, matmul={"float32": 5e10}, fft={"float32": 1e10})
        else:
            ceilings = measure(device, torch.device(device.spec), ["float32"])
        findings = list(check_all(Card(device, torch.device(device.spec), ceilings)))
    out.write_text(json.dumps([asdict(finding) for finding in findings], indent=1))
    return 0


STEPS: Mapping[str, Callable[[Job], None]] = {
    "doctor": doctor,
    "tests": tests,
    **{plan.name: partial(measured, plan=plan) for plan in PLANS},
    "aa": fitness,
    "profile": profiles,
    "assumptions": assumptions,
}
ORDER = (
    "doctor",
    "assumptions",
    "tests",
    "stages",
    "kernels",
    "aa",
    "profile",
    *(plan.name for plan in PLANS[2:]),
)
"""What an answer cannot do without comes first."""


def gather(job: Job) -> None:
    """Compress the journals, look for what must not be published, write the verdict, pack everything."""
    began = time.monotonic()
    for journal in sorted((job.out / "runs").glob("*/records.jsonl")):
        with journal.open("rb") as file, gzip.GzipFile(journal.with_suffix(".jsonl.gz"), "wb", mtime=0) as packed:
            shutil.copyfileobj(file, packed)
        journal.unlink()
    for drawing in (job.out / "runs").glob("*/plots/*.png"):
        drawing.unlink()  # the same is there as SVG
    named = [
        path.relative_to(job.out).as_posix()
        for path in job.out.rglob("*")
        if path.suffix in (".json", ".md", ".html", ".csv") and _names_host(path.read_text(encoding="utf-8"))
    ]
    detail = f"hostname in {', '.join(named)}" if named else str(job.out / "verdict.md")
    job.note("gather", "failed" if named else "done", began, detail)
    (job.out / "verdict.md").write_text(verdict(job), encoding="utf-8")
    (job.out / "steps.json").write_text(json.dumps([asdict(step) for step in job.done], indent=1))
    with tarfile.open(job.out / "gathered.tar.gz", "w:gz") as archive:
        for path in sorted(job.out.iterdir()):
            if path.name not in ("gathered.tar.gz", "logs"):
                archive.add(path, path.name, filter=lambda entry: None if "trace-" in entry.name else entry)


def _names_host(text: str) -> bool:
    host = socket.gethostname()
    return len(host) > 3 and host in text


def verdict(job: Job) -> str:
    """Everything in one page of Markdown."""
    lines = [
        "# The GPU's verdict" + (" (a rehearsal on a CPU: no figure here is one of a GPU)" if job.dry else ""),
        "",
    ]
    lines += ["| step | became | took | detail |", "| --- | --- | --- | --- |"]
    lines += [
        f"| {step.name} | {step.status} | {step.seconds:.0f} s | {step.detail.replace('|', '/')} |"
        for step in job.done
    ]
    lines += ["", "## Headline", "", *headline(job.out / "runs" / "stages")]
    lines += ["", "## Crossover kernel size, batch 32", "", *crossovers(job.out / "runs" / "kernels")]
    lines += ["", "## Assumptions", "", "| claim | verdict | evidence |", "| --- | --- | --- |"]
    path = job.out / "assumptions.json"
    for finding in json.loads(path.read_text()) if path.exists() else []:
        lines.append(f"| {finding['claim']} | {finding['verdict']} | {finding['evidence'].replace('|', '/')} |")
    return "\n".join(lines) + "\n"


def headline(place: Path) -> list[str]:
    """NIFF's forms against the kernels it is to be compared with, at each stage: steady, graph, peak, roofline."""
    if not (place / "run.json").exists():
        return ["The suite was not measured."]
    from niffbench.cost.roofline import ceiling, floor_time
    from niffbench.report import text
    from niffbench.results import Record, read

    run = read(place)
    cases: dict[str, list[Record]] = {}
    for record in run.records:
        if record.status == "ok":
            cases.setdefault(record.id, []).append(record)
    lines = [
        "| problem | operator | steady | graph | peak memory | FLOPs | distance to the roofline |",
        "| --- | --- | ---: | ---: | ---: | ---: | ---: |",
    ]
    for records in sorted(
        cases.values(), key=lambda r: (r[0].case.problem.mode, r[0].case.problem, r[0].traits.label)
    ):
        one = records[0]
        steady, graph = (_latency(records, regime) for regime in ("steady", "graph"))
        best, cost, distance = graph or steady, one.cost, None
        if best and cost and run.manifest.ceilings:
            peak = ceiling(run.manifest.ceilings.matmul, one.case.problem.dtype)
            distance = best / floor_time(cost.closed, cost.bytes_floor, peak, run.manifest.ceilings.copy_bandwidth)
        cells = (
            one.case.problem.label,
            one.traits.label,
            text.seconds(steady),
            text.seconds(graph),
            text.size_of(one.memory.peak if one.memory else None),
            text.flops(cost.closed if cost else None),
            text.times(distance),
        )
        lines.append("| " + " | ".join(cells) + " |")
    return lines


def _latency(records: Iterable[object], regime: str) -> float | None:
    """The median over rounds of their medians, in seconds."""
    rounds = [
        statistics.median(series.samples)
        for record in records
        if (series := getattr(record, "latency").get(regime)) is not None and series.samples  # noqa: B009
    ]
    return statistics.median(rounds) if rounds else None


def crossovers(place: Path) -> list[str]:
    """From which kernel size on NIFF's forms are cheaper than depthwise: in latency, and in FLOPs."""
    if not (place / "run.json").exists():
        return ["The suite was not measured."]
    from niffbench.report import text
    from niffbench.report.findings import outcome
    from niffbench.report.gather import gather as digested
    from niffbench.report.slices import slices
    from niffbench.report.trends import exchanges
    from niffbench.results import read

    digest = digested(read(place))
    lines = ["| where | NIFF | quantity | from k |", "| --- | --- | --- | --- |"]
    for slice_ in slices(digest, "kernel"):
        for found in exchanges(digest, slice_):
            place_ = ", ".join(
                f"{text.digits(c.size)} [{text.digits(c.low)}, {text.digits(c.high)}]"
                for c in found.crossover.crossings
            )
            said = place_ or outcome(found.crossover, found.niff, found.spatial)
            lines.append(f"| {slice_.fixed} | {found.niff} | {found.metric.noun} | {said} |")
    return lines if len(lines) > 2 else ["Too little was measured."]


def _status(status: int | None, fine: tuple[int, ...] = ()) -> str:
    return "cut" if status is None or status == 130 else "done" if status in (0, *fine) else "failed"


def _last(text: str) -> str:
    """The last line that says something."""
    return next((line.strip()[:200] for line in reversed(text.splitlines()) if line.strip()), "nothing was said")


def main() -> int:
    """Do the steps; the status is 1 if one failed."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--out", type=Path, required=True, help="where everything goes")
    parser.add_argument("--minutes", type=float, default=MINUTES, help="the time there is (default: 25)")
    parser.add_argument("--dry-run", action="store_true", help="rehearse on a CPU")
    parser.add_argument("--steps", nargs="+", choices=ORDER, default=ORDER, metavar="STEP", help=", ".join(ORDER))
    parser.add_argument("--check", choices=("cpu", "cuda"), help=argparse.SUPPRESS)
    asked = parser.parse_args()
    sys.path[:0] = [str(ROOT), str(HERE)]
    out: Path = asked.out.resolve()
    if asked.check:
        return check(asked.check, out)
    out.mkdir(parents=True, exist_ok=True)
    job = Job(out, time.monotonic() + 60 * asked.minutes, asked.minutes / MINUTES, asked.dry_run)
    earlier = out / "steps.json"
    if earlier.exists():
        job.done = [
            s for s in (Step(**step) for step in json.loads(earlier.read_text())) if s.name not in asked.steps
        ]
        job.done = [done for done in job.done if done.name != "gather"]
    steps = [STEPS[name] for name in ORDER if name in asked.steps]
    if job.dry:  # Its figures are nobody's, so steps may disturb each other.
        with ThreadPoolExecutor(2) as both:
            list(both.map(lambda step: step(job), steps))
    else:
        for step in steps:
            step(job)
    gather(job)
    print((out / "verdict.md").read_text())
    return int(any(step.status == "failed" for step in job.done))


if __name__ == "__main__":
    sys.exit(main())
