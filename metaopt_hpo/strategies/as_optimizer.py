"""A run as the optimizer and scheduler that Trainer, accelerate and Lightning call: same steps, their loop.

A framework calls `optimizer.step()`, saves `optimizer.state_dict()` and shows `param_groups[i]["lr"]`. The optimizer
here passes the first two on to a run, whose phases, guard and counters come along, and shows the live step size as lr.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from metaopt_hpo.errors import MetaOptWarning, warn
from metaopt_hpo.optim.outside_graphs import outside_graphs
from metaopt_hpo.strategies.checks import scalar
from metaopt_hpo.strategies.errors import StrategyError
from metaopt_hpo.strategies.packed import packed, unpacked

RUN = "run"
"""Entry of the first saved group that holds the run's own state, as text: checkpoint formats take it whole."""

LARGE = "run_tensors"
"""Entry with those of its tensors that are too large for text."""


HIDDEN = frozenset({"params", "param_names", "lr", "initial_lr"})
"""Keys of a user's groups that are not shown as they are: a run has parameters and lr of its own."""

PLAIN = (str, int, float, bool, tuple, list, type(None))
"""Values of such keys that a checkpoint holds, so that it has the keys that its readers see."""


class SteppedRun(Protocol):
    """What a framework's loop needs of a run; `strategies.base.LRRun` has it."""

    optimizer: torch.optim.Optimizer
    steps_taken: int
    listens_to: nn.Module | None

    @property
    def needs_graph(self) -> bool:
        """Whether `step` takes the loss before any backward pass."""

    def step(self, loss: Tensor | None = None) -> None:
        """Take one optimizer step, then clear the gradients."""

    def train(self) -> None:
        """Training mode."""

    def eval(self) -> None:
        """Evaluation mode."""

    def group_step_sizes(self) -> Tensor:
        """Step sizes of the last step, one a parameter group."""

    def shown_groups(self) -> Sequence[Mapping[str, Any]]:
        """Groups of an optimizer that a user made, whose keys are shown; none where there is no such optimizer."""

    def small_state(self) -> dict[str, Any]:
        """The run's own state, without its optimizer's."""

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore the run and its optimizer."""


class LRSetTwice(MetaOptWarning):
    """Somebody else writes the learning rate of a run that sets its own."""


class NoLoss(MetaOptWarning):
    """A run whose guard watches the loss is stepped without one."""


class _Ear:
    """Where a heard loss is put: torch.compile can write to a plain object from within a compiled model."""

    loss: Tensor | None = None


class RunOptimizer(torch.optim.Optimizer):
    """The optimizer of a run, for a framework's loop; `run.as_optimizer()` makes it.

    Each `step` is one step of the run. The guard watches the loss where it can be had: from a closure that returns it
    (Lightning's does), from a model whose output holds it (Hugging Face's), or from `loss`, set before the step; one
    warning says where none comes.
    `param_groups[i]["lr"]` shows the step size of the last step; on a GPU the value may be a step old, for reading it
    must not wait. The other keys of a wrapped optimizer's groups (`name`, `betas` …) are shown too, as they are there
    at that step, for monitors to read. Gradients are cleared after each step. What others write into lr is not used,
    and one warning says so: a run has its own schedule.

    The state holds everything to go on bitwise but the guard's copy of the weights, which would double a checkpoint.
    A new copy is taken at the first step that has a loss: should the guard object to the first window after a resume,
    the run goes back to the weights of the checkpoint, where one that never stopped would go to an earlier copy.
    """

    def __init__(self, run: SteppedRun) -> None:
        if run.needs_graph:
            raise StrategyError(
                "this strategy differentiates the gradient and a framework calls backward() itself: use "
                "trace='hessian_free'"
            )
        self.lr_run = run
        inner = run.optimizer
        self._ready = False
        super().__init__([{"params": list(group["params"])} for group in inner.param_groups], {"lr": 0.0})
        self._ready = True
        for group, own in zip(inner.param_groups, self.param_groups, strict=True):
            if "param_names" in group:
                own["param_names"] = list(group["param_names"])
        self._ear = _Ear()
        self.listeners: list[Callable[[Any, Tensor | None], None]] = []
        """Called with the run and its loss after every step; see `metaopt_hpo.training.live`."""
        self._host: Tensor | None = None
        self._warned = False
        self._missed = False
        if run.listens_to is not None:
            run.listens_to.register_forward_hook(self._hear)
        self._publish()

    @property
    def loss(self) -> Tensor | None:
        """Loss of the coming step, for loops whose `step` takes no closure; heard from a model that returns it, as
        Hugging Face's do (summed over the passes of an accumulated step), compiled or not."""
        return self._ear.loss

    @loss.setter
    def loss(self, value: Tensor | float | None) -> None:
        self._ear.loss = scalar(value, self.param_groups[0]["params"][0].device)

    def _hear(self, module: nn.Module, inputs: Any, output: Any) -> None:
        if not (module.training and torch.is_grad_enabled()):
            return
        loss = output.get("loss") if isinstance(output, dict) else getattr(output, "loss", None)
        if isinstance(loss, Tensor) and loss.numel() == 1:
            heard, ear = loss.detach().reshape(()), self._ear
            ear.loss = heard if ear.loss is None else ear.loss + heard

    @property
    def state(self) -> Any:
        """The state of each parameter, which the run's optimizer keeps."""
        return self.lr_run.optimizer.state

    @state.setter
    def state(self, value: Any) -> None:
        return None

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        """Add parameters, such as unfrozen ones; their lr counts relative to the lr shown for the first group, and
        is the same where none is given."""
        given = param_group.get("lr")  # what is missing is filled in below
        super().add_param_group(param_group)
        if not self._ready:
            return
        own = self.param_groups[-1]
        shown = self._shown[0]
        lr = shown if given is None else float(given)
        inner = self.lr_run.optimizer
        first = inner.param_groups[0]
        ratio = lr / shown if shown > 0 else 1.0
        params: list[Any] = list(own["params"])
        if "param_names" in own:
            params = list(zip(own["param_names"], params, strict=True))
        extra = {k: v for k, v in own.items() if k not in ("params", "param_names", "lr")}
        multiplier = first.get("lr_multiplier", 1.0) * ratio
        inner.add_param_group(
            {**extra, "params": params, "lr": first["lr"] * ratio, "lr_multiplier": multiplier}
        )
        self._publish()

    @outside_graphs
    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """One step of the run; returns what the closure returned."""
        value = None
        if closure is not None:
            with torch.enable_grad():
                value = closure()
        if self._only_sets_up_state():
            return value
        self._check_lr()
        loss = value if isinstance(value, Tensor) and value.numel() == 1 else self.loss
        self.loss = None
        if loss is None and not self._missed and getattr(self.lr_run, "guard", None) is not None:
            self._missed = True
            warn(
                "no loss reaches this run, so that its guard is off and its step size is not corrected by the loss: "
                "write run.as_optimizer().loss = loss before each optimizer.step(), or ask for guard=False",
                NoLoss,
            )
        self.lr_run.step(None if loss is None else loss.detach())
        self._publish()
        for listener in self.listeners:
            listener(self.lr_run, None if loss is None else loss.detach())
        return value

    def _only_sets_up_state(self) -> bool:
        """True for the empty step by which `torch.distributed.checkpoint` makes state to load into."""
        if self.lr_run.steps_taken or self.state or any(group["lr"] != 0 for group in self.param_groups):
            return False
        grads = [p.grad for group in self.param_groups for p in group["params"] if p.grad is not None]
        if not grads or any(bool(torch.count_nonzero(g)) for g in grads):
            return False
        self.lr_run.optimizer.step()
        return True

    def train(self) -> None:
        """Training mode, for methods whose weights differ between the two."""
        self.lr_run.train()

    def eval(self) -> None:
        """Evaluation mode, for methods whose weights differ between the two."""
        self.lr_run.eval()

    def state_dict(self) -> dict[str, Any]:
        """A state dict in torch's format; loads with `weights_only=True`, and through distributed checkpoints."""
        inner = self.lr_run.optimizer.state_dict()
        groups = [dict(group) for group in inner["param_groups"]]
        for group, shown in zip(groups, self.lr_run.shown_groups(), strict=False):
            for key, value in shown.items():
                if key not in HIDDEN and isinstance(value, PLAIN):
                    group.setdefault(key, value)
        large: list[Tensor] = []
        groups[0][RUN] = json.dumps(packed(self.lr_run.small_state(), large))
        if large:
            groups[0][LARGE] = large
        return {"state": inner["state"], "param_groups": groups}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Restore `state_dict()`.

        Raises:
            StrategyError: a state of another optimizer, or of a run of another horizon.
        """
        groups = [dict(group) for group in state_dict["param_groups"]]
        if not groups or RUN not in groups[0]:
            raise StrategyError(
                "this is not the state of a run as an optimizer; load the checkpoint with the optimizer it was saved "
                "with"
            )
        for group, inner in zip(groups, self.lr_run.optimizer.param_groups, strict=False):
            for key in set(group) - set(inner) - {RUN, LARGE}:
                del group[key]  # shown only
        saved = unpacked(json.loads(groups[0].pop(RUN)), groups[0].pop(LARGE, []))
        self.lr_run.load_state_dict({**saved, "optimizer": {**state_dict, "param_groups": groups}})
        self._publish()

    # -- the learning rate that is shown -------------------------------------------------------------------

    def _publish(self) -> None:
        """Show the live step sizes as lr."""
        sizes = self.lr_run.group_step_sizes()
        if sizes.is_cuda:
            if self._host is None or self._host.shape != sizes.shape:
                self._host = sizes.cpu().pin_memory()
            values = self._host.tolist()
            self._host.copy_(sizes, non_blocking=True)
        else:
            values = sizes.tolist()
        self._shown = values
        for group, value in zip(self.param_groups, values, strict=True):
            group["lr"] = value
        for group, shown in zip(self.param_groups, self.lr_run.shown_groups(), strict=False):
            group.update({key: value for key, value in shown.items() if key not in HIDDEN})

    def _check_lr(self) -> None:
        if self._warned:
            return
        written = [group["lr"] for group in self.param_groups]
        if all(a == b or (a != a and b != b) for a, b in zip(written, self._shown, strict=True)):
            return
        self._warned = True
        warn(
            f"lr of this run was set to {float(written[0]):.4g} from outside, by a scheduler perhaps; the run sets its "
            "own and goes on with that: leave the scheduler out, or give run.as_scheduler() where one is asked for",
            LRSetTwice,
        )


class RunScheduler(torch.optim.lr_scheduler.LRScheduler):
    """What a framework that wants a scheduler gets: it changes nothing, and `get_last_lr` is the live step size."""

    def __init__(self, optimizer: RunOptimizer) -> None:
        self.optimizer = optimizer
        self.base_lrs = [group["lr"] for group in optimizer.param_groups]
        self.last_epoch = 0

    def step(self, epoch: int | None = None) -> None:
        """Nothing: the run schedules itself."""
        self.last_epoch += 1

    def get_last_lr(self) -> list[float]:  # type: ignore[override]
        """The step size of the last step, one a group."""
        return [group["lr"] for group in self.optimizer.param_groups]

    def get_lr(self) -> list[float]:  # type: ignore[override]
        """The same."""
        return self.get_last_lr()

    def state_dict(self) -> dict[str, Any]:
        """Calls so far; the run's state is in the optimizer's."""
        return {"last_epoch": self.last_epoch}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Restore `state_dict()`."""
        self.last_epoch = int(state_dict["last_epoch"])
