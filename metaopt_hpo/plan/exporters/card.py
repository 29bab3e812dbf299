"""A section of a model card: how the hyperparameters were chosen."""

from __future__ import annotations

import math

from metaopt_hpo.markdown import markdown_table
from metaopt_hpo.plan.exporters.base import Exporter, Setup
from metaopt_hpo.plan.recipe import Recipe
from metaopt_hpo.plan.words import short


def export(recipe: Recipe, setup: Setup) -> str:
    """Markdown."""
    r, b = recipe, recipe.basis
    rows = [
        ("parameters (non-embedding)", short(r.target.size), ""),
        ("training tokens", short(r.target.tokens), ""),
        ("peak learning rate", f"{r.lr.value:.4g}", f"{r.lr.low:.3g} to {r.lr.high:.3g}"),
        ("batch, tokens per step", short(r.batch.value), f"{short(r.batch.low)} to {short(r.batch.high)}"),
        (
            "weight decay, times lr, a step",
            f"{r.weight_decay.value:.3g}",
            f"{r.weight_decay.low:.2g} to {r.weight_decay.high:.2g}",
        ),
        ("warm-up, tokens", short(r.warmup), ""),
        ("decay to zero, tokens", f"{short(r.cooldown)} ({r.target.schedule})", ""),
        ("gradient clipping, norm", f"{r.grad_clip:g}", ""),
        (
            f"{'loss, at most' if r.loss.at_most else 'predicted loss'}, nats per token",
            f"{r.loss.value:.4g}",
            f"{r.loss.low:.4g} to {r.loss.high:.4g}",
        ),
        ("training compute, FLOPs", f"{r.cost.flops:.3g}", ""),
    ]
    lines = [
        "## Choice of hyperparameters",
        "",
        markdown_table(["quantity", "value", f"interval at {r.level:.0%}"], rows),
        "",
        f"Predicted by metaopt-hpo from {b.runs} small runs of at most {short(b.size)} parameters and "
        f"{short(b.tokens)} tokens; the model is {math.exp(b.ln_size):.3g} times larger and was trained "
        f"{math.exp(b.ln_tokens):.3g} times longer.",
    ]
    if b.wrong is not None:
        lines.append(
            f"Such predictions were wrong without a warning in {b.wrong:.0%} of cases: {b.wrong_source}."
        )
    said = [(p.name, p.lr) for p in b.published if p.lr is not None]
    if said:
        lines.append(
            "Published laws say of the same model: " + "; ".join(f"{n}, lr {v:.3g}" for n, v in said) + "."
        )
    lines += [*(f"- {w}" for w in r.warnings), ""]
    return "\n".join(lines)


EXPORTER = Exporter("card", "a section of a model card, in Markdown", export)
