"""niffbench from Python: measure in other processes, read runs, count what a module costs."""

from __future__ import annotations

import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias, get_args

from niffbench import results
from niffbench.case import Mode
from niffbench.errors import UsageError, did_you_mean, kind_of

if TYPE_CHECKING:
    import pandas as pd
    from torch import Tensor, nn

    from niffbench.cost.witness import ModuleCost

Operators: TypeAlias = "Sequence[str | Mapping[str, Any] | nn.Module | Callable[..., nn.Module]]"
"""Rows: as ``--operator`` takes them, as tables of a suite, modules, or callables that return one."""

_WORKER = "niffbench.worker.main"


@dataclass(frozen=True)
class Result:
    """A run, for a notebook: its table is what a cell shows of it."""

    run: results.Run

    @cached_property
    def frame(self) -> pd.DataFrame:
        """One row for each case and round; ``niffbench list metrics`` says what its columns are."""
        return results.frame(self.run)

    @cached_property
    def findings(self) -> dict[str, Any]:
        """What ``findings.json`` holds: crossovers, winners, ratios to the baseline; a fleet's devices."""
        from niffbench.report.exports import findings_of

        return findings_of(self.run)

    def report(self, path: Path | str | None = None) -> Path:
        """Write the report into the run's directory, or into ``path``; returns its page."""
        from niffbench.report import write

        return write(self.run, self.run.path if path is None else Path(path))

    def __str__(self) -> str:
        """The table that ``niffbench run`` ends with."""
        from niffbench.report import terminal
        from niffbench.report.writers.terminal import console

        out = console()
        with out.capture() as drawn:
            out.print(terminal(self.run))
        return drawn.get()

    def __repr__(self) -> str:
        return f"<niffbench run {self.run.path}: {len(self.run.records)} records>"

    def _repr_html_(self) -> str:
        from niffbench.report import tables
        from niffbench.report.digest import gather
        from niffbench.report.writers import html

        digest = gather(self.run)
        shown = [tables.summary(digest), *([failed] if (failed := tables.failures(digest)).rows else [])]
        return "\n".join(html.write(table) for table in shown)


def read(path: Path | str) -> Result:
    """Read a run's directory.

    Raises:
        UsageError: for what is none.
    """
    return Result(results.read(path))


def count(module: nn.Module, x: Tensor, mode: Mode = "inference") -> ModuleCost:
    """FLOPs, bytes and memory of ``module(x)``, on fake tensors: nothing is executed, ``module`` is left alone.

    Raises:
        UsageError: for what is no module, no tensor or no mode.
    """
    from torch import Tensor, nn

    from niffbench.cost.witness import count_module

    if isinstance(module, type):
        name = module.__name__
        raise UsageError(f"count: {name} is a class, and should be a module that was made of it, as {name}(…)")
    if not isinstance(module, nn.Module):
        raise UsageError(f"count: should be given a torch.nn.Module, and not {kind_of(module)}")
    if not isinstance(x, Tensor):
        raise UsageError(f"count: the input should be a tensor, and not {kind_of(x)}")
    if mode not in get_args(Mode):
        raise UsageError(f"count: no mode named '{mode}'{did_you_mean(str(mode), get_args(Mode))}")
    return count_module(module, x, mode)


def measure(
    operators: Operators,
    *,
    rounds: int = 3,
    baseline: str | None = None,
    device: str = "auto",
    out: Path | str | None = None,
    seed: int = 0,
    **settings: Any,
) -> Result:
    """Measure operators side by side in fresh processes; nothing is timed in the caller's.

    Args:
        operators: rows; the first is the baseline unless ``baseline`` names another.
        rounds: processes that measure every case; intervals need several.
        device: ``auto``, ``cpu``, ``cuda``, ``cuda:N``.
        out: the run's directory; ``reports/measure-TIME-ID`` by default.
        settings: axes of a suite (``channels``, ``size``, ``mode``, …) and keys of its ``[measure]``
            (``max_time``, ``regimes``, …), each a value or, of axes, a list.

    Raises:
        UsageError: for what no worker could make sense of.
        NothingMeasured: when no case could be measured; says why.
    """
    from niffbench.commands.progress import bar_of
    from niffbench.operators.catalogue import catalogue
    from niffbench.operators.module import declare
    from niffbench.report import write_whole
    from niffbench.report.exports import findings_of, written
    from niffbench.session import directory
    from niffbench.session.interrupts import Interrupts
    from niffbench.session.opening import begin, prepare
    from niffbench.session.outcome import outcome
    from niffbench.suite import Overrides, cases_of
    from niffbench.suite.schema import AXES, Measure

    began = time.monotonic()
    if getattr(sys.modules["__main__"].__spec__, "name", None) == _WORKER:
        raise UsageError(
            "measure: called where a worker imports this file; put it below if __name__ == '__main__'"
        )
    if not isinstance(operators, Sequence) or isinstance(operators, str) or len(operators) == 0:
        given = "an empty one" if isinstance(operators, (list, tuple)) else kind_of(operators)
        raise UsageError(f"measure: should be given a list of rows, as ['depthwise-k7', MyConv], and not {given}")
    allowed = (*AXES, *Measure.model_fields)
    for name in settings:
        if name not in allowed:
            raise UsageError(f"measure: no setting named '{name}'{did_you_mean(name, allowed)}")
    keys: dict[str, Any] = {"rounds": rounds}
    keys |= {"measure": {name: value for name, value in settings.items() if name in Measure.model_fields}}
    keys |= {} if baseline is None else {"baseline": baseline}
    place = directory.default("measure") if out is None else Path(out)
    directory.check_vacant(place)
    with tempfile.TemporaryDirectory(prefix="niffbench-") as saved, Interrupts() as stop:
        rows, folders = [], [saved]
        for operator in operators:
            row, folder = _row(operator, Path(saved))
            rows.append(row)
            folders += [folder] if folder is not None else []
        axes = {name: value for name, value in settings.items() if name in AXES}
        suite = cases_of(rows, axes, "measure", catalogue(), declare, folders=folders, keys=keys)
        prepared = prepare(lambda kind: suite, Overrides(device=device, seed=seed), stop)
        with begin(place, prepared, ["niffbench.measure"], began) as session, bar_of(session) as observer:
            session.measure(stop, observer)
    run = results.read(place)
    summary = outcome(run)
    if not summary.measured:
        raise summary.nothing_measured()
    write_whole(place / "findings.json", written(findings_of(run)))
    return Result(run)


