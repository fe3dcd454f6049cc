"""A figure of any columns of a run's frame, ready for a paper: vector, fonts embedded, its size as asked for."""

from __future__ import annotations

import io
import warnings
from collections.abc import Callable, Mapping, Set
from dataclasses import dataclass, field, replace
from functools import partial
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

from niffbench.errors import UsageError, did_you_mean
from niffbench.report import text
from niffbench.report.digest import CONFIDENCE
from niffbench.report.plots.canvas import PAPER, log_axis, measured_axis, settings, spread_ticks, trim
from niffbench.report.plots.palette import Style, styles
from niffbench.report.slices import AXES
from niffbench.results import REGISTRY
from niffbench.results.metrics import SHORT, key_of
from niffbench.stats.intervals import median_of_rounds
from niffbench.suite import Regime

if TYPE_CHECKING:
    import pandas as pd

FORMATS = ("pdf", "svg", "png")
RATIO = "_ratio"
"""After a metric's name: its ratio to the baseline."""
_METADATA: Mapping[str, dict[str, None]] = {
    "pdf": {"CreationDate": None, "ModDate": None, "Creator": None, "Producer": None},
    "svg": {"Date": None, "Creator": None},
    "png": {"Software": None},
}
_NAMED = ("operator", "label", "family")
_IDENTIFYING = (
    "label",
    "kernel",
    "batch",
    "channels",
    "channels_out",
    "size",
    "height",
    "dtype",
    "memory_format",
    "mode",
    "execution",
)
"""Columns that make a case: where one varies and the figure does not show it, unlike things are pooled."""
_SHOWN_BY: Mapping[str, frozenset[str]] = MappingProxyType(
    {
        "label": frozenset({"case"}),
        "kernel": frozenset({"label", "case"}),
        "size": frozenset({"height", "width"}),
        "height": frozenset({"width"}),
    }
)
"""... and the columns that show them as well."""
_MEASURED_TICKS = 12
_MOST: Mapping[str, int] = MappingProxyType({"style": 24, "col": 24, "row": 24})
"""Values of a column that an option can still tell apart, and soon enough."""
_SIZE = (6.5, 4.0)
_LEGEND_SIZE = 8.5
_SMALLEST_PRINT = 5.0
"""Points: of a legend as it is, and of one that is made to fit."""
_WIDEST_LEGEND = 0.5
"""Of a figure's width."""


@dataclass(frozen=True)
class Request:
    """What to draw: column names, the size of the whole figure in inches.

    Attributes:
        size: None: 6.5×4, and higher where the legend needs it.
        log_x: None: where it makes sense, as ``log_y``.
        labels: what names and columns are called in the figure, where not as they are.
        colours: by name.
    """

    x: str
    y: str
    hue: str | None = None
    style: str | None = None
    col: str | None = None
    row: str | None = None
    size: tuple[float, float] | None = None
    log_x: bool | None = None
    log_y: bool | None = None
    labels: Mapping[str, str] = field(default_factory=dict)
    colours: Mapping[str, str] = field(default_factory=dict)

    @property
    def columns(self) -> dict[str, str]:
        """The options that name a column."""
        named = {key: getattr(self, key) for key in ("x", "y", "hue", "style", "col", "row")}
        return {key: name for key, name in named.items() if name is not None}

    @property
    def shown(self) -> frozenset[str]:
        """The columns that tell a point from another."""
        return frozenset(name for key, name in self.columns.items() if key != "y")


