"""A real Chromium for pages: the machine's own, none is downloaded. Without one these tests skip and say so."""

from __future__ import annotations

import shutil
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent))
from figure_faults import FIGURES

sync_api = pytest.importorskip("playwright.sync_api", reason="pages in a browser need playwright")
axe_api = pytest.importorskip("axe_playwright_python.sync_playwright", reason="contrast checks need axe")

CHROMIUM = next((p for p in map(shutil.which, ("chromium", "chromium-browser", "google-chrome")) if p), None)
PHONE = {"width": 390, "height": 844}
SERIOUS = ("serious", "critical")

Faults = Callable[[str], list[str]]


@pytest.fixture(scope="session")
def browser() -> Iterator[object]:
    if CHROMIUM is None:
        pytest.skip("no Chromium on this machine: install chromium to test pages in a browser")
    with sync_api.sync_playwright() as p:
        running = p.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield running
        running.close()


@pytest.fixture
def faults(browser: object) -> Faults:
    """What is wrong with the page at an address, on a phone, in light and dark: one line a fault.

    Errors on the console, anything loaded from elsewhere, a page wider than the screen, and what axe finds serious
    (contrast, names, regions that a keyboard cannot reach); in figures, what `FIGURES` finds. On paper the page must
    have its text.
    """

    def find(url: str) -> list[str]:
        found: list[str] = []
        for scheme in ("light", "dark"):
            context = browser.new_context(viewport=PHONE, color_scheme=scheme)  # type: ignore[attr-defined]
            page = context.new_page()
            errors: list[str] = []
            page.on("console", lambda m, e=errors: e.append(m.text) if m.type == "error" else None)
            page.on("pageerror", lambda x, e=errors: e.append(str(x)))
            origin = url.split("/")[2]
            page.on(
                "request",
                lambda r, e=errors, o=origin: (
                    e.append(f"loads {r.url}")
                    if r.url.startswith("http") and (not o or r.url.split("/")[2] != o)
                    else None
                ),
            )
            page.goto(url)
            page.wait_for_timeout(300)
            found += [f"{scheme}: {e}" for e in errors]
            width = page.evaluate("document.documentElement.scrollWidth")
            if width > PHONE["width"]:
                found.append(f"{scheme}: {width} px wide on a phone of {PHONE['width']}")
            found += [f"{scheme}: figure: {e}" for e in page.evaluate(FIGURES)]
            options = {} if scheme == "light" else {"runOnly": ["color-contrast"]}
            result = axe_api.Axe().run(page, context={"exclude": [[".plot svg"]]}, options=options)
            for violation in result.response["violations"]:
                if violation["impact"] in SERIOUS:
                    where = violation["nodes"][0]["html"][:120]
                    found.append(
                        f"{scheme}: {violation['id']} at {len(violation['nodes'])} places, first {where}"
                    )
            page.emulate_media(media="print")
            if not page.evaluate("document.body.innerText.trim().length"):
                found.append(f"{scheme}: nothing on paper")
            context.close()
        return found

    return find
