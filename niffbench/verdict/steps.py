"""The steps of a verdict, most worth first: whether all is right on this card, then what it costs there."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Literal, get_args
from xml.etree import ElementTree

from niffbench.errors import UsageError, did_you_mean, plural
from niffbench.niff.catalogue import FORMS
from niffbench.operators.catalogue import catalogue
from niffbench.results import read
from niffbench.session.budget import REPORT_TIME
from niffbench.suite import load
from niffbench.verdict import ahead
from niffbench.verdict.job import ROOT, Job, Outcome, Settings

Group = Literal["right", "cost"]

KERNELS = "gpu-kernels"
PROCESSES = 6
"""Test processes side by side; what times anything holds a lock."""
AHEAD = 12
"""Processes that compile kernels side by side."""

PRIVATE = re.compile(r"serial|uuid|guid|pdi|host id|hostname", re.IGNORECASE)
"""Lines of ``nvidia-smi -q`` that name one card or machine among many."""

PROFILED = (
    "niff-depthwise/published",
    "niff-depthwise/rfft",
    "niff-depthwise/native",
    "niff-depthwise/triton",
    "depthwise-k7",
)
COMPILED = "published or rfft or depthwise"

PATIENCE = 15.0
"""Seconds that the driver gets to tell of its card at least: where it has to be woken it takes several."""

_START = 7.0
"""Seconds that a worker takes to start on a GPU."""
_SURVEY = 15.0
_CASE = 0.12
"""Seconds that a case takes there in a round besides being sampled."""
_ENERGY = 0.5
"""Seconds that its energy takes, in the first round."""
_COMPILING = 3.0
"""Seconds in which Triton compiles a kernel: 1 to 5 for compute capability 9.0 on a CPU without a card."""
_TESTED_KERNELS = 200
"""Kernels of Triton that the tests compile, about."""

_SMALL = ("--min-time", "1ms", "--max-time", "2ms")


@dataclass(frozen=True)
class Step:
    """Something to be done of a verdict.

    Attributes:
        estimate: seconds that it should take on a GPU; steps share the time there is in these proportions.
    """

    name: str
    group: Group
    estimate: float
    do: Callable[[Job], Outcome]


def steps(settings: Settings) -> tuple[Step, ...]:
    """Every step there is, most worth first."""
    return (
        Step("nvidia-smi", "right", 2, nvidia_smi),
        Step("doctor", "right", 12, doctor),
        Step("tests", "right", 90 + _COMPILING * _TESTED_KERNELS / PROCESSES, tests),
        Step("assumptions", "right", 30, partial(checked, "assumptions")),
        Step("smoke", "right", 30, smoke),
        Step("compile", "right", 60, compiled),
        Step("ahead", "cost", _ahead_estimate(settings.suites), compiled_ahead),
        *(
            Step(headline_name(suite), "cost", _estimate(suite, settings.rounds), partial(headline, suite))
            for suite in settings.suites
        ),
        Step("witnesses", "cost", 45, partial(checked, "witnesses")),
        Step("profile", "cost", 40, profile),
        Step("kernels", "cost", _estimate(KERNELS, settings.rounds), kernels),
    )


def chosen(every: tuple[Step, ...], only: tuple[str, ...]) -> tuple[Step, ...]:
    """The steps named by ``only``, or of the groups it names; all where it is empty.

    Raises:
        UsageError: for a name that is neither a step's nor a group's.
    """
    names = [*get_args(Group), *(step.name for step in every)]
    for name in only:
        if name not in names:
            raise UsageError(f"--only {name}: no such step{did_you_mean(name, names)}")
    return tuple(step for step in every if not only or {step.name, step.group} & set(only))


def nvidia_smi(job: Job) -> Outcome:
    """All that the driver tells of the card, but for what tells whose it is."""
    if shutil.which("nvidia-smi") is None:
        return Outcome("skipped", "there is no nvidia-smi here")
    patience = max(job.left, PATIENCE)
    try:
        answer = subprocess.run(
            ["nvidia-smi", "-q"], capture_output=True, text=True, errors="replace", timeout=patience, check=False
        )
    except subprocess.TimeoutExpired:
        return Outcome("cut", f"it said nothing for {patience:.0f} s")
    lines = [line for line in answer.stdout.splitlines() if not PRIVATE.search(line.partition(":")[0])]
    (job.folder / "nvidia-smi.txt").write_text("\n".join(lines) + "\n")
    product = next((line.partition(":")[2].strip() for line in lines if "Product Name" in line), "no card")
    return Outcome("failed" if answer.returncode else "done", product)


def doctor(job: Job) -> Outcome:
    """What machine this is."""
    finished = job.cli("doctor", "doctor", "--device", job.settings.place, "--json")
    begin = finished.text.find("{")
    try:
        report = json.loads(finished.text[begin:])
    except ValueError:
        return finished.outcome()
    (job.folder / "doctor.json").write_text(json.dumps(report, indent=1))
    return finished.outcome(report["cuda"]["detail"])


def tests(job: Job) -> Outcome:
    """The tests marked ``cuda`` but those of torch.compile, every process a share of them."""
    files = sorted(path for path in _tests() if path.name != "test_compile.py")
    if job.settings.is_rehearsal:  # they skip, each saying why
        files = files[:1]
    return run_tests(job, "tests", files, 2 if job.settings.is_rehearsal else PROCESSES)


def compiled(job: Job) -> Outcome:
    """A few of the tests that compile, which take long."""
    if job.settings.is_rehearsal:
        return Outcome("skipped", "they need a card")
    return run_tests(job, "compile", [path for path in _tests() if path.name == "test_compile.py"], 1, COMPILED)


def checked(what: Literal["assumptions", "witnesses"], job: Job) -> Outcome:
    """Every claim about CUDA, or our clocks beside others', in a process of its own."""
    out = job.folder / f"{what}.json"
    command = ["-m", f"niffbench.verdict.{what}", job.settings.place, str(out)]
    finished = job.run(what, [command])[0]
    if not out.exists():
        return finished.outcome()
    rows = json.loads(out.read_bytes())
    if what == "witnesses":
        return finished.outcome(f"{plural(len(rows), 'pair')} of medians")
    verdicts = Counter(row["verdict"] for row in rows)
    return finished.outcome(", ".join(f"{number} {verdict}" for verdict, number in verdicts.items()))


