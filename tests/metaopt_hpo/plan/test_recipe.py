"""Recipes: from pilots of a known world, and planned anew."""

from __future__ import annotations

import dataclasses
import math
import tomllib
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from known_world import SMALL, TARGET, best_lr, worlds_trials
from typer.testing import CliRunner

from metaopt_hpo.plan import advise
from metaopt_hpo.plan.api import Plan, plan
from metaopt_hpo.plan.costs import PlanError
from metaopt_hpo.plan.estimate import Z90
from metaopt_hpo.plan.rebudget import lr_at, rebudget
from metaopt_hpo.plan.recipes import Recipe
from metaopt_hpo.scaling.forms.decay import MEAN
from metaopt_hpo.trials.record import TrialRecord
from metaopt_hpo.trials.table import TrialTable


def test_the_recipe_of_a_known_world_holds_its_lr_and_its_loss(made: Plan, recipe: Recipe) -> None:
    best = best_lr(made.target.size, made.target.tokens)
    assert recipe.lr.low <= best <= recipe.lr.high
    assert abs(math.log(recipe.lr.value / best)) < 0.4
    loss = 1.7 + 400 * made.target.size**-0.34 + 400 * made.target.tokens**-0.28
    assert recipe.loss.low <= loss <= recipe.loss.high
    assert recipe.batch.value == made.target.batch
    tau = recipe.batch.value / (recipe.lr.value * recipe.weight_decay.value * made.target.tokens)
    assert tau == pytest.approx(1.084 * 20**-0.527 * MEAN[made.target.schedule] / MEAN["linear"])
    assert recipe.within <= 4


def test_a_recipe_says_what_it_rests_on(made: Plan, recipe: Recipe) -> None:
    largest = max(p.size for p in made.pilots)
    assert recipe.basis.size == largest
    assert recipe.basis.ln_size == pytest.approx(math.log(made.target.size / largest))
    assert recipe.basis.wrong == pytest.approx(5 / 100)
    assert {"step-law", "deepseek"} <= {p.name.split(" ")[0].rstrip(",") for p in recipe.basis.published}
    said = str(recipe)
    for unit in (
        "tokens per step",
        "nats per token",
        "no unit",
        "steps)",
        "FLOPs",
        "wrong without a warning",
        "published",
    ):
        assert unit in said
    assert all(line.split()[-1] for line in said.splitlines() if line)
    assert "<table>" in recipe._repr_html_()
    assert "<script" not in recipe._repr_html_()


def test_extrapolation_to_hundreds_of_billions_says_so(made: Plan) -> None:
    far = dataclasses.replace(made, target=dataclasses.replace(made.target, size=4e11, tokens=1.5e13))
    found = far.recipe(list(worlds_trials(made)))
    assert any("checked up to 12 times" in w for w in found.warnings)
    assert "this is" in found.basis.wrong_source
    assert found.lr.high / found.lr.low > 2


def test_recipes_are_read_as_they_were_written(recipe: Recipe, tmp_path: Path) -> None:
    recipe.write(tmp_path / "recipe.toml")
    assert Recipe.read(tmp_path / "recipe.toml") == recipe


def test_no_pilot_no_recipe(made: Plan, tmp_path: Path) -> None:
    with pytest.raises(PlanError, match="no pilot has finished"):
        made.recipe([])
    lost = [dataclasses.replace(r, state="diverged", loss=math.nan) for r in worlds_trials(made)]
    with pytest.raises(PlanError, match="no pilot has finished"):
        made.recipe(lost)
    with pytest.raises(PlanError, match="holds no running plan"):
        made.recipe(tmp_path)


def test_one_pilot_is_enough_for_a_recipe_with_a_warning(made: Plan) -> None:
    found = made.recipe(list(worlds_trials(made))[:1])
    assert any("only 1 pilot" in w for w in found.warnings)
    assert found.lr.low < found.lr.value < found.lr.high


def of_one_size(made: Plan, count: int) -> list[TrialRecord]:
    """Pilots of the smallest cell."""
    first = next(worlds_trials(made))
    return [dataclasses.replace(first, trial=str(i), study=str(i), seed=i) for i in range(count)]


@pytest.mark.parametrize("count", [1, 2, 4])
@pytest.mark.parametrize("base", [(), ("fitted-step-law",)])
def test_the_loss_of_pilots_too_few_to_predict_it_is_a_bound(
    made: Plan, count: int, base: tuple[str, ...], tmp_path: Path
) -> None:
    plan = dataclasses.replace(made, base=base)
    trials = of_one_size(plan, count)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(advise, "law_of", lambda *_: (None, "too few"))
        found = plan.recipe(trials)
    best = min(r.loss for r in trials)
    truth = 1.7 + 400 * plan.target.size**-0.34 + 400 * plan.target.tokens**-0.28
    assert found.loss.low <= truth < best == found.loss.high
    assert found.loss.low < best * math.exp(-1.6 * plan.before.loss / 2)
    assert not any("band" in s for s in (*found.stop, *found.watch))
    assert sum("the loss is no prediction" in w for w in found.warnings) == 1
    assert found.loss.at_most is not bool(base)
    assert (f"at most {best:.4g}" in str(found)) is not bool(base)
    assert ("loss, at most" in found.export("card")) is not bool(base)
    if base:
        assert found.loss.value < best
    found.write(tmp_path / "recipe.toml")
    assert Recipe.read(tmp_path / "recipe.toml") == found


