"""Anybody's module as an operator: found by its name, built from a case, its cost counted, its own reference."""

from __future__ import annotations

import copy
import hashlib
import importlib
import importlib.util
import inspect
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import cache, lru_cache
from importlib.metadata import version
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any, ClassVar

from niffbench.case import Case, OptionValue
from niffbench.errors import NiffbenchError, UsageError, described, did_you_mean, faulty_line, kind_of
from niffbench.home import expanded
from niffbench.niff.catalogue import EXECUTIONS, REPLACEABLE, one_of
from niffbench.operators.base import Choice, Operator, Option
from niffbench.operators.catalogue import add, catalogue
from niffbench.operators.network import by_definition
from niffbench.operators.niff import chosen_engines
from niffbench.results import ModuleSource, Role, Traits
from niffbench.suite import UserModule, entry_of, operator_of
from niffbench.suite.schema import LIBRARIES, WORDS, argument_of, words_in

if TYPE_CHECKING:
    from torch import Tensor, nn

_RANDOM = ("Dropout", "DropPath", "StochasticDepth", "DropBlock")
"""In the names of modules that draw in training: without them a call can be compared with a reference."""

_SHARES = ("dropout", "dropout_p", "drop_prob", "drop_rate", "attention_dropout")
"""Attributes by which modules of any name, as attention and recurrent ones, drop in training."""

_SWITCHES = ("relu", "threshold", "hardtanh", "hardswish", "hardsigmoid", "max_pool", "clamp", "where", "aten.max")
"""In the names of operations whose units switch."""


@dataclass(frozen=True)
class UserOperator(Operator):
    """A callable of the user's that returns an ``nn.Module``, or several of its rows with different arguments.

    Its float64 reference is the module itself, in evaluation or training as the case is, unless the row names a
    reference or claims to compute what an operator of the catalogue computes; then it is held to that.
    """

    rows: tuple[UserModule, ...] = ()

    def row(self, case: Case) -> UserModule:
        """What the suite says of ``case``'s row."""
        return next(row for row in self.rows if row.arguments == case.options)

    def label(self, case: Case) -> str:
        row = self.row(case)
        kernel = f"-k{case.kernel}" if case.kernel is not None else ""
        if row.label is not None:
            return row.label + kernel
        return " ".join([self.name + kernel, *(f"{key}={value}" for key, value in case.options)])

    def traits(self, case: Case) -> Traits:
        claim = self._claim(case)
        boundary = self.boundary if claim is None else claim[0].boundary
        role = self.role if claim is None else claim[0].role
        return Traits(
            label=self.label(case),
            family=self.family,
            boundary=boundary,
            equivalence=self.equivalence(case),
            base=self.base,
            role=role,
            layers=self.layers,
            published=False,
            reference="itself" if self.is_self_referred(case) else "independent",
        )

    def is_self_referred(self, case: Case) -> bool:
        row = self.row(case)
        return row.reference is None and row.like is None

    def refusal(self, case: Case) -> str | None:
        claim = self._claim(case)
        return None if claim is None else claim[0].refusal(claim[1])

    def equivalence(self, case: Case) -> str:
        claim = self._claim(case)
        if claim is not None:
            return claim[0].equivalence(claim[1])
        mode = "-training" if case.problem.mode == "training" else ""
        arguments = "".join(f" {key}={value}" for key, value in case.options)
        kernel = "" if case.kernel is None else f"-k{case.kernel}"
        return f"module-{self.name}{kernel}{arguments}{mode}"

    def _claim(self, case: Case) -> tuple[Operator, Case] | None:
        """The operator whose function it claims to compute, and that operator's case."""
        like = self.row(case).like
        if like is None:
            return None
        entry = entry_of(like)
        name, kernel = operator_of(entry.name or "", catalogue(), f"{self.name}: like")
        operator = catalogue()[name]
        options: dict[str, OptionValue] = {key: option.default for key, option in operator.options.items()}
        taken = kernel or case.kernel if operator.takes_kernel else None
        if operator.takes_kernel and taken is None:
            raise UsageError(f"{self.name}: like = '{like}' needs its kernel size, as in '{name}-k7'")
        claimed = Case(name, case.problem, taken, tuple(sorted((options | entry.options).items())), case.execution)
        return operator, claimed

    def output_shape(self, case: Case) -> tuple[int, ...]:
        return _call_of(self, case).shape

    def mixes_images(self, case: Case) -> bool:
        """Of a module that nobody vouches for the whole batch is compared at once."""
        claim = self._claim(case)
        return True if claim is None else claim[0].mixes_images(claim[1])

    def error_growth(self, case: Case) -> float:
        layers = _call_of(self, case).layers
        return float(layers) if case.problem.element_bytes >= 4 else layers**0.5

    def switches(self, case: Case) -> bool:
        return _call_of(self, case).switches

    def cost(self, case: Case) -> None:
        """Nobody wrote a closed form: what it costs is counted."""

    def build(self, case: Case) -> nn.Module:
        row = self.row(case)
        make = resolve(row.source, row.folders)
        module = _without_chance(_module(_called(make, _arguments(row, make, case)), row))
        _materialise(module, case)
        self._check_claim(case, module)
        return module.train(case.problem.mode == "training")

    def _check_claim(self, case: Case, module: nn.Module) -> None:
        """Members of a class have the same weights under the same names."""
        import torch

        claim = self._claim(case)
        if claim is None:
            return
        with torch.device("meta"):
            wanted = claim[0].build(claim[1]).state_dict()
        own, theirs = (
            {name: tuple(value.shape) for name, value in state.items()} for state in (module.state_dict(), wanted)
        )
        if own != theirs:
            raise TypeError(
                f"{self.name} claims to be like {self.row(case).like}, whose weights are {theirs}; it has {own}"
            )

    def reference(self, case: Case, state: Mapping[str, Tensor], x: Tensor) -> Tensor:
        import torch
        from torch import nn

        from niffbench.cost.call import cast, load

        claim = self._claim(case)
        if claim is not None:
            return claim[0].reference(claim[1], state, x)
        row = self.row(case)
        module = cast(self.build(case), "float64").to(x.device)
        load(module, state)
        parameters = {name: state[name] for name, _ in module.named_parameters()}  # which ask for the gradients
        if row.reference is None and not any(value.requires_grad for value in parameters.values()):
            plain: Tensor = module(x)  # what is scripted can do that alone
            return plain
        if row.reference is None:
            out: Tensor = torch.func.functional_call(module, parameters, x)
            return out
        exact = resolve(row.reference, row.folders)

        class Exact(nn.Module):
            def __init__(self) -> None:
                super().__init__()
                self.inner = module

            def forward(self, x: Tensor) -> Tensor:
                result: Tensor = exact(self.inner, x)
                return result

        renamed = {f"inner.{name}": value for name, value in parameters.items()}
        result: Tensor = torch.func.functional_call(Exact(), renamed, x)
        return result


