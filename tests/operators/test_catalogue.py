"""The catalogue and what every operator says of itself, all of it without torch."""

from __future__ import annotations

import subprocess
import sys
from dataclasses import replace

import pytest
from operator_cases import LAYERS, case_at

from niffbench.case import Problem
from niffbench.niff.catalogue import FORMS
from niffbench.operators.catalogue import catalogue
from niffbench.results import Traits

PROBLEM = Problem(2, 8, 8, 24, 26)


def test_the_catalogue_holds_what_the_project_compares() -> None:
    rivals = {
        "attention", "dense", "dense-circular", "depthwise", "depthwise-circular", "fft-dense", "fft-dense-padded",
        "fft-depthwise", "fft-depthwise-padded", "global-filter", "spectral", "strip", "strip-circular",
    }  # fmt: skip
    forms = {f"niff-{kind}/{form.name}" for kind, forms in FORMS.items() for form in forms}
    assert set(LAYERS) == rivals | forms


def test_closed_forms_load_no_torch() -> None:
    code = (
        "import sys; from niffbench.case import Case, Problem\n"
        "from niffbench.operators.catalogue import catalogue\n"
        "for name, o in catalogue().items():\n"
        "    options = tuple(sorted((k, v.default) for k, v in o.options.items()))\n"
        "    problem = Problem(1, 64, 64, 224, 224, mode='training')\n"
        "    case = Case(name, problem, 3 if o.takes_kernel else None, options)\n"
        "    o.label(case), o.equivalence(case), o.refusal(case) or o.cost(case)\n"
        "print('torch' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "False"


@pytest.mark.parametrize("name", LAYERS)
def test_operators_describe_themselves(name: str) -> None:
    operator = catalogue()[name]
    case = case_at(name, PROBLEM, 7)
    assert operator.refusal(case) is None
    assert operator.summary
    assert operator.family
    assert operator.role != "other"
    assert operator.label(case) == (f"{name}-k7" if operator.takes_kernel else name)
    for key, option in operator.options.items():
        assert option.help
        assert option.choices is None or option.default in option.choices, key
    assert hash(operator) is not None


def test_labels_say_what_is_not_the_default() -> None:
    label = catalogue()["niff-depthwise/rfft"].label(case_at("niff-depthwise/rfft", PROBLEM, mlp="big"))
    assert label == "niff-depthwise/rfft mlp=big"


@pytest.mark.parametrize("name", [name for name in LAYERS if "depthwise" in name] + ["strip", "global-filter"])
def test_depthwise_operators_refuse_to_change_channels(name: str) -> None:
    refusal = catalogue()[name].refusal(case_at(name, replace(PROBLEM, channels_out=4), 3))
    assert refusal == "needs channels_out = channels (8), got 4"


def test_attention_refuses_heads_that_do_not_divide() -> None:
    refusal = catalogue()["attention"].refusal(case_at("attention", PROBLEM, heads=3))
    assert refusal is not None
    assert "3" in refusal
    assert "8 channels" in refusal


@pytest.mark.parametrize(("height", "width", "most"), [(7, 7, 3), (24, 21, 11), (2, 64, 1)])
def test_spectral_refuses_more_modes_than_there_are(height: int, width: int, most: int) -> None:
    small = replace(PROBLEM, height=height, width=width)
    spectral = catalogue()["spectral"]
    refusal = spectral.refusal(case_at("spectral", small, modes=most + 1))
    assert refusal is not None
    assert f"at most {most}" in refusal
    assert spectral.refusal(case_at("spectral", small, modes=most)) is None
    assert spectral.refusal(case_at("spectral", small, modes=0)) is not None


def test_classes_join_what_computes_one_function() -> None:
    def of(name: str, **options: str) -> str:
        return catalogue()[name].equivalence(case_at(name, PROBLEM, 7, **options))

    assert of("depthwise-circular") == of("fft-depthwise") != of("depthwise")
    assert of("depthwise") == of("fft-depthwise-padded")
    assert of("dense-circular") == of("fft-dense") != of("dense") == of("fft-dense-padded")
    assert len({of(f"niff-depthwise/{form.name}") for form in FORMS["depthwise"]}) == 1
    assert of("niff-depthwise/rfft") != of("niff-depthwise/rfft", mlp="big")
    assert of("niff-depthwise/rfft") != of("niff-depthwise/rfft", grid="centred")
    assert of("niff-pointwise/elided") == of("niff-pointwise/published", layout="nhwc")
    assert catalogue()["depthwise"].equivalence(case_at("depthwise", PROBLEM, 9)) != of("depthwise")


@pytest.mark.parametrize("name", catalogue())
def test_records_of_before_there_were_roles_are_read_as_if_they_had_them(name: str) -> None:
    operator = catalogue()[name]
    executions = ({"execution": "published"}, {}) if "execution" in operator.options else ({},)
    for options in executions:
        traits = operator.traits(case_at(name, PROBLEM, 7, **options))
        old = Traits(
            label=traits.label,
            family=traits.family,
            boundary=traits.boundary,
            equivalence=traits.equivalence,
            base=traits.base,
        )
        assert old == traits
