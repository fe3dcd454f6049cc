"""What a reader should know of a run before believing it: the machine, how much was measured, what was odd."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from math import inf

from niffbench.report import text
from niffbench.report.digest import Cell, Digest
from niffbench.results import Disturbance, background_load
from niffbench.session.outcome import measuring_share
from niffbench.stats.power import half_and_most, noise, smallest_effect

Fact = tuple[str, str]


def facts(digest: Digest) -> tuple[Fact, ...]:
    """Pairs of a word and what it is in this run."""
    manifest = digest.run.manifest
    must, should = manifest.fingerprint.must, manifest.fingerprint.should
    pairs: list[Fact] = [
        ("suite", f"{text.clean(manifest.suite.name)}: {text.clean(manifest.suite.description, 200)}"),
        ("device", text.clean(manifest.fingerprint.machine)),
    ]
    if must.get("gpu"):
        pairs.append(("host", text.clean(should.get("cpu") or "")))
    software = [f"{name} {text.clean(must[name], 40)}" for name in ("torch", "cuda", "cudnn") if must.get(name)]
    threads = must.get("threads")
    pairs.append(("software", ", ".join([*software, *([f"{text.clean(threads, 8)} threads"] if threads else [])])))
    pairs.append(("measured", measured(digest)))
    pairs.append(("latency", f"{digest.regime}, median of {text.rounds(digest.round_counts)}"))
    if members := digest.fleet.members:
        nodes = len({one.member[0] for one in members})
        devices = f"{text.plural(len(members), 'device')} of {text.plural(nodes, 'node')}"
        pairs.append(("fleet", f"{devices}; intervals are over these, the rounds of each taken together"))
    if (beside := manifest.disturbance) is not None:
        worst = f"in that of {text.plural(beside.cases, 'case')} that is disturbed most"
        pairs.append(("side by side", f"{_disturbed(beside)} than alone {worst}"))
    if (effects := _could_show(digest)) is not None:
        pairs.append(("could show", text.could_show(*effects)))
    if manifest.wall:
        share = text.percent(measuring_share(digest.run))
        pairs.append(("time", f"{text.duration(manifest.wall)}, {share} of it inside sampling"))
    if manifest.commit:
        dirty = " with uncommitted changes" if manifest.dirty else ""
        pairs.append(("commit", text.clean(manifest.commit, 12).rstrip("…") + dirty))
    if manifest.niffbench_commit:
        dirty = " with uncommitted changes" if manifest.niffbench_dirty else ""
        own = text.clean(manifest.niffbench_commit, 12).rstrip("…")
        pairs.append(("niffbench", f"{text.clean(manifest.niffbench, 20)}, {own}{dirty}"))
    pairs.append(("started", text.clean(manifest.started, 40)))
    pairs.append(("fingerprint", manifest.fingerprint.hash))
    return tuple((word, what) for word, what in pairs if what)


def _latencies(digest: Digest) -> list[Cell]:
    """The main latency of every case that has one."""
    return [cell for row in digest.rows if (cell := row.cells.get(f"latency_{digest.regime}")) is not None]


def _could_show(digest: Digest) -> tuple[float, float] | None:
    """The smallest slowdowns that `check` would find, in half and in nine of ten cases, at this run's noise."""
    medians = [cell.replicates for cell in _latencies(digest)]
    return half_and_most(
        [
            smallest_effect(noise([rounds]).sd, len(rounds), cases=len(medians)) if len(rounds) > 1 else inf
            for rounds in medians
        ]
    )


def _disturbed(beside: Disturbance) -> str:
    ends = "" if None in (beside.low, beside.high) else f" [{_percent(beside.low)}, {_percent(beside.high)}]"
    others = text.plural(beside.devices - 1, "other device")
    return f"beside {others} one is {_percent(beside.ratio)} %{ends} slower"


def _percent(ratio: float | None) -> str:
    return f"{100 * ((ratio or 1.0) - 1):.1f}"


def measured(digest: Digest) -> str:
    """How many cases were measured, and what became of the others."""
    rows = digest.rows
    whole = sum(row.status == "ok" for row in rows)
    partly = sum(row.ok and row.status != "ok" for row in rows)
    lost = Counter(status for row in rows if not row.ok for status in row.statuses)
    parts = [f"{whole} of {text.plural(len(rows), 'case')} in every round"]
    parts += [f"{partly} in some"] if partly else []
    parts += [f"{number} {status}" for status, number in sorted(lost.items())]
    return ", ".join(parts)


