"""What kind of update a base rule makes, as far as it matters to how its step size is found."""

from __future__ import annotations

import torch

from metaopt_hpo.optim.rules import Rule, direction
from metaopt_hpo.strategies.any_optimizer import Given

USUAL_MEMORY = 10.0
"""Steps that the momentum of Adam remembers at its usual ρ = 0.9."""

FORGOTTEN = 4.0
"""Memories of a momentum after which the weights' jitter counts as independent: e⁻⁴ of it is left."""


@torch.no_grad()
def follows_gradient_size(rule: Rule) -> bool:
    """Whether a gradient twice as large makes an update twice as large, as under SGD, with or without momentum.

    Such a rule has no bound on an update. A step size above the edge of stability then makes ever larger gradients and
    updates until the network is lost (ReLUs that never fire again), where Adam or Lion only become noisy.
    """
    if isinstance(rule, Given):
        return False
    w = torch.tensor([[0.5, -1.0], [2.0, 0.25]], device="cpu")
    g = torch.tensor([[1.0, 2.0], [-0.5, 0.75]], device="cpu")
    try:
        own = rule.as_base().for_parameter(None, w)
        once, twice = (direction(own, k * g, own.init_state(w), 1.0, w, None)[0] for k in (1.0, 2.0))
        return bool(once.any()) and torch.allclose(twice, 2 * once)
    except Exception:  # a rule that wants names, as Muon does, or other weights; tensors without values
        return False


def memory(rule: Rule) -> float:
    """Steps that the momentum of a rule remembers, 1 / (1 − ρ); 1 where it has none.

    Lion keeps its momentum with the second of its betas, Adam with the first. What is not known counts as having none.
    """
    options = rule.options()
    betas = options.get("betas")
    found = [float(options.get("momentum") or 0.0)]
    if isinstance(betas, tuple) and betas:
        found.append(float(betas[0] if rule.uses_magnitude else max(betas)))
    return 1.0 / max(1e-6, 1.0 - max(found))


def slowness(rule: Rule) -> float:
    """Factor on the first step's limit and on the meta step: below 1 over a rule that takes only signs.

    Steps of a momentum that lasts M steps point the same way for as long, so that weights travel √M times as far at
    equal step sizes; and what a step size did shows M steps later, so that the search overshoots by as much. Weights
    that signs have made large stay large. Over Lion the factor is √(10 / 100), no worse than four others
    (`python -m studies.one_run.lion`).
    """
    return 1.0 if rule.uses_magnitude else min(1.0, (USUAL_MEMORY / memory(rule)) ** 0.5)
