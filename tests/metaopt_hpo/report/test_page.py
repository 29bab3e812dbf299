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
import warnings
from collections.abc import Callable
from html.parser import HTMLParser
from importlib.metadata import entry_points
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from metaopt_hpo.comparison.engine import ENTRY_POINT_GROUP, Racer, get_engine
from metaopt_hpo.comparison.methods import available_methods, method
from metaopt_hpo.comparison.outcome import Outcome, OutcomeError, judge, percent
from metaopt_hpo.comparison.results import PLAN_FILE, TABLE_FILE, CompareError, Comparison
from metaopt_hpo.report import (
    ReportError,
    behind,
    palette,
    render,
    report_from_folder,
    sections,
    trial_figures,
    trial_views,
    words,
    write_report,
)
from metaopt_hpo.report.trial_views import importance

SECTIONS = [
    "verdict",
    "asked",
    "methods",
    "compute",
    "trajectories",
    "curves",
    "importance",
    "rates",
    "law",
    "cost",
    "trials",
    "reproduce",
]
VOID = {"meta", "link", "img", "br", "hr", "input", "source", "base", "embed", "rect", "path", "circle"}


class Parsed(HTMLParser):
    """Elements with their attributes, and texts by the path of ids and data-attributes they stand in."""

    def __init__(self, text: str) -> None:
        super().__init__(convert_charrefs=True)
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.texts: list[tuple[list[tuple[str, dict[str, str | None]]], str]] = []
        self.open: list[tuple[str, dict[str, str | None]]] = []
        self.feed(text)
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append((tag, dict(attrs)))

    def handle_endtag(self, tag: str) -> None:
        if tag not in VOID:
            assert [t for t, _ in self.open[-1:]] == [tag]
            self.open.pop()

    def handle_data(self, data: str) -> None:
        self.texts.append((list(self.open), data))

    def within(self, tag: str | None = None, **attributes: str) -> str:
        """Text inside every element with these attributes, spaces made plain."""
        wanted = {k.replace("_", "-"): v for k, v in attributes.items()}
        parts = [
            data
            for path, data in self.texts
            if not any(t in ("script", "style") for t, _ in path)
            and any((tag is None or t == tag) and wanted.items() <= a.items() for t, a in path)
        ]
        return " ".join("".join(parts).split())

    def scripts(self) -> list[tuple[dict[str, str | None], str]]:
        out: list[tuple[dict[str, str | None], str]] = []
        for path, data in self.texts:
            if path and path[-1][0] == "script":
                out.append((path[-1][1], data))
        return out


def plain(text: str) -> str:
    return " ".join(re.sub(r"(?<=\d) ?%", " %", text).split())


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


def _all_diverged(records: list[Any], method: str) -> list[Any]:
    return [
        dataclasses.replace(
            r, state="diverged", loss=math.nan, found_lr=math.nan, reason="exploded", curve=None
        )
        if r.method == method
        else r
        for r in records
    ]


def test_one_seed_is_said_to_have_no_interval(comparison: Callable[..., Comparison]) -> None:
    text = Parsed(render(judge(comparison(seeds=(7,)))))
    assert "one seed, no interval" in text.within("section", id="methods")
    assert "One seed gives no interval" in text.within("section", id="verdict")
    assert "±" not in text.within("section", id="methods")
    assert "inf" not in re.findall(r"[a-z]+", text.within("main"))


def test_a_method_without_a_finite_trial_is_shown_as_such(
    comparison: Callable[..., Comparison], records: Callable[..., Any]
) -> None:
    trials = _all_diverged(records(("grid", "tpe"), (0, 1), (), 5), "tpe")
    text = Parsed(render(judge(comparison(methods=("grid", "tpe"), seeds=(0, 1), pilots=(), records=trials))))
    row = text.within("tr", data_method="tpe")
    assert "no finished trial with a finite loss for seed 0 and 1" in row
    assert "10 diverged" in row
    assert "not reached" in row
    assert "is left out" in text.within("section", id="verdict")


def test_a_law_whose_smaller_models_ate_the_budget_is_told_so(
    comparison: Callable[..., Comparison], records: Callable[..., Any]
) -> None:
    pilots = (4e5, 8e5, 1.1e6)
    trials = [r for r in records(("grid", "law"), (0, 1), pilots, 4) if r.method != "law"]
    outcome = judge(comparison(methods=("grid", "law"), seeds=(0, 1), pilots=pilots, runs=4, records=trials))
    assert outcome.law is not None
    assert outcome.law.pilot_cost > 3 * outcome.run_cost
    row = Parsed(render(outcome)).within("tr", data_method="law")
    assert f"the smaller models alone cost {words.runs(outcome.law.pilot_cost / outcome.run_cost)}" in row
    assert words.scientific(outcome.law.pilot_cost, 3) in row


def test_without_smaller_models_there_is_no_law_and_the_page_says_so(
    comparison: Callable[..., Comparison],
) -> None:
    text = Parsed(render(judge(comparison(methods=("grid", "metaoptimize"), pilots=()))))
    assert "No smaller models were run" in text.within("section", id="law")
    assert "Smaller models of" not in text.within("section", id="asked")
    assert text.within("section", id="cost").count("MetaOptimize")


