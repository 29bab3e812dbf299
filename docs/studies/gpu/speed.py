"""How fast is a step on this GPU, as ratios to torch's fused AdamW taken in the same minute."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import nn

from metaopt_hpo.optim import MetaOptimize

ROUNDS, REPEAT = 15, 10
Shapes = list[tuple[int, ...]]


def llama_shapes(width: int, layers: int, tokens: int) -> Shapes:
    """Embedding and blocks in the shapes of Llama; 288, 6, 32,000 are 15 M parameters."""
    hidden = int(width * 8 / 3) // 32 * 32
    layer: Shapes = [(width, width)] * 4 + [(hidden, width)] * 2 + [(width, hidden), (width,), (width,)]
    return [(tokens, width), *(layer * layers), (width,)]


CASES: list[tuple[str, float, Shapes, bool, dict[str, Any], torch.dtype]] = [
    ("15 M fp32, clipping", 1.05, llama_shapes(288, 6, 32_000), True, {}, torch.float32),
    ("15 M fp32", 1.35, llama_shapes(288, 6, 32_000), False, {}, torch.float32),
    ("1 B fp32, clipping", 1.05, llama_shapes(2048, 18, 32_000), True, {}, torch.float32),
    ("1 B fp32", 1.35, llama_shapes(2048, 18, 32_000), False, {}, torch.float32),
    ("1,000 tensors of 1 k", 1.35, [(1024,)] * 1000, False, {}, torch.float32),
    ("15 M fp32, a block a tensor", 1.35, llama_shapes(288, 6, 32_000), False, {"blocks": "tensor"}, torch.float32),
    ("15 M fp32, Lion", 1.35, llama_shapes(288, 6, 32_000), False, {"base": "lion"}, torch.float32),
    ("1 B bf16, fp32 trace", 0.0, llama_shapes(2048, 18, 32_000), False, {}, torch.bfloat16),
    ("1 B bf16, bf16 trace", 0.0, llama_shapes(2048, 18, 32_000), False, {"trace_dtype": torch.bfloat16},
     torch.bfloat16),
    ("1 B bf16, bf16 trace, stochastic", 0.0, llama_shapes(2048, 18, 32_000), False,
     {"trace_dtype": torch.bfloat16, "stochastic_rounding": True}, torch.bfloat16),
]  # fmt: skip


def rows(until: float) -> Iterator[dict[str, Any]]:
    """One row a case: milliseconds of both, the ratio of medians, launches of ours, bytes of state a parameter."""
    yield _first_step()
    for name, reach, shapes, clip, options, dtype in CASES:
        if time.monotonic() > until:
            yield {"case": name, "reach": reach, "why": "out of time"}
            continue
        try:
            yield {"case": name, "reach": reach, **_compare(shapes, clip, options, dtype)}
        except torch.cuda.OutOfMemoryError:
            yield {"case": name, "reach": reach, "why": "not enough memory on this card"}
        torch.cuda.empty_cache()


def _first_step() -> dict[str, Any]:
    params = _params(llama_shapes(288, 6, 32_000), torch.float32)
    opt = MetaOptimize(params, lr=1e-4)
    torch.cuda.synchronize()
    start = time.perf_counter()
    opt.step()
    torch.cuda.synchronize()
    return {
        "case": "first step, s (cold unless Triton's cache is warm)",
        "reach": 10.0,
        "ours": _seconds(start),
    }


def _seconds(start: float) -> float:
    return round(time.perf_counter() - start, 2)


def _params(shapes: Shapes, dtype: torch.dtype) -> list[nn.Parameter]:
    params = [nn.Parameter(0.02 * torch.randn(s, device="cuda", dtype=dtype)) for s in shapes]
    for p in params:
        p.grad = 1e-3 * torch.randn_like(p)
    return params


def _compare(shapes: Shapes, clip: bool, options: dict[str, Any], dtype: torch.dtype) -> dict[str, Any]:
    params = _params(shapes, dtype)
    ours = MetaOptimize(params, lr=1e-4, weight_decay=0.1, max_grad_norm=1.0 if clip else None, **options)
    twins = [nn.Parameter(p.detach().clone()) for p in params]
    for p, q in zip(params, twins, strict=True):
        q.grad = p.grad
    adamw = torch.optim.AdamW(twins, lr=1e-4, weight_decay=0.1, fused=True)

    def reference() -> None:
        if clip:
            torch.nn.utils.clip_grad_norm_(twins, 1e9, foreach=True)
        adamw.step()

    def step() -> None:
        ours.step()

    times = _times([step, reference])
    mine, theirs = (statistics.median(t) for t in times)
    size = sum(p.numel() for p in params)
    extra = sum(ours.state[p]["h"].nbytes for p in params) / size
    return {
        "ours": round(mine, 4),
        "fused_adamw": round(theirs, 4),
        "ratio": round(mine / theirs, 3),
        "ratio_of_minima": round(min(times[0]) / min(times[1]), 3),
        "launches": _launches(step),
        "extra_bytes": round(extra, 2),
        "kernel": ours.param_groups[0]["kernel"],
        "parameters": size,
    }


def _times(runs: list[Callable[[], None]]) -> list[list[float]]:
    """Milliseconds a call, of each in turn."""
    for run in runs:
        for _ in range(5):
            run()
    times: list[list[float]] = [[] for _ in runs]
    for _ in range(ROUNDS):
        for run, own in zip(runs, times, strict=True):
            first, last = (torch.cuda.Event(enable_timing=True) for _ in range(2))
            first.record()
            for _ in range(REPEAT):
                run()
            last.record()
            torch.cuda.synchronize()
            own.append(first.elapsed_time(last) / REPEAT)
    return times


def _launches(step: Callable[[], None]) -> int:
    """Kernels (copies left out) that one step starts."""
    from torch.profiler import ProfilerActivity, profile

    torch.cuda.synchronize()
    with profile(activities=[ProfilerActivity.CUDA]) as seen:
        step()
        torch.cuda.synchronize()
    kernels = [e for e in seen.events() if "cuda" in str(e.device_type).lower()]
    return len([e for e in kernels if "Memcpy" not in e.name and "Memset" not in e.name])
