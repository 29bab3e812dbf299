"""What `metaoptimize` says, once, over a base rule that its constants were not checked on."""

from __future__ import annotations

from metaopt_hpo.errors import MetaOptWarning, warn
from metaopt_hpo.optim.muon import Muon
from metaopt_hpo.optim.rules import SGDM, AdamW, Lion, RMSprop, Rule
from metaopt_hpo.strategies.any_optimizer import Given
from metaopt_hpo.strategies.torch_rules import TorchMomentum, TorchRMSprop

TRIED: tuple[type[Rule], ...] = (
    AdamW,
    RMSprop,
    TorchRMSprop,
    Lion,
    SGDM,
    TorchMomentum,
    Muon,
)
"""Base rules on which a run was compared with tuned schedules over the same rule (`studies.one_run.bases`); momentum
in torch's units is the same rule. Nesterov's step was not."""

_said: set[str] = set()


class UntriedBase(MetaOptWarning):
    """A step size is found over a base rule on which no run was compared with a tuned one."""


def say_if_untried(rule: Rule, called: str = "") -> None:
    """Warn where a rule is not among `TRIED`; once for each rule in a process.

    Args:
        rule: what moves the weights.
        called: its name where it is an optimizer that no rule is known for.
    """
    name = called if called and isinstance(rule, Given) else type(rule).__name__
    momentum = isinstance(rule, SGDM | TorchMomentum)
    tried = type(rule) in TRIED and not (momentum and getattr(rule, "nesterov", False))
    if tried or name in _said or (isinstance(rule, Given) and not called):
        return
    _said.add(name)
    warn(
        f"metaoptimize over {name} has not been compared with tuned runs, as over AdamW, RMSprop, Lion, Muon and SGD "
        "with momentum: compare one run with a tuned lr before you rely on it",
        UntriedBase,
    )