def test_a_refused_law_is_told_with_its_reason(comparison: Callable[..., Comparison]) -> None:
    outcome = judge(comparison(methods=("grid", "metaoptimize"), pilots=(4e4, 1e5)))
    assert outcome.law is not None
    assert outcome.law.refusal
    text = Parsed(render(outcome))
    for section in ("law", "cost"):
        assert plain(words.sentence(outcome.law.refusal)) in plain(text.within("section", id=section))
    assert [a for _, a in text.elements if a.get("id") == "plot-law"]
    assert "predicted" not in text.within("section", id="law")


def test_smaller_models_that_all_failed_are_not_passed_over(
    comparison: Callable[..., Comparison], records: Callable[..., Any]
) -> None:
    trials = _all_diverged(records(("grid",), (0, 1), (4e4, 1e5, 2.5e5), 6), "pilot")
    text = Parsed(render(judge(comparison(methods=("grid",), seeds=(0, 1), records=trials))))
    law = text.within("section", id="law")
    assert "No law could be fitted" in law
    assert "No smaller model finished a trial" in law


def test_a_law_that_was_not_run_gives_an_expected_loss(comparison: Callable[..., Comparison]) -> None:
    text = Parsed(render(judge(comparison(methods=("grid", "metaoptimize")))))
    assert "expected, not run" in text.within("section", id="cost")


@pytest.mark.parametrize("name", available_methods())
def test_a_single_method_makes_a_page(comparison: Callable[..., Comparison], name: str) -> None:
    text = Parsed(render(judge(comparison(methods=(name,), seeds=(0, 1)))))
    assert [a["id"] for t, a in text.elements if t == "section"] == SECTIONS
    assert "nan" not in text.within("main").split()


def test_trials_without_curves_costs_and_seconds_make_a_page(
    comparison: Callable[..., Comparison], records: Callable[..., Any]
) -> None:
    trials = [
        dataclasses.replace(r, curve=None, seconds=math.nan)
        for r in records(("grid", "metaoptimize"), (0, 1), (4e4, 1e5, 2.5e5), 6)
    ]
    outcome = judge(comparison(methods=("grid", "metaoptimize"), seeds=(0, 1), records=trials))
    text = Parsed(render(dataclasses.replace(outcome, run_cost=math.nan)))
    assert "recorded no cost" in text.within("section", id="compute")
    assert "no trajectories to show" in text.within("section", id="trajectories")
    assert "recorded no cost" in text.within("section", id="cost")
    assert "nan" not in text.within("main").lower().split()


def test_every_end_is_listed_with_its_reason_however_long(
    comparison: Callable[..., Comparison], records: Callable[..., Any]
) -> None:
    trials = records(("grid",), (0, 1), (4e4, 1e5, 2.5e5), 6)
    reason = "x" * 3000
    trials[-1] = dataclasses.replace(trials[-1], state="failed", loss=math.nan, reason=reason, curve=None)
    trials[-2] = dataclasses.replace(trials[-2], state="pruned", reason="the law sees no gain")
    trials[-8] = dataclasses.replace(trials[-8], state="running", loss=math.nan, tokens=0.0, cost=math.nan)
    trials[-3] = dataclasses.replace(trials[-3], reason="made no progress: held-out loss 2.3 after 200 steps")
    text = Parsed(render(judge(comparison(methods=("grid",), seeds=(0, 1), records=trials))))
    shown = text.within("section", id="trials")
    assert reason in shown
    assert "made no progress: held-out loss 2.3" in shown
    assert "the law sees no gain" in shown
    assert "1 failed" in text.within("summary")
    assert "1 running" in text.within("summary")


def test_a_comparison_without_a_finished_trial_is_one_clear_error(
    comparison: Callable[..., Comparison], records: Callable[..., Any], tmp_path: Path
) -> None:
    only_pilots = records((), (0,), (4e4,), 4)
    with pytest.raises(OutcomeError, match="no method has a finished trial"):
        write_report(
            comparison(methods=("grid",), seeds=(0,), pilots=(4e4,), records=only_pilots), tmp_path / "r.html"
        )
    assert not list(tmp_path.iterdir())


def test_a_folder_becomes_a_report(comparison: Callable[..., Comparison], tmp_path: Path) -> None:
    held = comparison(methods=("grid", "metaoptimize"), seeds=(0, 1))
    saved = {"version": 1, "plan": held.plan.to_json(), "machine": held.machine, "command": held.command}
    (tmp_path / PLAN_FILE).write_text(json.dumps(saved), encoding="utf-8")
    held.table.write(tmp_path / TABLE_FILE)
    path = report_from_folder(tmp_path)
    assert path == tmp_path / "report.html"
    assert path.read_text(encoding="utf-8") == render(judge(Comparison.read(tmp_path)))
    assert sorted(p.name for p in tmp_path.iterdir()) == sorted(["report.html", PLAN_FILE, TABLE_FILE])


def test_folders_that_cannot_be_read_or_written_are_named(
    comparison: Callable[..., Comparison], tmp_path: Path
) -> None:
    with pytest.raises(CompareError, match="holds no finished comparison"):
        report_from_folder(tmp_path)
    held = comparison(methods=("grid",), seeds=(0,), pilots=())
    (tmp_path / "file").touch()
    with pytest.raises(ReportError, match="nowhere"):
        write_report(held, tmp_path / "file" / "nowhere.html")


@pytest.fixture(autouse=True)
def _tables_may_warn() -> Any:
    """Diverged synthetic trials make the table count notes; they are not this room's subject."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


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
