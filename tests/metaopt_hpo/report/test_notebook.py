"""Results in notebooks: rich reprs that are sound and escaped, and every figure in Plotly and in matplotlib."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable
from html.parser import HTMLParser
from typing import Any

import numpy as np
import pandas as pd
import plotly.graph_objects as go
import pytest

from metaopt_hpo import plot
from metaopt_hpo.comparison.outcome import Outcome
from metaopt_hpo.comparison.replay import ReplayResult
from metaopt_hpo.report.behind import LEGEND
from metaopt_hpo.report.notebook import OF_LAW, OF_OUTCOME
from metaopt_hpo.scaling import library, preregistration
from metaopt_hpo.theory import LMOBound, verify_rule
from metaopt_hpo.trials.record import TrialRecord
from metaopt_hpo.trials.table import TrialTable

matplotlib = pytest.importorskip("matplotlib", reason="figures of the second backend need matplotlib")
matplotlib.use("Agg")

PRUNED = TrialRecord(size=1e6, tokens=1e8, batch=1e4, lr=1e-2, loss=9.0, state="pruned")
EVIL = "<script>alert(1)</script>"
TRACE = pd.DataFrame({"method": [EVIL], "seed": [0], "cost": [3.0], "excess": [0.001]})


@pytest.fixture(scope="module")
def law() -> Any:
    return library.load("fitted-step-law").law


@pytest.fixture(scope="module")
def table() -> TrialTable:
    rows = [
        {"size": n, "tokens": d, "batch": b, "lr": lr, "loss": 2.2 + 0.1 * math.log(lr / 1e-3) ** 2, "strategy": EVIL}
        for n in (1e8, 4e8) for d in (1e10, 4e10) for b in (2**18, 2**19) for lr in (5e-4, 1e-3, 2e-3)
    ]  # fmt: skip
    return TrialTable.from_frame(pd.DataFrame(rows))


class Closed(HTMLParser):
    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.tags: list[str] = []

    def handle_starttag(self, tag: str, attrs: object) -> None:
        self.open.append(tag)
        self.tags.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag


def test_every_result_has_a_rich_repr_that_is_sound_and_escaped(
    law: Any, table: TrialTable, outcome: Outcome
) -> None:
    verdict = law.verdict(size=4e8, tokens=4e10, lr=0.1, batch=2**19, incumbent=2.3)
    shown = [
        table,
        law,
        law.predict(1e12, 1e14),
        law.forecast(size=4e8, tokens=4e10, lr=1e-3, batch=2**19),
        dataclasses.replace(verdict, reason=EVIL),
        outcome,
        verify_rule("lr ~ D^-0.5", LMOBound(1, 1, 1)),
        ReplayResult((4e8, 4e10), TRACE, 24, (0.0025,), 40.0),
    ]
    for result in shown:
        text = result._repr_html_()
        parser = Closed()
        parser.feed(text)
        parser.close()
        assert not parser.open, type(result)
        assert "script" not in parser.tags, type(result)
        assert len(parser.tags) > 1, type(result)
    assert "&lt;script&gt;" in table._repr_html_()
    assert "Warning [" in law.predict(1e12, 1e14)._repr_html_()


def same_points(drawn: go.Figure, axes: Any) -> None:
    """Every point of the Plotly figure's lines and markers is on the matplotlib axes."""
    drawn_lines = [list(line.get_ydata()) for line in axes.lines]
    there = [np.asarray(y, dtype=float) for y in drawn_lines if y and not isinstance(y[0], str)]
    for trace in drawn.data:
        if trace.type != "scatter" or trace.meta == LEGEND or trace.fill == "toself" or trace.mode == "text":
            continue
        if not all(isinstance(v, int | float | np.number) for v in trace.y if v is not None):
            continue
        want = np.array([math.nan if v is None else float(v) for v in trace.y])
        assert any(y.shape == want.shape and np.allclose(y, want, equal_nan=True) for y in there), trace.name


@pytest.mark.parametrize("what", OF_OUTCOME)
def test_figures_of_a_comparison_are_the_same_in_both_backends(what: str, outcome: Outcome) -> None:
    drawn = plot(outcome, what)
    assert isinstance(drawn, go.Figure)
    axes = plot(outcome, what, backend="matplotlib")
    assert axes.get_xlabel()
    same_points(drawn, axes)
    axes.figure.savefig(__import__("io").BytesIO())
    matplotlib.pyplot.close(axes.figure)


@pytest.mark.parametrize("what", OF_LAW)
def test_figures_of_a_law_are_the_same_in_both_backends(what: str, law: Any, table: TrialTable) -> None:
    axes = plot(law, what, table=table, backend="matplotlib")
    same_points(plot(law, what, table=table), axes)
    matplotlib.pyplot.close(axes.figure)


def test_other_results_have_a_figure_too(law: Any, table: TrialTable) -> None:
    registered = preregistration.register(law, size=1e9, tokens=1e11)
    check = verify_rule("lr ~ D^-0.5", LMOBound(1, 1, 1))
    for result in (table, check, registered, registered.score(2.3), law):
        axes = plot(result, backend="matplotlib")
        same_points(plot(result), axes)
        matplotlib.pyplot.close(axes.figure)
    _, own = matplotlib.pyplot.subplots()
    assert plot(table, backend="matplotlib", axes=own) is own
    matplotlib.pyplot.close(own.figure)


@pytest.mark.parametrize(
    ("ask", "says"),
    [
        (lambda law: plot(3), "no figure of a int"),
        (lambda law: plot(law, "loss"), "lr, batch"),
        (lambda law: plot(law, "residuals"), "pass table="),
        (lambda law: plot(law, backend="bokeh"), "plotly"),
        (lambda law: plot(TrialTable.from_records([PRUNED])), "nothing to draw"),
    ],
)
def test_what_cannot_be_drawn_is_said(ask: Callable[[Any], Any], says: str, law: Any) -> None:
    with pytest.raises(ValueError, match=says):
        ask(law)


def test_a_record_that_is_not_complete_is_no_point() -> None:
    made = [TrialRecord(size=1e6, tokens=1e8, batch=1e4, lr=1e-3, loss=3.0), PRUNED]
    assert len(plot(TrialTable.from_records(made)).data[0].x) == 1
