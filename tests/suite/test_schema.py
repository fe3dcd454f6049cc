"""The suite file: what is understood, and how a fault in it is explained."""

from __future__ import annotations

import contextlib
import copy
from typing import Any

import pytest
from hostile import quoted, spots, toml
from hypothesis import given, settings
from hypothesis import strategies as st

from niffbench.errors import UsageError
from niffbench.suite import parse

HEAD = 'description = "d"\nbaseline = "q"\n'
OPERATOR = '[[operators]]\nname = "q"\n'


def refine(line: str) -> str:
    return f'{HEAD}{OPERATOR}[refine]\naxis = "kernel"\n{line}'


def complaint(text: str) -> str:
    with pytest.raises(UsageError) as caught:
        parse(text, "f.toml")
    message = str(caught.value)
    assert message.startswith("f.toml: ")
    assert "\n" not in message
    return message


@pytest.mark.parametrize(
    ("text", "output"),
    [
        ("x =", "not valid TOML"),
        ('a = "\n', "line 1"),
        ("axes = " + "[" * 5000, "not valid TOML"),
        (HEAD + OPERATOR + "[axes]\nbatch = " + "9" * 5000, "not valid TOML"),
        (HEAD + 'opertors = [{name = "q"}]', "unknown key 'opertors'; did you mean 'operators'?"),
        (HEAD + OPERATOR + "chanels = 3", "'operators[0].chanels'; did you mean 'channels'?"),
        (HEAD + OPERATOR + "[axes]\nszie = 3", "'axes.szie'; did you mean 'size'?"),
        (HEAD + OPERATOR + "[measure]\nprecison = 0.1", "'measure.precison'; did you mean 'precision'?"),
        (OPERATOR, "key 'description' is missing"),
        (HEAD + OPERATOR + 'channels = "x"', "key 'operators[0].channels[0]': should be a valid integer, got 'x'"),
        (HEAD + OPERATOR + "channels = 3.0", "should be a valid integer, got 3.0"),
        (HEAD + OPERATOR + "channels = true", "should be a valid integer, got True"),
        (HEAD + OPERATOR + "channels = 2020-01-01", "should be a valid integer"),
        (HEAD + OPERATOR + "channels = []", "should have at least 1 item"),
        (HEAD + OPERATOR + "size = 0", "key 'operators[0].size[0]': should be greater than or equal to 1, got 0"),
        (HEAD + OPERATOR + "size = [[1, 2, 3]]", "should be one side, or [height, width], got [1, 2, 3]"),
        (HEAD + OPERATOR + 'kernel = "3H"', "should be 'H' or '2H-1', got '3H'"),
        (HEAD + OPERATOR + 'mode = "train"', "should be 'inference', 'forward' or 'training', got 'train'"),
        (HEAD + OPERATOR + "options = {a = [1]}", "a string, a number or a boolean, got [1]"),
        (HEAD + OPERATOR + "options = {a = nan}", "should be a finite number"),
        (HEAD + OPERATOR + "[measure]\nprecision = nan", "'measure.precision'"),
        (HEAD + OPERATOR + "[measure]\nmax_time = inf", "'measure.max_time': should be a finite number"),
        (HEAD + OPERATOR + "[measure]\nmin_time = 3\nmax_time = 2", "'measure.min_time': should be at most"),
        (HEAD + OPERATOR + "[refine]", "key 'refine.axis' is missing"),
        (HEAD + OPERATOR + '[refine]\naxis = "colour"', "'refine.axis': should be 'kernel', 'size', "),
        (HEAD + OPERATOR + "[refine]\nbugdet = 3", "'refine.bugdet'; did you mean 'budget'?"),
        (refine("confidence = 0.5"), "'refine.confidence': should be greater than 0.5, got 0.5"),
        (refine("confidence = 1"), "'refine.confidence': should be less than 1, got 1"),
        (refine("budget = 0"), "'refine.budget': should be greater than 0, got 0"),
        (refine('budget = "0s"'), "'refine.budget': should be greater than 0, got '0s'"),
        (refine('budget = "soon"'), "'refine.budget': should be a time above zero, as 90s, 500ms or 10m"),
        (refine('quantities = ["energy"]'), "should be 'flops', 'memory' or 'latency', got 'energy'"),
        (refine("quantities = []"), "should have at least 1 item"),
        (HEAD + OPERATOR + '[[exclude]]\nreason = "abc"', "key 'exclude[0].where' is missing"),
        (HEAD + OPERATOR + '[[exclude]]\nreason = "abc"\nwhere = {size = {gtt = 3}}', "did you mean 'gt'?"),
        (HEAD + OPERATOR + '[[exclude]]\nreason = "abc"\nwhere = {sise = 3}', "did you mean 'size'?"),
        (HEAD + OPERATOR + '[[exclude]]\nreason = "abc"\nwhere = {dtype = "float31"}', "'float32'"),
        (HEAD + OPERATOR + '[[exclude]]\nreason = "abc"\nwhere = {size = {gt = 0}}', "greater than or equal to 1"),
        (HEAD + 'rounds = 0\n' + OPERATOR, "key 'rounds': should be greater than or equal to 1, got 0"),
        (HEAD + 'rounds = "3"\n' + OPERATOR, "'rounds': should be a valid integer without quotation marks, got"),
    ],
)  # fmt: skip
def test_a_fault_is_explained(text: str, output: str) -> None:
    assert output in complaint(text)


