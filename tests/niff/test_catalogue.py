"""The catalogue can be read without torch, and names only what exists."""

from __future__ import annotations

import subprocess
import sys

import pytest

from niffbench.niff.catalogue import FORMS, KINDS, form_of, forms_of


def test_reading_the_catalogue_does_not_load_torch() -> None:
    code = (
        "import sys, niffbench.niff as niff\n"
        "from niffbench.niff.catalogue import form_of\n"
        "assert niff.forms_of('depthwise')[0] == 'published'\n"
        "assert 'NiffDepthwise' in dir(niff)\n"
        "assert 'torch' not in sys.modules, 'torch was loaded'\n"
        "niff.NiffDepthwise\n"
        "assert 'torch' in sys.modules\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True, timeout=60)


def test_every_name_offered_can_be_taken() -> None:
    import niffbench.niff as niff

    assert all(getattr(niff, name) is not None for name in niff.__all__)
    with pytest.raises(AttributeError, match="no attribute 'NiffSpilt'"):
        niff.NiffSpilt  # noqa: B018


@pytest.mark.parametrize("kind", KINDS)
def test_every_kind_has_the_published_form_first_and_every_form_is_described(kind: str) -> None:
    names = forms_of(kind)
    assert names[0] == "published"
    assert len(set(names)) == len(names)
    for name in names:
        form = form_of(kind, name)
        assert form.name == name
        assert "\n" not in form.description
        assert form.description
        assert set(form.devices) <= {"cpu", "cuda"}
        assert form.devices


def test_kinds_and_forms_agree() -> None:
    assert tuple(FORMS) == KINDS


def test_unknown_names_are_refused_with_a_suggestion() -> None:
    with pytest.raises(ValueError, match=r"unknown kind of layer 'depthwize'.*'depthwise'"):
        forms_of("depthwize")
    with pytest.raises(ValueError, match=r"unknown form of the split layer 'elidde'.*'elided'"):
        form_of("split", "elidde")
