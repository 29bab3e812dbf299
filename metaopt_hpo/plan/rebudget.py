"""A run whose budget shrinks or grows while it trains: the rest of its schedule, planned anew.

"wsd" keeps the lr and begins its linear decay when what is left is the decay's share of the new length, at once where
that has passed. "linear" goes from the lr at hand to zero over what is left. Decays to zero of about a fifth of the run
do as well as a schedule made for that length (Hägele et al. 2024, arXiv 2405.18392).
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from metaopt_hpo.plan.costs import PlanError, check
from metaopt_hpo.plan.recipe import Range, Recipe
from metaopt_hpo.plan.words import short


@dataclass(frozen=True, kw_only=True)
class Rebudget:
    """The rest of a run.

    Attributes:
        seen: tokens so far.
        tokens: where the run now ends.
        points: (tokens, lr), the lr linear between them.
        batch: tokens per step.
        loss: expected at the new end, nats per token.
        note: one sentence.
    """

    seen: float
    tokens: float
    points: tuple[tuple[float, float], ...]
    batch: float
    loss: Range | None
    note: str

    @property
    def steps(self) -> int:
        """Optimizer steps that are left."""
        return math.ceil((self.tokens - self.seen) / self.batch)

    @property
    def decay_at(self) -> float:
        """Tokens at which the decay to zero begins."""
        return self.points[-2][0]

    def lr(self, tokens: float) -> float:
        """lr once so many tokens are seen; 0 at the end.

        Raises:
            ValueError: before what was seen.
        """
        if tokens < self.seen:
            raise ValueError(f"tokens must be at least the {self.seen:g} that were seen, got {tokens!r}")
        if tokens >= self.tokens:
            return self.points[-1][1]
        for (a, x), (b, y) in zip(self.points, self.points[1:], strict=False):
            if tokens <= b:
                return x + (y - x) * (tokens - a) / (b - a) if b > a else y
        return 0.0

    def __str__(self) -> str:
        lines = [f"{self.note}", *(f"at {short(t) if t else '0'} tokens: lr {x:.4g}" for t, x in self.points)]
        lines.append(f"{self.steps} steps of {short(self.batch)} tokens are left")
        if self.loss is not None:
            lines.append(
                f"{'' if self.loss.at_most else 'expected '}loss at the end: {self.loss} nats per token"
            )
        return "\n".join(lines)


def lr_at(recipe: Recipe, tokens: float) -> float:
    """lr of a recipe's own schedule once so many tokens are seen."""
    peak, total = recipe.lr.value, recipe.target.tokens
    if recipe.warmup and tokens < recipe.warmup:
        return peak * tokens / recipe.warmup
    kind = recipe.target.schedule
    if kind == "constant":
        return peak
    begin = max(total - recipe.cooldown, recipe.warmup) if kind == "wsd" else recipe.warmup
    share = min(max((tokens - begin) / (total - begin), 0.0), 1.0) if total > begin else 1.0
    return peak * (0.5 * (1 + math.cos(math.pi * share)) if kind == "cosine" else 1.0 - share)


def rebudget(
    recipe: Recipe, *, seen: float, tokens: float, schedule: str = "", loss: Range | None = None
) -> Rebudget:
    """The rest of a run that now ends at `tokens`.

    Args:
        recipe: by which it has run so far.
        seen: tokens so far.
        tokens: the new end.
        schedule: "wsd" or "linear" (default: wsd where the recipe's is wsd or constant, else linear).
        loss: expected at the new end.

    Raises:
        PlanError: the new end is not beyond what was seen.
        ValueError: another schedule, or a number out of range.
    """
    check("seen", seen, zero=True)
    check("tokens", tokens)
    kind = schedule or ("wsd" if recipe.target.schedule in ("wsd", "constant") else "linear")
    if kind not in ("wsd", "linear"):
        raise ValueError(f"schedule must be 'wsd' or 'linear', got {schedule!r}")
    if seen >= tokens:
        raise PlanError(
            f"the run has seen {short(seen)} tokens and cannot end at {short(tokens)}: stop it, or name a later end"
        )
    now, peak = lr_at(recipe, seen), recipe.lr.value
    share = recipe.cooldown / recipe.target.tokens if recipe.target.schedule == "wsd" else 0.2
    points: list[tuple[float, float]] = [(seen, now)]
    change = (
        "longer"
        if tokens > recipe.target.tokens
        else "shorter"
        if tokens < recipe.target.tokens
        else "as long"
    )
    if seen < recipe.warmup and recipe.warmup < tokens:
        points.append((recipe.warmup, peak))
        now = peak
    start = points[-1][0]
    if kind == "wsd":
        begin = max(tokens * (1.0 - share), start)
        decayed = now < peak * (1 - 1e-9)
        if decayed and begin > start:  # the decay had begun: no way up again, which costs more than it gains
            begin = start
            note = f"the run is {change}; its decay had begun and is drawn out to the new end"
        else:
            note = f"the run is {change}: its lr stays until {short(begin)} tokens, then falls to zero"
        if begin > start:
            points.append((begin, now))
    else:
        note = f"the run is {change}: its lr falls to zero over what is left"
    if now == 0.0:
        before = short(recipe.target.tokens - recipe.cooldown)
        note = f"the run's lr has fallen to zero, so that it learns no more: go on from a checkpoint of {before} tokens"
    points.append((tokens, 0.0))
    return Rebudget(
        seen=seen,
        tokens=tokens,
        points=tuple(points),
        batch=recipe.ramp[-1][1] if recipe.ramp else recipe.batch.value,
        loss=loss,
        note=note,
    )
