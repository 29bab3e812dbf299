"""Recipes: from pilots of a known world, exported and read by the tools' own parsers, and planned anew."""

import dataclasses
import math
import sys
import tomllib
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import numpy as np
import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st
from typer.testing import CliRunner

from metaopt_hpo.plan import advise
from metaopt_hpo.plan.api import Plan, plan
from metaopt_hpo.plan.costs import Cost, PlanError
from metaopt_hpo.plan.estimate import Z90
from metaopt_hpo.plan.exporters import Setup, export, exporters
from metaopt_hpo.plan.model import Target
from metaopt_hpo.plan.rebudget import lr_at, rebudget
from metaopt_hpo.plan.recipe import Basis, Range
from metaopt_hpo.plan.recipes import Recipe
from metaopt_hpo.scaling.forms.decay import MEAN
from metaopt_hpo.trials.record import TrialRecord
from metaopt_hpo.trials.table import TrialTable

ONE = Range(value=1e-3, low=5e-4, high=2e-3)
SMALL = Recipe(
    target=Target(size=7e9, tokens=1.4e12),
    lr=ONE,
    batch=Range(value=4e6, low=2e6, high=8e6),
    ramp=((0.0, 1e6), (1e10, 4e6)),
    weight_decay=ONE,
    warmup=1e10,
    cooldown=2.8e11,
    loss=Range(value=2.0, low=1.9, high=2.1),
    within=2.0,
    cost=Cost(flops=5.9e22),
    basis=Basis(runs=6, size=1e8, tokens=2e9, ln_size=4.2, ln_tokens=6.5),
)
TARGET = {"target": 1e9, "tokens": 2e10, "budget": "5 % of the target", "base": []}


def best_lr(size: float, tokens: float) -> float:
    return 3e-3 * (size / 1e7) ** -0.35 * (tokens / 2e8) ** -0.1


def worlds_trials(made: Plan, seed: int = 0, offset: float = 0.0) -> Iterator[TrialRecord]:
    """What the plan's pilots would give in a world whose best lr is known."""
    rng = np.random.default_rng(seed)
    for i, p in enumerate(made.pilots):
        best = best_lr(p.size, p.tokens)
        own = p.strategy == "metaoptimize"
        found = best * math.exp(offset + 0.1 * rng.standard_normal())
        lr = 1e-3 if own else best * (0.5, 1.0, 2.0)[i % 3]
        away = math.log((found if own else lr) / best)
        floor = 1.7 + 400 * p.size**-0.34 + 400 * p.tokens**-0.28
        yield TrialRecord(
            trial=p.name,
            study=p.name,
            strategy=p.strategy,
            tuning="self" if own else "external",
            found_lr=found if own else math.nan,
            lr=lr,
            size=p.size,
            tokens=p.tokens,
            target_tokens=p.tokens,
            batch=p.batch,
            loss=floor * math.exp(0.05 * away**2 + 1e-3 * rng.standard_normal()),
            state="complete",
            seed=p.seed,
        )


@pytest.fixture(scope="module")
def made() -> Plan:
    return plan(**TARGET, batch=2**18)


@pytest.fixture(scope="module")
def recipe(made: Plan) -> Recipe:
    return made.recipe(list(worlds_trials(made)))


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


@pytest.mark.parametrize("to", exporters())
def test_every_export_says_units_and_intervals(recipe: Recipe, to: str) -> None:
    text = recipe.export(to, sequence_length=2048, devices=8)
    assert "tokens per step" in text
    assert "nats per token" in text


