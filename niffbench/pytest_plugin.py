"""pytest-benchmark fed by niffbench: ``pytest suites/smoke.toml --benchmark-json out.json``.

Every case of a suite named on the command line becomes a test. The selected cases of a suite are measured together
by ``niffbench run``, so by our clocks, in worker processes, interleaved; then each test replays its raw
samples into pytest-benchmark, which takes them as its own: save, compare and compare-fail work as usual.

A test is named ``operator[B1-C64-56x56-float32-inference-steady]``; ``-k`` finds any part of it, ``-m`` the marks
``family_<family>``, ``mode_<mode>`` and ``regime_<regime>``. FLOPs, bytes, memory, the fingerprint and whatever
else the record holds are in ``extra_info``.

pytest-benchmark's own compare-fail looks at one number of one session; for a gate with known error rates use
``niffbench ab`` and ``niffbench check``.
"""

from __future__ import annotations

import os
import re
import sys
from collections.abc import Iterator, Mapping, Sequence
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, cast

import pytest

if TYPE_CHECKING:
    from pytest_benchmark.fixture import BenchmarkFixture

    from niffbench.case import Case
    from niffbench.errors import NiffbenchError
    from niffbench.results import Latency, Record, Run
    from niffbench.suite import Regime

MAX_BYTES = 1_000_000
_RUNS: pytest.StashKey[dict[tuple[str, ...], Run | NiffbenchError]] = pytest.StashKey()


def pytest_addoption(parser: pytest.Parser) -> None:
    """Our options, in a group of their own."""
    group = parser.getgroup("niffbench", "niffbench suites (pytest SUITE.toml)")
    group.addoption(
        "--niffbench-regime",
        action="append",
        metavar="REGIME",
        help="Regime of latency to replay, as steady, cold or first; may be given several times. Default: steady.",
    )
    group.addoption(
        "--niffbench-rounds",
        type=int,
        default=1,
        metavar="N",
        help="Fresh worker processes; the samples of all are replayed one after another. Default: %(default)s.",
    )
    group.addoption(
        "--niffbench-keep",
        metavar="DIR",
        help="Keep the runs in DIR, for niffbench report and check. Default: they go with the session.",
    )
    group.addoption(
        "--niffbench-device", default="auto", metavar="DEVICE", help="auto, cpu or cuda. Default: %(default)s."
    )


def pytest_configure(config: pytest.Config) -> None:
    """Refuse a regime that is none. What the regimes are is asked for only now: every pytest loads this file."""
    if not (asked := config.getoption("niffbench_regime")):
        return
    from niffbench.case import REGIMES

    if unknown := [regime for regime in asked if regime not in REGIMES]:
        raise pytest.UsageError(f"--niffbench-regime: '{unknown[0]}' is none of {', '.join(REGIMES)}")


def pytest_collect_file(file_path: Path, parent: pytest.Collector) -> pytest.Collector | None:
    """Collect a niffbench suite, but only one that was named, itself or its folder: measuring takes minutes."""
    if file_path.suffix != ".toml" or not (named := _asked_for(file_path, parent.config)):
        return None
    if not _is_suite(file_path, named_itself=named == "itself"):
        return None
    return cast(pytest.Collector, SuiteFile.from_parent(parent, path=file_path))


def _asked_for(path: Path, config: pytest.Config) -> Literal["itself", "its folder"] | None:
    if config.args_source is not pytest.Config.ArgsSource.ARGS:
        return None
    folder = config.invocation_params.dir
    named = {(folder / argument.partition("::")[0]).resolve() for argument in config.args}
    if path.resolve() in named:
        return "itself"
    return "its folder" if path.resolve().parent in named else None


def _is_suite(path: Path, *, named_itself: bool) -> bool:
    """Whether a TOML file is ours. One that was named itself need only mean to be a suite.

    What that gets wrong is told when it is collected; what lies about in a folder of somebody else's tests is not.
    """
    try:
        if not path.is_file() or path.stat().st_size > MAX_BYTES:
            return False
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError):
        return False
    if not named_itself and not ("operators" in text and "baseline" in text):
        return False
    from niffbench.errors import UsageError
    from niffbench.suite import parse, parse_toml

    try:
        document = parse_toml(text, str(path))
        means_to_be = "operators" in document and "baseline" in document
        if means_to_be and not named_itself:
            parse(text, str(path))
    except UsageError:
        return named_itself
    return means_to_be


