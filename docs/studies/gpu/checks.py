"""Is the step on this GPU right? Each check is a row; the optimizer alone, torch and numpy."""

from __future__ import annotations

import itertools
import time
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from metaopt_hpo.optim import MetaOptimize

SHAPES = [(500, 300), (), (3,), (0,), (40, 50), (70_001,)]


def rows(until: float) -> Iterator[dict[str, Any]]:
    """One row a check, until the time is over."""
    for name, check in _checks():
        if time.monotonic() > until:
            yield {"check": name, "ok": None, "why": "out of time"}
            continue
        try:
            why = check()
        except Exception as error:
            why = f"{type(error).__name__}: {str(error)[:300]}"
        yield {"check": name, "ok": not why, "why": why}


def _checks() -> Iterator[tuple[str, Callable[[], str]]]:
    for base, dtype in itertools.product(
        ("sgd", "sgdm", "rmsprop", "adamw", "lion"), (torch.float32, torch.bfloat16)
    ):
        yield (
            f"{base} in {dtype}".replace("torch.", ""),
            partial(_equal, dtype, base=base),
        )
    several: tuple[dict[str, Any], ...] = (
        {"blocks": "tensor"},
        {"blocks": "weight"},
        {"max_grad_norm": 0.5},
        {"meta": "lion", "meta_lr": 1e-3},
        {"trace_dtype": torch.bfloat16},
        {"gamma": 0.9, "maximize": True},
    )
    for options in several:
        name = ", ".join(f"{key} {value}" for key, value in options.items()).replace("torch.", "")
        yield name, partial(_equal, torch.float32, **options)
    yield "stochastic rounding keeps small updates", _stochastic
    yield "no step waits for the device", _never_waits
    yield "a captured step is the step, with a schedule and a step outside the graph in between", _captured
    yield "nothing is compiled anew", _compiled_once
    yield "the same run twice is bitwise the same", _repeats
    yield "a run resumed on the GPU is bitwise the run", _resumes


def _params(dtype: torch.dtype, shapes: list[Any] = SHAPES) -> list[nn.Parameter]:
    gen = torch.Generator().manual_seed(0)
    return [nn.Parameter(torch.randn(s, generator=gen).to(dtype).cuda()) for s in shapes]


def _give(params: list[nn.Parameter], step: int) -> None:
    gen = torch.Generator().manual_seed(1000 + step)
    for p in params:
        p.grad = torch.randn(p.shape, generator=gen).to(p.dtype).cuda()


def _trained(
    kernel: str, dtype: torch.dtype, steps: int = 5, **options: Any
) -> tuple[list[Tensor], MetaOptimize]:
    params = _params(dtype)
    opt = MetaOptimize(
        params, **{"lr": 1e-2, "meta_lr": 0.05, "weight_decay": 0.1, "compile": kernel, **options}
    )
    for step in range(steps):
        _give(params, step)
        opt.step()
    return [p.detach() for p in params], opt


def _equal(dtype: torch.dtype, **options: Any) -> str:
    params, opt = _trained("triton", dtype, **options)
    plain, other = _trained("eager", dtype, **options)
    kernel = opt.param_groups[0]["kernel"]
    if kernel != "triton":
        return f"the kernel was {kernel}"
    coarse = dtype == torch.bfloat16 or "trace_dtype" in options
    tolerance = 3e-2 if coarse else 1e-4
    for p, q in zip(params, plain, strict=True):
        if not torch.allclose(p, q, rtol=tolerance, atol=tolerance):
            return f"weights differ by {float((p.float() - q.float()).abs().max()):.2g}"
    if not torch.allclose(opt.step_sizes(), other.step_sizes(), rtol=tolerance):
        return f"step sizes {opt.step_sizes().tolist()[:3]} and {other.step_sizes().tolist()[:3]}"
    return ""


def _stochastic() -> str:
    p = nn.Parameter(torch.ones(100_000, dtype=torch.bfloat16, device="cuda"))
    opt = MetaOptimize([p], lr=1e-3, base="sgd", meta_lr=0.0, stochastic_rounding=True)
    for _ in range(20):
        p.grad = torch.ones_like(p)
        opt.step()
    moved = float((1 - p.detach().float()).mean())
    return "" if abs(moved - 0.02) < 1e-3 else f"moved by {moved:.4f} instead of 0.0200"


def _never_waits() -> str:
    params, schedule_steps = _params(torch.float32), 60
    opt = MetaOptimize(params, lr=1e-3, max_grad_norm=1.0)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(opt, schedule_steps)
    _give(params, 0)
    opt.step()
    grads = [torch.ones_like(p) for p in params]
    torch.cuda.set_sync_debug_mode("error")
    try:
        for _ in range(schedule_steps):
            for p, g in zip(params, grads, strict=True):
                p.grad = g.clone()
            opt.step()
            schedule.step()
    finally:
        torch.cuda.set_sync_debug_mode("default")
    return ""


def _captured() -> str:
    results = []
    for capture in (False, True):
        params = _params(torch.float32)
        opt = MetaOptimize(params, lr=1e-2, meta_lr=0.05)
        fixed = [torch.ones_like(p) for p in params]
        for p, g in zip(params, fixed, strict=True):
            p.grad = g
        stream = torch.cuda.Stream()
        stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(stream):
            for _ in range(3):
                opt.step()
        torch.cuda.current_stream().wait_stream(stream)
        if capture:
            graph = torch.cuda.CUDAGraph()
            with torch.cuda.graph(graph):
                opt.step()
        for k in range(5):
            opt.param_groups[0]["lr"] = 1e-2 / (1 + k)
            if (
                not capture or k == 2
            ):  # a step outside the graph in between, with gradients elsewhere in memory
                for p, g in zip(params, fixed, strict=True):
                    p.grad = g.clone()
                opt.step()
            else:
                opt.refresh()
                graph.replay()
        results.append([p.detach().clone() for p in params] + [opt.step_sizes()])
    same = all(torch.equal(a, b) for a, b in zip(*results, strict=True))
    return "" if same else "weights or step sizes differ"


def _compiled_once() -> str:
    counts = []
    for decay, shapes in ((0.0, [(64, 64)]), (0.1, [(33,)] * 200), (0.3, [(1000, 1000), (7,)])):
        params = _params(torch.float32, list(shapes))
        opt = MetaOptimize(params, lr=1e-3 * (1 + decay), weight_decay=decay, gamma=1 - decay)
        _give(params, 0)
        opt.step()
        caches = opt._steps.whole._module.advance.device_caches  # type: ignore[union-attr]
        counts.append(sum(len(entry[0]) for entry in caches.values()))
    return "" if counts[0] == counts[-1] else f"programs compiled after each optimizer: {counts}"


def _repeats() -> str:
    first, second = (_trained("triton", torch.float32, steps=10)[0] for _ in range(2))
    return "" if all(torch.equal(a, b) for a, b in zip(first, second, strict=True)) else "weights differ"


def _resumes() -> str:
    params, opt = _trained("triton", torch.float32)
    twins = [nn.Parameter(p.clone()) for p in params]
    other = MetaOptimize(twins, lr=1e-2)
    other.load_state_dict(opt.state_dict())
    own = opt.param_groups[0]["params"]
    for o, ps in ((opt, own), (other, twins)):
        _give(ps, 99)
        o.step()
    return "" if all(torch.equal(p, q) for p, q in zip(own, twins, strict=True)) else "weights differ"
