"""The page: self-contained, escaped, complete, readable by a machine, and honest in the odd cases."""

from __future__ import annotations

import base64
import csv
import dataclasses
import hashlib
import io
import itertools
import json
import math
import re
from collections.abc import Callable
from html.parser import HTMLParser
from importlib.metadata import entry_points
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from parsed_page import SECTIONS, Parsed, plain

from metaopt_hpo.comparison.engine import ENTRY_POINT_GROUP, Racer, get_engine
from metaopt_hpo.comparison.methods import available_methods, method
from metaopt_hpo.comparison.outcome import Outcome, judge, percent
from metaopt_hpo.comparison.results import Comparison
from metaopt_hpo.report import (
    behind,
    palette,
    render,
    sections,
    trial_figures,
    trial_views,
    words,
)
from metaopt_hpo.report.trial_views import importance

pytestmark = pytest.mark.usefixtures("tables_may_warn")


@pytest.fixture(scope="module")
def html(outcome: Outcome) -> str:
    return render(outcome)


@pytest.fixture(scope="module")
def parsed(html: str) -> Parsed:
    return Parsed(html)


def test_the_page_is_whole_and_its_sections_are_in_order(parsed: Parsed) -> None:
    assert not parsed.open
    assert [a["id"] for t, a in parsed.elements if t == "section"] == SECTIONS
    levels = [int(t[1]) for t, _ in parsed.elements if re.fullmatch(r"h[1-6]", t)]
    assert levels[0] == 1
    assert levels.count(1) == 1
    assert all(b - a <= 1 for a, b in itertools.pairwise(levels))
    ids = [a["id"] for _, a in parsed.elements if "id" in a]
    assert len(ids) == len(set(ids))


def test_every_figure_says_in_words_what_it_shows(parsed: Parsed) -> None:
    plots = [a for _, a in parsed.elements if a.get("class") == "plot"]
    assert [a["id"] for a in plots] == [
        f"plot-{n}" for n in ("compute", "trajectories", "curves", "importance", "rates", "law", "cost")
    ]
    for attributes in plots:
        name = str(attributes["id"]).removeprefix("plot-")
        assert attributes["role"] == "group"  # its buttons may be focused
        assert len(str(attributes["aria-label"])) > 40
        assert len(parsed.within(id=f"{name}-caption")) > 40


def test_nothing_is_loaded_from_anywhere(parsed: Parsed, html: str) -> None:
    assert not [t for t, _ in parsed.elements if t in {"link", "img", "iframe", "object", "embed", "base"}]
    assert not [a for _, a in parsed.elements if {"src", "srcset", "action", "data"} & a.keys()]
    # links are for a reader's click; a table is inside the page
    addresses = [str(a["href"]) for t, a in parsed.elements if "href" in a]
    assert all(t == "a" for t, a in parsed.elements if "href" in a)
    assert all(re.match(r"https://|data:text/csv;|[\w.-]+$", address) for address in addresses)
    styles = "".join(d for path, d in parsed.texts if path and path[-1][0] == "style")
    assert styles
    assert "url(" not in styles
    assert "@import" not in styles
    assert html.count("* plotly.js v") == 1


def test_only_the_two_scripts_of_the_page_may_run(parsed: Parsed) -> None:
    (policy,) = [str(a["content"]) for t, a in parsed.elements if t == "meta" and "http-equiv" in a]
    assert policy.startswith("default-src 'none'; script-src 'sha256-")
    allowed = set(re.findall(r"'sha256-([^']+)'", policy))
    running = [text for a, text in parsed.scripts() if a.get("type") != "application/json"]
    got = {base64.b64encode(hashlib.sha256(text.encode()).digest()).decode() for text in running}
    assert got == allowed
    assert len(running) == 2
    assert "unsafe-inline" not in policy.split("style-src")[0]
    assert not [a for _, a in parsed.elements for k in a if k.startswith("on")]


