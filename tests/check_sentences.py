"""Check every sentence of a report against the records of its run, by arithmetic of its own.

``python tests/check_sentences.py RUN`` reads ``RUN/records.jsonl`` (or ``.gz``) and ``RUN/report.md``, prints what
is not so, and ends with 1 if anything is; a sentence that it does not understand is a fault too, and so is a ratio
in a table of ``RUN/report.html`` that is not the quotient of the values printed beside it. It shares no code with
niffbench on purpose.
"""

from __future__ import annotations

import gzip
import json
import re
import sys
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from html import unescape
from math import exp, log, sqrt
from pathlib import Path
from statistics import fmean, median, stdev
from typing import Any

from scipy.stats import t

AXES = {"kernel size": "kernel", "channel count": "channels", "resolution": "size", "batch size": "batch"}
NAME = r"[A-Za-z][\w./=-]*(?: [\w]+=[\w.-]+)*"
QUANTITY = r"(?:steady|cold|graph|wall) latency|total memory|FLOPs"
ROUNDING = 0.006
"""Of what is said with three digits."""

UNITS = {
    **{f"{prefix}s": 10.0**power for prefix, power in (("n", -9), ("µ", -6), ("m", -3), ("", 0))},
    **{f"{prefix}FLOP": 10.0**power for prefix, power in (("", 0), ("k", 3), ("M", 6), ("G", 9), ("T", 12))},
    **{f"{prefix}B": 2.0**power for prefix, power in (("", 0), ("Ki", 10), ("Mi", 20), ("Gi", 30))},
    "min": 60.0,
    "×": 1.0,
}

Problem = tuple[Any, ...]
Values = dict[int, float]


class Records:
    """What was measured: of each problem and label the values of a quantity by round."""

    def __init__(self, lines: Sequence[Mapping[str, Any]], rounds: int) -> None:
        self.measured: dict[Problem, dict[str, dict[str, Values]]] = {}
        self.chosen: dict[str, dict[Problem, Counter[str]]] = {}
        self.stock: list[float] = []
        self.probed: dict[Problem, dict[str, dict[str, Values]]] = {}
        self.asked: dict[Problem, set[str]] = {}  # who was to be measured there, whatever came of it
        for line in lines:
            label, number = line["traits"]["label"], line["round"]
            problem = self.problem(line["case"])
            if number < rounds:
                self.asked.setdefault(problem, set()).add(label)
            if line["status"] != "ok":
                continue
            into = [self.measured, self.probed] if number < rounds else [self.probed]
            for quantity, value in self.values(line):
                for place in into:
                    place.setdefault(problem, {}).setdefault(label, {}).setdefault(quantity, {})[number] = value
            if line["chosen"] and number < rounds:
                every = self.chosen.setdefault(label, {}).setdefault(problem, Counter())
                layers = Counter(line["chosen"]).most_common()
                every[
                    ", ".join(f"{engine} {n}" for engine, n in layers) if len(line["chosen"]) > 1 else layers[0][0]
                ] += 1
            cost = line["cost"]
            if cost and line["traits"]["family"] == "niff" and cost.get("stock_torch") is not None:
                shares = [cost["stock_torch"] / cost["closed"]]
                if cost.get("stock_fvcore") is not None:
                    shares.append(cost["stock_fvcore"] / cost["closed_forward"])
                self.stock.append(max(shares))

    @staticmethod
    def problem(case: Mapping[str, Any]) -> Problem:
        """Batch, channels, height, width, mode, and what else is not the default."""
        problem = case["problem"]
        rest = [problem["dtype"], problem["memory_format"], case.get("execution") or "eager"]
        unusual = tuple(word for word in rest if word not in ("float32", "contiguous", "eager"))
        sides = problem["channels"], problem["height"], problem["width"]
        return problem["batch"], *sides, problem["mode"], unusual

    @staticmethod
    def values(line: Mapping[str, Any]) -> Iterator[tuple[str, float]]:
        for regime, series in line["latency"].items():
            if series["samples"] and regime != "first" and "throttled" not in series["flags"]:
                yield f"{regime} latency", median(series["samples"])
        if line["memory"]:
            yield "total memory", line["memory"]["resident"] + line["memory"]["peak"]
        if line["cost"]:
            yield "FLOPs", line["cost"]["closed"]

    def of(self, problem: Problem, label: str, quantity: str, *, probes: bool = False) -> Values | None:
        place = self.probed if probes else self.measured
        return place.get(problem, {}).get(label, {}).get(quantity)


