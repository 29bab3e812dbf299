"""nanochat: arguments of `scripts.base_train`, whose matrices are trained by Muon."""

from __future__ import annotations

from metaopt_hpo.plan.exporters.base import Exporter, Setup, commented, number
from metaopt_hpo.plan.recipe import Recipe


def export(recipe: Recipe, setup: Setup) -> str:
    """A command line."""
    at_once, _ = setup.split(recipe)
    decay = {"wsd": recipe.cooldown / recipe.target.tokens, "constant": 0.0}.get(recipe.target.schedule, 1.0)
    options = {
        "max-seq-len": setup.sequence_length,
        "device-batch-size": at_once,
        "total-batch-size": setup.real_batch(recipe),
        "num-iterations": max(1, setup.steps(recipe, recipe.target.tokens)),
        "matrix-lr": number(recipe.lr.value),
        "weight-decay": number(recipe.weight_decay.value),
        "warmup-steps": setup.steps(recipe, recipe.warmup),
        "warmdown-ratio": number(decay),
        "final-lr-frac": 0.0,
    }
    remark = (
        "# --matrix-lr is Muon's: right where the pilots were nanochat's own runs; its other rates stay\n"
    )
    lines = " \\\n".join(f"    --{name}={value}" for name, value in options.items())
    return (
        commented(recipe, setup)
        + remark
        + f"torchrun --nproc_per_node={setup.devices} -m scripts.base_train -- \\\n{lines}\n"
    )


EXPORTER = Exporter("nanochat", "arguments of scripts.base_train", export)