def smoke(job: Job) -> Outcome:
    """The smallest suite, whole: every part of a run once."""
    return _measured(job, "smoke", "smoke", rounds=1)


def compiled_ahead(job: Job) -> Outcome:
    """Triton's kernels of the suites that are measured next, side by side."""
    if job.settings.is_rehearsal:
        return Outcome("skipped", "nothing is compiled without a GPU")
    arguments = (*job.settings.suites, KERNELS)
    shares = [f"{number}/{AHEAD}" for number in range(1, AHEAD + 1)]
    finished = job.run(
        "ahead", [["-m", "niffbench.verdict.ahead", job.settings.device, share, *arguments] for share in shares]
    )
    broken = next((process for process in finished if process.status != 0), None)
    if broken is not None:
        return broken.outcome("not all was compiled")
    called = sum(int(process.last_line) for process in finished)
    return Outcome("done", f"{plural(called, 'case')} of {len(ahead.compiling(arguments))} called")


def headline(suite: str, job: Job) -> Outcome:
    """A suite whose figures are asked for."""
    return _measured(job, headline_name(suite), suite, job.settings.rounds)


def kernels(job: Job) -> Outcome:
    """From which kernel size on NIFF is cheaper, where a GPU is busy: at 32 images."""
    return _measured(job, KERNELS, KERNELS, job.settings.rounds)


def profile(job: Job) -> Outcome:
    """Operators taken apart, step by step and kernel by kernel, with traces."""
    names = {f"niff-depthwise/{form.name}" for form in FORMS["depthwise"]} | {"depthwise-k7"}
    operators = [operator for operator in PROFILED if operator in names]
    problem = ("--channels", "64", "--size", "56", "--batch", "32")
    if job.settings.is_rehearsal:
        operators, problem = operators[:1], ("--channels", "8", "--size", "14", "--batch", "2")
    out = _empty(job, "profile")
    arguments = (*operators, *problem, "--device", job.settings.place, "--out", str(out))
    finished = job.cli("profile", "profile", *arguments)
    return finished.outcome(f"{plural(len(operators), 'operator')} taken apart")


def _tests() -> list[Path]:
    return sorted((ROOT / "tests" / "cuda").glob("test_*.py"))