def resolve(request: Request, table: pd.DataFrame, regime: Regime) -> Request:
    """The request with its short names made columns, and a colour for each operator where no hue is asked for.

    Raises:
        UsageError: for a name that is none.
    """
    given = {key: _column(name, regime) for key, name in request.columns.items()}
    for key, name in given.items():
        names = [*table.columns, *SHORT]
        if name not in table.columns:
            raise UsageError(
                f"--{key}: no column named '{name}'{_suggestion(name, names)} Columns: {', '.join(sorted(names))}"
            )
    y = given["y"]
    if table[y].dtype.kind not in "iufb":
        raise UsageError(f"--y: '{y}' holds no numbers; choose from {', '.join(_numeric(table))}")
    if not table[y].notna().any():
        raise UsageError(f"--y: '{y}' was not measured in this run; choose from {', '.join(_numeric(table))}")
    asked = replace(request, **given)  # type: ignore[arg-type]
    if _drawn(asked, table).empty:
        raise UsageError(f"--x: '{given['x']}' is empty wherever there is a '{y}'")
    for key, most in _MOST.items():
        if key in given and (count := table[given[key]].nunique()) > most:
            raise UsageError(f"--{key}: '{given[key]}' has {count:,} values, and {most} can be shown so")
    return _by_operator(asked, table)


def _column(name: str, regime: Regime) -> str:
    """A column's whole name; ``ratio`` is that of latency."""
    short = name.removesuffix(RATIO).removesuffix(RATIO[1:]) or "latency"
    return key_of(short, regime) + (RATIO if name.endswith(RATIO[1:]) else "")


def with_ratios(table: pd.DataFrame, baseline: str) -> pd.DataFrame:
    """The frame with a column ``<metric>_ratio`` for each metric: to the baseline's in the same problem and round.

    So these are paired by round: what a round does to both cancels.
    """
    import pandas as pd

    same = ["problem", "execution", "round"]
    names = [name for name in table.columns if name in REGISTRY and REGISTRY[name].compared]
    base = table[table["label"] == baseline].drop_duplicates(same).set_index(same)[names]
    if base.empty:
        return table
    below = base.reindex(pd.MultiIndex.from_frame(table[same])).set_axis(table.index)
    ratios = (table[names] / below.where(below > 0)).add_suffix(RATIO)
    return pd.concat([table, ratios], axis="columns")


def _by_operator(request: Request, table: pd.DataFrame) -> Request:
    """Operators in colours of their own, where else one line would go through several of them.

    Along x, a kernel size is no part of what is drawn: then operators are meant without theirs.
    """
    if request.hue is not None:
        return request
    rows = _drawn(request, table)
    name = "operator" if request.x == "kernel" else "label"
    if request.x == "kernel" and table[table[request.y].notna()][request.x].isna().any():
        return replace(request, hue=name)
    shown = request.shown - {request.x} if _is_numeric(rows[request.x]) else request.shown
    return replace(request, hue=name) if _varies(rows, name, shown) else request


def _suggestion(name: str, names: list[str]) -> str:
    hint = did_you_mean(name, names)
    return hint if hint.endswith("?") else "."


def _numeric(table: pd.DataFrame) -> list[str]:
    return sorted(name for name in table.columns if table[name].dtype.kind in "iuf" and table[name].notna().any())


def _drawn(request: Request, table: pd.DataFrame) -> pd.DataFrame:
    """The rows that have a place in the figure."""
    return table[table[request.y].notna() & table[request.x].notna()]


def _is_numeric(values: pd.Series[Any]) -> bool:
    return values.dtype.kind in "iuf"


def _varies(rows: pd.DataFrame, name: str, shown: Set[str]) -> bool:
    """Whether a column has several values among rows that are alike in those ``shown``."""
    if not shown:
        return bool(rows[name].nunique(dropna=False) > 1)
    return bool((rows.groupby(sorted(shown), dropna=False, observed=True)[name].nunique(dropna=False) > 1).any())


def placeless(request: Request, table: pd.DataFrame) -> list[str]:
    """The operators of a resolved request that have no place along x and are not drawn as level lines."""
    rows = table[table[request.y].notna()]
    level = set(_level(request, table)["label"])
    return sorted(set(rows["label"]) - set(_drawn(request, table)["label"]) - level)