@dataclass(frozen=True)
class UserNetwork(UserOperator):
    """A network of torchvision, timm or the user's, as it is or with its layers replaced, from images to scores.

    Its reference is itself in float64, but for NIFF layers, which are computed from their filters' definition.
    ``engines`` is what each layer of form ``auto`` has chosen; empty while nothing is.
    """

    shortfall: ClassVar[float] = 1.0
    setup: ClassVar[float] = 6.0
    role: Role = "network"
    engines: tuple[str, ...] = ()

    def traits(self, case: Case) -> Traits:
        became = self._became(case)
        return replace(
            super().traits(case),
            boundary="circular" if became - {"pointwise"} else "zero",  # a 1×1 convolution has no boundary
            base=self.name if became else None,
            layers="niff" if became else "dense",
        )

    def refusal(self, case: Case) -> str | None:
        try:
            for layer, became in self._replace(case).items():
                one_of(
                    became, REPLACEABLE[one_of(layer, REPLACEABLE, "layer to replace")], f"replacement of {layer}"
                )
            one_of(self._execution(case), EXECUTIONS, "execution")
        except ValueError as error:
            return str(error)
        return None

    def is_published(self, case: Case) -> bool:
        return bool(self._became(case)) and self._execution(case) == "published"

    @classmethod
    def _became(cls, case: Case) -> set[str]:
        """What layers were replaced by."""
        return {*cls._replace(case).values()} - {"keep"}

    @staticmethod
    def _replace(case: Case) -> dict[str, str]:
        return {key: str(value) for key, value in case.options if key != "execution"}

    @staticmethod
    def _execution(case: Case) -> str:
        return str(dict(case.options).get("execution", "rfft"))

    def mixes_images(self, case: Case) -> bool:
        return case.problem.mode == "training"

    def build(self, case: Case) -> nn.Module:
        from niffbench.niff import networks

        p, replaced = case.problem, self._replace(case)
        model = self.original(self.row(case), p.channels_out)
        if replaced:
            sizes = networks.feature_maps(model, p.height, p.width)
            model = networks.convert(model, networks.Rule.of(replaced, self._execution(case)), sizes)
            networks.level(model, sizes)
            if self.engines:
                for layer, engine in zip(networks.choosing_layers(model), self.engines, strict=True):
                    layer.fix_engine(engine)
        return _without_chance(model).train(p.mode == "training")

    @staticmethod
    def original(row: UserModule, classes: int) -> nn.Module:
        """The network before anything is replaced.

        Raises:
            ValueError: for a name that its library does not have.
            UsageError: for what cannot be imported.
        """
        from niffbench.niff.networks import original

        if row.source.partition(":")[0] in LIBRARIES:
            return original(row.source, classes)
        make = resolve(row.source, row.folders)
        wanted = [name for name in ("num_classes", "classes") if name in (_parameters(make) or {})]
        return _module(_called(make, dict.fromkeys(wanted, classes)), row)

    def choice(self, case: Case, module: nn.Module) -> Choice | None:
        engines = chosen_engines(case, module)
        return Choice(engines, replace(self, engines=engines)) if engines else None

    def reference(self, case: Case, state: Mapping[str, Tensor], x: Tensor) -> Tensor:
        import torch

        from niffbench.cost.call import cast, load
        from niffbench.niff.networks import niff_layers

        model = cast(self.build(case), "float64").to(x.device)
        load(model, state)
        for _, layer in niff_layers(model):
            layer.forward = by_definition(layer)  # type: ignore[assignment,method-assign]
        parameters = {name: state[name] for name, _ in model.named_parameters()}
        out: Tensor = torch.func.functional_call(model, parameters, x)
        return out


