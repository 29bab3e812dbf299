"""A recipe as text for a terminal and as HTML for a notebook, units in each line."""

from __future__ import annotations

import math

from metaopt_hpo.plan.recipe import Recipe
from metaopt_hpo.plan.show import count, page_part
from metaopt_hpo.plan.words import short


def lines(recipe: Recipe) -> list[tuple[str, str, str, str]]:
    """What, value, interval, unit."""
    r = recipe

    def between(low: float, high: float) -> str:
        return f"{low:.4g} to {high:.4g}" if high > low else "given"

    out = [
        ("learning rate, peak", f"{r.lr.value:.4g}", between(r.lr.low, r.lr.high), "no unit"),
        ("batch", f"{r.batch.value:.4g}", between(r.batch.low, r.batch.high), "tokens per step"),
    ]
    out += [
        ("batch before that", f"{b:.4g}", "", f"tokens per step, from {short(t) if t else 0} tokens on")
        for t, b in r.ramp[:-1]
    ]
    decay = f"decay to zero over the last {short(r.cooldown)} tokens ({r.cooldown_steps} steps)"
    wd = r.weight_decay
    return [
        *out,
        ("weight decay", f"{wd.value:.3g}", between(wd.low, wd.high), "times lr, a step"),
        ("warm-up", short(r.warmup), "", f"tokens ({r.warmup_steps} steps)"),
        ("schedule", r.target.schedule, "", decay),
        ("length", short(r.target.tokens), "", f"tokens ({r.steps} steps)"),
        ("gradient clipping", f"{r.grad_clip:g}", "", "norm of the gradient"),
        (
            "loss at the end",
            f"{'at most ' if r.loss.at_most else ''}{r.loss.value:.4g}",
            between(r.loss.low, r.loss.high),
            "nats per token",
        ),
        ("metaoptimize", f"expected={r.lr.value:.4g}, within={r.within:.3g}", "", "a factor about lr"),
        ("compute", f"{r.cost.flops:.3g}", "", f"FLOPs ({r.cost.gpu_hours:.3g} device-hours)"),
    ]


def notes(recipe: Recipe) -> list[str]:
    """What it rests on, what to watch, when to stop, and what speaks against it."""
    b = recipe.basis
    out = [
        f"rests on: {count(b.runs, 'pilot')}, the largest of {short(b.size)} parameters, the longest "
        f"of {short(b.tokens)} tokens; the target is {math.exp(b.ln_size):.3g} times as large (ln {b.ln_size:.2f}) and "
        f"{math.exp(b.ln_tokens):.3g} times as long (ln {b.ln_tokens:.2f})"
    ]
    if b.wrong is not None:
        out.append(f"wrong without a warning: {b.wrong:.0%} ({b.wrong_source})")
    for p in b.published:
        values = [
            f"lr {p.lr:.3g}" if p.lr is not None else "",
            f"batch {p.batch:.3g} tokens per step" if p.batch is not None else "",
            f"loss {p.loss:.4g} nats per token of its own tokenizer" if p.loss is not None else "",
        ]
        out.append(f"published, {p.name}: {', '.join(v for v in values if v)}")
    out += [f"watch: {w}" for w in recipe.watch]
    out += [f"stop: {s}" for s in recipe.stop]
    return out + [f"warning: {w}" for w in recipe.warnings]


def text(recipe: Recipe) -> str:
    """For a terminal."""
    table = lines(recipe)
    widths = [max(len(row[i]) for row in table) for i in range(3)]
    body = [
        "  ".join([*(c.ljust(w) for c, w in zip(row, widths, strict=False)), row[3]]).rstrip()
        for row in table
    ]
    return "\n".join([_title(recipe), *body, "", *notes(recipe)])


def html(recipe: Recipe) -> str:
    """For a notebook."""
    columns = ("what", "value", f"interval at {recipe.level:.0%}", "unit")
    return page_part("Recipe", [_title(recipe)], columns, lines(recipe), notes(recipe))


def _title(recipe: Recipe) -> str:
    t = recipe.target
    return (
        f"recipe for {short(t.size)} parameters and {short(t.tokens)} tokens; intervals at {recipe.level:.0%}"
    )