@pytest.mark.parametrize("schedule", ["wsd", "linear", "cosine", "constant"])
def test_transformers_reads_its_export_and_makes_the_schedule(
    recipe: Recipe, schedule: str, tmp_path: Path
) -> None:
    transformers = pytest.importorskip("transformers")
    torch = pytest.importorskip("torch")
    target = dataclasses.replace(recipe.target, schedule=schedule)
    text = export(dataclasses.replace(recipe, target=target), "transformers", Setup(devices=1))
    path = tmp_path / "train.yaml"
    path.write_text(text, encoding="utf-8")
    (arguments,) = transformers.HfArgumentParser(transformers.TrainingArguments).parse_yaml_file(str(path))
    assert arguments.learning_rate == pytest.approx(recipe.lr.value, rel=1e-3)
    batch = arguments.per_device_train_batch_size * arguments.gradient_accumulation_steps * 2048
    assert batch == pytest.approx(recipe.batch.value, rel=0.1)
    assert batch * arguments.max_steps == pytest.approx(recipe.target.tokens, rel=0.01)
    optimizer = torch.optim.AdamW([torch.nn.Parameter(torch.zeros(1))], lr=arguments.learning_rate)
    scheduler = transformers.get_scheduler(
        arguments.lr_scheduler_type,
        optimizer,
        num_warmup_steps=arguments.warmup_steps,
        num_training_steps=arguments.max_steps,
        scheduler_specific_kwargs=arguments.lr_scheduler_kwargs or None,
    )
    rate = scheduler.lr_lambdas[0]
    middle = rate(arguments.max_steps // 2)
    assert middle == pytest.approx({"wsd": 1, "constant": 1}.get(schedule, 0.5), abs=0.05)
    assert rate(arguments.max_steps) == pytest.approx(1.0 if schedule == "constant" else 0.0, abs=0.01)


def test_lightning_takes_the_trainers_section(recipe: Recipe) -> None:
    lightning = pytest.importorskip("lightning")
    values = yaml.safe_load(recipe.export("lightning"))
    trainer = lightning.Trainer(
        **values["trainer"], accelerator="cpu", logger=False, enable_checkpointing=False
    )
    assert trainer.max_steps == values["trainer"]["max_steps"]
    assert values["optimizer"]["class_path"] == "torch.optim.AdamW"


TITAN = {
    "optimizer": {"name", "lr", "beta1", "beta2", "eps", "weight_decay", "implementation"},
    "lr_scheduler": {"warmup_steps", "decay_ratio", "decay_type", "min_lr_factor"},
    "training": {"local_batch_size", "global_batch_size", "seq_len", "max_norm", "steps"},
}
"""Fields of torchtitan's JobConfig."""

LITGPT = {
    "train": {
        *(
            "global_batch_size",
            "micro_batch_size",
            "lr_warmup_steps",
            "lr_warmup_fraction",
            "epochs",
            "max_tokens",
        ),
        *("max_steps", "max_time", "max_seq_length", "tie_embeddings", "max_norm", "min_lr"),
    },
    "optimizer": {"class_path", "init_args"},
}
"""Fields of LitGPT's TrainArgs."""

NANOCHAT = {
    *("max-seq-len", "device-batch-size", "total-batch-size", "num-iterations", "matrix-lr", "weight-decay"),
    *("warmup-steps", "warmdown-ratio", "final-lr-frac"),
}


def test_the_other_tools_get_fields_that_they_have(recipe: Recipe) -> None:
    titan = tomllib.loads(recipe.export("torchtitan", devices=8))
    assert all(set(titan[s]) <= known for s, known in TITAN.items())
    assert titan["training"]["global_batch_size"] * titan["training"]["seq_len"] == pytest.approx(2**18)
    lit = yaml.safe_load(recipe.export("litgpt", devices=8))
    assert all(set(lit[s]) <= known for s, known in LITGPT.items())
    chat = recipe.export("nanochat", devices=8)
    assert {
        word[2:].split("=")[0] for word in chat.split() if word.startswith("--") and "=" in word
    } >= NANOCHAT


def test_torchtitan_of_python_jobs_says_what_its_toml_says(recipe: Recipe) -> None:
    """The module runs against stand-ins of torchtitan's classes, which take its fields only."""

    class Training:
        __slots__ = tuple(TITAN["training"])

    def scheduler(**values: object) -> dict[str, object]:
        assert set(values) <= TITAN["lr_scheduler"]
        return values

    optimizer = ModuleType("torchtitan.components.optimizer")
    optimizer.__dict__.update(LRSchedulersContainer=SimpleNamespace(Config=scheduler), default_adamw=dict)
    room: dict[str, Any] = {}
    with pytest.MonkeyPatch.context() as patch:
        for name in ("torchtitan", "torchtitan.components"):
            patch.setitem(sys.modules, name, ModuleType(name))
        patch.setitem(sys.modules, optimizer.__name__, optimizer)
        exec(recipe.export("torchtitan-python", devices=8), room)
    config = room["recipe"](SimpleNamespace(training=Training()))
    toml = tomllib.loads(recipe.export("torchtitan", devices=8))
    assert {name: getattr(config.training, name) for name in TITAN["training"]} == toml["training"]
    assert config.lr_scheduler == toml["lr_scheduler"]
    betas = config.optimizer.pop("betas")
    assert (
        dict(zip(("beta1", "beta2"), betas, strict=True), name="AdamW", **config.optimizer)
        == toml["optimizer"]
    )


@given(
    batch=st.floats(min_value=1, max_value=1e8),
    length=st.integers(1, 10**5),
    devices=st.integers(1, 512),
    per_device=st.integers(1, 64),
)
@settings(max_examples=25, deadline=None)
def test_any_batch_can_be_written(batch: float, length: int, devices: int, per_device: int) -> None:
    r = dataclasses.replace(
        SMALL, batch=dataclasses.replace(SMALL.batch, value=batch, low=batch, high=batch), ramp=()
    )
    setup = Setup(sequence_length=length, devices=devices, per_device=per_device)
    assert setup.real_batch(r) >= length
    assert setup.split(r)[0] <= per_device
    for to in exporters():
        assert export(r, to, setup)


def test_bad_exports_are_one_sentence(recipe: Recipe) -> None:
    with pytest.raises(PlanError, match="no export to 'megatron'"):
        recipe.export("megatron")
    with pytest.raises(ValueError, match="devices"):
        recipe.export("yaml", devices=0)


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