def estimate(values: Values, quantity: str) -> float:
    """The median of rounds; of what is counted the most frequent."""
    if "latency" in quantity:
        return median(values.values())
    return Counter(values.values()).most_common(1)[0][0]


def is_sure(one: Values, two: Values, quantity: str, *, level: float = 0.025) -> bool:
    """Whether rounds tell that the two differ: a paired t test on logs; counts need none."""
    if "latency" not in quantity:
        return min(one.values()) > max(two.values()) or max(one.values()) < min(two.values())
    logs = [log(two[number] / one[number]) for number in one.keys() & two.keys()]
    if len(logs) > 1:
        middle, error, freedom = fmean(logs), stdev(logs) / sqrt(len(logs)), len(logs) - 1
    elif min(len(one), len(two)) > 1:  # rounds that neither shares
        sides = [list(map(log, side.values())) for side in (one, two)]
        middle, freedom = fmean(sides[1]) - fmean(sides[0]), min(map(len, sides)) - 1
        error = sqrt(sum(stdev(side) ** 2 / len(side) for side in sides))
    else:
        return False
    low, high = (middle + sign * t.ppf(1 - level, freedom) * error for sign in (-1, 1))
    ratio = log(estimate(two, quantity) / estimate(one, quantity))
    return min(low, ratio) > 0 or max(high, ratio) < 0


def close(said: str | float, value: float, allowed: float = ROUNDING) -> bool:
    return abs(log(float(said) / value)) <= allowed


