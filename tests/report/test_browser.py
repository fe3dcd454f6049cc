"""The page in a real Chromium: silent, nothing overflows, tables sort and filter, links arrive, dark is dark."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from synthetic import World, make

from niffbench import report
from niffbench.gate import history
from niffbench.gate.rules import Accepted, Rules
from niffbench.gate.series import INDEX, collect
from niffbench.report import site

if TYPE_CHECKING:
    from playwright.sync_api import Browser, Page

pytestmark = pytest.mark.browser
FLAGS = [
    "--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run",
    "--disable-background-networking", "--disable-component-update", "--disable-sync",
]  # fmt: skip
SIZES = [(390, 844), (1400, 900)]


@pytest.fixture(scope="module")
def pages(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """A report of one run with everything in it, and one of two runs."""
    folder = tmp_path_factory.mktemp("pages")
    kernels = {"depthwise": (3, 7, 31)}
    rich = make(World(modes=("inference", "training"), channels=(32, 64), kernels=kernels), folder / "rich")
    small = [
        make(World(sizes=(14, 28)), folder / "laptop"),
        make(World(sizes=(14, 28), seed=1, device="cuda"), folder / "rack"),
    ]
    for day in range(1, 13):
        slower = {"global-filter": 1.2 if day > 6 else 1.0}
        history.keep(folder / "kept", make(World(sizes=(14,), rounds=2, seed=day, slower=slower), folder / "run"))
    series = list(collect(folder / "kept", folder / INDEX, Rules(), []))
    overview = site.write(series, folder / "site", Accepted(), ())
    alerted = re.findall(r'href="([^"#]+/[^"#]+)#', overview.read_text())[0]
    return {
        "one": report.write(rich, folder / "one"),
        "two": report.write(small, folder / "two"),
        "overview": overview,
        "series": folder / "site" / Path(alerted).with_name("index.html"),
        "case": folder / "site" / alerted,
    }


@pytest.fixture(scope="module")
def browser(request: pytest.FixtureRequest) -> Iterator[Browser]:
    """Chromium as it is installed on the machine."""
    from shutil import which

    from conftest import BROWSERS
    from playwright.sync_api import sync_playwright

    path = next(result for name in BROWSERS if (result := which(name)))
    with sync_playwright() as playwright:
        launched = playwright.chromium.launch(executable_path=path, args=FLAGS)
        yield launched
        launched.close()


def _open(
    browser: Browser, path: Path, size: tuple[int, int] = (1400, 900), *, dark: bool = False
) -> tuple[Page, list[str]]:
    context = browser.new_context(
        viewport={"width": size[0], "height": size[1]},
        color_scheme="dark" if dark else "light",
        reduced_motion="reduce",
        offline=True,
    )
    page = context.new_page()
    said: list[str] = []
    page.on("console", lambda message: said.append(message.text))
    page.on("pageerror", lambda error: said.append(str(error)))
    page.on(
        "request",
        lambda request: said.append(request.url) if not request.url.startswith(("file:", "data:")) else None,
    )
    page.goto(path.as_uri())
    return page, said


def _texts(page: Page, table: str, column: int) -> list[str]:
    cells = page.locator(f"#{table} tbody tr:visible td:nth-child({column})")
    return cells.all_inner_texts()


@pytest.mark.parametrize("size", SIZES, ids=["phone", "desktop"])
@pytest.mark.parametrize("which", ["one", "two", "overview", "series", "case"])
def test_it_opens_in_silence_and_nothing_overflows(
    browser: Browser, pages: dict[str, Path], which: str, size: tuple[int, int]
) -> None:
    page, said = _open(browser, pages[which], size)
    page.evaluate("for (const part of document.querySelectorAll('details')) part.open = true")
    assert said == []
    assert page.evaluate("document.documentElement.scrollWidth") == size[0]
    sticking_out = page.evaluate(
        """() => [...document.body.querySelectorAll('*')].filter(e => !e.closest('.scroll') && !e.closest('thead')
           && e.getBoundingClientRect().right > innerWidth + 0.5).map(e => e.tagName + '.' + e.className)"""
    )
    assert sticking_out == []
    page.context.close()


def test_numbers_sort_as_numbers_both_ways(browser: Browser, pages: dict[str, Path]) -> None:
    page, _ = _open(browser, pages["one"])
    head = page.locator("#cases thead th").nth(2)
    values = """[...document.querySelectorAll('#cases tbody tr')].map(row => row.cells[2].dataset.v)
                .map(value => value === undefined ? null : Number(value))"""
    for direction in (1, -1):
        head.locator("button").click()
        assert head.get_attribute("aria-sort") == ("ascending" if direction > 0 else "descending")
        result = page.evaluate(values)
        present = [value for value in result if value is not None]
        assert present == sorted(present, reverse=direction < 0)
        assert result[: len(present)] == present  # what was not measured comes last
        assert None in result
    page.context.close()


def test_words_sort_by_name_and_numbers_inside(browser: Browser, pages: dict[str, Path]) -> None:
    page, _ = _open(browser, pages["one"])
    page.locator("#cases thead th").nth(0).locator("button").click()
    names = [name for name in dict.fromkeys(_texts(page, "cases", 1)) if "training" not in name]
    assert names[:4] == ["B1 32@14", "B1 32@28", "B1 32@56", "B1 32@112"]
    page.context.close()


def test_filtering_keeps_rows_with_all_words(browser: Browser, pages: dict[str, Path]) -> None:
    page, _ = _open(browser, pages["one"])
    search = page.locator("#cases input[type=search]")
    before = len(_texts(page, "cases", 1))
    search.fill("NIFF-depthwise 64@28 training")
    shown = _texts(page, "cases", 2)
    assert {name.splitlines()[0] for name in shown} == {
        f"niff-depthwise/{form}" for form in ("published", "rfft", "cached")
    }
    assert page.locator("#cases .count").inner_text() == f"3 of {before} rows"
    search.fill("")
    assert len(_texts(page, "cases", 1)) == before
    page.context.close()


def test_a_finding_leads_to_its_plot_and_its_rows(browser: Browser, pages: dict[str, Path]) -> None:
    page, _ = _open(browser, pages["one"])
    crossover = page.locator(".findings li").first  # what is asked for first
    crossover.get_by_role("link", name="table").click()
    assert page.locator("#crossovers").evaluate("e => Math.abs(e.getBoundingClientRect().top) < innerHeight")
    finding = page.locator(".findings li", has=page.get_by_role("link", name="plot")).first
    finding.get_by_role("link", name="plot").click()
    plot = page.locator(finding.get_by_role("link", name="plot").get_attribute("href") or "")
    assert plot.evaluate("e => Math.abs(e.getBoundingClientRect().top) < innerHeight")
    finding.get_by_role("link", name="rows").click()
    word = page.locator("#cases input[type=search]").input_value()
    assert word
    assert all(word in name for name in _texts(page, "cases", 2))
    page.context.close()


def test_a_link_into_a_folded_part_unfolds_it(browser: Browser, pages: dict[str, Path]) -> None:
    page, _ = _open(browser, pages["one"])
    page.evaluate("for (const part of document.querySelectorAll('details')) part.open = true")
    link = page.locator('.findings a[href="#witnesses"]')
    page.evaluate("for (const part of document.querySelectorAll('details:has(table)')) part.open = false")
    assert not page.locator("#witnesses").is_visible()
    link.click()
    assert page.locator("#witnesses").is_visible()
    page.context.close()


def test_the_first_screen_answers(browser: Browser, pages: dict[str, Path]) -> None:
    page, _ = _open(browser, pages["one"])
    for selector in (".first .findings li", "#winners", ".explorer tbody tr", ".facts span"):
        top = page.locator(selector).first.evaluate("e => e.getBoundingClientRect().top")
        assert 0 <= top < 900, selector
    page.context.close()


def test_dark_is_dark_and_its_text_is_light(browser: Browser, pages: dict[str, Path]) -> None:
    luminance = """(selector, property) => {
        const colour = getComputedStyle(document.querySelector(selector))[property];
        const [r, g, b] = colour.match(/[\\d.]+/g).map(Number);
        return (0.2126 * r + 0.7152 * g + 0.0722 * b) / 255;
    }"""
    for dark in (False, True):
        page, _ = _open(browser, pages["one"], dark=dark)

        def light(selector: str, name: str) -> float:
            return float(page.evaluate(f"([s, p]) => ({luminance})(s, p)", [selector, name]))  # noqa: B023

        paper, ink = light("body", "backgroundColor"), light("body", "color")
        title = light("#overview svg text", "fill")
        assert (paper < 0.2 and ink > 0.8) if dark else (paper > 0.9 and ink < 0.2)
        assert abs(title - paper) > 0.3
        page.context.close()


def test_it_reads_without_javascript(browser: Browser, pages: dict[str, Path]) -> None:
    context = browser.new_context(java_script_enabled=False, offline=True)
    page = context.new_page()
    page.goto(pages["one"].as_uri())
    assert page.locator("#cases tbody tr").count() > 100
    assert page.locator("#overview svg").is_visible()
    context.close()


def _ranking(page: Page) -> list[str]:
    return page.locator(".explorer tbody tr:has(.number) td:first-child").all_inner_texts()


def test_the_explorer_ranks_what_is_chosen_by_keyboard_alone(browser: Browser, pages: dict[str, Path]) -> None:
    page, said = _open(browser, pages["one"])
    rows = page.evaluate("JSON.parse(document.querySelector('.explorer script').textContent).problems")
    chosen = {"mode": "training", "resolution": "56×56", "channels": "64", "metric": "flops"}
    for name, value in chosen.items():
        page.locator(f".explorer select[name={name}]").focus()
        for _ in range(20):
            if page.evaluate("document.activeElement.value") == value:
                break
            page.keyboard.press("ArrowDown")
        assert page.evaluate("document.activeElement.value") == value
    (problem,) = (row for row in rows if all(row["place"].get(k, v) == v for k, v in chosen.items()))
    having = [row for row in problem["rows"] if "flops" in row["values"]]
    expected = [row["operator"] for row in sorted(having, key=lambda row: row["values"]["flops"]["value"])]
    assert [text.split("\n")[0].split(" (")[0].strip() for text in _ranking(page)] == expected
    assert page.locator(".explorer [role=status]").inner_text().startswith(problem["label"])
    sentences = page.locator(".explorer > ul li").all_inner_texts()
    assert sentences == problem["crossovers"]["flops"]
    assert said == []
    page.context.close()
