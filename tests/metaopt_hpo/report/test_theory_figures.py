"""Sections of verify-rule and attribute: what they state, that user text is escaped, what their figures hold."""

from __future__ import annotations

import numpy as np
import pytest

from metaopt_hpo.attribution import ExperimentConfig, GridResult, WorldRuns, attribute
from metaopt_hpo.attribution.levels import factorial
from metaopt_hpo.attribution.outcome import Attribution
from metaopt_hpo.report.attribution_page import (
    attribution_page,
    attribution_section,
    parts_figure,
    path_figure,
)
from metaopt_hpo.report.rule_page import rule_figure, rule_page, rule_section
from metaopt_hpo.theory import LMOBound, verify_rule

STEP_LAW = verify_rule("lr ~ D^.307, B ~ D^.571", LMOBound(1, 1, 1))


@pytest.fixture(scope="module")
def attribution():
    config = ExperimentConfig(factors=("schedule",), levels=False, seeds=(0, 1, 2))
    d, b = config.cells
    cube = factorial(config.factors)
    lr = np.exp(np.linspace(-8, 2, 11)) * (b / d)[:, None] ** 0.5
    centre = np.log((b / d) ** 0.5)[:, None, None] - 3
    bowl = np.exp(0.1 * (np.log(lr)[:, :, None] - centre) ** 2)
    criteria = np.stack([np.stack([bowl.repeat(3, axis=2)] * 4, axis=-1)] * 2, axis=1)
    grid = GridResult(
        "<b>world</b>", d, b, lr, tuple(cube), config.seeds, criteria, np.full(criteria.shape[:-1], 0.5)
    )
    return Attribution(0, (attribute(WorldRuns((grid,)), config),), 1.0)


def test_rule_section_states_the_label_and_the_rates():
    section = rule_section(STEP_LAW)
    for text in ("misaligned (proved)", "0.5215", "0.557", "simplified form", "constant factor (checked)"):
        assert text in section
    assert "<script" in section  # the figure's data
    assert "plotly.min.js" not in section  # but not the library


def test_heuristic_bounds_are_never_called_proved():
    check = verify_rule("lr ~ sqrt(B/D)", LMOBound(1, 1, 1, kind="power-law", source=0.5, capacity=0.5))
    section = rule_section(check)
    assert "heuristic" in section
    assert "(proved)" not in section


def test_rule_figure_shows_the_rule_on_the_upper_edge():
    traces = {t.name: t for t in rule_figure(STEP_LAW).data}
    edge = traces["slowest term"]
    assert np.interp(0.307, edge.x, edge.y) == pytest.approx(STEP_LAW.rule_rate, abs=5e-3)
    assert traces["the rule"].y[0] == STEP_LAW.rule_rate
    assert min(edge.y) == pytest.approx(STEP_LAW.rate_held, abs=5e-3)


def test_every_scale_of_a_rule_has_its_own_table_and_figure():
    section = rule_section(verify_rule("lr ~ n^-1 D^-0.5", LMOBound(1, 1, 1), "L ~ n^2"))
    assert "theory-rule-tokens" in section
    assert "theory-rule-width" in section


def test_attribution_section_holds_the_signed_table_and_escapes_names(attribution):
    section = attribution_section(attribution)
    assert "&lt;b&gt;world" in section
    assert "<b>world" not in section
    for part in ("slack", "criterion", "schedule", "total"):
        assert f"<td>{part}</td>" in section
    assert "seeds 0, 1, 2" in section


def test_figures_hold_the_parts_and_the_bound(attribution):
    bars = parts_figure(attribution).data[0]
    parts = attribution.findings[0].decomposition.parts
    assert list(bars.x) == [p.name for p in parts] + ["total"]
    assert list(bars.y)[:-1] == [p.phi.value for p in parts]
    bound = path_figure(attribution).data[0]
    assert list(bound.y) == pytest.approx([-0.5, -0.25, -0.2145, -0.09])


def test_page_is_self_contained_and_deterministic(attribution):
    for make, what in ((rule_page, STEP_LAW), (attribution_page, attribution)):
        page = make(what)
        assert page == make(what)
        assert "Content-Security-Policy" in page
        assert 'class="verdict answer"' in page
        assert 'src="http' not in page
        assert "<b>world" not in page
