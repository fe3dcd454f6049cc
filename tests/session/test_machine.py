"""The fingerprint a worker begins with: the compiler is part of the machine, and ``check`` minds a lost one."""

from __future__ import annotations

import json
import os
from dataclasses import replace
from pathlib import Path

import pytest
from cli_in_process import Call, call
from run_worker import work
from synthetic import World, make, save

from niffbench.fingerprint import Fingerprint, differences
from niffbench.niff.native import build

__all__ = ["call"]

needs_kernel = pytest.mark.skipif(build.unavailable() is not None, reason="there is no C compiler here")


def fingerprint_of_task() -> Fingerprint:
    """What a fresh worker says of this machine."""
    said = work([], kind="survey")
    assert said.status == 0, said.printed
    fingerprint: Fingerprint = said.messages[0].fingerprint
    return fingerprint


@pytest.fixture(scope="module")
def here() -> Fingerprint:
    return fingerprint_of_task()


def test_the_same_machine_twice_is_the_same(here: Fingerprint, call: Call) -> None:
    assert fingerprint_of_task() == here
    done = call("doctor", "--device", "cpu", "--threads", "1", "--json")
    assert json.loads(done.stdout)["fingerprint"]["hash"] == here.hash, "what doctor shows is what a run has"


@needs_kernel
def test_a_machine_that_lost_its_compiler_is_another(
    here: Fingerprint, monkeypatch: pytest.MonkeyPatch, call: Call, tmp_path: Path
) -> None:
    monkeypatch.setenv("CC", "no-such-compiler")
    lost = fingerprint_of_task()
    assert lost.hash != here.hash
    compiler, kernel = here.must["c_compiler"], here.must["c_kernel"]
    assert differences(here.must, lost.must) == {"c_kernel": (kernel, False), "c_compiler": (compiler, None)}
    for name, fingerprint in (("base", here), ("head", lost)):
        run = make(World(rounds=1, sizes=(14,), samples=5, faults=()), tmp_path / name)
        save(replace(run, manifest=run.manifest.model_copy(update={"fingerprint": fingerprint})))
    refused = call("check", "base", "head")
    assert refused.returncode == 4
    assert f"c_compiler: {compiler} in base, None in head" in refused.stderr
    assert f"c_kernel: {kernel} in base, False in head" in refused.stderr


@pytest.mark.skipif(build.tuning() != "-march=native", reason="the compiler here does not take -march=native")
def test_a_machine_whose_kernel_is_no_longer_tuned_to_it_is_another(
    here: Fingerprint, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    compiler, refusal = tmp_path / "cc", 'case "$*" in *=native*) exit 1;; esac'
    compiler.write_text(f'#!/bin/sh\n{refusal}\nexec {os.environ.get("CC", "cc")} "$@" -O0\n')
    compiler.chmod(0o755)
    monkeypatch.setenv("CC", str(compiler))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert differences(here.must, fingerprint_of_task().must) == {"c_kernel": (build.tuning(), "none")}


@needs_kernel
def test_the_compiler_is_named_without_saying_where_it_is(
    here: Fingerprint, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    first = str(here.must["c_compiler"])
    assert any(character.isdecimal() for character in first), "its version"
    assert "/" not in first
    mine = tmp_path / "cc"
    mine.write_text(f"#!/bin/sh\necho {tmp_path}/mycc 7.1\nexit 1\n")
    mine.chmod(0o755)
    monkeypatch.setenv("CC", str(mine))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    result = fingerprint_of_task().must
    assert (result["c_kernel"], result["c_compiler"]) == (False, "mycc 7.1"), "there is one, and it fails"