def test_numbers_on_the_page_are_those_of_the_outcome(parsed: Parsed, outcome: Outcome) -> None:
    assert plain(parsed.within("p", **{"class": "verdict"})) == plain(outcome.verdict)
    for m in outcome.methods:
        row = parsed.within("tr", data_method=m.name)
        assert m.title in row
        assert plain(words.spread(m.best)) in row
        assert words.scientific(words.geometric_mean([t.lr for t in m.trajectories])) in row
        assert words.scientific(m.total_cost, 3) in row
        expected = words.scientific(m.match_cost, 3) if math.isfinite(m.match_cost) else "not reached"
        assert expected in row
        if m.versus_reference:
            assert percent(m.versus_reference).partition(" (")[0] in row
    assert outcome.law is not None
    assert outcome.law.prediction is not None
    law = parsed.within("section", id="law")
    assert words.scientific(outcome.law.prediction.lr.value, 3) in law
    assert words.scientific(outcome.law.found_lr, 3) in law
    assert words.loss(outcome.law.prediction.loss.value) in law
    cost = parsed.within("section", id="cost")
    for m in outcome.methods:
        if m.kind != "external" and m.first_versus_reference:
            assert plain(words.spread(m.first)) in cost
            assert percent(m.first_versus_reference) in cost


def test_the_table_of_trials_holds_every_trial_at_full_precision(parsed: Parsed, outcome: Outcome) -> None:
    records = outcome.comparison.table.records()
    rows: list[list[str]] = []
    inside = False
    for tag, attributes in parsed.elements:
        if "data-trial" in attributes:
            rows.append([])
        inside = bool(rows) and tag == "td"
        if inside and "data-value" in attributes:
            rows[-1].append(str(attributes["data-value"]))
        if attributes.get("id") == "reproduce":
            break
    assert len(rows) == len(records)
    for row, r in zip(rows, records, strict=True):
        want = [r.size, float(r.seed), r.lr, r.found_lr, r.tokens, r.loss, r.cost, r.seconds]
        assert row == [repr(v) if math.isfinite(v) else "" for v in want]


def test_the_figures_on_the_page_parse(parsed: Parsed) -> None:
    found = {a["id"]: json.loads(t) for a, t in parsed.scripts() if a.get("type") == "application/json"}
    assert len(found) == 7
    for figure in found.values():
        assert figure["data"]
        assert "layout" not in figure["layout"].get("template", {}), "the style sheet sets the colours"


def test_rendering_twice_gives_the_same_bytes(outcome: Outcome, html: str) -> None:
    assert render(outcome) == html


EVIL = '</script><script>alert("x")</script><img src=x onerror=alert(1)> & <b>bold</b>'


def test_what_users_wrote_is_shown_and_never_run(
    comparison: Callable[..., Comparison], records: Callable[..., Any]
) -> None:
    trials = [
        dataclasses.replace(
            r, trial=f"{EVIL}{r.trial}", reason=EVIL if r.state == "diverged" else "", strategy=r.strategy
        )
        for r in records(("grid", "metaoptimize"), (0, 1), (4e4, 1e5, 2.5e5), 6)
    ]
    held = comparison(
        methods=("grid", "metaoptimize"),
        seeds=(0, 1),
        runs=6,
        workload=EVIL,
        records=trials,
        command=EVIL,
        machine={EVIL: EVIL},
    )
    text = render(judge(held))
    parsed = Parsed(text)
    assert not parsed.open
    assert not [t for t, _ in parsed.elements if t in {"img", "b"}]
    assert len([t for t, _ in parsed.elements if t == "script"]) == 9
    shown = " ".join(EVIL.split())
    assert shown in parsed.within("section", id="asked")
    assert shown in parsed.within("section", id="reproduce")
    assert shown in parsed.within("section", id="trials")
    assert [a for _, a in parsed.elements if (a.get("data-trial") or "").startswith(EVIL)]