@contextmanager
def users_code(operator: str) -> Iterator[None]:
    """Within, what the user's code raises becomes a UsageError that names ``operator``, file and line.

    So does whatever else a network raises while it is built or called; a ValueError of this package stays one.
    """
    try:
        yield
    except (NiffbenchError, MemoryError):
        raise
    except (Exception, SystemExit) as error:
        line = faulty_line(error)
        if isinstance(error, ValueError) and not line:
            raise
        raise UsageError(f"{operator}: {line}{described(error)}") from error


def _module(value: object, row: UserModule) -> nn.Module:
    """``value`` if it is a module; else TypeError."""
    from torch import nn

    if not isinstance(value, nn.Module):
        raise TypeError(f"{row.source} returned {kind_of(value)}, and should return a torch.nn.Module")
    if hasattr(value, "_orig_mod"):
        raise NotImplementedError(
            f"{row.source} returned what torch.compile made, and should return the module itself: execution = "
            "'compiled' compiles it"
        )
    return value


def _called(make: Callable[..., object], arguments: dict[str, object]) -> object:
    """What ``make`` gives; a module that is there already is copied."""
    from torch import nn

    if isinstance(make, nn.Module):
        return copy.deepcopy(make)
    given = dict(arguments)
    kinds = {name: one.kind for name, one in (_parameters(make) or {}).items()}
    positional = [
        given.pop(name) for name, kind in kinds.items() if kind is kind.POSITIONAL_ONLY and name in given
    ]
    return make(*positional, **given)


def _materialise(module: nn.Module, case: Case) -> None:
    """Call a module whose weights have no shapes yet, once."""
    import torch
    from torch.nn.parameter import is_lazy

    if any(map(is_lazy, (*module.parameters(), *module.buffers()))):
        p = case.problem
        with torch.no_grad():
            module(torch.zeros(p.batch, p.channels, p.height, p.width))


def _without_chance(module: nn.Module) -> nn.Module:
    """``module`` with nothing drawn in training: only so can a call be compared with a reference."""
    from torch import nn

    for part in module.modules():
        draws = any(mark in kind.__name__ for kind in type(part).mro() for mark in _RANDOM)
        for name, value in dict(vars(part)).items():
            is_share = isinstance(value, (int, float)) and not isinstance(value, bool) and 0 <= value <= 1
            if is_share and (name in _SHARES or (draws and name == "p")):
                setattr(part, name, 0.0)
        if isinstance(part, nn.RReLU):
            part.lower = part.upper = (part.lower + part.upper) / 2  # its slope in evaluation
    return module