class Checker:
    """Judges sentences one by one; each kind by a method of its own."""

    def __init__(self, records: Records) -> None:
        self.records = records
        self.kinds = [
            (
                re.compile(rf"(?i:{NAME}) has (?:less|fewer) .+ up to .+ (?:on|at).*\((?:B\d|\d+ channels).*\)"),
                self.crossover,
            ),
            (
                re.compile(rf"In ([\w, ]+), (?:{NAME}) takes .*× \(.*geometric mean over (\d+) problems"),
                self.means,
            ),
            (re.compile(rf"In ([\w, ]+), (?:{NAME}) takes .*problems?"), self.ranges),
            (
                re.compile(
                    rf"In ([\w, ]+), ({NAME}) has less ({QUANTITY}) than ({NAME}) at every kernel size measured "
                    r"\(([\w, ]+)\), at (?:(\d+) of (\d+)|all (\d+)|(both|the one)) problems?"
                    r"(?:, undecided at (\d+), not compared at (\d+)"
                    r"|, (undecided|not compared) at the other(?: (\d+))?)?"
                ),
                self.throughout,
            ),
            (
                re.compile(
                    r"In ([\w, ]+), networks as published take .* of the same in ([\w-]+) "
                    r"\(geometric mean over (\d+) networks? at (\d+) problems?"
                ),
                self.networks,
            ),
            (re.compile(r"In ([\w, ]+), the (fastest|leanest) of all operators is (.*)\."), self.winners),
            (re.compile(rf"({NAME}) chose (.*)\."), self.choices),
            (re.compile(r"Stock FLOP counters see ([\d.]+) %(?: to ([\d.]+) %)? of the FLOPs"), self.stock),
        ]

    def faults(self, sentence: str) -> list[str]:
        for pattern, check in self.kinds:
            if match := pattern.match(sentence):
                return list(check(sentence, match))
        return ["nobody knows how to check it"]

    def problems(self, setting: str) -> list[Problem]:
        mode, *unusual = setting.replace("forward passes", "forward").split(", ")
        return [p for p in self.records.asked if p[4] == mode and p[5] == tuple(unusual)]

    def crossover(self, sentence: str, _: re.Match[str]) -> Iterator[str]:
        said = re.search(r"\((B\d*, |\d+ channels|\d+²)?[^()]*?(inference|training|forward)[^()]*\)", sentence)
        if said is None:
            yield "its slice is not understood"
            return
        fixed = said[0].strip("()").partition(";")[0].split(", ")
        start = re.match(
            rf"({NAME}) has (?:less|fewer) ({QUANTITY}) up to ({'|'.join(AXES)}) (\d+)", sentence, re.IGNORECASE
        )
        rest = re.findall(rf", ({NAME}) (?:from (\d+) (?:to (\d+)|on)|at (\d+))", sentence)
        if start is None or not rest:
            yield "no crossover is understood in it"
            return
        below, quantity, word, low = start.groups()
        above, high = rest[0][0], rest[0][1] or rest[0][3]
        axis = AXES[word]
        stretches = [(below, 0, int(low))]
        stretches += [(name, int(one or at), int(to or at or 10**9)) for name, one, to, at in rest]
        listed = re.search(r"\(undecided at ([\d, and]+)( others)?", sentence)
        undecided = set(map(int, re.findall(r"\d+", listed[1]))) if listed else set()
        if listed and listed[2]:  # too many to be named: which is not said
            undecided = set(self.places(axis, fixed, below, above))
        places = self.places(axis, fixed, below, above)
        if quantity != "FLOPs":  # closed forms know every value
            ends = {end for _, *both in stretches for end in both if 0 < end < 10**9}
            yield from (f"at {axis} {end} the two were not both measured" for end in ends - set(places))
        for value in self.telling(axis, fixed, below, above, quantity):
            if value in undecided:
                continue
            better = [name for name, one, to in stretches if one <= value <= to]
            if len(better) != 1:
                yield f"nothing is said of {axis} {value}"
            else:
                worse = above if better[0].lower() == below.lower() else below
                yield from self.order(axis, value, fixed, better[0], worse, quantity)
        gap = "nothing measured in between" in sentence and (low, high)
        gaps = [gap] if gap else re.findall(r"nothing measured between (\d+) and (\d+)", sentence)
        for one, to in gaps:
            if between := [value for value in places if int(one) < value < int(to)]:
                yield f"both were measured at {between}"
        tail = sentence[said.end() :]
        ends = r"(?:them|(\d+) and (\d+)), where its FLOPs (?:grow|fall to) ([\d.]+)×"
        jumps = rf"({NAME}) jumps ([\d.]+)× between {ends}"
        for name, jump, one, to, growth in re.findall(jumps, sentence):
            for factor, what in ((jump, quantity), (growth, "FLOPs")):
                both = [self.at(axis, int(end), fixed, name, what) for end in (one or low, to or high)]
                if None in both:
                    yield f"{name} was not measured at both ends"
                elif not close(factor, median(both[1].values()) / median(both[0].values()), 0.25):  # type: ignore[union-attr]
                    yield f"{name} does not jump {factor}× in {what}"
        for mode, name in re.findall(rf"(inference|training|forward): ({NAME}) throughout", tail):
            other = below if name.lower() != below.lower() else above
            there = [mode if part in ("inference", "training", "forward") else part for part in fixed]
            for value in self.telling(axis, there, name, other, quantity):
                yield from self.order(axis, value, there, name, other, quantity)

    def throughout(self, sentence: str, match: re.Match[str]) -> Iterator[str]:
        setting, less, quantity, more, listed, some, of, every, word, _, apart, why, others = match.groups()
        total = int(of or every or {"both": 2, "the one": 1}[word])
        said = int(some or total)
        apart = int(apart or (others or 1 if why == "not compared" else 0))
        kernels: list[set[int]] = []
        comparable = 0
        for problem in self.problems(setting):
            batch, channels, height, width, mode, unusual = problem
            side = f"{height}²" if height == width else f"{height}×{width}"
            fixed = [f"B{batch}", f"{channels} channels", side, mode, *unusual]
            places = self.telling("kernel", fixed, less, more, quantity)
            if len(places) > 1:
                comparable += 1
                if not any(
                    fault for at in places for fault in self.order("kernel", at, fixed, less, more, quantity)
                ):
                    kernels.append(set(places))
        # Here each kernel is tested by itself, in the report all of a problem together, so that fewer are decided.
        problems = len(self.problems(setting))
        if problems != total or comparable != total - apart or len(kernels) < said:
            yield f"{quantity}: {len(kernels)} of {comparable} compared, of {problems} problems"
        *numbers, high = map(int, re.findall(r"\d+", listed))
        if "at a problem" in listed:
            fits = {numbers.pop(), high} <= set().union(*kernels) and set(numbers) <= set(map(len, kernels))
        elif "others" in listed:
            fits = sum(sizes > set(numbers) and len(sizes) == len(numbers) + high for sizes in kernels) >= said
        else:
            fits = sum(sizes == {*numbers, high} for sizes in kernels) >= said
        if not fits:
            yield f"{quantity}: at the kernels {kernels}"

    def telling(self, axis: str, fixed: Sequence[str], one: str, other: str, quantity: str) -> list[int]:
        """The values at which both have what tells of a quantity: of a latency one round tells nothing."""
        least = 2 if "latency" in quantity else 1
        return [
            value
            for value in self.places(axis, fixed, one, other)
            if all(len(self.at(axis, value, fixed, name, quantity) or {}) >= least for name in (one, other))
        ]

    def slice(self, axis: str, value: int, fixed: Sequence[str]) -> list[Problem]:
        """The problems of a slice at a value."""
        result = []
        for problem in self.records.probed:
            batch, channels, height, width, mode, unusual = problem
            facts = {
                f"B{batch}",
                f"{channels} channels",
                f"{height}²" if height == width else f"{height}×{width}",
                mode,
                *unusual,
            }
            facts -= {"batch": {f"B{batch}"}, "channels": {f"{channels} channels"}, "size": {f"{height}²"}}.get(
                axis, set()
            )
            own = {"batch": batch, "channels": channels, "size": height, "kernel": value}[axis]
            if own == value and facts == set(fixed):
                result.append(problem)
        return result

    def at(self, axis: str, value: int, fixed: Sequence[str], name: str, quantity: str) -> Values | None:
        for problem in self.slice(axis, value, fixed):
            for label in self.records.probed[problem]:
                if label.lower() in {name.lower(), f"{name}-k{value}".lower() if axis == "kernel" else ""}:
                    return self.records.of(problem, label, quantity, probes=True)
        return None

    def places(self, axis: str, fixed: Sequence[str], one: str, two: str) -> list[int]:
        values = {"batch": 0, "channels": 1, "size": 2}
        if axis == "kernel":
            every = {
                int(m[1])
                for ls in self.records.probed.values()
                for label in ls
                if (m := re.search(r"-k(\d+)$", label))
            }
        else:
            every = {problem[values[axis]] for problem in self.records.probed}
        return sorted(v for v in every if all(self.at(axis, v, fixed, name, "FLOPs") for name in (one, two)))

    def order(
        self, axis: str, value: int, fixed: Sequence[str], better: str, worse: str, quantity: str
    ) -> Iterator[str]:
        less, more = (self.at(axis, value, fixed, name, quantity) for name in (better, worse))
        if less is None or more is None:
            yield f"{better} and {worse} were not both measured at {axis} {value}"
        elif fmean(map(log, less.values())) >= fmean(map(log, more.values())):
            yield f"at {axis} {value} {better} has not less {quantity} than {worse}"
        elif not is_sure(less, more, quantity, level=0.05):
            yield f"at {axis} {value} the two cannot be told apart in {quantity}"

    def ratios(self, setting: str, form: str, base: str, quantity: str) -> list[tuple[float, bool]]:
        """At each problem that both were measured at: the ratio, and whether it is certain and worth a word."""
        result = []
        for problem in self.problems(setting):
            one, two = (self.records.of(problem, label, quantity) for label in (base, form))
            if one and two:
                ratio = estimate(two, quantity) / estimate(one, quantity)
                result.append((ratio, is_sure(one, two, quantity) and abs(log(ratio)) >= 0.005))
        return result

    def ranges(self, sentence: str, match: re.Match[str]) -> Iterator[str]:
        form = re.match(rf"In [\w, ]+?, ({NAME}) takes ", sentence)
        base = re.search(rf"(?:{QUANTITY}) of ({NAME})", sentence)
        pattern = (
            rf"([\d.]+)×(?: to ([\d.]+)×)?(?: (?:the|its) ({QUANTITY})(?: of {NAME})?)? at "
            r"(?:(\d+) of (\d+) problems|all (\d+) problems|(both|the one) problems?)"
        )
        assert form is not None
        if base is None:
            yield "what it is compared with is not understood"
            return
        quantity = ""
        for least, most, what, some, of, every, word in re.findall(pattern, sentence):
            quantity = what or quantity
            ratios = self.ratios(match[1], form[1], base[1], quantity)
            sure = [ratio for ratio, certain in ratios if certain and (ratio < 1) == (float(least) < 1)]
            total = int(of or every or {"both": 2, "the one": 1}[word])
            problems = len(self.problems(match[1]))
            if (len(sure), problems) != (int(some or total), total):
                yield f"{quantity}: {len(sure)} of {problems} problems, not {some or total} of {total}"
            elif not (close(least, min(sure)) and close(most or least, max(sure))):
                yield f"{quantity}: {min(sure):.3g}× to {max(sure):.3g}×"

    def means(self, sentence: str, match: re.Match[str]) -> Iterator[str]:
        form = re.match(rf"In [\w, ]+?, ({NAME}) takes ", sentence)
        base = re.search(rf"(?:{QUANTITY}) of ({NAME})", sentence)
        assert form is not None
        if base is None:
            yield "what it is compared with is not understood"
            return
        spread = r"\(([\d.]+)× to ([\d.]+)×(?:, at (\d+) of them)?\)"
        pattern = rf"([\d.]+)×(?: \[([\d.]+), ([\d.]+)\])? {spread} the ({QUANTITY})"
        for mean, low, high, least, most, some, quantity in re.findall(pattern, sentence):
            ratios = [ratio for ratio, _ in self.ratios(match[1], form[1], base[1], quantity)]
            true = exp(fmean(map(log, ratios)))
            if len(ratios) != int(some or match[2]):
                yield f"{quantity}: {len(ratios)} problems"
            if not (close(mean, true) and close(least, min(ratios)) and close(most, max(ratios))):
                yield f"{quantity}: {true:.3g}× ({min(ratios):.3g}× to {max(ratios):.3g}×)"
            if low and not float(low) <= float(mean) <= float(high):
                yield f"{quantity}: its interval does not hold it"

    def networks(self, sentence: str, match: re.Match[str]) -> Iterator[str]:
        pattern = rf"([\d.]+)×(?: \[([\d.]+), ([\d.]+)\])? \(([\d.]+)× to ([\d.]+)×\) the ({QUANTITY})"
        for mean, low, high, least, most, quantity in re.findall(pattern, sentence):
            ratios, names, problems = [], set(), set()
            for problem in self.problems(match[1]):
                for label in self.records.measured.get(problem, {}):
                    name, _, execution = label.partition(" execution=")
                    two = self.records.of(problem, f"{name} execution={match[2]}", quantity)
                    one = self.records.of(problem, label, quantity)
                    if execution == "published" and one and two:
                        ratios.append(estimate(one, quantity) / estimate(two, quantity))
                        names.add(name)
                        problems.add(problem)
            if (len(names), len(problems)) != (int(match[3]), int(match[4])):
                yield f"{quantity}: {len(names)} networks at {len(problems)} problems"
            true = exp(fmean(map(log, ratios)))
            if not (close(mean, true) and close(least, min(ratios)) and close(most, max(ratios))):
                yield f"{quantity}: {true:.3g}× ({min(ratios):.3g}× to {max(ratios):.3g}×)"
            if low and not float(low) <= float(mean) <= float(high):
                yield f"{quantity}: its interval does not hold it"

    def winners(self, sentence: str, match: re.Match[str]) -> Iterator[str]:
        quantity = "total memory" if match[2] == "leanest" else self.main
        wins: Counter[str] = Counter()
        problems = self.problems(match[1])
        for problem in problems:
            having = self.having(problem, quantity)
            if len(having) < 2:
                continue
            best = min(having, key=lambda label: estimate(having[label], quantity))
            if all(is_sure(having[best], values, quantity) for label, values in having.items() if label != best):
                wins[best] += 1
        said = dict(re.findall(rf"({NAME}) at (\d+ of|all|both|the one)", match[3]))
        for name, number in said.items():
            number = number.removesuffix(" of")
            expected = int(number) if number.isdecimal() else len(problems)
            if wins[name] != expected:
                yield f"{name} wins at {wins[name]} of {len(problems)}"
        if set(said) != set(wins):
            yield f"winners are {dict(wins)}"

    @property
    def main(self) -> str:
        every = {
            quantity for labels in self.records.measured.values() for one in labels.values() for quantity in one
        }
        return next(f"{regime} latency" for regime in ("steady", "cold") if f"{regime} latency" in every)

    def having(self, problem: Problem, quantity: str) -> dict[str, Values]:
        there = self.records.measured.get(problem, {})
        return {label: one[quantity] for label, one in there.items() if quantity in one}

    def choices(self, sentence: str, match: re.Match[str]) -> Iterator[str]:
        usual = Counter(words.most_common(1)[0][0] for words in self.records.chosen.get(match[1], {}).values())
        total = sum(match[1] in labels for labels in self.records.asked.values())
        for what, some, of, every in re.findall(
            r"([\w+-]+(?: \d+(?:, [\w+-]+ \d+)*)?) at (?:(\d+) of (\d+)|all (\d+)|both|the one) problem", match[2]
        ):
            if usual[what] != int(some or every or total) or total != int(of or every or total):
                yield f"{what} was chosen at {usual[what]} of {total}"

    def stock(self, sentence: str, match: re.Match[str]) -> Iterator[str]:
        shares = self.records.stock
        for said, value in ((match[1], min(shares)), (match[2] or match[1], max(shares))):
            if abs(float(said) / 100 - value) > 0.006:
                yield f"{value:.1%} is seen"


