"""A history as a site: its alerts and steps are those that were planted, and its links lead somewhere."""

from __future__ import annotations

import gzip
import os
import re
import shutil
from dataclasses import replace
from pathlib import Path
from urllib.parse import unquote

import pytest
from cli_in_process import Call, call
from synthetic import FEW, World, make

from niffbench.gate import history
from niffbench.results import RECORDS

__all__ = ["call"]

SMALL = World(rounds=2, sizes=(14,), samples=3, faults=(), operators=FEW)
RUNS, STEP = 16, 9


def fill(place: Path, runs: range, name: str = "synthetic", machine: float = 1.0) -> None:
    """Runs of a suite in which ``global-filter`` takes 15 % longer from run STEP on, and all ``machine`` times."""
    for day in runs:
        slower = {planted.operator: machine for planted in SMALL.operators if day >= STEP}
        slower["global-filter"] = 1.15 * machine if day >= STEP else 1.0
        run = make(replace(SMALL, name=name, seed=day, slower=slower), place / "made")
        update = {"started": f"2026-03-{day:02}T10:00:00Z", "commit": f"{day:040x}"}
        history.keep(place / "kept", replace(run, manifest=run.manifest.model_copy(update=update)))


def links(page: Path) -> list[tuple[Path, str]]:
    """Where a page's links lead: the file, and the place in it."""
    hrefs = re.findall(r'href="([^"#]*)#?([^"]*)"', page.read_text(encoding="utf-8"))
    return [(page.parent / unquote(href), place) for href, place in hrefs if href and not href.startswith("data:")]


def test_planted_steps_are_alerts_and_every_link_leads_somewhere(call: Call, tmp_path: Path) -> None:
    fill(tmp_path, range(1, RUNS + 1))
    fill(tmp_path, range(1, 3), '<img src=x onerror="alert(1)">')
    done = call("publish", "kept", "--out", "site")
    assert done.returncode == 0, done.stderr
    overview = (tmp_path / "site" / "index.html").read_text()
    assert "2 open alerts" in overview  # latencies cold and steady
    assert re.search(r"global-filter[^<]*</a>: [^<]*latency[^<]* \+1[0-9]\.\d % beyond", overview)
    assert "<img" not in overview
    pages = [page for page in (tmp_path / "site").rglob("*.html") if page.name != "report.html"]
    cases = len(make(SMALL, tmp_path / "made").manifest.suite.cases)
    assert len(pages) == 1 + 2 * (1 + cases + 1)  # of what all share
    for page in pages:
        assert links(page)
        for target, anchor in links(page):
            assert target.exists(), (page, target)
            assert not anchor or f'id="{anchor}"' in target.read_text()
    (alerted,) = {target for target, anchor in links(tmp_path / "site" / "index.html") if anchor}
    assert f"from {STEP:040x}"[:15] in alerted.read_text()
    assert all(name in alerted.read_text() for name in ('id="latency_steady"', 'id="memory_total"', 'id="flops"'))


@pytest.mark.usefixtures("undrawn")
def test_each_run_is_read_once(call: Call, tmp_path: Path) -> None:
    """What an index remembers of a run is not looked for in it again; a damaged index is made anew."""
    fill(tmp_path, range(1, 13))
    assert call("publish", "kept", "--out", "site").returncode == 0
    first = (tmp_path / "site" / "index.html").read_text()
    oldest = min((tmp_path / "kept").rglob("000001-*"))
    (oldest / f"{RECORDS}.gz").write_bytes(b"gone")
    again = call("publish", "kept", "--out", "site")
    assert (again.returncode, again.stderr) == (0, "")
    assert (tmp_path / "site" / "index.html").read_text() == first
    fill(tmp_path, range(13, 14))
    assert "13 runs" in call("publish", "kept", "--out", "site").stdout
    shutil.rmtree(oldest)
    assert "12 runs" in call("publish", "kept", "--out", "site").stdout
    index = tmp_path / "site" / "index.jsonl.gz"
    for content in (b"damaged", gzip.compress(gzip.decompress(index.read_bytes())[:200] + b" " * 2**27)):
        index.write_bytes(content)
        assert "12 runs" in call("publish", "kept", "--out", "site").stdout
    index.unlink()
    os.mkfifo(index)
    assert "12 runs" in call("publish", "kept", "--out", "site").stdout


