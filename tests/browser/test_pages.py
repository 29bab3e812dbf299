"""Every page that the package makes, in a real browser: sound, readable, answered on top, usable without a mouse."""

from __future__ import annotations

import csv
import sys
import warnings
from collections.abc import Callable
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent))
from figure_faults import FIGURES
from pages import KINDS, write_pages


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return write_pages(tmp_path_factory.mktemp("pages"))


@pytest.mark.parametrize("kind", KINDS)
def test_pages_are_sound_in_a_browser(
    kind: str, made: dict[str, Path], faults: Callable[[str], list[str]]
) -> None:
    assert faults(made[kind].as_uri()) == []


USED = [
    k if k in ("report-optuna", "law", "check") else pytest.param(k, marks=pytest.mark.sweep) for k in KINDS
]


@pytest.mark.parametrize("kind", USED)
def test_pages_answer_at_once_and_can_be_used_without_a_mouse(
    kind: str, made: dict[str, Path], browser: object
) -> None:
    context = browser.new_context(viewport={"width": 1100, "height": 800})  # type: ignore[attr-defined]
    page = context.new_page()
    page.goto(made[kind].as_uri())
    page.wait_for_timeout(200)
    assert page.evaluate("document.documentElement.scrollWidth") <= 1100
    assert page.title()
    answer = page.locator("p.verdict").first
    assert answer.inner_text().rstrip().endswith((".", "%"))
    assert answer.bounding_box()["y"] < 700, "the answer is below the first screen"
    assert page.locator("footer li").count()
    plots = page.locator(".plot")
    for i in range(plots.count()):
        figure = plots.nth(i)
        assert len(figure.get_attribute("aria-label")) > 20
        assert figure.locator("svg.main-svg").count(), "the figure is not drawn"
        titles = figure.locator(".xtitle, .ytitle").all_inner_texts()
        assert titles, "the axes have no titles"
        box = figure.bounding_box()
        for title in figure.locator(".xtitle, .ytitle").all():
            own = title.bounding_box()
            assert own["y"] >= box["y"] - 2, "a title is cut off"
    # Tab comes to every link, summary and table that scrolls, and shows where it is
    wanted = page.evaluate(
        "[...document.querySelectorAll('a[href], summary, button, [tabindex=\"0\"]')]"
        ".filter(e => e.checkVisibility()).length"
    )
    seen = set()
    for _ in range(min(wanted, 60)):
        page.keyboard.press("Tab")
        seen.add(page.evaluate("[...document.querySelectorAll('*')].indexOf(document.activeElement)"))
        style = page.evaluate("getComputedStyle(document.activeElement).outlineStyle")
        assert style != "none", page.evaluate("document.activeElement.outerHTML.slice(0, 200)")
    assert len(seen) == min(wanted, 60)
    # a table behind a figure opens with the keyboard, and its file is the whole of it
    if plots.count():
        page.locator("figure summary").first.focus()
        page.keyboard.press("Enter")
        link = page.locator("figure a.download").first
        with page.expect_download() as download:
            link.press("Enter")
        rows = list(csv.reader(download.value.path().open(encoding="utf-8")))
        assert len(rows) > 1
        assert all(len(row) == len(rows[0]) for row in rows)
    context.close()


PLANTED = {
    "text": "e => e.querySelector('.legendtext').style.setProperty('fill', '#999999', 'important')",
    "js-line": "e => e.querySelector('.scatterlayer .js-line').style.stroke = '#dddddd'",
    "point": "e => e.querySelector('.points path.point').style.opacity = 0.2",
    "cut off": "e => e.querySelector('.xtitle').setAttribute('x', -60)",
}


@pytest.mark.parametrize("fault", PLANTED)
def test_a_pale_or_cut_figure_is_found(fault: str, made: dict[str, Path], browser: object) -> None:
    page = browser.new_page()  # type: ignore[attr-defined]
    page.goto(made["law"].as_uri())
    page.wait_for_timeout(300)
    assert page.evaluate(FIGURES) == []
    page.locator(".plot").first.evaluate(PLANTED[fault])
    found = page.evaluate(FIGURES)
    assert len(found) == 1
    assert fault in found[0]
    page.close()
