"""The explorer at the top of a page: choose a problem and a metric, see operators ranked and where they change
places. What it shows is worked out here, and the page's script only picks from it.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from niffbench.report import text
from niffbench.report.digest import Digest, Group, Row
from niffbench.report.findings import crossover_sentence, left_open
from niffbench.report.plots.palette import family_colours
from niffbench.report.table import SIGNS
from niffbench.report.tables import ends
from niffbench.report.trends import Rivalry
from niffbench.results import Metric
from niffbench.suite.pairs import fixed


def explorer(digest: Digest, groups: Sequence[Group], rivalries: Iterable[Rivalry]) -> dict[str, Any]:
    """What the explorer of ``groups`` picks from, fit for JSON.

    Returns:
        Under ``axes`` what to choose by, a key, a title and its values; under ``metrics`` key and title; under
        ``problems`` of each its place on every axis, its rows with what is shown of each metric, and sentences on
        crossovers by metric.
    """
    colours = family_colours(digest.families)
    metrics = [metric for metric in digest.shown("cases") if any(metric.key in row.cells for row in digest.rows)]
    places = [_place(group) for group in groups]
    axes = [(key, list(dict.fromkeys(place[key] for place in places))) for key in (places[0] if places else ())]
    every = list(rivalries)
    return {
        "axes": [{"key": key, "values": values} for key, values in axes],
        "metrics": [{"key": m.key, "title": m.title, "higher": m.better == "higher"} for m in metrics],
        "baseline": digest.baseline,
        "problems": [
            {
                "place": place,
                "label": group.label,
                "rows": [_row(row, group, metrics, colours) for row in group.rows],
                "crossovers": _crossovers(group, every),
            }
            for place, group in zip(places, groups, strict=True)
        ],
    }


def _place(group: Group) -> dict[str, str]:
    problem = group.problem
    height, width = problem.height, problem.width
    channels, out = problem.channels, problem.channels_out
    setting = [word for word in group.setting[1:] if word not in ("contiguous", "eager")]
    return {
        "batch": str(problem.batch),
        "mode": problem.mode,
        "resolution": f"{height}×{width}",
        "channels": str(channels) if channels == out else f"{channels}→{out}",
        "setting": ", ".join(setting),
    }


def _row(row: Row, group: Group, metrics: Iterable[Metric], colours: Mapping[str, str]) -> dict[str, Any]:
    values = {}
    for metric in metrics:
        if (cell := row.cells.get(metric.key)) is None or not row.ok:
            continue
        interval, winner = cell.value, group.winners.get(metric.key)
        mark = winner.mark(row) if winner else None
        unlike = "" if row.like_baseline else SIGNS["unlike"]
        band = interval if interval.is_determined and ends(interval, metric) else None
        values[metric.key] = {
            "value": cell.estimate,
            "low": band.low if band else None,
            "high": band.high if band else None,
            "shown": text.quantity(cell.estimate, metric.unit),
            "ends": ends(interval, metric),
            "ratio": unlike + text.ratio(cell.ratio) if cell.ratio else "",
            "sign": {"winner": "★", "tied": "≈"}.get(mark or "", ""),
        }
    return {
        "operator": row.label,
        "colour": colours.get(row.kin, ""),
        "chosen": row.chosen,
        "status": "" if row.ok else f"{row.status}: {next(iter(row.reasons.values()), '')}",
        "values": values,
    }


def _crossovers(group: Group, rivalries: Iterable[Rivalry]) -> dict[str, list[str]]:
    """Sentences on the slices that the problem is in, by metric: their crossovers, or why there is none."""
    within: dict[str, list[Rivalry]] = {}
    for rivalry in rivalries:
        if fixed(group.rows[0].case, rivalry.axis) == fixed(rivalry.compared.pair.form, rivalry.axis):
            within.setdefault(rivalry.metric.key, []).append(rivalry)
    return {
        key: [crossover_sentence(rivalry) for rivalry in some if rivalry.crossovers] or [_without(some)]
        for key, some in within.items()
    }


def _without(rivalries: Sequence[Rivalry]) -> str:
    every = [rivalry.compared.comparison for rivalry in rivalries]
    if undecided := [comparison for comparison in every if comparison.better is None]:
        some = f"{len(undecided):,} of {text.plural(len(every), 'pair')}"
        return f"No crossover is certain in this metric: {some} {left_open(undecided)}."
    return "No two change places in this metric along what varies here."