class SuiteFile(pytest.File):
    """A suite; its tests are its cases, once for each regime asked for."""

    def collect(self) -> Iterator[pytest.Item]:
        """The cases in the suite's order. A faulty suite is a collection error with one message."""
        if not self.config.pluginmanager.hasplugin("benchmark"):
            pytest.skip("suites need pytest-benchmark, which is not there or off", allow_module_level=True)
        from niffbench.errors import UsageError
        from niffbench.operators.catalogue import catalogue
        from niffbench.operators.module import declare
        from niffbench.suite import load

        operators = catalogue()  # which shows what is declared, too
        try:
            suite = load(str(self.path), operators, declare=declare)
        except UsageError as error:
            raise self.CollectError(str(error)) from None
        for case in suite.cases:
            for regime in self.config.getoption("niffbench_regime") or ["steady"]:
                name = f"{suite.labels[case.id].replace(' ', ',')}[{_parameters(case, regime)}]"
                family = operators[case.operator].family
                yield cast(
                    pytest.Item, SuiteCase.from_parent(self, name=name, case=case, regime=regime, family=family)
                )


def _parameters(case: Case, regime: str) -> str:
    problem = case.problem
    channels = f"C{problem.channels}"
    channels += f"-{problem.channels_out}" if problem.channels_out != problem.channels else ""
    parts = [f"B{problem.batch}", channels, f"{problem.height}x{problem.width}", problem.precision]
    parts += [problem.memory_format] * (problem.memory_format != "contiguous") + [problem.mode]
    return "-".join([*parts, *([case.execution] * (case.execution != "eager")), regime])


class SuiteCase(pytest.Function):
    """One case in one regime, as a test that takes the ``benchmark`` fixture."""

    def __init__(self, *, case: Case, regime: Regime, family: str, **arguments: Any) -> None:
        super().__init__(callobj=_replay, **arguments)
        self.case, self.regime = case, regime
        self.clock = ReplayClock()
        for mark in (f"family_{family}", f"mode_{case.problem.mode}", f"regime_{regime}"):
            self.add_marker(_mark(self.config, re.sub(r"\W", "_", mark)))
        group = f"{case.problem.label} {regime}"
        self.add_marker(pytest.mark.benchmark(timer=self.clock, group=group, disable_gc=False))

    def reportinfo(self) -> tuple[Path, int, str]:
        """Where a failure is said to be: in the suite, not in this file."""
        return self.path, 0, self.name


def _mark(config: pytest.Config, name: str) -> pytest.MarkDecorator:
    """A mark that ``--strict-markers`` accepts."""
    if not any(line.split(":")[0] == name for line in config.getini("markers")):
        config.addinivalue_line("markers", f"{name}: cases of a niffbench suite")
    return cast(pytest.MarkDecorator, getattr(pytest.mark, name))


class ReplayClock:
    """A timer for pytest-benchmark that shows what was measured elsewhere.

    A round starts at zero and ends at the sample, so the difference is the sample to the last bit.
    """

    def __init__(self) -> None:
        self.now = 0.0
        self.samples: Iterator[float] = iter(())

    def __call__(self) -> float:
        return self.now

    def rewind(self) -> None:
        """Before each round."""
        self.now = 0.0

    def advance(self) -> None:
        """In place of the work."""
        self.now = next(self.samples, 0.0)


def _replay(
    request: pytest.FixtureRequest, benchmark: BenchmarkFixture, tmp_path_factory: pytest.TempPathFactory
) -> None:
    """The body of every test: have the suite's cases measured, then replay this one's samples."""
    item = cast(SuiteCase, request.node)
    # Without statistics (--benchmark-disable, xdist) a test only shows that its case works, by itself.
    together = [item.case] if benchmark.disabled else _selected(item)
    run = _measured(item, together, tmp_path_factory)
    records = [record for record in run.records if record.id == item.case.id]
    _skip_or_fail(records)
    series = _usable(records, item.regime)
    samples = [sample for one in series for sample in one.samples]
    if not samples:
        pytest.skip(f"the {item.regime} regime was not measured (device {run.manifest.device})")
    benchmark.extra_info.update(_information(run, records, item.regime, series))
    item.clock.samples = iter(samples)
    replay: Any = benchmark.pedantic  # untyped
    replay(item.clock.advance, setup=item.clock.rewind, rounds=len(samples), iterations=1)