@dataclass(frozen=True)
class _Call:
    """What one call of a module shows: its output's shape, whether units switch, how many layers have weights."""

    shape: tuple[int, ...]
    switches: bool
    layers: int


@lru_cache(maxsize=1024)
def _call_of(operator: UserOperator, case: Case) -> _Call:
    """Call ``case`` once on fake tensors, or else on real ones.

    Raises:
        TypeError: for what gives no real tensor.
    """
    import torch
    from torch import Tensor
    from torch._subclasses.fake_tensor import FakeTensorMode
    from torch.utils._python_dispatch import TorchDispatchMode

    from niffbench.cost.call import prepare

    names: set[str] = set()
    row = operator.row(case)

    class Names(TorchDispatchMode):  # type: ignore[no-untyped-call]
        def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            names.add(str(func.overloadpacket))
            return func(*args, **(kwargs or {}))

    def called() -> tuple[nn.Module, object]:
        call = prepare(operator, case, warm=False)
        with torch.no_grad(), Names():  # type: ignore[no-untyped-call]
            return call.module, call.forward()

    try:
        with FakeTensorMode():
            module, out = called()
    except Exception:  # what fake tensors cannot follow is run; what is wrong with it comes up again
        with _said_where(row):
            module, out = called()
    if not isinstance(out, Tensor):
        raise TypeError(f"{operator.name} gives {kind_of(out)}, and should give a tensor{_where(row)}")
    if out.is_complex():
        raise TypeError(f"{operator.name} gives complex numbers, and should give real ones{_where(row)}")
    if out.layout is not torch.strided:
        raise TypeError(f"{operator.name} gives a sparse tensor, and should give a dense one{_where(row)}")
    weighted = sum(any(True for _ in part.parameters(recurse=False)) for part in module.modules())
    switches = any(mark in name for name in names for mark in _SWITCHES)
    return _Call(tuple(out.shape), switches, max(weighted, 1))


@contextmanager
def _said_where(row: UserModule) -> Iterator[None]:
    """Within, an error that comes from no line of the user's says where the callable is."""
    try:
        yield
    except Exception as error:
        if not faulty_line(error):
            error.args = (f"{error}{_where(row)}",)
        raise


def _where(row: UserModule) -> str:
    return "" if row.source.partition(":")[0] in LIBRARIES else _defined(resolve(row.source, row.folders))


def _arguments(row: UserModule, make: Callable[..., object], case: Case) -> dict[str, object]:
    """What the callable is given: the case's figures for words, and for its parameters that bear their names."""
    p = case.problem
    figures: dict[str, object] = {
        "channels": p.channels,
        "channels_out": p.channels_out,
        "height": p.height,
        "width": p.width,
        "batch": p.batch,
        "kernel": case.kernel,
    }
    _check_made(row, make)
    given = {key: _meant(value, figures) for key, value in row.arguments}
    return {name: figures[name] for name in _own_words(row, make)} | given


def _meant(value: object, figures: Mapping[str, object]) -> object:
    """An argument as a callable gets it: a word's figure, a tuple of what a list's text says, or itself."""
    value = argument_of(value)
    if isinstance(value, list | tuple):
        return tuple(_meant(one, figures) for one in value)
    return figures.get(value, value) if isinstance(value, str) else value


def _own_words(row: UserModule, make: Callable[..., object]) -> list[str]:
    """The words that a callable has parameters for, and nobody gave."""
    named = _parameters(make) or {}
    given = dict(row.arguments)
    wanted = [name for name in WORDS if name in named and name not in given]
    return [name for name in wanted if name != "kernel" or row.kernel or named[name].default is inspect._empty]


def _parameters(make: Callable[..., object]) -> Mapping[str, inspect.Parameter] | None:
    try:
        return inspect.signature(make).parameters
    except (TypeError, ValueError):  # of a builtin nobody knows
        return None


def check(row: UserModule) -> ModuleSource:
    """Find a row's callables and hold its arguments to them; returns where they come from.

    Raises:
        UsageError: for what cannot be imported, is not there or not callable, or takes other arguments, with the
            file and line of the user's code.
    """
    if row.network:
        return _check_network(row)
    make = resolve(row.source, row.folders)
    _check_made(row, make)
    if row.reference is not None:
        resolve(row.reference, row.folders)
    parameters = _parameters(make)
    if parameters is not None:
        _check_arguments(row, make, parameters)
    return _source(row, make)


