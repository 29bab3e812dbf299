"""LitGPT: the `train` and `optimizer` sections of a config of `litgpt pretrain`."""

from __future__ import annotations

from metaopt_hpo.plan.exporters.base import Exporter, Setup, as_yaml, commented, number
from metaopt_hpo.plan.recipe import Recipe


def export(recipe: Recipe, setup: Setup) -> str:
    """Fields of its `TrainArgs`; its schedule is a cosine from the warm-up on, whatever the recipe's."""
    at_once, times = setup.split(recipe)
    values = {
        "train": {
            "global_batch_size": at_once * times * setup.devices,
            "micro_batch_size": at_once,
            "lr_warmup_steps": setup.steps(recipe, recipe.warmup),
            "max_tokens": round(recipe.target.tokens),
            "max_seq_length": setup.sequence_length,
            "max_norm": recipe.grad_clip,
            "min_lr": 0.0,
        },
        "optimizer": {
            "class_path": "torch.optim.AdamW",
            "init_args": {
                "lr": number(recipe.lr.value),
                "weight_decay": number(recipe.weight_decay.value),
                "betas": [0.9, 0.95],
            },
        },
    }
    remark = ""
    if recipe.target.schedule != "cosine":
        remark = f"# litgpt pretrain decays as a cosine; the recipe is for {recipe.target.schedule}\n"
    return commented(recipe, setup) + remark + as_yaml(values)


EXPORTER = Exporter("litgpt", "a config of litgpt pretrain", export)
