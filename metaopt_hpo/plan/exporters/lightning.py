"""Lightning: the trainer's and the optimizer's sections of a LightningCLI configuration."""

from __future__ import annotations

from metaopt_hpo.plan.exporters.base import Exporter, Setup, as_yaml, commented, number
from metaopt_hpo.plan.recipe import Recipe


def export(recipe: Recipe, setup: Setup) -> str:
    """`trainer` and `optimizer`; the schedule as a remark, for a LightningCLI steps schedulers once an epoch."""
    at_once, times = setup.split(recipe)
    values = {
        "trainer": {
            "max_steps": max(1, setup.steps(recipe, recipe.target.tokens)),
            "accumulate_grad_batches": times,
            "gradient_clip_val": recipe.grad_clip,
            "gradient_clip_algorithm": "norm",
            "devices": setup.devices,
        },
        "optimizer": {
            "class_path": "torch.optim.AdamW",
            "init_args": {
                "lr": number(recipe.lr.value),
                "betas": [0.9, 0.95],
                "weight_decay": number(recipe.weight_decay.value),
            },
        },
    }
    warm, decay = setup.steps(recipe, recipe.warmup), setup.steps(recipe, recipe.cooldown)
    schedule = (
        f"# schedule {recipe.target.schedule}, in optimizer steps (configure_optimizers with interval='step'): "
        f"warm-up {warm}, decay over the last {decay}\n"
        f"# sequences a device takes at once (the data module's batch size): {at_once}\n"
    )
    return commented(recipe, setup) + schedule + as_yaml(values)


EXPORTER = Exporter("lightning", "Trainer and optimizer, as LightningCLI and jsonargparse write them", export)