def _check_network(row: UserModule) -> ModuleSource:
    """The same for a network, which is built without memory."""
    import torch

    library = row.source.partition(":")[0]
    if library not in LIBRARIES:
        return _source(row, resolve(row.source, row.folders))
    try:
        with torch.device("meta"):
            UserNetwork.original(row, 10)
    except ValueError as error:
        raise UsageError(f"{row.operator}: {error}") from error
    return ModuleSource(operator=row.operator, version=version(library))


def _check_made(row: UserModule, make: Callable[..., object]) -> None:
    """Raise UsageError for arguments of a module that is made already."""
    from torch import nn

    if isinstance(make, nn.Module) and row.arguments:
        raise UsageError(
            f"{row.operator}: is a module already and takes no arguments, here {row.arguments[0][0]}; "
            "name a callable that makes one"
        )


def _check_arguments(
    row: UserModule, make: Callable[..., object], parameters: Mapping[str, inspect.Parameter]
) -> None:
    kinds = {parameter.kind for parameter in parameters.values()}
    named = {name: one for name, one in parameters.items() if one.kind not in _VARIADIC}
    given = {**dict(row.arguments), **dict.fromkeys(_own_words(row, make), 0)}
    where = _defined(make)
    for name in given:
        if name not in named and inspect.Parameter.VAR_KEYWORD not in kinds:
            raise UsageError(f"{row.operator}: has no parameter '{name}'{did_you_mean(name, named)}{where}")
    for name, one in named.items():
        if one.default is inspect._empty and name not in given:
            raise UsageError(
                f"{row.operator}: needs its parameter '{name}': give it as an argument, a literal or one of "
                f"{', '.join(WORDS)}{where}"
            )
    if "kernel" in {*given, *words_in(dict(row.arguments))} and not row.kernel:
        raise UsageError(f"{row.operator}: needs a kernel size, as in '{row.operator}-k7'{where}")


_VARIADIC = (inspect.Parameter.VAR_KEYWORD, inspect.Parameter.VAR_POSITIONAL)


def _defined(make: Callable[..., object]) -> str:
    """Where it is written, as the tail of a message."""
    made = make if inspect.isroutine(make) or inspect.isclass(make) else type(make)
    try:
        file, line = inspect.getsourcefile(made), inspect.getsourcelines(made)[1]
    except (OSError, TypeError):
        return ""
    return f" ({Path(file).name}, line {line})" if file else ""


def _source(row: UserModule, make: Callable[..., object]) -> ModuleSource:
    """The file that holds it by its hash, and the version of the package it belongs to, if that has one."""
    name = row.source.rpartition(":")[0]
    module = _loaded(name, row.folders)
    top = sys.modules.get(module.__name__.partition(".")[0], module)
    try:
        file = Path(inspect.getsourcefile(make) or module.__file__ or "")
    except TypeError:  # a callable object
        file = Path(module.__file__ or "")
    digest = hashlib.sha256(file.read_bytes()).hexdigest() if file.is_file() else None
    release = getattr(top, "__version__", None)
    return ModuleSource(
        operator=row.operator,
        file=file.name or None,
        sha256=digest,
        version=None if release is None else str(release),
    )


def resolve(source: str, folders: Sequence[str]) -> Callable[..., Any]:
    """The callable that ``my_ops.py:MyConv`` or ``my_ops:MyConv`` names.

    Raises:
        UsageError: as :func:`attribute_of`, and for what cannot be called.
    """
    value = attribute_of(source, folders)
    if not callable(value):
        raise UsageError(f"{source}: is {kind_of(value)}, and should be a callable that returns a torch.nn.Module")
    made: Callable[..., Any] = value
    return made


def attribute_of(source: str, folders: Sequence[str]) -> Any:
    """What ``my_ops.py:NAME`` or ``my_ops:NAME`` names.

    Raises:
        UsageError: for what is not there, or whose module cannot be imported; with file and line.
    """
    name, _, attribute = source.rpartition(":")
    value: Any = _loaded(name, tuple(folders))
    for part in attribute.split("."):
        if not hasattr(value, part):
            public = [one for one in dir(value) if not one.startswith("_")]
            raise UsageError(f"{source}: {name} has no '{part}'{did_you_mean(part, public)}")
        value = getattr(value, part)
    return value


