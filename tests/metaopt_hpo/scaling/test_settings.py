"""Settings as coordinates: offsets are found, and what was not run is said to be published."""

from __future__ import annotations

import math
from collections.abc import Mapping

import numpy as np
import pandas as pd
import pytest

from metaopt_hpo.scaling import Law, LawRefused, fit
from metaopt_hpo.scaling.forms.offsets import lr_offset
from metaopt_hpo.trials.settings import find, setting, word
from metaopt_hpo.trials.table import TrialTable

OFFSETS = {"linear": 0.0, "constant": -0.9, "cosine": -0.25}
LEVELS = {"linear": 0.0, "constant": 0.03, "cosine": 0.005}


def world(
    *,
    column: str = "lr_scheduler_type",
    offsets: Mapping[str, float] = OFFSETS,
    levels: Mapping[str, float] = LEVELS,
    noise: float = 2e-3,
    seed: int = 0,
    everywhere: bool = False,
) -> TrialTable:
    """Three sizes and lengths under the first value, others at one length only unless `everywhere`."""
    rng, rows = np.random.default_rng(seed), []
    for size in (3e7, 1e8, 3e8):
        for tokens in (3e9, 1e10, 3e10):
            for i, (value, offset) in enumerate(offsets.items()):
                if i and tokens != 1e10 and not everywhere:
                    continue
                best = math.log(3e-3) - 0.4 * math.log(size / 1e8) + 0.1 * math.log(tokens / 1e10) + offset
                floor = (
                    math.log(1.7 + 0.6 * (size / 1e8) ** -0.3 + 0.4 * (tokens / 1e10) ** -0.3) + levels[value]
                )
                for x in np.log(2e-3) + np.linspace(-2.4, 1.6, 8):
                    loss = math.exp(floor + 0.02 * (x - best) ** 2 + noise * rng.standard_normal())
                    row = {"size": size, "tokens": tokens, "batch": 2.0**19, "lr": math.exp(x), "loss": loss}
                    rows.append({**row, column: value})
    return TrialTable.from_frame(pd.DataFrame(rows))


def codes(found: object) -> set[str]:
    return {w.code for w in found.warnings}  # type: ignore[attr-defined]


def test_offsets_of_schedules_are_found_with_intervals_that_cover() -> None:
    inside: list[bool] = []
    for seed in range(4):
        law = fit(world(seed=seed), extra=("schedule",), draws=60)
        base = law.predict(1e9, 3e10, schedule="linear")
        for value in ("constant", "cosine"):
            p = law.predict(1e9, 3e10, schedule=value)
            truth = base.lr.value * math.exp(OFFSETS[value])
            assert p.lr.value == pytest.approx(truth, rel=0.12)
            assert p.loss.value / base.loss.value == pytest.approx(math.exp(LEVELS[value]), rel=2e-3)
            true_lr = 3e-3 * 10**-0.4 * 3**0.1 * math.exp(OFFSETS[value])
            inside.append(true_lr in p.lr)
            i = 1 + law.axes.names.index(f"schedule={value}")
            low, high = np.quantile(law.draws.a[:, i], [0.05, 0.95])
            inside.append(bool(low - 0.02 <= OFFSETS[value] <= high + 0.02))
    assert np.mean(inside) >= 0.75


def test_a_coordinate_moves_the_floor_and_the_forecast_of_its_runs() -> None:
    law = fit(world(everywhere=True), extra=("schedule",), draws=20)
    at = law.loss(1e8, 1e10, 2.0**19, 1.2e-3, extra={"schedule": "constant"})
    other = law.loss(1e8, 1e10, 2.0**19, 3e-3, extra={"schedule": "linear"})
    assert float(at / other) == pytest.approx(math.exp(LEVELS["constant"]), rel=3e-3)


def test_schedules_mixed_without_a_name_are_not_fitted_as_one() -> None:
    mixed = world()
    law = fit(mixed, draws=20)
    assert "schedule-mixed" in codes(law)
    alone = fit(mixed.select(lambda f: f["params"].str.contains("linear")), draws=20)
    assert law.predict(1e9, 3e10).lr.value == pytest.approx(alone.predict(1e9, 3e10).lr.value)
    assert codes(law) - {"schedule-mixed"} == codes(alone)


def test_a_schedule_that_was_not_run_is_answered_by_published_factors() -> None:
    law = fit(world(offsets={"linear": 0.0}), draws=40)
    own, other = law.predict(1e9, 3e10), law.predict(1e9, 3e10, schedule="constant")
    mean, spread = lr_offset("schedule", "constant", "linear")
    assert math.log(other.lr.value / own.lr.value) == pytest.approx(mean, abs=0.05)
    assert 0.26 <= math.exp(mean) <= 0.43
    width = math.log(other.lr.high / other.lr.low) - math.log(own.lr.high / own.lr.low)
    assert width > 0.3 * spread
    assert "schedule-not-run" in codes(other)
    assert "schedule-not-run" not in codes(law.predict(1e9, 3e10, schedule="LinearLR"))
    unheard = law.predict(1e9, 3e10, schedule="staircase")
    assert unheard.lr.high / unheard.lr.low > other.lr.high / other.lr.low