def test_every_method_has_its_look_in_every_figure_and_its_entry_in_the_legends(
    comparison: Callable[..., Comparison],
) -> None:
    methods = available_methods()
    outcome = judge(comparison(methods=methods, seeds=(0, 1), runs=3))
    text = Parsed(render(outcome))
    found = {a["id"]: json.loads(t) for a, t in text.scripts() if a.get("type") == "application/json"}
    for panel in ("data-compute", "data-trajectories"):
        legend = [t for t in found[panel]["data"] if t.get("meta") == behind.LEGEND]
        shown = {t["name"]: (t["line"]["dash"], t["marker"]["symbol"]) for t in legend}
        for name in methods:
            look = palette.of_method(name)
            assert shown[method(name).title] == (look.dash, look.symbol)
    for name in methods:
        assert method(name).title in text.within("tr", data_method=name)


@pytest.mark.parametrize("engine", [e.name for e in entry_points(group=ENTRY_POINT_GROUP)])
def test_every_method_of_every_engine_is_one_of_the_list(engine: str) -> None:
    found = get_engine(engine)
    assert found.methods <= set(available_methods())
    assert not isinstance(found, Racer) or set(found.race_methods) <= set(available_methods())


def test_every_method_has_a_look_of_its_own_and_nothing_else_has() -> None:
    assert set(palette._LOOKS) == set(available_methods())


@given(st.text())
def test_json_cannot_end_its_script_element(text: str) -> None:
    embedded = str(sections.json_for_script(json.dumps({"a": text})))
    assert "<" not in embedded
    assert json.loads(embedded) == {"a": text}


@given(st.text())
def test_tied_text_reads_as_it_was(text: str) -> None:
    class Text(HTMLParser):
        out = ""

        def handle_data(self, data: str) -> None:
            self.out += data

    parser = Text(convert_charrefs=True)
    parser.feed("<p>" + str(sections.tied(text)) + "</p>")
    parser.close()
    squeezed = [re.sub(r"\s+", "", t) for t in (parser.out, text)]
    assert squeezed[0] == squeezed[1]


def test_the_importance_of_a_planted_parameter_is_found(trial: Callable[..., Any]) -> None:
    made = [trial(method="grid", seed=s, number=i, size=1.2e6, lr=lr) for s in (0, 1, 2)
            for i, lr in enumerate((1e-3, 2e-3, 4e-3, 8e-3, 1.6e-2))]  # fmt: skip
    found = importance(made)
    shares = dict(found.shares)
    assert shares["learning rate"] > 0.9
    assert sum(shares.values()) + found.unexplained == pytest.approx(1.0)
    # a parameter without influence explains little, one that copies the rate shares its part
    odd = [dataclasses.replace(r, params={"width": 1 + i % 2}) for i, r in enumerate(made)]
    assert dict(importance(odd).shares)["width"] < 0.1
    copied = [dataclasses.replace(r, params={"peak": r.lr}) for r in made]
    twice = dict(importance(copied).shares)
    assert twice["peak"] == pytest.approx(twice["learning rate"])
    assert "at least 8" in importance(made[:5]).absent


def test_the_table_behind_a_figure_is_what_it_draws(outcome: Outcome) -> None:
    view = trial_views.loss_curves(outcome)
    numbers = behind.behind(trial_figures.loss_curves(view).plot)
    assert numbers.head == ("series", "part", "Tokens seen", "Held-out loss")
    assert len(numbers.rows) == sum(len(line.tokens) for line in view.lines)
    rows = list(csv.reader(io.StringIO(numbers.csv())))
    assert [float(r[3]) for r in rows[1:]] == [x for line in view.lines for x in line.loss]
    evil = behind.Numbers(("series", "y"), (("=1+1", 2.0),))
    assert "'=1+1" in evil.csv()


def test_sources_are_addresses_or_files_and_nothing_that_runs() -> None:
    with pytest.raises(ValueError, match="href"):
        sections.Source("x", "javascript:alert(1)")