def read(folder: Path) -> Records:
    plain = folder / "records.jsonl"
    text = (
        plain.read_text()
        if plain.exists()
        else gzip.decompress((folder / "records.jsonl.gz").read_bytes()).decode()
    )
    rounds = json.loads((folder / "run.json").read_text())["rounds"]
    return Records([json.loads(line) for line in text.splitlines()], rounds)


def sentences(markdown: str) -> list[str]:
    """Those under the heading of the findings, with nothing escaped."""
    part = markdown.partition("### Findings\n")[2]
    lines = re.split(r"\n(?=<details>|#|\|)", part)[0].splitlines()
    return [re.sub(r"\\(.)", r"\1", line[2:]).replace("&#64;", "@") for line in lines if line.startswith("- ")]


def quotients(page: str) -> dict[str, bool]:
    """Each ratio in a column × of a page's tables, and whether it may be the quotient of printed values.

    The value is in the column before, that which it is divided by in the row of the problem's baseline. Both, and
    the ratio, may be anything that is rounded to what is printed.
    """
    result = {}
    for table in re.findall(r"<table.*?</table>", page, re.DOTALL):
        header, *rows = [
            [unescape(re.sub(r"<[^>]*>", "", cell)) for cell in re.findall(r"<t[hd]\b[^>]*>(.*?)</t[hd]>", row)]
            for row in re.findall(r"<tr.*?</tr>", table, re.DOTALL)
        ]
        base = {row[0]: row for row in rows if " baseline" in row[1]}
        for column in (number for number, name in enumerate(header) if name == "×"):
            for row in (row for row in rows if row[0] in base):
                said, value, unit = map(rounded, (row[column], row[column - 1], base[row[0]][column - 1]))
                if said and value and unit:
                    what = f"{row[0]}, {row[1]}: {header[column - 1]} × {row[column]}"
                    result[what] = said[0] <= value[1] / unit[0] and said[1] >= value[0] / unit[1]
    return result


