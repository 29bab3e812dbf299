"""The Triton step held against the pure function, once a process, pair of rules and device."""

from __future__ import annotations

import threading
from typing import Any

import torch
from torch import Tensor

from metaopt_hpo.optim.blocks import Blocks
from metaopt_hpo.optim.kernels.describe import Program, describe
from metaopt_hpo.optim.kernels.eager import one_tensor
from metaopt_hpo.optim.kernels.inputs import StepInputs
from metaopt_hpo.optim.kernels.triton_step import triton_step
from metaopt_hpo.optim.meta import advance_beta
from metaopt_hpo.optim.rules import Rule

_tried: dict[tuple[Program, Program, str], str] = {}
_lock = threading.Lock()


def try_out(base: Rule, meta: Rule, device: torch.device) -> str:
    """ "" where the kernels give the right numbers on a device, else what is wrong. The first call waits for the
    device."""
    key = describe(base), describe(meta), str(device)
    with _lock:
        if key not in _tried:
            try:
                _tried[key] = _compare(base, meta, device)
            except Exception as error:
                _tried[key] = f"{type(error).__name__}: {str(error).strip().splitlines()[:1]}"
        return _tried[key]


@torch.no_grad()
def _compare(base: Rule, meta: Rule, device: torch.device) -> str:
    ramp = torch.arange(5000, dtype=torch.float32, device=device)
    params = [torch.sin(ramp), torch.cos(ramp[:7])]
    grads: list[Tensor | None] = [torch.cos(3 * ramp), torch.sin(2 * ramp[:7])]
    state: dict[Tensor, dict[str, Any]] = {}
    for p in params:
        own: dict[str, Any] = {name: torch.sin(p + i) ** 2 for i, name in enumerate(base.states)}
        own["h"] = torch.sin(2 * p)
        own["step"] = torch.full((), 2.0, dtype=torch.float32, device=device)
        state[p] = own
    beta = torch.full((2,), -4.0, dtype=torch.float32, device=device)
    shared: dict[str, Any] = {"meta_lr": 0.1, "beta": beta, "meta_step": torch.full_like(beta, 1.0)}
    shared |= {f"meta_{name}": torch.full_like(beta, 0.5) for name in meta.states}
    shared["skipped"] = torch.zeros((), dtype=torch.int64, device=device)
    group = {"lr": 1.0, "weight_decay": 0.1, "maximize": False, "step_size": torch.zeros_like(beta)}
    blocks = Blocks("tensor", of=(0, 1), count=2)
    given = StepInputs(params=params, rules=[base] * 2, grads=grads, state=state, groups=[0, 0], blocks=blocks,
                       dithered=False, shared=shared, live=[[0, 1]], meta=meta, gamma=0.9, bounds=None)  # fmt: skip
    step = triton_step(given)
    if step is None or not step.matches([base] * 2, grads, state):
        return "it does not take plain tensors"
    want: list[Tensor] = []
    z = torch.zeros_like(beta)
    for i, p in enumerate(params):
        own, g = state[p], grads[i]
        assert g is not None
        old = tuple(own[name] for name in base.states)
        delta, trace, new, hg = one_tensor(base, p, g, own["h"], old, 3.0, beta[i].exp(), 0.9, 0.1)
        want += [p + delta, trace, *new]
        z[i] = hg.sum()
    expected = {name: shared[name].clone() for name in shared if name != "meta_lr"}
    meta_state = [expected[f"meta_{name}"] for name in meta.states]
    advance_beta(meta, expected["beta"], z, meta_state, expected["meta_step"], expected["skipped"], 0.1, None)
    step.run(grads, [group], 1.0, shared, None)
    have = [x for p in params for x in (p, state[p]["h"], *(state[p][name] for name in base.states))]
    have += [shared["beta"], *(shared[f"meta_{name}"] for name in meta.states), group["step_size"]]
    want += [expected["beta"], *meta_state, expected["beta"].exp()]
    if not all(
        torch.allclose(a, b, rtol=1e-4, atol=1e-5, equal_nan=True) for a, b in zip(have, want, strict=True)
    ):
        return "the kernels give wrong numbers"
    if float(state[params[0]]["step"]) != 3.0 or float(shared["meta_step"][1]) != 2.0:
        return "the kernels count steps wrongly"
    return ""