def test_a_long_value_is_cut_short() -> None:
    assert len(complaint(HEAD + OPERATOR + f'channels = "{"x" * 5000}"')) < 200


def test_a_budget_is_a_duration() -> None:
    for written, seconds in (('"1m30s"', 90), ('"500ms"', 0.5), ("20", 20)):
        refining = parse(refine(f"budget = {written}"), "f.toml").refine
        assert refining is not None
        assert refining.budget == seconds


def test_a_single_value_stands_for_a_list() -> None:
    assert parse(HEAD + OPERATOR + "size = 7", "f").operators[0].size == [7]
    assert parse(HEAD + OPERATOR + "size = [7, 9]", "f").operators[0].size == [7, 9]
    assert parse(HEAD + OPERATOR + "size = [[7, 9]]", "f").operators[0].size == [[7, 9]]


def understood_or_refused(text: str) -> None:
    """Neither another exception nor a message that does not say which file it is about."""
    with contextlib.suppress(UsageError):
        parse(text, "f.toml")
        return
    complaint(text)


VALID: dict[str, Any] = {
    "description": "d",
    "baseline": "depthwise-k7",
    "rounds": 3,
    "axes": {"batch": [1, 8], "mode": ["inference", "training"]},
    "zip": [{"channels": [64, 128], "size": [56, [28, 20]]}],
    "operators": [{"name": "depthwise", "kernel": [3, "H"]}, {"name": "niff", "options": {"mlp": "big"}}],
    "exclude": [{"where": {"kernel": {"gt": "2H-1"}, "operator": "n*"}, "reason": "too large"}],
    "measure": {"regimes": ["steady"], "precision": 0.02},
}


LEAVES = st.one_of(
    st.integers(-(2**70), 2**70),
    st.floats(),
    st.booleans(),
    st.text(st.characters(exclude_categories=["Cs"]), max_size=8),
    st.sampled_from(["H", "2H-1", "float32", "training", "steady", "depthwise-k7", "cpu"]),
)
VALUES = st.recursive(
    LEAVES,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=6,
)


@given(st.data())
@settings(max_examples=150, deadline=None)
def test_a_mutated_suite_parses_or_gets_one_clear_message(data: st.DataObject) -> None:
    suite = copy.deepcopy(VALID)
    for _ in range(data.draw(st.integers(1, 3))):
        container, key = data.draw(st.sampled_from(spots(suite)))
        what = data.draw(st.sampled_from(["replace", "delete", "insert"]))
        if what == "replace":
            container[key] = data.draw(VALUES)
        elif what == "delete":
            del container[key]
        elif isinstance(container, dict):
            container[data.draw(st.text(st.characters(exclude_categories=["Cs"]), max_size=6))] = data.draw(VALUES)
        if not spots(suite):
            break
    text = "\n".join(f"{quoted(key)} = {toml(value)}" for key, value in suite.items())
    understood_or_refused(text)


@given(st.text(max_size=200))
@settings(max_examples=100, deadline=None)
def test_any_text_parses_or_gets_one_clear_message(text: str) -> None:
    understood_or_refused(text)