def _selected(item: SuiteCase) -> list[Case]:
    items = [one for one in item.session.items if isinstance(one, SuiteCase) and one.path == item.path]
    return list(dict.fromkeys(one.case for one in items))


def _measured(item: SuiteCase, cases: Sequence[Case], folders: pytest.TempPathFactory) -> Run:
    """The run of these cases; measured once a session."""
    from niffbench.device import portable
    from niffbench.errors import NiffbenchError
    from niffbench.gate.ab import measured

    option = item.config.getoption
    filters = [part for case in cases for part in ("--only", case.id)]
    arguments = [
        str(item.path),
        "--rounds",
        str(option("niffbench_rounds")),
        "--device",
        portable(option("niffbench_device")),
        "--no-report",
        "--quiet",
    ]
    done = item.session.stash.setdefault(_RUNS, {})
    key = (*arguments, *filters)
    if key not in done:
        out = _place(item, folders)
        try:
            done[key] = measured(
                sys.executable, [*arguments, *filters], out, os.environ, cwd=item.config.invocation_params.dir
            )
        except NiffbenchError as error:
            done[key] = error
    if isinstance(run := done[key], NiffbenchError):
        pytest.fail(str(run), pytrace=False)
    return run


def _place(item: SuiteCase, folders: pytest.TempPathFactory) -> Path:
    folder = item.config.getoption("niffbench_keep")
    if folder is None:
        return folders.mktemp("niffbench") / "run"
    moment = datetime.now().astimezone()
    return Path(item.config.invocation_params.dir, folder, f"{item.path.stem}-{moment:%Y%m%d-%H%M%S-%f}").resolve()


def _skip_or_fail(records: Sequence[Record]) -> None:
    """Fail or skip the test of a case that was not measured: it must not look like a fast one."""
    if not records:
        pytest.fail("the run has no record of this case", pytrace=False)
    for record in records:
        said = f"{record.status}: {record.reason}"
        if record.status in ("unsupported", "skipped"):
            pytest.skip(said)
        if record.status != "ok":
            pytest.fail(said, pytrace=False)


def _usable(records: Sequence[Record], regime: Regime) -> list[Latency]:
    """The series of the rounds whose latency can be believed; fails where there are some, but none of these."""
    from niffbench.results import REGISTRY, Reason, round_value

    values = [(record, round_value(record, REGISTRY[f"latency_{regime}"])) for record in records]
    usable = [record.latency[regime] for record, value in values if not isinstance(value, Reason)]
    doubts = [value.words for _, value in values if isinstance(value, Reason) and value.tried]
    if doubts and not usable:
        pytest.fail(f"the clock is not to be believed: a round {doubts[0]}", pytrace=False)
    return usable


def _information(run: Run, records: Sequence[Record], regime: Regime, series: Sequence[Latency]) -> dict[str, Any]:
    """What the case is, and every metric that its rounds have a value of."""
    from niffbench.results import attributes, over_rounds

    return {
        **attributes(records[0]),
        **over_rounds(records),
        "regime": regime,
        "rounds": len(series),
        "calls_per_sample": series[0].calls,
        "flags": sorted({flag for one in series for flag in one.flags}),
        "fingerprint": run.manifest.fingerprint.hash,
        "machine": dict(run.manifest.fingerprint.must),
        "device": run.manifest.device,
        "niffbench": run.manifest.niffbench,
    }


@pytest.hookimpl(optionalhook=True)
def pytest_benchmark_update_machine_info(config: pytest.Config, machine_info: dict[str, Any]) -> None:
    """Take the hostname out of what pytest-benchmark writes: it is no property of the machine's speed."""
    if any(path.suffix == ".toml" for path in map(Path, config.args)):
        machine_info["node"] = ""


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter, config: pytest.Config) -> None:
    """Say which of our cases a comparison did not cover: pytest-benchmark passes over them in silence."""
    session = getattr(config, "_benchmarksession", None)
    compared: Mapping[Path, Mapping[str, object]] = getattr(session, "compared_mapping", None) or {}
    ours = {b.fullname for b in getattr(session, "benchmarks", ()) if ".toml::" in b.fullname}
    for path, earlier in compared.items():
        for word, names in (("is not in", ours - set(earlier)), ("was not run, but is in", set(earlier) - ours)):
            for name in sorted(names)[:20] if ours else ():
                terminalreporter.write_line(f"niffbench: {name} {word} {path.name}", yellow=True)
