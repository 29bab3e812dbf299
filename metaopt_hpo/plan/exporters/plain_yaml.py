"""Plain YAML with plain names, for a tool of one's own."""

from __future__ import annotations

from metaopt_hpo.plan.exporters.base import Exporter, Setup, as_yaml, commented, number
from metaopt_hpo.plan.recipe import Recipe


def export(recipe: Recipe, setup: Setup) -> str:
    """Values and intervals, steps counted at the batch as it really becomes."""
    r = recipe
    ranges = {
        "lr": r.lr,
        "batch_tokens": r.batch,
        "weight_decay": r.weight_decay,
        "loss_nats_per_token": r.loss,
    }
    values: dict[str, object] = {
        "size_parameters": r.target.size,
        "tokens": r.target.tokens,
        "schedule": r.target.schedule,
        **{name: number(v.value) for name, v in ranges.items()},
        "intervals": {name: [number(v.low), number(v.high)] for name, v in ranges.items()},
        "level": r.level,
        "steps": max(1, setup.steps(r, r.target.tokens)),
        "warmup_steps": setup.steps(r, r.warmup),
        "cooldown_steps": setup.steps(r, r.cooldown),
        "grad_clip": r.grad_clip,
        "batch_ramp": [{"from_tokens": number(t), "batch_tokens": number(b)} for t, b in r.ramp],
        "metaoptimize": {"expected": number(r.lr.value), "within": number(r.within)},
        "watch": list(r.watch),
        "stop": list(r.stop),
    }
    return commented(recipe, setup) + as_yaml(values)


EXPORTER = Exporter("yaml", "plain names, for a tool of your own", export)
