"""torchtitan from 0.3 on, whose jobs are Python: a function that puts the recipe into one of its own configs."""

from __future__ import annotations

from metaopt_hpo.plan.exporters.base import Exporter, Setup, commented
from metaopt_hpo.plan.exporters.torchtitan import sections
from metaopt_hpo.plan.recipe import Recipe

HEAD = '''from torchtitan.components.optimizer import LRSchedulersContainer, default_adamw


def recipe(config):
    """Put the recipe into a config, in a `config_registry.py` as `def mine(): return recipe(llama3_8b())`."""
'''


def export(recipe: Recipe, setup: Setup) -> str:
    """A module with `recipe(config)`; fields of `Trainer.Config` that a recipe does not settle stay as they are."""
    parts = sections(recipe, setup)
    optimizer, scheduler, training = parts["optimizer"], parts["lr_scheduler"], parts["training"]
    betas = f"({optimizer['beta1']}, {optimizer['beta2']})"
    lines = [
        f"config.optimizer = default_adamw(lr={optimizer['lr']}, betas={betas}, "
        f"weight_decay={optimizer['weight_decay']})",
        f"config.lr_scheduler = LRSchedulersContainer.Config({', '.join(f'{k}={v!r}' for k, v in scheduler.items())})",
        *(f"config.training.{name} = {value!r}" for name, value in training.items()),
        "return config",
    ]
    return commented(recipe, setup) + HEAD + "".join(f"    {line}\n" for line in lines)


EXPORTER = Exporter("torchtitan-python", "a Python module for torchtitan from 0.3 on", export)