def run_tests(job: Job, name: str, files: list[Path], processes: int, keyword: str = "") -> Outcome:
    """Run test files in plain processes of pytest that share out the tests."""
    if not files:
        return Outcome("skipped", "there are no tests: niffbench is installed here, not checked out")
    place = _empty(job, name)
    place.mkdir(parents=True)
    options = ["-m", "pytest", "-c", str(ROOT / "pyproject.toml"), "-m", "cuda", "-p", "no:cacheprovider"]
    options += ["-p", "no:xdist", "-p", "no:randomly", "--durations=8", "--maxfail=20"]
    options += [*(["-k", keyword] if keyword else []), *map(str, files)]
    commands = [[*options, f"--junitxml={place / f'{number}.xml'}"] for number in range(1, processes + 1)]
    environments = [
        {"NIFFBENCH_TESTS_SHARE": f"{number}/{processes}", "NIFFBENCH_TESTS_LOCK": str(place / "lock")}
        for number in range(1, processes + 1)
    ]
    finished = job.run(name, commands, environments)
    for lock in place.glob("lock.*"):
        lock.unlink()
    results = test_results(place)
    detail = ", ".join(f"{number} {kind}" for kind, number in Counter(kind for kind, _, _ in results).items())
    detail = detail or finished[0].last_line
    statuses = {process.status for process in finished}
    was_cut = None in statuses
    # pytest's statuses: 0 passed, 1 failures, 2 a file that cannot be imported, 5 nothing collected.
    if any(kind == "failed" for kind, _, _ in results) or not statuses <= {None, 0, 5}:
        return Outcome("failed", f"{detail}; the rest was cut" if was_cut else detail)
    return Outcome("cut" if was_cut else "done", detail)


def test_results(place: Path) -> list[tuple[str, str, str]]:
    """What became of each test of a step: ``passed``, ``failed`` or ``skipped``, its name and the reason."""
    results: list[tuple[str, str, str]] = []
    for path in sorted(place.glob("*.xml")):
        try:
            cases = list(ElementTree.parse(path).iter("testcase"))
        except ElementTree.ParseError:  # its writer was killed
            continue
        for case in cases:
            if case.get("name") is None:  # it was interrupted
                continue
            name = f"{case.get('classname', '').rpartition('.')[2]}::{case.get('name')}"
            fault = next((child for child in case if child.tag in ("failure", "error", "skipped")), None)
            kind = "passed" if fault is None else "skipped" if fault.tag == "skipped" else "failed"
            results.append((kind, name, "" if fault is None else fault.get("message", "").partition("\n")[0]))
    return results


def _estimate(suite: str, rounds: int | None) -> float:
    """Seconds a suite should take on a GPU.

    Raises:
        UsageError: for one that cannot be read.
    """
    loaded = load(suite, catalogue(), device="cuda")
    measure, count, cases = loaded.measure, rounds or loaded.rounds, len(loaded.cases)
    sampled = measure.max_time * sum(regime != "first" for regime in measure.regimes)
    energy = _ENERGY * cases if measure.energy else 0.0
    return _SURVEY + count * (_START + (_CASE + sampled) * cases) + energy


def _ahead_estimate(suites: Sequence[str]) -> float:
    return _START + _COMPILING * sum(map(ahead.kernels, ahead.compiling((*suites, KERNELS)))) / AHEAD


def _measured(job: Job, name: str, suite: str, rounds: int | None) -> Outcome:
    """Measure a suite into ``runs/NAME``, within the step's share; the report is drawn afterwards, elsewhere."""
    out = _empty(job, f"runs/{name}")
    rounds = 1 if job.settings.is_rehearsal else rounds
    arguments = ["run", suite, "--device", job.settings.device, "--out", str(out), "--no-report"]
    budget = max(job.left - 4, 1) + REPORT_TIME  # which a run keeps free for a report
    arguments += ["--time-budget", f"{budget:.0f}s", *(["--rounds", str(rounds)] if rounds else [])]
    arguments += _SMALL if job.settings.is_rehearsal else ()
    job.until = min(job.until + 0.25 * job.left, job.deadline)  # a budget is an estimate
    finished = job.cli(name, *arguments)
    if not (out / "run.json").exists():
        return finished.outcome()
    run = read(out)
    statuses: Mapping[str, int] = Counter(record.status for record in run.records)
    most = len(run.manifest.suite.cases) * run.manifest.rounds
    counts = ", ".join(f"{number} {status}" for status, number in statuses.items()) or "nothing"
    return finished.outcome(f"{counts} of {plural(most, 'record')}")


def _empty(job: Job, name: str) -> Path:
    """A place for a step's results; what an earlier call left there is gone."""
    place = job.folder / name
    shutil.rmtree(place, ignore_errors=True)
    return place


def headline_name(suite: str) -> str:
    """Of the step, and of the folder in ``runs``, of a suite whose figures are asked for."""
    return f"suite-{Path(suite).stem}"
