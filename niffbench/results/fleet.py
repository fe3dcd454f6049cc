"""A fleet: the machines and devices that measured one run, which are like each other, and which of them is not."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from statistics import median

from niffbench.errors import FingerprintsDiffer
from niffbench.fingerprint import differences
from niffbench.results.metrics import REGISTRY, Reason, key_of, round_value
from niffbench.results.reading import Run
from niffbench.results.record import Member, Record, main_regime
from niffbench.stats.fleet import Shift, shifts
from niffbench.units import percent

_LOWER_CLOCK, _HOTTER, _MORE_THROTTLED = 0.99, 5.0, 0.1
"""What is worth saying of a straggler: a share of its fellows' clock, °C and a share of rounds above theirs."""
_WORDS = ("none", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten")


def machines(run: Run) -> tuple[Run, ...]:
    """The run, or where its nodes are unlike one run for each kind of them: these are never pooled.

    Those of one journal are parts of it: rounds are numbered anew in each, nodes are not, and a kind's cases are
    those that it measured. Those that a session met have runs of their own, beside its first.
    """
    if run.beside:
        alone = (replace(run, beside=()), *run.beside)
        return tuple(replace(one, machine=one.manifest.fingerprint.machine) for one in alone)
    nodes = run.manifest.nodes
    kinds: dict[str, list[int]] = {}
    for number, fingerprint in enumerate(nodes):
        kinds.setdefault(fingerprint.hash, []).append(number)
    if len(kinds) < 2 or run.machine:
        return (run,)
    return tuple(_of_kind(run, numbers) for numbers in kinds.values())


def of_one_machine(run: Run) -> Run:
    """The run without those that are beside it.

    Raises:
        FingerprintsDiffer: where its nodes are unlike, so that it is several.
    """
    run = replace(run, beside=())
    if len(kinds := machines(run)) > 1:
        apart = differences(kinds[0].manifest.fingerprint.must, kinds[1].manifest.fingerprint.must)
        facts = ", ".join(f"{key} {one!r} and {two!r}" for key, (one, two) in apart.items())
        raise FingerprintsDiffer(
            f"{run.path}: holds {len(kinds)} machines that are unlike ({facts}), which are never taken together; "
            "`niffbench report` shows them side by side, and parts of like machines can be merged apart"
        )
    return run


def _of_kind(run: Run, numbers: Sequence[int]) -> Run:
    manifest = run.manifest
    first = manifest.nodes[numbers[0]]
    own = [record for record in (*run.records, *run.probes) if record.node in numbers]
    rounds = {number: place for place, number in enumerate(sorted({record.round for record in own}))}
    regular = sum(number < manifest.rounds for number in rounds)
    records = [replace(one, round=rounds[one.round]) for one in own]
    measured = {record.id for record in records}
    suite = manifest.suite.model_copy(update={"cases": [id_ for id_ in manifest.suite.cases if id_ in measured]})
    update = {
        "suite": suite,
        "settings": manifest.settings.model_copy(update={"rounds": max(regular, 1)}),
        "fingerprint": first,
        "ceilings": manifest.ceilings if first.hash == manifest.fingerprint.hash else None,
    }
    listed = ", ".join(map(str, numbers))
    return Run(
        run.path,
        manifest.model_copy(update=update),
        tuple(record for record in records if record.round < regular),
        run.torn,
        tuple(record for record in records if record.round >= regular),
        f"{first.machine}, node{'s' * (len(numbers) > 1)} {listed}",
    )


@dataclass(frozen=True)
class FleetMember:
    """One device of a fleet, over all its records.

    Attributes:
        name: ``node 3``, or ``node 3, device 1`` where the node has several.
        shift: how far it is from the others; None where they measured none of its cases.
        sm_clock: the median in MHz, None where nobody knows; so is ``temperature`` in °C.
        throttled: the share of its measured records with a reason for throttling.
        flagged: how many of them have something wrong with their main series.
        failed: how many records are of no measurement.
    """

    member: Member
    name: str
    cases: int
    records: int
    failed: int
    shift: Shift | None
    sm_clock: float | None
    temperature: float | None
    throttled: float
    flagged: int

    @property
    def is_straggler(self) -> bool:
        """Whether it is slower than the others by more than they differ among themselves."""
        return self.shift is not None and self.shift.is_straggler


@dataclass(frozen=True)
class Fleet:
    """The devices of a run, in the order of their numbers; one of a run that has no several."""

    members: tuple[FleetMember, ...]

    @property
    def several(self) -> bool:
        """Whether there is more than one device."""
        return len(self.members) > 1

    @property
    def stragglers(self) -> tuple[FleetMember, ...]:
        """Those that are slower than the others by more than these differ among themselves."""
        return tuple(one for one in self.members if one.is_straggler)

    def sentences(self) -> tuple[str, ...]:
        """Each straggler in a sentence, without its full stop."""
        return tuple(filter(None, map(self.sentence, self.members)))

    def sentence(self, one: FleetMember) -> str | None:
        """What is said of a straggler, and of no other."""
        shift = one.shift
        if shift is None or not shift.is_straggler:
            return None
        estimate, low, high = (100 * ((end or 1.0) - 1) for end in _ends(shift))
        word = _WORDS[shift.fellows] if shift.fellows < len(_WORDS) else str(shift.fellows)
        where = f" in {shift.slowest_in} of {shift.cases} cases" if shift.slowest_in < shift.cases else ""
        said = f"{one.name} is {estimate:.1f} % [{low:.1f}, {high:.1f}] slower than the other {word}{where}"
        signs = self._signs(one)
        return said + (f", {' and '.join(signs)}" if signs else "")

    def _signs(self, one: FleetMember) -> list[str]:
        """What may be why: clock, temperature, throttling beside those of its fellows."""
        fellows = [other for other in self.members if other is not one and not other.is_straggler]
        signs: list[str] = []
        clock, heat = (_typical(fellows, read) for read in (lambda m: m.sm_clock, lambda m: m.temperature))
        if one.sm_clock is not None and clock is not None and one.sm_clock < _LOWER_CLOCK * clock:
            signs.append(f"at lower clocks ({one.sm_clock:,.0f} against {clock:,.0f} MHz)")
        if one.temperature is not None and heat is not None and one.temperature > heat + _HOTTER:
            signs.append(f"hotter ({one.temperature:.0f} against {heat:.0f} °C)")
        if one.throttled > (_typical(fellows, lambda m: m.throttled) or 0.0) + _MORE_THROTTLED:
            signs.append(f"throttled in {percent(one.throttled)} of its rounds")
        return signs


def _ends(shift: Shift) -> tuple[float | None, float | None, float | None]:
    return shift.ratio.estimate, shift.ratio.low, shift.ratio.high


def _typical(members: Iterable[FleetMember], read: Callable[[FleetMember], float | None]) -> float | None:
    values = [value for one in members if (value := read(one)) is not None]
    return median(values) if values else None


def fleet(run: Run) -> Fleet:
    """The devices of a run of like machines, compared in its main latency."""
    by_member: dict[Member, list[Record]] = {}
    for record in run.records:
        if record.member is not None:
            by_member.setdefault(record.member, []).append(record)
    if len(by_member) < 2:
        return Fleet(())
    regime = main_regime(run.records)
    metric = REGISTRY[key_of("latency", regime)]
    values = [
        (member, record.round, record.id, value)
        for member, records in by_member.items()
        for record in records
        if not isinstance(value := round_value(record, metric), Reason) and value > 0
    ]
    moved = shifts(values)
    names = _names(by_member, run)
    return Fleet(
        tuple(_member(member, names[member], by_member[member], moved.get(member), regime) for member in names)
    )


def _names(members: Iterable[Member], run: Run) -> Mapping[Member, str]:
    """What each is called: a device as ``--devices`` does, else numbered in the order of its node's records."""
    devices: dict[int, list[str]] = {}
    for node, device in members:
        devices.setdefault(node, []).append(device)
    names = {}
    for node, of_node in sorted(devices.items()):
        own = {device: run.manifest.devices.get(device, f"device {place}") for place, device in enumerate(of_node)}
        for device in sorted(of_node, key=lambda device: (len(own[device]), own[device])):
            parts = [f"node {node}"] if run.manifest.nodes else []
            parts += [own[device]] if len(of_node) > 1 or not parts else []
            names[node, device] = ", ".join(parts)
    return names


def _member(member: Member, name: str, records: Sequence[Record], shift: Shift | None, regime: str) -> FleetMember:
    measured = [record for record in records if record.status == "ok"]
    states = [record.machine for record in measured if record.machine]
    clocks, heats = (
        [value for state in states if (value := getattr(state, part)) is not None]
        for part in ("sm_clock", "temperature")
    )
    series = (series for record in measured for key, series in record.latency.items() if key == regime)
    return FleetMember(
        member=member,
        name=name,
        cases=len({record.id for record in records}),
        records=len(records),
        failed=len(records) - len(measured),
        shift=shift,
        sm_clock=median(clocks) if clocks else None,
        temperature=median(heats) if heats else None,
        throttled=sum(bool(state.throttle) for state in states) / max(len(measured), 1),
        flagged=sum(bool(one.flags) for one in series),
    )