def test_pilots_that_span_sizes_predict_the_loss_and_bear_a_stop_rule(recipe: Recipe) -> None:
    assert any("band" in s for s in recipe.stop)
    assert not recipe.loss.at_most
    assert not any("no prediction" in w for w in recipe.warnings)


def test_a_shorter_end_is_not_bounded_by_longer_pilots(made: Plan) -> None:
    trials = of_one_size(made, 1)
    new = made.rebudget(trials, seen=1e6, tokens=trials[0].tokens / 10)
    assert new.loss is not None
    assert not new.loss.at_most
    assert new.loss.low < trials[0].loss < new.loss.high


def test_a_batch_that_no_pilot_told_is_as_uncertain_as_before_them() -> None:
    plan_of_all = plan(**TARGET)
    assert plan_of_all.expected.batch < plan_of_all.before.batch
    found = plan_of_all.recipe(list(worlds_trials(plan_of_all))[:1])
    width = math.log(found.batch.high / found.batch.value)
    assert width == pytest.approx(Z90 * plan_of_all.before.batch)


@given(
    seen=st.floats(0, 0.999),
    end=st.floats(1e-3, 4.0),
    schedule=st.sampled_from(["wsd", "linear", "cosine", "constant"]),
)
@settings(max_examples=50, deadline=None)
def test_a_new_end_goes_on_from_the_lr_at_hand_and_falls_to_zero(
    seen: float, end: float, schedule: str
) -> None:
    r = dataclasses.replace(SMALL, target=dataclasses.replace(SMALL.target, schedule=schedule))
    total = r.target.tokens
    if seen >= end:
        with pytest.raises(PlanError, match="name a later end"):
            rebudget(r, seen=seen * total, tokens=end * total)
        return
    new = rebudget(r, seen=seen * total, tokens=end * total)
    assert new.lr(seen * total) == pytest.approx(lr_at(r, seen * total))
    assert new.lr(end * total) == 0
    rates = [new.lr(t) for t in np.linspace(seen * total, end * total, 50)]
    assert max(rates) <= r.lr.value * (1 + 1e-9)
    peak = int(np.argmax(rates))
    assert all(b <= a * (1 + 1e-9) for a, b in zip(rates[peak:], rates[peak + 1 :], strict=False))
    assert new.steps * new.batch >= (end - seen) * total * (1 - 1e-9)


def test_a_run_that_has_decayed_is_told_where_to_go_on_from() -> None:
    end = SMALL.target.tokens
    assert "checkpoint of 1.12T tokens" in rebudget(SMALL, seen=end, tokens=2 * end).note
    assert "checkpoint" not in rebudget(SMALL, seen=0.99 * end, tokens=2 * end).note


def test_rebudget_expects_more_loss_of_less(made: Plan) -> None:
    trials = list(worlds_trials(made))
    half, double = (made.rebudget(trials, seen=5e9, tokens=t) for t in (1e10, 4e10))
    assert half.loss is not None
    assert double.loss is not None
    assert half.loss.value > double.loss.value
    assert "tokens: lr" in str(half)


def test_a_schedule_that_cannot_be_planned_anew() -> None:
    with pytest.raises(ValueError, match="schedule"):
        rebudget(SMALL, seen=5e9, tokens=1e10, schedule="cosine")


def run(*args: object) -> str:
    from metaopt_hpo.cli import app

    done = CliRunner().invoke(app, [str(a) for a in args], catch_exceptions=False)
    assert done.exit_code == 0, done.output
    return done.stdout


def test_the_commands(made: Plan, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    said = run(
        "plan", "--target", "1B", "--tokens", "20B", "--batch", "262144", "--base", "none", "--budget", "5 %"
    )
    assert "pilots that pay" in said
    assert Plan.read("plan.toml").pilots == made.pilots
    TrialTable.from_records(list(worlds_trials(made)), warn=False).write("pilots.parquet")
    said = run("recipe", "plan.toml", "--trials", "pilots.parquet")
    assert "recipe for 1B parameters" in said
    to = ("--to", "torchtitan", "--sequence-length", "4k", "--out", "job.toml")
    run("recipe", "plan.toml", "--trials", "pilots.parquet", *to)
    assert tomllib.loads(Path("job.toml").read_text())["training"]["seq_len"] == 4000
    assert tomllib.loads(Path("job.toml").read_text())["optimizer"]["name"] == "AdamW"
    with pytest.raises(Exception, match=r"metaopt-hpo run plan\.toml"):
        run("recipe", "plan.toml")
    needed = run("plan", "--target", "1B", "--tokens", "20B", "--know-lr", "0.8", "--out", "other.toml")
    assert "in lr" in needed


def test_the_settings_of_a_program_take_numbers_as_people_write_them(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("train.py").write_text("")
    command = "python train.py --width {width} --lr {lr} --steps {steps}"
    settings = ("--set", "sizes=128:400k,256:1.6M,512:6_400_000", "--set", "batch=64k")
    at = ("--target", "100M", "--tokens", "2B", "--budget", "20 %", "--base", "none")
    run("plan", *at, "--workload", command, *settings)
    read = Plan.read("plan.toml")
    assert read.target.batch == 64_000
    assert set(read.vary.sizes) == {4e5, 1.6e6, 6.4e6}
    with pytest.raises(Exception, match="--set gives batch twice"):
        run("plan", *at, "--workload", command, *settings, "--set", "batch=32k")