def test_nothing_is_said_of_other_schedules_where_the_trials_do_not_tell_theirs() -> None:
    frame = world(offsets={"linear": 0.0}).frame.assign(params="{}")
    law = fit(TrialTable(frame), draws=20)
    with pytest.raises(ValueError, match="do not say their schedule"):
        law.predict(1e9, 3e10, schedule="constant")


def test_a_run_of_ours_tells_its_schedule_by_its_strategy() -> None:
    table = world(column="strategy")
    law = fit(table, extra=("schedule",), draws=20)
    assert law.axes.levels["schedule"] == ("linear", "constant", "cosine")
    assert "strategies-mixed" not in codes(law)
    assert "strategies-mixed" in codes(fit(table, draws=20))


@pytest.mark.parametrize("column", ["optimizer", "config/optim.name", "optimiser"])
def test_an_optimizer_is_a_coordinate(column: str) -> None:
    offsets, levels = {"AdamW": 0.0, "Muon": 1.6}, {"AdamW": 0.0, "Muon": -0.02}
    table = world(column=column, offsets=offsets, levels=levels, everywhere=True)
    law = fit(table, extra=("optimizer",), draws=20)
    ratio = law.predict(1e9, 3e10, extra={"optimizer": "muon"}).lr.value / law.predict(1e9, 3e10).lr.value
    assert ratio == pytest.approx(math.exp(1.6), rel=0.15)
    assert "optimizer-mixed" in codes(fit(table, draws=20))


def test_parametrisations_are_never_mixed() -> None:
    table = world(column="mup", offsets={"False": 0.0, "True": 1.0}, levels={"False": 0.0, "True": 0.0})
    assert "parametrisation-mixed" in codes(fit(table, draws=20))
    with pytest.raises(ValueError, match="different quantities"):
        fit(table, extra=("parametrisation",))


def test_any_word_may_be_a_coordinate_and_one_that_is_missing_is_named() -> None:
    table = world(column="corpus", offsets={"web": 0.0, "code": 0.4}, levels={"web": 0.0, "code": -0.3})
    law = fit(table, extra=("corpus",), draws=20)
    p, q = law.predict(1e9, 3e10), law.predict(1e9, 3e10, extra={"corpus": "code"})
    assert q.loss.value / p.loss.value == pytest.approx(math.exp(-0.3), rel=0.02)
    with pytest.raises(ValueError, match="must be one of web, code"):
        law.predict(1e9, 3e10, extra={"corpus": "books"})
    with pytest.raises((ValueError, LawRefused), match="architecture"):
        fit(table, extra=("architecture",))


def test_a_law_with_settings_survives_its_file_and_a_refit() -> None:
    table = world()
    law = fit(table, extra=("schedule",), draws=20)
    again = Law.from_json(law.to_json())
    for value in OFFSETS:
        assert again.predict(1e9, 3e10, schedule=value) == law.predict(1e9, 3e10, schedule=value)
    refitted = law.refit(table)
    assert refitted.predict(1e9, 3e10, schedule="constant").lr.value == pytest.approx(
        law.predict(1e9, 3e10, schedule="constant").lr.value, rel=1e-3
    )
    assert refitted.floor.shift == pytest.approx(law.floor.shift, abs=1e-4)
    assert "schedule=constant" in law.describe()


@pytest.mark.parametrize(
    ("name", "value", "ours"),
    [
        ("schedule", "CosineAnnealingLR", "cosine"),
        ("schedule", "cosine_with_restarts", "cosine"),
        ("schedule", "linear-to-zero", "linear"),
        ("schedule", "warmup_stable_decay", "wsd"),
        ("schedule", "constant_with_warmup", "constant"),
        ("schedule", "inverse_sqrt", "inverse_sqrt"),
        ("schedule", None, ""),
        ("schedule", math.nan, ""),
        ("optimizer", "AdamW", "adamw"),
        ("optimizer", "adamw_torch_fused", "adamw"),
        ("optimizer", "Adafactor", "adafactor"),
        ("parametrisation", True, "mup"),
        ("parametrisation", "muP", "mup"),
        ("parametrisation", "standard", "sp"),
    ],
)
def test_words_of_tools_are_ours(name: str, value: object, ours: str) -> None:
    assert word(name, value) == ours


def test_a_setting_is_found_under_the_names_of_tools() -> None:
    assert find({"config/weightDecay": 0.1}, "weight_decay") == 0.1
    assert find({"adam_beta2": 0.95, "beta2": 0.99}, "beta2") == 0.99
    assert setting({"config/optimizer.name": "Muon"}, "optimizer") == "muon"
    assert setting({"base": "lion"}, "optimizer") == "lion"
    assert setting({"base": "gpt2"}, "optimizer") == ""
    assert setting({}, "schedule", "wsd") == "wsd"
