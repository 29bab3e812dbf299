"""Hugging Face Trainer: TrainingArguments as YAML."""

from __future__ import annotations

from metaopt_hpo.plan.exporters.base import Exporter, Setup, as_yaml, commented, number
from metaopt_hpo.plan.recipe import Recipe

SCHEDULERS = {
    "wsd": "warmup_stable_decay",
    "linear": "linear",
    "cosine": "cosine",
    "constant": "constant_with_warmup",
}


def export(recipe: Recipe, setup: Setup) -> str:
    """As `HfArgumentParser(TrainingArguments).parse_yaml_file` reads it."""
    at_once, times = setup.split(recipe)
    values: dict[str, object] = {
        "output_dir": "out",
        "learning_rate": number(recipe.lr.value),
        "weight_decay": number(recipe.weight_decay.value),
        "optim": "adamw_torch",
        "adam_beta1": 0.9,
        "adam_beta2": 0.95,
        "max_grad_norm": recipe.grad_clip,
        "per_device_train_batch_size": at_once,
        "gradient_accumulation_steps": times,
        "max_steps": max(1, setup.steps(recipe, recipe.target.tokens)),
        "warmup_steps": setup.steps(recipe, recipe.warmup),
        "lr_scheduler_type": SCHEDULERS[recipe.target.schedule],
    }
    if recipe.target.schedule == "wsd":
        values["lr_scheduler_kwargs"] = {
            "num_decay_steps": max(1, setup.steps(recipe, recipe.cooldown)),
            "decay_type": "linear",
            "min_lr_ratio": 0.0,
        }
    return commented(recipe, setup) + as_yaml(values)


EXPORTER = Exporter("transformers", "TrainingArguments, for HfArgumentParser.parse_yaml_file", export)