def _level(request: Request, table: pd.DataFrame) -> pd.DataFrame:
    """The rows that hold for every place along x, as of an operator without a kernel: level lines."""
    named = request.hue in _NAMED and request.x == "kernel"
    return table[table[request.y].notna() & table[request.x].isna()] if named else table[:0]


def pooled(request: Request, table: pd.DataFrame) -> dict[str, list[Any]]:
    """Columns that vary among the rows drawn as one point though the figure does not show them; their values."""
    rows, shown = _drawn(request, table), request.shown
    varying = [
        name
        for name in _IDENTIFYING
        if not shown & {name, *_SHOWN_BY.get(name, ())} and _varies(rows, name, shown)
    ]
    if "channels" in varying and (rows["channels"] == rows["channels_out"]).all():
        varying.remove("channels_out")
    if "size" in varying and "height" in varying:
        varying.remove("height")
    return {name: sorted(set(rows[name].dropna())) for name in varying}


def _over_devices(request: Request, table: pd.DataFrame) -> pd.DataFrame:
    """A row for each device that measured a case, with the median of its rounds; for each round where one did."""
    where = ["case", "node", "device_id"]
    devices = table[where].drop_duplicates()
    several = table["case"].isin(devices["case"][devices["case"].duplicated()])
    if not several.any():
        return table
    medians = table.groupby(where, dropna=False)[request.y].transform("median")
    return table.assign(**{request.y: medians.where(several, table[request.y])})[
        ~(several & table.duplicated(where))
    ]


def draw(request: Request, table: pd.DataFrame, suffix: str) -> bytes:
    """Draw a resolved request; the bytes of a file of type ``suffix`` (pdf, svg, png). Equal input, equal bytes.

    Points are medians over rounds, of a fleet over its devices', bars 95 % intervals; where unlike things are
    :func:`pooled` there are no bars.
    """
    import matplotlib
    import pandas as pd
    import seaborn
    from matplotlib import pyplot

    pyplot.switch_backend("agg")
    if not request.shown & {"node", "device_id", "round"}:
        table = _over_devices(request, table)
    every = {name: request.labels.get(name, name) for name in (*table["label"], *table["operator"])}
    table = table.assign(
        **{name: table[name].map(lambda value: every.get(value, value)) for name in ("label", "operator")}
    )
    level, rows = _level(request, table).copy(), _drawn(request, table).copy()
    for name in request.shown:
        if not _is_numeric(table[name]):  # true and false are words, too
            called = text.short_names(map(str, table[name]))
            rows[name], level[name] = ([called[str(value)] for value in some[name]] for some in (rows, level))
        elif rows[name].dtype.kind == "f" and (rows[name] % 1 == 0).all():
            rows[name] = rows[name].astype(int)
    both = pd.concat([rows, level]) if len(level) else rows
    # Names along x have their operators' colours, and need no legend.
    hue = request.hue or (request.x if request.x in _NAMED else None)
    with matplotlib.rc_context({**settings(), "legend.title_fontsize": _LEGEND_SIZE}):
        options = {
            "data": rows, "x": request.x, "y": request.y, "hue": hue, "col": request.col, "row": request.row,
            "palette": _palette(both, hue, request.colours), "hue_order": _order(both, hue),
            "color": None if hue else next(iter(_styles(rows, "label").values())).colour,
            "estimator": "median", "errorbar": None if pooled(request, table) else _interval, "height": 3.0,
        }  # fmt: skip
        if _is_numeric(rows[request.x]):
            options |= {"kind": "line", "err_style": "bars", **_lines(both, request)}
            grid = seaborn.relplot(**_given(options))
        else:
            options |= {"kind": "point", "linestyle": "none", "markersize": 4.5}
            grid = seaborn.catplot(**_given(options))
        _draw_level(grid, request, level, both, with_bands=not pooled(request, table))
        _axes(grid, request, rows, [*level[request.y]])
        if request.col and not request.row:
            grid.set_titles(f"{_words(request.col, request)} {{col_name}}")
        _fit(grid, request.size)
        spread_ticks(grid.figure)
        out = io.BytesIO()
        grid.figure.savefig(out, format=suffix, metadata=_METADATA[suffix], dpi=300)
        pyplot.close(grid.figure)
    return out.getvalue()