@cache
def _loaded(name: str, folders: tuple[str, ...]) -> ModuleType:
    """The module of a file, or an importable one; looked for in ``folders`` first.

    What importing it changes of the process that cases share is undone: no row of a suite changes the others.
    """
    # Loads torch, before anything in the user's folders could be taken for a part of it.
    from niffbench.device.settings import ProcessState

    before = ProcessState.here()

    for folder in reversed(folders):
        if folder not in sys.path:
            sys.path.insert(0, folder)
    try:
        return _from_file(name, folders) if _is_path(name) else importlib.import_module(name)
    except UsageError:
        raise
    except (Exception, SystemExit) as error:  # somebody's code
        if isinstance(error, ModuleNotFoundError) and error.name and f"{name}.".startswith(f"{error.name}."):
            raise UsageError(
                f"no module named '{name}' in the suite's folder, the current one or among installed packages; a "
                "file is named with its .py"
            ) from error
        raise UsageError(f"{name}: {faulty_line(error)}{described(error)}") from error
    finally:
        before.restore()


def _is_path(name: str) -> bool:
    return name.endswith(".py") or "/" in name


def file_of(name: str, folders: Iterable[Path | str]) -> Path | None:
    """The file in the first of ``folders`` that holds a module, named by its path or as it is imported."""
    if _is_path(name):
        inside = [expanded(name)]
    else:
        stem = Path(*name.split("."))
        inside = [stem.with_name(f"{stem.name}.py"), stem / "__init__.py"]
    places = (Path(folder, path).absolute() for folder in folders for path in inside)
    return next((place for place in places if place.is_file()), None)


def _from_file(name: str, folders: Iterable[str]) -> ModuleType:
    path = file_of(name, folders)
    if path is None:
        near = sorted({file.name for folder in folders for file in Path(folder).glob("*.py")})
        raise UsageError(f"{name}: there is no such file{did_you_mean(name, near) if near else ''}")
    root = path.parent
    while (root / "__init__.py").is_file():
        root = root.parent
    if str(root) not in sys.path:  # as Python does for a script
        sys.path.insert(0, str(root))
    spec = importlib.util.spec_from_file_location(_free_name(path.stem), path)
    if spec is None or spec.loader is None:
        raise UsageError(f"{name}: is not a Python file; it should end with .py")
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    try:
        spec.loader.exec_module(module)
    except BaseException as error:
        del sys.modules[spec.name]
        if root != path.parent and "no known parent package" in str(error):
            return importlib.import_module(".".join(path.relative_to(root).with_suffix("").parts))
        raise
    return module


def _free_name(stem: str) -> str:
    """A name for the module of a file that is no other's: somebody's ``random.py`` replaces no other module."""
    while stem in sys.modules:
        stem += "_"
    return stem


def declare(modules: Sequence[UserModule]) -> Mapping[str, Operator]:
    """Make operators of rows of the user's modules, and add them to this process's catalogue; none is imported."""
    declared = operators_of(modules)
    add(declared)
    return declared


def operators_of(modules: Iterable[UserModule]) -> dict[str, UserOperator]:
    """The operators that rows of a suite stand for, by name; nothing is imported.

    Raises:
        UsageError: for two rows of one module that differ in what they say of the same arguments.
    """
    rows: dict[str, list[UserModule]] = {}
    for module in modules:
        same = rows.setdefault(module.operator, [])
        twin = next((row for row in same if row.arguments == module.arguments), None)
        if twin is None:
            same.append(module)
        elif twin.model_copy(update={"kernel": module.kernel}) != module:
            raise UsageError(f"{module.operator}: rows of the same arguments differ in label, like or reference")
        elif module.kernel and not twin.kernel:
            same[same.index(twin)] = module
    return {name: _operator(name, tuple(own)) for name, own in rows.items()}


def _operator(name: str, rows: tuple[UserModule, ...]) -> UserOperator:
    if len({row.network for row in rows}) > 1:
        raise UsageError(f"{name}: is a model in one row and a module in another")
    options = {key: Option("", None, "") for row in rows for key, _ in row.arguments}
    network = rows[0].network
    return (UserNetwork if network else UserOperator)(
        name=name,
        family="network" if network else "own",
        summary=f"a {'network' if network else 'module'} of the user's",
        boundary="unknown",
        base=name if network else None,
        options=options,
        rows=rows,
    )
