"""What a learning-rate strategy is: a frozen configuration that builds the `LRRun` a training loop holds."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, fields
from typing import Any, ClassVar, Self

import torch
from torch import Tensor, nn

from metaopt_hpo.errors import warn
from metaopt_hpo.optim import host
from metaopt_hpo.optim.outside_graphs import outside_graphs
from metaopt_hpo.strategies.as_optimizer import RunOptimizer, RunScheduler
from metaopt_hpo.strategies.checks import (
    check_is_loss,
    check_numbers,
    check_positive,
    close_to,
    one_of,
)
from metaopt_hpo.strategies.errors import RunWarning
from metaopt_hpo.strategies.errors import StrategyError as StrategyError
from metaopt_hpo.strategies.groups import DECAY

OF_AN_OPTIMIZER = ("zero_grad", "param_groups", "state", "defaults", "add_param_group")
"""What is looked for where a run is taken for a torch optimizer."""


class LRRun:
    """One run under a strategy: the optimizer, its schedule, and what must be saved to resume.

    A training loop calls `loss.backward()`, then `run.step(loss)`. Subclasses override `_before_step` to set
    the learning rate of the step about to be taken, and `_extra_state` / `_load_extra_state`.

    Examples:
        >>> import torch
        >>> model = torch.nn.Linear(4, 1)
        >>> from metaopt_hpo.strategies import make
        >>> run = make("cosine", lr=1e-2).build(model, horizon=100)
        >>> model(torch.ones(2, 4)).square().mean().backward()
        >>> run.step()
        >>> run.step_sizes().shape
        torch.Size([2])
    """

    def __init__(
        self, optimizer: torch.optim.Optimizer, *, horizon: int, max_grad_norm: float | None
    ) -> None:
        self.optimizer = optimizer
        self.horizon = horizon
        self.max_grad_norm = max_grad_norm
        self.steps_taken = 0
        self.grad_norm: Tensor | None = None
        """Norm of the last gradient before clipping, a 0-d tensor on its device."""
        self.listens_to: nn.Module | None = None
        """Module whose outputs may hold the loss that a framework's loop does not pass on; None: nobody listens."""
        self._as_optimizer: RunOptimizer | None = None

    def __getattr__(self, name: str) -> Any:
        if name in OF_AN_OPTIMIZER:
            raise AttributeError(
                f"a run has no {name}: give run.as_optimizer() to whoever asks for an optimizer; in a loop of your own "
                "run.step(loss) is all, and clears the gradients"
            )
        raise AttributeError(f"{type(self).__name__!r} object has no attribute {name!r}")

    @property
    def ends_low(self) -> bool:
        """True where the step size falls towards the horizon, so that steps past it are nearly lost."""
        return False

    @property
    def needs_graph(self) -> bool:
        """True where the step differentiates the gradient: `step` takes the loss before any `backward()`."""
        return False

    def forward(self) -> AbstractContextManager[Any]:
        """What a forward pass runs in; only strategies that need a graph need it."""
        return nullcontext()

    @outside_graphs
    def step(self, loss: Tensor | None = None, *, scaler: torch.amp.GradScaler | None = None) -> None:
        """Take one optimizer step with the gradients now in `.grad`, then clear them.

        Args:
            loss: the training loss of this step (0-d); strategies that need it say so when it is missing.
            scaler: the loss scale the gradients were made with (`scaler.scale(loss).backward()`); they are unscaled
                here, a step that overflowed changes no weight, and the scale is updated. Give the loss itself unscaled.
        """
        check_is_loss(loss)
        self._say_if_past_horizon()
        self._before_step(self.steps_taken, loss)
        if scaler is not None:
            scaler.unscale_(self.optimizer)
        self._measure_and_clip()
        # as torch's own scaler for optimizers that are not fused, this reads one number, with the backward pass queued
        if scaler is None or (self.grad_norm is not None and math.isfinite(host.read([self.grad_norm])[0])):
            self._before_update(self.steps_taken)
            self._optimizer_step(loss)
        if scaler is not None:
            scaler.update()
        self.optimizer.zero_grad(set_to_none=True)
        self.steps_taken += 1

    def _skip(self) -> None:
        """Count a step that takes no update, and clear the gradients."""
        self._say_if_past_horizon()
        self.optimizer.zero_grad(set_to_none=True)
        self.steps_taken += 1

    def _say_if_past_horizon(self) -> None:
        """One warning where a run with a planned end goes past it."""
        if self.steps_taken == self.horizon and self.ends_low:
            warn(
                f"this run was planned for {self.horizon} steps and goes on at the last, lowest step size; give the "
                "horizon you mean to train for",
                RunWarning,
            )

    def _before_step(self, step: int, loss: Tensor | None) -> None:
        """Set the learning rate of step number `step` (0 is the first)."""

    def _before_update(self, step: int) -> None:
        """Called between clipping and the update, for what depends on the gradients that will be used."""

    def _optimizer_step(self, loss: Tensor | None) -> None:
        """Let the optimizer update the weights."""
        self.optimizer.step()

    def _measure_and_clip(self) -> None:
        grads = [p.grad for g in self.optimizer.param_groups for p in g["params"] if p.grad is not None]
        if not grads:
            if self.steps_taken == 0:
                warn(
                    "no parameter has a gradient at the first step: call loss.backward() before run.step(loss)",
                    RunWarning,
                )
            return
        if any(g.layout is not torch.strided for g in grads):
            raise StrategyError("a parameter has a sparse gradient, which is not supported: use sparse=False")
        self.grad_norm = nn.utils.get_total_norm(grads)
        if self.max_grad_norm is not None:
            parameters = [p for g in self.optimizer.param_groups for p in g["params"]]
            nn.utils.clip_grads_with_norm_(parameters, self.max_grad_norm, self.grad_norm)

    def train(self) -> None:
        """Switch the optimizer to training mode, for methods whose weights differ between the two."""
        mode = getattr(self.optimizer, "train", None)
        if callable(mode):
            mode()

    def eval(self) -> None:
        """Switch the optimizer to evaluation mode, for methods whose weights differ between the two."""
        mode = getattr(self.optimizer, "eval", None)
        if callable(mode):
            mode()

    def step_sizes(self) -> Tensor:
        """Step sizes of the last step: one value a block or parameter group, shape (blocks,)."""
        return torch.tensor([float(g["lr"]) for g in self.optimizer.param_groups], dtype=torch.float64)

    def group_step_sizes(self) -> Tensor:
        """Step sizes of the last step, one a parameter group (the geometric mean over its blocks)."""
        sizes, groups = self.step_sizes().double(), len(self.optimizer.param_groups)
        return sizes if sizes.numel() == groups else sizes.log().mean().exp().expand(groups)

    def shown_groups(self) -> Sequence[Mapping[str, Any]]:
        """Groups of the optimizer that a user made, whose keys `as_optimizer()` shows; none where the run made it."""
        return ()

    def as_optimizer(self) -> RunOptimizer:
        """This run as a `torch.optim.Optimizer`, for a framework that calls `step()` itself; one a run.

        Return it from Lightning's `configure_optimizers`, or give it to `accelerator.prepare`.
        """
        if self._as_optimizer is None:
            self._as_optimizer = RunOptimizer(self)
        return self._as_optimizer

    def as_scheduler(self) -> RunScheduler:
        """A scheduler that changes nothing and shows the live step size, where a framework asks for one."""
        return RunScheduler(self.as_optimizer())

    def as_optimizers(self) -> tuple[RunOptimizer, RunScheduler]:
        """Both, as Hugging Face's Trainer takes them: `Trainer(…, optimizers=run.as_optimizers())`."""
        return self.as_optimizer(), self.as_scheduler()

    def state_dict(self) -> dict[str, Any]:
        """Everything needed to continue exactly; loads with `torch.load(weights_only=True)`."""
        return {
            "optimizer": self.optimizer.state_dict(),
            "steps_taken": self.steps_taken,
            "horizon": self.horizon,
            **self._extra_state(),
        }

    def small_state(self) -> dict[str, Any]:
        """`state_dict()` without the optimizer's and without copies of weights that a resumed run takes anew."""
        return {"steps_taken": self.steps_taken, "horizon": self.horizon, **self._extra_state()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore `state_dict()`.

        Raises:
            StrategyError: the state belongs to a run of another horizon; schedules would not line up.
        """
        if state["horizon"] != self.horizon:
            raise StrategyError(
                f"the saved run was planned for {state['horizon']} steps and this one for {self.horizon}; "
                "resume with the horizon it was started with"
            )
        self.optimizer.load_state_dict(state["optimizer"])
        self.steps_taken = int(state["steps_taken"])
        self._load_extra_state(state)

    def _extra_state(self) -> dict[str, Any]:
        return {}

    def _load_extra_state(self, state: dict[str, Any]) -> None:
        return None


@dataclass(frozen=True, kw_only=True)
class LRStrategy:
    """Configuration of one way to set the learning rate of a run.

    Args:
        lr: peak learning rate of a schedule, or initial step size of an adaptive strategy.
        base: first-order rule underneath.
        weight_decay: decoupled weight decay of matrices (torch's L2 form under `sgd` and `sgdm`); norms,
            biases and embeddings get none, since decaying normalisation scales has made replications collapse. None
            takes what suits the base (`DECAY`): decay acts as lr × weight_decay, and good learning rates of
            unnormalised rules are a hundred times larger, so that 0.1 would shrink the weights of SGD to nothing.
        betas: (momentum, second-moment) coefficients of the base rule.
        max_grad_norm: clip the global gradient norm to this before everything else; None for no clipping.

    Examples:
        >>> from metaopt_hpo.strategies import make
        >>> strategy = make("wsd", lr=3e-3)
        >>> strategy.name, strategy.tunes_lr
        ('wsd', False)
    """

    name: ClassVar[str] = ""
    tunes_lr: ClassVar[bool] = False
    """True where the strategy finds the learning rate itself, so that it leaves the search space."""

    bases: ClassVar[tuple[str, ...]] = ()
    """Base rules it can stand on, the default first; () leaves the choice to a class of a user's own."""

    lr: float = 1e-3
    base: str = "adamw"
    weight_decay: float = None  # type: ignore[assignment]  # a number once made
    betas: tuple[float, float] = (0.9, 0.95)
    max_grad_norm: float | None = 1.0

    def __post_init__(self) -> None:
        check_numbers(self)
        check_positive(self, "lr")
        if self.bases and self.base not in self.bases:
            raise ValueError(
                f"base of strategy {self.name!r} must be {one_of(self.bases)}, got {self.base!r}"
                f"{close_to(self.base, self.bases)}"
            )
        if self.weight_decay is None:
            object.__setattr__(self, "weight_decay", DECAY.get(self.base, 0.1))
        if not (math.isfinite(self.weight_decay) and self.weight_decay >= 0):
            raise ValueError(f"weight_decay must be finite and >= 0, got {self.weight_decay!r}")
        if len(tuple(self.betas)) != 2 or not all(0 <= b < 1 for b in self.betas):
            raise ValueError(f"betas must be two numbers in [0, 1), got {self.betas!r}")
        if self.max_grad_norm is not None:
            check_positive(self, "max_grad_norm")
        object.__setattr__(self, "betas", tuple(self.betas))

    @property
    def comparable_from(self) -> float:
        """Fraction of the run from which its loss may be compared with runs of other strategies at equal tokens.

        A run that finds its learning rate starts low and settles late: only its end is comparable (1).
        """
        return 1.0 if self.tunes_lr else 0.0

    def build(self, model: nn.Module | Iterable[nn.Parameter], horizon: int) -> LRRun:
        """Build the run.

        Args:
            model: the model, or parameters; with a bare iterable, tensors of fewer than two dimensions
                are exempt from decay, as embeddings and norms cannot be told.
            horizon: optimizer steps of the whole run; schedules and the meta step follow it.

        Raises:
            ValueError: the horizon is not a positive integer.
        """
        raise StrategyError(f"strategy {type(self).__name__} does not implement build()")

    def options(self) -> dict[str, Any]:
        """The fields as a plain dict, for tables and logs."""
        return {f.name: getattr(self, f.name) for f in fields(self)}

    @classmethod
    def from_options(cls, **options: Any) -> Self:
        """Build from keyword options, naming the first unknown one.

        Raises:
            ValueError: an option this strategy does not have.
        """
        known = {f.name for f in fields(cls)}
        for key in options:
            if key not in known:
                raise ValueError(
                    f"strategy {cls.name!r} has no option {key!r}; it has {', '.join(sorted(known))}"
                    f"{close_to(key, known)}"
                )
        return cls(**options)