def _given(options: Mapping[str, Any]) -> dict[str, Any]:
    """Options without those that are None; no error bar is a choice, not an absence."""
    return {name: option for name, option in options.items() if option is not None or name == "errorbar"}


def _lines(rows: pd.DataFrame, request: Request) -> dict[str, Any]:
    """Line styles and markers: of ``style`` where asked for, else such that operators of one family differ."""
    if request.style is not None:
        return {"style": request.style, "markers": True}
    if request.hue not in _NAMED:
        return {"marker": "o"}
    drawn = _styles(rows, request.hue)
    return {
        "style": request.hue,
        "style_order": list(drawn),
        "markers": {name: style.marker for name, style in drawn.items()},
        "dashes": {name: "" if isinstance(style.dash, str) else style.dash[1] for name, style in drawn.items()},
    }


def _draw_level(grid: Any, request: Request, level: pd.DataFrame, both: pd.DataFrame, *, with_bands: bool) -> None:
    """A line across each panel for what has no place along x, with its mark and its interval as a band."""
    if level.empty or request.hue is None:
        return
    drawn, palette = _styles(both, request.hue), _palette(both, request.hue, request.colours)
    assert isinstance(palette, dict)
    for (row, col, _), _ in grid.facet_data():
        panel, here = grid.facet_axis(row, col), level
        for name, names, place in ((request.row, grid.row_names, row), (request.col, grid.col_names, col)):
            here = here[here[name] == names[place]] if name is not None else here
        lines = list(here.groupby(request.hue, sort=False))
        for number, (named, some) in enumerate(lines, start=1):
            colour, style, middle = palette[str(named)], drawn[str(named)], some[request.y].median()
            panel.axhline(middle, color=colour, linestyle=style.dash)
            # Apart, so that lines which coincide show theirs.
            panel.plot(number / (len(lines) + 1), middle, color=colour, marker=style.marker,
                       markeredgecolor=PAPER, markeredgewidth=0.5,
                       transform=panel.get_yaxis_transform())  # fmt: skip
            if with_bands:
                panel.axhspan(*_interval(some[request.y]), color=colour, alpha=0.15, linewidth=0)


def _fit(grid: Any, asked: tuple[float, float] | None) -> None:
    """Make the figure as large as ``asked``, in inches, its legend included: in smaller print if need be."""
    width, height = asked or _SIZE
    grid.figure.set_size_inches(width, height)
    taken = 0.0
    if grid.legend is not None:
        wide, high = _place_legend(grid, _LEGEND_SIZE)
        if high > height and asked is None:
            height = high
            grid.figure.set_size_inches(width, height)
        share = max(high / height, wide / (_WIDEST_LEGEND * width))
        if share > 1:
            wide, _ = _place_legend(grid, max(_LEGEND_SIZE / share, _SMALLEST_PRINT))
        taken = min(wide / width + 0.01, 0.6)
    with warnings.catch_warnings():
        warnings.filterwarnings("error", "Tight layout", UserWarning)
        try:
            grid.figure.tight_layout(rect=(0, 0, 1 - taken, 1))
        except UserWarning as error:
            message = f"so many panels and names do not fit into {width:g}x{height:g} inches"
            raise UsageError(f"{message}; give a larger --size, or show less") from error


def _place_legend(grid: Any, print_: float) -> tuple[float, float]:
    """Put the legend to the right, in print of so many points; its width and height in inches."""
    import seaborn

    seaborn.move_legend(
        grid, "center right", bbox_to_anchor=(1.0, 0.5), frameon=False, fontsize=print_, title_fontsize=print_,
        handlelength=3.0,
    )  # fmt: skip
    extent = grid.legend.get_window_extent(grid.figure.canvas.get_renderer())
    return extent.width / grid.figure.dpi, extent.height / grid.figure.dpi


