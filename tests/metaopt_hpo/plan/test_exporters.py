"""Recipes as configurations of other tools, read by the tools' own parsers where these install."""

from __future__ import annotations

import dataclasses
import sys
import tomllib
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st
from known_world import SMALL

from metaopt_hpo.plan.costs import PlanError
from metaopt_hpo.plan.exporters import Setup, export, exporters
from metaopt_hpo.plan.recipes import Recipe


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
