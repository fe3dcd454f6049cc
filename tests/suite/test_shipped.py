"""The suites that niffbench comes with."""

from __future__ import annotations

import pytest

from niffbench.case import Case
from niffbench.operators.catalogue import catalogue
from niffbench.operators.niff import Niff
from niffbench.suite import available, load

NAMES = (
    "channels",
    "full",
    "gpu",
    "gpu-forms",
    "gpu-kernels",
    "kernels",
    "networks",
    "pointwise",
    "quick",
    "resolution",
    "smoke",
    "stages",
    "training",
)
MOST_BYTES = 2**33  # of one tensor


def test_they_are_found_by_name() -> None:
    assert set(NAMES) == set(available())


@pytest.mark.parametrize("name", sorted(available()))
@pytest.mark.parametrize("device", ["cpu", "cuda"])
def test_every_case_is_one_its_operator_takes(name: str, device: str) -> None:
    suite = load(name, catalogue(), device=device)  # type: ignore[arg-type]
    assert suite.cases
    modes = {case.problem.mode for case in suite.cases}
    only = {"training": {"training"}, "gpu-kernels": {"inference"}}
    assert modes == only.get(name, {"inference", "training"})
    for case in suite.cases:
        problem = case.problem
        assert problem.batch * problem.channels * problem.height * problem.width * 4 < MOST_BYTES
    # Every problem can be compared with the baseline.
    assert {case.problem for case in suite.cases} == {
        case.problem for case in suite.cases if suite.labels[case.id] == suite.baseline
    }


@pytest.mark.parametrize("name", sorted(available()))
def test_what_is_excluded_has_a_reason_and_a_gpu_is_spared_less(name: str) -> None:
    on_cpu, on_cuda = (load(name, catalogue(), device=device) for device in ("cpu", "cuda"))
    assert all(len(excluded.reason) > 20 for excluded in on_cpu.excluded)
    assert {case.id for case in on_cpu.cases} <= {case.id for case in on_cuda.cases}


@pytest.mark.parametrize("name", sorted(set(NAMES) - {"smoke"}))
def test_every_suite_with_niff_filters_runs_the_fastest_form_in_every_mode(name: str) -> None:
    """All but smoke, where code is judged before and after: each case must execute the same every time."""
    forms: dict[str, set[str]] = {}
    for case in load(name, catalogue()).cases:
        if (form := form_of(case)) is not None:
            forms.setdefault(case.problem.mode, set()).add(form)
    assert forms
    for result in forms.values():
        assert "auto" in result


def form_of(case: Case) -> str | None:
    """How the filters of a case are executed; None where there is none."""
    operator = catalogue()[case.operator]
    if isinstance(operator, Niff):
        return operator.form if operator.kind != "pointwise" else None
    return str(case.option("execution")) if "execution" in operator.options else None


def test_the_ranges_that_are_asked_for() -> None:
    sizes = {case.problem.height for case in load("resolution", catalogue()).cases}
    assert min(sizes) == 7
    assert max(sizes) == 512
    assert {31, 127} <= sizes
    widths = {case.problem.channels for case in load("channels", catalogue()).cases}
    assert (min(widths), max(widths)) == (16, 1024)
    kernels = {(case.problem.height, case.kernel) for case in load("kernels", catalogue()).cases}
    for size in (14, 28, 56, 112):
        assert {(size, 3), (size, 2 * size - 1)} <= kernels
    assert load("smoke", catalogue()).rounds == 1
    assert load("gpu", catalogue()).rounds == 4
    assert {load(name, catalogue()).rounds for name in set(NAMES) - {"smoke", "gpu"}} == {3}