def _interval(values: Any) -> tuple[float, float]:
    """seaborn's error bar: the 95 % interval over rounds, or nothing where there is none."""
    interval = median_of_rounds(list(values), confidence=CONFIDENCE)
    middle = interval.estimate if interval.estimate is not None else float("nan")
    return (
        (interval.low, interval.high)
        if interval.low is not None and interval.high is not None
        else (middle, middle)
    )


def _order(rows: pd.DataFrame, hue: str | None) -> list[Any] | None:
    return list(dict.fromkeys(rows[hue])) if hue is not None and rows[hue].dtype.kind not in "iuf" else None


def _palette(rows: pd.DataFrame, hue: str | None, asked: Mapping[str, str]) -> dict[str, str] | str | None:
    """Operators in their families' colours; other names in ours; numbers in a sequence."""
    if hue is None:
        return None
    if hue in _NAMED:
        return {name: asked.get(name, style.colour) for name, style in _styles(rows, hue).items()}
    if rows[hue].dtype.kind in "iuf":
        return "crest"
    names = list(dict.fromkeys(rows[hue]))
    return {name: asked.get(name, style.colour) for name, style in styles((name, name) for name in names).items()}


def _styles(rows: pd.DataFrame, hue: str) -> Mapping[str, Style]:
    families = rows["family" if hue == "family" else "layers"]
    return styles(zip(rows[hue], families, strict=True))


def _axes(grid: Any, request: Request, rows: pd.DataFrame, level: list[float]) -> None:
    """Logarithmic axes where values are positive, with units on the ticks."""
    from matplotlib.ticker import FuncFormatter

    numeric = _is_numeric(rows[request.x])
    log_y = request.log_y if request.log_y is not None else bool((rows[request.y] > 0).all())
    log_x = numeric and (request.log_x if request.log_x is not None else bool((rows[request.x] > 0).all()))
    values = sorted(set(rows[request.x])) if numeric else []
    heights = rows[request.y]
    if pooled(request, rows):  # then medians are drawn, and nothing of what they were taken over
        heights = rows.groupby(sorted(request.shown), dropna=False, observed=True)[request.y].median()
    show_x, show_y = _shown(request.x), _shown(request.y)
    for axis in grid.axes.flat:
        if log_y:
            log_axis(axis, "y", [*heights, *level], show_y, base=_base(request.y))
        else:
            axis.yaxis.set_major_formatter(FuncFormatter(lambda value, _: trim(show_y(value)) if value else "0"))
        if log_x and len(values) <= _MEASURED_TICKS:
            measured_axis(axis, "x", values)
        elif log_x:
            log_axis(axis, "x", values, show_x, base=_base(request.x))
        elif numeric:
            axis.xaxis.set_major_formatter(FuncFormatter(lambda value, _: trim(show_x(value)) if value else "0"))
        else:
            axis.tick_params(axis="x", rotation=45)
            for label in axis.get_xticklabels():
                label.set_ha("right")
    grid.set_axis_labels(_words(request.x, request), _words(request.y, request))


def _shown(name: str) -> Callable[[float], str]:
    if name.endswith(RATIO):
        return text.times
    return partial(text.quantity, unit=REGISTRY[name].unit) if name in REGISTRY else text.plain


def _base(name: str) -> int:
    return 2 if name in REGISTRY and REGISTRY[name].unit == "B" else 10


def _words(name: str, request: Request) -> str:
    """A column's name for an axis."""
    axes: Mapping[str, str] = {str(axis): words for axis, words in AXES.items()}
    if name in request.labels:
        return request.labels[name]
    if name.endswith(RATIO):
        return f"{REGISTRY[name.removesuffix(RATIO)].title}, paired ratio"
    return REGISTRY[name].title if name in REGISTRY else axes.get(name, name.replace("_", " "))
