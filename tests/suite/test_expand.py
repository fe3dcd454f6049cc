"""From a suite's text to its cases."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from niffbench.case import Case, OptionValue
from niffbench.errors import UsageError
from niffbench.suite import Suite, expand, load, parse
from niffbench.suite.select import side


@dataclass(frozen=True)
class Choice:
    default: OptionValue
    choices: tuple[OptionValue, ...] | None


@dataclass(frozen=True)
class Info:
    """An operator as a suite sees it."""

    name: str
    takes_kernel: bool = True
    family: str = "conv"
    role: str = "spatial"
    dtypes: frozenset[str] = frozenset({"float32", "float16"})
    options: dict[str, Choice] = field(default_factory=dict)

    def refusal(self, case: Case) -> str | None:
        problem = case.problem
        square = problem.channels == problem.channels_out
        return (
            None if square else f"needs channels_out = channels ({problem.channels}), got {problem.channels_out}"
        )

    def label(self, case: Case) -> str:
        extra = [f"{key}={value}" for key, value in case.options if value != self.options[key].default]
        return " ".join([self.name + (f"-k{case.kernel}" if case.kernel is not None else ""), *extra])


CATALOGUE = {
    "conv": Info("conv"),
    "fft-conv": Info("fft-conv"),
    "niff": Info(
        "niff",
        takes_kernel=False,
        family="niff",
        role="spectral",
        options={"mlp": Choice("small", ("small", "big")), "n": Choice(1, None)},
    ),
}
HEAD = 'description = "d"\nbaseline = "conv-k3"\n'


def resolve(text: str, only: tuple[str, ...] = (), device: str | None = None) -> Suite:
    return expand(parse(text, "f.toml"), "f", "f.toml", text, CATALOGUE, only=only, device=device)  # type: ignore[arg-type]


def complaint(text: str, only: tuple[str, ...] = ()) -> str:
    with pytest.raises(UsageError) as caught:
        resolve(text, only)
    return str(caught.value)


def rows(suite: Suite) -> list[tuple[str, str]]:
    return [(suite.labels[case.id], case.problem.label) for case in suite.cases]


def test_product_zip_and_override() -> None:
    suite = resolve(
        HEAD
        + """
        [axes]
        batch = [1, 2]
        [[zip]]
        channels = [8, 16]
        size = [14, [7, 5]]
        [[operators]]
        name = "conv-k3"
        [[operators]]
        name = "niff"
        batch = 4
        options = {mlp = "big"}
        """
    )
    assert rows(suite) == [
        ("conv-k3", "B1 8@14"),
        ("conv-k3", "B2 8@14"),
        ("conv-k3", "B1 16@7×5"),
        ("conv-k3", "B2 16@7×5"),
        ("niff mlp=big", "B4 8@14"),
        ("niff mlp=big", "B4 16@7×5"),
    ]
    assert suite.cases[-1].options == (("mlp", "big"), ("n", 1))
    assert suite.cases[-1].kernel is None


def test_an_override_of_a_zipped_axis_keeps_the_others() -> None:
    suite = resolve(
        HEAD + "[[zip]]\nchannels = [8, 16]\nsize = [9, 7]\n"
        '[[operators]]\nname = "conv-k3"\n[[operators]]\nname = "niff"\nchannels = 4'
    )
    assert rows(suite)[2:] == [("niff", "B1 4@9"), ("niff", "B1 4@7")]


@given(
    sizes=st.lists(st.integers(4, 40), min_size=1, max_size=3, unique=True),
    batches=st.lists(st.integers(1, 9), min_size=1, max_size=3, unique=True),
    pairs=st.integers(1, 3),
    kernels=st.lists(st.sampled_from([3, 5, 7]), min_size=1, max_size=3, unique=True),
)
@settings(max_examples=30, deadline=None)
def test_counts_multiply_and_ids_differ(
    sizes: list[int], batches: list[int], pairs: int, kernels: list[int]
) -> None:
    suite = resolve(
        'description = "d"\nbaseline = "niff"\n'
        f"[axes]\nsize = {sizes}\nbatch = {batches}\nkernel = {kernels}\n"
        f"[[zip]]\nchannels = {list(range(1, pairs + 1))}\n"
        '[[operators]]\nname = "conv"\n[[operators]]\nname = "niff"'
    )
    # The operator without a kernel does not multiply by that axis.
    assert len(suite.cases) == len(sizes) * len(batches) * pairs * (len(kernels) + 1)
    assert len({case.id for case in suite.cases}) == len(suite.cases)


@pytest.mark.parametrize(("height", "width"), [(1, 1), (2, 9), (7, 7), (56, 56), (8, 5)])
def test_kernel_rules(height: int, width: int) -> None:
    short = min(height, width)
    assert side("2H-1", height, width) == 2 * short - 1
    assert side("H", height, width) in (short, short - 1)
    assert side("H", height, width) % 2 == 1
    assert side(5, height, width) == 5


def test_a_name_may_hold_the_kernel() -> None:
    text = of("conv", '[[operators]]\nname = "fft-conv-k5"').replace("[axes]", "[axes]\nkernel = 3")
    suite = resolve(text.replace("[5, 9]", "9"))
    assert [case.kernel for case in suite.cases] == [3, 5]


AXES = "[axes]\nchannels = 2\nsize = [5, 9]\n"
CONV = '[[operators]]\nname = "conv-k3"\n'
NIFF_BIG = '[[operators]]\nname = "niff"\noptions = {mlp = "big"}\n'


def of(name: str, keys: str = "") -> str:
    """A suite of one operator."""
    return HEAD + AXES + f'[[operators]]\nname = "{name}"\n{keys}'


def excluding(where: str, reason: str = "abc") -> str:
    """A suite with one exclusion."""
    return HEAD + AXES + CONV + f'[[exclude]]\nwhere = {where}\nreason = "{reason}"'


TOO_MANY = f"batch = {list(range(1, 9999))}\nchannels = {list(range(1, 99))}"


@pytest.mark.parametrize(
    ("text", "output"),
    [
        (of("cnov-k3"), "operators[0].name: no operator named 'cnov-k3'; did you mean 'conv'?"),
        (of("conv"), "'conv' needs a kernel size"),
        (of("conv-k8"), "kernel size 8 is even"),
        (of("conv-k0"), "kernel size 0 is even"),
        (of("conv-k11"), "'conv-k11' at B1 2@5: kernel size 11 is larger than 2H−1 = 9 at 5×5"),
        (of("conv-k3", "kernel = 5"), "fixes the kernel size"),
        (of("niff-k3"), "operator 'niff' has no kernel size"),
        (of("niff", "kernel = 3"), "operator 'niff' has no kernel size"),
        (of("niff", 'options = {mpl = "big"}'), "has no option 'mpl'; did you mean 'mlp'?"),
        (of("conv-k3", 'options = {mlp = "big"}'), "it has none"),
        (of("niff", 'options = {mlp = "huge"}'), "options.mlp: should be 'small', 'big', got 'huge'"),
        (of("niff", 'options = {n = "x"}'), "options.n: should be a int, got 'x'"),
        (of("conv-k3", 'dtype = "float64"'), "has no float64; it takes float16, float32"),
        (of("conv-k3", "channels_out = 3"), "needs channels_out = channels (2), got 3"),
        (HEAD + AXES.replace("channels = 2", "") + CONV, "axis 'channels' has no values"),
        (HEAD + AXES + "[[zip]]\nbatch = [1, 2]\nkernel = 3\n" + CONV, "batch has 2, kernel has 1"),
        (HEAD + AXES + "[[zip]]\nsize = 3\n" + CONV, "axis 'size' is given in axes and again in zip[0]"),
        (HEAD + AXES + "[[zip]]\n" + CONV, "zip[0] names no axis"),
        (
            HEAD.replace("k3", "k5") + AXES + CONV,
            "baseline 'conv-k5' is not one of its rows; did you mean 'conv-k3'?",
        ),
        (HEAD.replace("-k3", "") + AXES + CONV, "baseline 'conv' needs its kernel size, as in 'conv-k7'"),
        (HEAD.replace("conv", "cnov") + AXES + CONV, "baseline: no operator named"),
        (HEAD.replace("conv-k3", "niff") + AXES + NIFF_BIG, "baseline 'niff' is not one of its rows"),
        (excluding("{}"), "would exclude everything"),
        (excluding("{channels = 2}", "why so"), "excluded by the suite (why so)"),
        (excluding('{operator = "ocnv*"}'), "no row of the suite is called 'ocnv*'"),
        (HEAD + AXES + CONV + TOO_MANY, "more than 100,000"),
    ],
)
def test_what_no_operator_can_make_sense_of(text: str, output: str) -> None:
    assert output in complaint(text)


@pytest.mark.parametrize(
    ("operators", "axis", "output"),
    [
        (["conv-k3", "conv-k5"], "kernel", "has no form of NIFF"),
        (["niff", "attention"], "size", "has no spatial convolution to compare it with"),
        (["niff", "conv-k3"], "kernel", "one value of it for each form and rival"),
        (["niff", "conv-k3"], "batch", "one value of it for each form and rival"),
        (["niff", "blur"], "kernel", "'blur' has none"),
        (["niff", "conv-k3", "fft-conv-k5"], "kernel", "one value of it for each form and rival"),
    ],
)
def test_crossovers_need_two_values_of_the_axis_that_both_have(
    operators: list[str], axis: str, output: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(CATALOGUE, "blur", Info("blur", takes_kernel=False))
    monkeypatch.setitem(CATALOGUE, "attention", Info("attention", takes_kernel=False, role="attention"))
    text = HEAD.replace("conv-k3", operators[0]) + AXES
    text += "".join(f'[[operators]]\nname = "{name}"\n' for name in operators)
    message = complaint(text + f'[refine]\naxis = "{axis}"\n')
    assert output in message
    assert "f.toml: key 'refine" in message


def test_what_is_narrowed_to_one_value_has_nothing_to_refine() -> None:
    text = HEAD + AXES + '[[operators]]\nname = "niff"\n[[operators]]\nname = "conv"\nkernel = [3, 9]\n'
    text += '[refine]\naxis = "kernel"\n'
    suite = resolve(text, ("niff", "conv-k3"))
    assert suite.refine is not None
    assert {case.kernel for case in suite.cases} == {None, 3}


def test_a_kernel_of_too_many_digits_is_no_kernel() -> None:
    assert "no operator named" in complaint(HEAD + AXES + f'[[operators]]\nname = "conv-k{"9" * 5000}"')


def test_exclusions_leave_out_with_their_reason() -> None:
    rule = '[[exclude]]\nwhere = {kernel = {gt = "2H-1"}}\nreason = "beyond the map"\n'
    suite = resolve(of("conv", "kernel = [3, 13]\n") + rule)
    assert rows(suite) == [("conv-k3", "B1 2@5"), ("conv-k3", "B1 2@9"), ("conv-k13", "B1 2@9")]
    assert [(e.label, e.case.problem.height, e.reason) for e in suite.excluded] == [
        ("conv-k13", 5, "beyond the map")
    ]


@pytest.mark.parametrize(
    ("where", "left"),
    [
        ("size = 5", {(9, 9), (6, 9)}),
        ("size = [5, 9]", {(6, 9)}),
        ("size = [[6, 9]]", {(5, 5), (9, 9)}),
        ("size = {le = 6}", {(9, 9)}),
        ("size = {gt = 5, lt = 9}", {(5, 5), (9, 9)}),
        ('kernel = "H"', {(6, 9), (9, 9), (5, 5)}),
        ('operator = "conv-k3", size = 9', {(5, 5), (6, 9)}),
        ("channels = 3", {(5, 5), (6, 9), (9, 9)}),
    ],
)
def test_conditions(where: str, left: set[tuple[int, int]]) -> None:
    text = HEAD + "[axes]\nchannels = 2\nsize = [5, 9, [6, 9]]\n" + CONV
    suite = resolve(text + f'[[exclude]]\nwhere = {{{where}}}\nreason = "abc"')
    assert {(case.problem.height, case.problem.width) for case in suite.cases} == left


def test_an_exclusion_may_hold_for_one_kind_of_device() -> None:
    text = HEAD + AXES + CONV + '[[exclude]]\nwhere = {size = 9}\nreason = "forever"\ndevice = "cpu"\n'
    assert len(resolve(text, device="cpu").cases) == 1
    assert len(resolve(text, device="cuda").cases) == len(resolve(text).cases) == 2


MIXED = HEAD + "[axes]\nchannels = [2, 3]\nsize = [5, [6, 9]]\n" + CONV + NIFF_BIG


@pytest.mark.parametrize(
    ("only", "count"),
    [
        (("conv-k3",), 4),
        (("conv*",), 4),
        (("niff",), 4),
        (("niff mlp=big",), 4),
        (("conv*", "niff*"), 8),
        (("size=5",), 4),
        (("size=6x9", "channels=2"), 2),
        (("channels=2", "channels=3", "niff"), 4),
        (("kernel=3",), 4),
    ],
)
def test_only(only: tuple[str, ...], count: int) -> None:
    suite = resolve(MIXED, only)
    assert len(suite.cases) == count
    assert suite.only == only


def test_only_a_case_by_its_id() -> None:
    case = resolve(MIXED).cases[5]
    assert resolve(MIXED, (case.id,)).cases == (case,)


@pytest.mark.parametrize(
    ("only", "output"),
    [
        (("covn-k3",), "--only covn-k3: matches no case of f; did you mean 'conv-k3'?"),
        (("xyz", "size=5"), "matches no case of f; its rows are conv-k3, niff mlp=big, its axes batch"),
        (("sise=5",), "no axis named 'sise'; did you mean 'size'?"),
        (("size=6",), "matches no case"),
        (("conv-k3", "channels=9"), "--only conv-k3 channels=9: matches no case"),
        (("",), "matches no case"),
    ],
)
def test_only_what_there_is(only: tuple[str, ...], output: str) -> None:
    assert output in complaint(MIXED, only)


def test_tf32_is_an_axis_of_float32_alone() -> None:
    text = (
        HEAD
        + """axes = {channels = 8, size = 14, dtype = ["float32", "float16"], tf32 = [false, true]}
    operators = [{name = "conv-k3"}]
    """
    )
    suite = resolve(text)
    assert rows(suite) == [("conv-k3", f"B1 8@14{word}") for word in ("", " tf32", " float16")]
    assert [case.problem.precision for case in resolve(text, ("tf32=true",)).cases] == ["tf32"]
    assert complaint(text.replace("true", '"yes"'), ()).count("axes.tf32[1]") == 1


def test_the_same_case_twice_is_one_case() -> None:
    assert len(resolve(HEAD + AXES + CONV + CONV).cases) == 2


def test_an_edited_suite_is_another_suite() -> None:
    text = HEAD + AXES + CONV
    assert resolve(text).source_hash == resolve(text).source_hash != resolve(text + "# a word\n").source_hash


@pytest.mark.parametrize(
    ("content", "output"),
    [
        (b"\xff\xfe", "is not UTF-8 text"),
        (b"#" * 1_000_001, "larger than 1,000,000 bytes"),
        (None, "there is no such file"),
    ],
)
def test_a_file_that_is_no_suite(tmp_path: Path, content: bytes | None, output: str) -> None:
    path = tmp_path / "x.toml"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(UsageError, match=output):
        load(str(path), CATALOGUE)


@pytest.mark.parametrize("name", ["/dev/zero", "a\0b/c.toml", "x" * 5000 + ".toml", "."])
def test_what_is_no_file_at_all(name: str) -> None:
    with pytest.raises(UsageError):
        load(name, CATALOGUE)


def test_an_unknown_name_is_told_what_there_is() -> None:
    with pytest.raises(UsageError, match=r"no suite named 'smoek'; did you mean 'smoke'\?"):
        load("smoek", CATALOGUE)
