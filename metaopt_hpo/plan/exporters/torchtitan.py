"""torchtitan up to 0.2: the sections of a job's TOML (fields of its `JobConfig`); later ones take Python."""

from __future__ import annotations

import tomlkit

from metaopt_hpo.plan.exporters.base import Exporter, Setup, commented, number
from metaopt_hpo.plan.recipe import Recipe


def sections(recipe: Recipe, setup: Setup) -> dict[str, dict[str, object]]:
    """`optimizer`, `lr_scheduler`, `training`."""
    at_once, times = setup.split(recipe)
    steps = max(1, setup.steps(recipe, recipe.target.tokens))
    scheduler: dict[str, object] = {"warmup_steps": setup.steps(recipe, recipe.warmup)}
    if recipe.target.schedule == "wsd":
        scheduler["decay_ratio"] = number(recipe.cooldown / recipe.target.tokens)
    elif recipe.target.schedule == "constant":
        scheduler["decay_ratio"] = 0.0
    scheduler["decay_type"] = "cosine" if recipe.target.schedule == "cosine" else "linear"
    return {
        "optimizer": {
            "name": "AdamW",
            "lr": number(recipe.lr.value),
            "beta1": 0.9,
            "beta2": 0.95,
            "weight_decay": number(recipe.weight_decay.value),
        },
        "lr_scheduler": scheduler,
        "training": {
            "local_batch_size": at_once,
            "global_batch_size": at_once * times * setup.devices,
            "seq_len": setup.sequence_length,
            "max_norm": recipe.grad_clip,
            "steps": steps,
        },
    }


def export(recipe: Recipe, setup: Setup) -> str:
    """The TOML."""
    later = "# for torchtitan up to 0.2; from 0.3 on its jobs are Python: --to torchtitan-python\n"
    return commented(recipe, setup) + later + tomlkit.dumps(sections(recipe, setup))


EXPORTER = Exporter("torchtitan", "a job's TOML, up to 0.2", export)