def _row(operator: object, saved: Path) -> tuple[Mapping[str, Any], str | None]:
    """A row of a suite for ``operator``, and the folder that its module is in; a module is kept in ``saved``."""
    from torch import nn

    from niffbench.suite import entry_of

    if isinstance(operator, str):
        return entry_of(operator).model_dump(exclude_unset=True), None
    if isinstance(operator, Mapping):
        return operator, None
    if isinstance(operator, nn.Module):
        return _saved(operator, saved), None
    if not callable(operator):
        raise UsageError(
            f"measure: a row should be a name, a mapping, a module or a callable, and not {kind_of(operator)}"
        )
    name = getattr(operator, "__qualname__", "")
    file = _importable(operator)
    module = sys.modules[operator.__module__]
    if not all(map(str.isidentifier, name.split("."))):  # a lambda, a function's own, a partial
        raise UsageError(
            f"measure: {name or repr(operator)} has no name by which others could import it; give one from the "
            "top level of a file, or its arguments as {'module': 'my_ops.py:MyConv', 'arguments': {…}}"
        )
    if file is None:  # built in
        return {"module": f"{module.__name__}:{name}"}, None
    if module.__name__ == "__main__":
        return {"module": f"{file.name}:{name}"}, str(file.parent)
    packages = module.__name__.count(".") + (file.name == "__init__.py")
    return {"module": f"{module.__name__}:{name}"}, str(file.parents[packages])


def _importable(kind: Any) -> Path | None:
    """The file that ``kind`` is imported from; None of a builtin one.

    Raises:
        UsageError: where there is none.
    """
    module = sys.modules.get(getattr(kind, "__module__", None) or "")
    file = getattr(module, "__file__", None)
    if file is None and (module is None or module.__name__ == "__main__"):
        name = getattr(kind, "__qualname__", repr(kind))
        raise UsageError(
            f"measure: {name} is defined in a notebook or at a prompt, which no other process can import: put it "
            f"into a file (%%writefile my_ops.py, in a notebook) and give 'my_ops.py:{name}'"
        )
    return None if file is None else Path(file).resolve()


def _saved(module: nn.Module, folder: Path) -> dict[str, Any]:
    """A row that loads a copy of ``module`` from ``folder``."""
    import torch

    for part in module.modules():
        if type(part).__module__ == "__main__":
            file = _importable(type(part))
            raise UsageError(
                f"measure: {type(part).__qualname__} is defined in {file.name if file else 'the main program'}, "
                "and a module of it is known to no other process; give the class, or import it from another file"
            )
    kind = type(module).__name__
    number = 1 + len(list(folder.glob(f"{kind}_*.py")))
    file = folder / f"{kind}_{number}.py"
    try:
        torch.save(module, file.with_suffix(".pt"))
    except Exception as error:  # pickle raises whatever a part of it does
        raise UsageError(f"measure: {kind} cannot be sent to another process: {error}") from error
    file.write_text(
        "from pathlib import Path\n\nimport torch\n\n\n"
        f"def {kind}():\n    return torch.load(Path(__file__).with_suffix('.pt'), weights_only=False)\n",
        encoding="utf-8",
    )
    return {"module": f"{file.name}:{kind}", "label": kind if number == 1 else f"{kind} {number}"}