@pytest.mark.usefixtures("undrawn")
def test_what_is_accepted_is_no_alert(call: Call, tmp_path: Path) -> None:
    fill(tmp_path, range(1, RUNS + 1))
    (tmp_path / "accept.toml").write_text(
        '[[accept]]\ncases = ["global-filter"]\nquantities = ["latency_*"]\nup_to = "20%"\nreason = "known"\n'
    )
    assert call("publish", "kept", "--out", "site", "--accept", "accept.toml").returncode == 0
    assert "0 open alerts" in (tmp_path / "site" / "index.html").read_text()


@pytest.mark.usefixtures("undrawn")
def test_a_slower_machine_is_an_alert_of_no_case_until_it_is_accepted(call: Call, tmp_path: Path) -> None:
    fill(tmp_path, range(1, RUNS + 1), machine=1.08)
    (tmp_path / "accept.toml").write_text(
        '[[accept]]\ncases = ["global-filter"]\nquantities = ["latency_*"]\nup_to = "20%"\nreason = "known"\n'
    )
    overview = tmp_path / "site" / "index.html"
    assert call("publish", "kept", "--out", "site", "--accept", "accept.toml").returncode == 0
    assert set(re.findall(r"([^>]*)</a>: [^<]* beyond", overview.read_text())) == {"everything · 6 controls"}
    with (tmp_path / "accept.toml").open("a") as file:
        file.write('[[accept]]\nquantities = ["shared_*"]\nup_to = "10%"\nreason = "another room"\n')
    assert call("publish", "kept", "--out", "site", "--accept", "accept.toml").returncode == 0
    assert "0 open alerts" in overview.read_text()


@pytest.mark.usefixtures("undrawn")
def test_too_few_runs_are_no_absence_of_alerts(call: Call, tmp_path: Path) -> None:
    fill(tmp_path, range(STEP - 2, STEP + 2))
    assert call("publish", "kept", "--out", "site").returncode == 0
    overview = (tmp_path / "site" / "index.html").read_text()
    assert "too few runs to tell" in overview
    assert "0 open alerts" not in overview
    run = make(replace(SMALL, seed=12), tmp_path / "made")
    more = [replace(r, cost=replace(r.cost, closed=2 * r.cost.closed)) if r.cost else r for r in run.records]
    manifest = run.manifest.model_copy(update={"started": "2026-03-12T10:00:00Z", "commit": f"{12:040x}"})
    history.keep(tmp_path / "kept", replace(run, records=tuple(more), manifest=manifest))
    assert call("publish", "kept", "--out", "site").returncode == 0
    assert re.search(r"</a>: FLOPs \+100\.0 % beyond", (tmp_path / "site" / "index.html").read_text())


@pytest.mark.usefixtures("undrawn")
def test_what_is_wrong_with_a_run_commands_no_terminal(call: Call, tmp_path: Path) -> None:
    fill(tmp_path, range(1, 3))
    manifest = max((tmp_path / "kept").rglob("run.json"))
    manifest.write_text(manifest.read_text().replace("{", '{"\\u001b]0;pwned\\u0007": 1,', 1))
    done = call("publish", "kept", "--out", "site")
    assert done.returncode == 0
    assert "pwned" in done.stderr
    assert "\x1b" not in done.stderr


@pytest.mark.parametrize(
    ("arguments", "status"), [(("nowhere",), 2), (("empty",), 3), (("kept", "--accept", "no.toml"), 2)]
)
def test_bad_input_is_one_message(call: Call, tmp_path: Path, arguments: tuple[str, ...], status: int) -> None:
    (tmp_path / "empty").mkdir()
    done = call("publish", *arguments)
    assert done.returncode == status
    assert len(done.stderr.splitlines()) == 1