def choices(digest: Digest) -> Iterator[tuple[str, str]]:
    """Each row that chooses how to execute, by its label, and a sentence on what it chose and how often.

    Of all its problems, those where it failed and chose nothing too.
    """
    chosen_by: dict[str, Counter[str]] = {}
    for row in digest.rows:
        if row.choices:
            chosen_by.setdefault(row.label, Counter())[next(iter(row.choices))] += 1
    asked = Counter(row.label for row in digest.rows)
    for label, chosen in chosen_by.items():
        places = [f"{what} at {text.of_problems(number, asked[label])}" for what, number in chosen.most_common()]
        yield label, f"{label} chose {'; '.join(places)}."


def notices(digest: Digest) -> tuple[str, ...]:
    """What casts doubt on the run, or limits what it can say."""
    run = digest.run
    notes: list[str] = []
    if not any(row.ok for row in digest.rows):
        notes.append("Nothing was measured.")
    if digest.missing:
        notes.append(
            f"The run is not finished: {digest.missing:,} of "
            f"{text.plural(len(run.manifest.suite.cases) * digest.rounds, 'record')} missing."
        )
    if run.torn:
        notes.append(f"The journal's last line is torn ({text.plural(run.torn, 'byte')}); it was left out.")
    if digest.rounds == 1:
        notes.append(
            "One round: what another process would give is unknown, so latencies have no intervals and "
            "nothing is claimed of them."
        )
    if digest.rows and not any(group.baseline is not None for group in digest.groups):
        notes.append(f"The baseline {digest.baseline} is not among the cases, so there are no ratios.")
    if (beside := background_load(run.records)) is not None:
        notes.append(
            f"{text.capital(str(beside))}: repeat the run on a quiet machine, or compare versions with ab."
        )
    disturbance = run.manifest.disturbance
    if disturbance is not None and disturbance.in_turn:
        how = "which was put up with" if run.manifest.settings.at_once else "so they were measured on in turn"
        notes.append(f"Devices disturb each other: {_disturbed(disturbance)} than alone, {how}.")
    notes += [f"{text.capital(sentence)}." for sentence in digest.fleet.sentences()]
    if lone := sum(len(set(cell.members.values())) == 1 for cell in _latencies(digest) if digest.fleet.members):
        notes.append(
            f"{text.plural(lone, 'case')} of {len(digest.rows)} measured on one device alone: what another would "
            "give is unknown, and an interval is over its rounds."
        )
    itself = dict.fromkeys(row.label for row in digest.rows if row.traits.reference == "itself")
    if itself:
        notes.append(
            f"{text.listing(list(itself), 6)}: compared with themselves in float64, which finds rounding and no "
            "wrong formula."
        )
    shaped = {row.label: row.attributes["output"] for row in digest.rows if row.attributes["output"]}
    if shaped:
        shown = [f"{label} ({shape})" for label, shape in shaped.items()]
        notes.append(f"The output has another shape than the image's: {text.listing(shown, 6)}.")
    if contradicted := list(dict.fromkeys(r.label for r in digest.rows if r.cost and r.cost.is_contradicted)):
        notes.append(
            f"The closed form of {text.listing(contradicted, 4)} is contradicted by both FLOP counters: "
            "ranked by what was counted; the closed form should be mended (see the three witnesses)."
        )
    flagged = [row for row in digest.rows if row.flags]
    if flagged:
        kinds = Counter(flag for row in flagged for flag in row.flags)
        flags = [
            f"{flag} ({number})" for flag, number in sorted(kinds.items(), key=lambda item: (-item[1], item[0]))
        ]
        notes.append(
            f"Series of {len(flagged)} of {text.plural(len(digest.rows), 'case')} are flagged in at least one "
            f"round: {text.listing(flags, 6)}."
        )
    return tuple(notes)


def notes(digest: Digest) -> tuple[str, ...]:
    """What the run itself wrote down."""
    return tuple(text.capital(text.clean(note, 300)) for note in digest.run.manifest.notes)