def rounded(printed: str) -> tuple[float, float] | None:
    """The least and the most that is printed so; None of what is no number."""
    parts = re.match(r"[^\d]*?(\d[\d,]*)(?:\.(\d+))?\s?([^\W\d]+|×)", printed)
    if parts is None or parts[3] not in UNITS:
        return None
    whole, places = parts[1].replace(",", ""), len(parts[2] or "")
    half = 0.5 * 10.0**-places if places or len(whole) < 4 else 0.5 * 10.0 ** (len(whole) - 3)
    number = float(f"{whole}.{parts[2] or 0}")
    return (number - half) * UNITS[parts[3]], (number + half) * UNITS[parts[3]]


def faults(records: Records, said: Sequence[str]) -> dict[str, list[str]]:
    """What is not so, by sentence."""
    checker = Checker(records)
    return {sentence: wrong for sentence in said if (wrong := checker.faults(sentence))}


def main(folder: Path) -> int:
    said = sentences((folder / "report.md").read_text())
    wrong = faults(read(folder), said)
    for sentence, reasons in wrong.items():
        print(f"{sentence}\n  " + "\n  ".join(reasons))
    ratios = quotients((folder / "report.html").read_text())
    others = [ratio for ratio, fits in ratios.items() if not fits]
    for ratio in others:
        print(f"{ratio} is not the quotient of what is printed")
    print(f"{len(said) - len(wrong)} of {len(said)} sentences are so")
    print(f"{len(ratios) - len(others)} of {len(ratios)} ratios are quotients of what is printed")
    return 1 if wrong or others else 0


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1])))
