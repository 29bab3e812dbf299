"""Random shapes, layouts, dtypes, missing and broken gradients, saves and loads: what must hold whatever
happens."""

from __future__ import annotations

import io
import math
import warnings

import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from metaopt_hpo.optim import MetaOptimize
from metaopt_hpo.optim.watch import StepSizeWarning

SHAPES = [(), (0,), (1,), (7,), (3, 5), (2, 0, 4), (2, 3, 4, 5), (70, 60)]
LAYOUTS = ["plain", "transposed", "channels_last", "gaps"]


def leaf(shape: tuple[int, ...], layout: str, dtype: torch.dtype, seed: int) -> nn.Parameter:
    gen = torch.Generator().manual_seed(seed)
    x = torch.randn(shape, generator=gen, dtype=torch.float64).to(dtype)
    if layout == "transposed" and x.ndim >= 2:
        x = x.transpose(0, 1).contiguous().transpose(0, 1)
    if layout == "channels_last" and x.ndim == 4:
        x = x.contiguous(memory_format=torch.channels_last)
    if layout == "gaps" and x.ndim >= 1:
        x = x.repeat_interleave(2, dim=-1)[..., ::2]
    return nn.Parameter(x)


@st.composite
def runs(draw):
    dtype = draw(st.sampled_from([torch.float32, torch.float64, torch.bfloat16, torch.float16]))
    tensors = draw(
        st.lists(st.tuples(st.sampled_from(SHAPES), st.sampled_from(LAYOUTS)), min_size=1, max_size=4)
    )
    kinds = st.sampled_from(
        ["normal", "normal", "normal", "missing", "nan", "inf", "huge", "zero", "strided"]
    )
    steps = draw(
        st.lists(
            st.tuples(st.lists(kinds, min_size=len(tensors), max_size=len(tensors)), st.booleans()),
            min_size=1,
            max_size=6,
        )
    )
    options = {
        "base": draw(st.sampled_from(["sgd", "sgdm", "rmsprop", "adamw", "lion"])),
        "meta": draw(st.sampled_from(["sgd", "adam", "rmsprop", "lion"])),
        "blocks": draw(st.sampled_from(["scalar", "tensor", "weight"])),
        "gamma": draw(st.sampled_from([1.0, 0.9, 0.0])),
        "weight_decay": draw(st.sampled_from([0.0, 0.1])),
        "meta_lr": draw(st.sampled_from([0.0, 1e-2, 1.0])),
        "max_grad_norm": draw(st.sampled_from([None, 1.0])),
        "compile": draw(st.sampled_from(["auto", "eager"])),
        "trace_dtype": draw(st.sampled_from([None, None, torch.bfloat16])),
    }
    return dtype, tensors, steps, options


def grad_of(p: Tensor, kind: str, seed: int) -> Tensor | None:
    if kind == "missing":
        return None
    gen = torch.Generator().manual_seed(seed)
    g = torch.empty_like(p).copy_(torch.randn(p.shape, generator=gen, dtype=torch.float64))
    if kind == "zero":
        g.zero_()
    if kind == "huge":
        g.mul_(1e4)
    if kind in ("nan", "inf") and g.numel():
        g[(0,) * g.ndim] = math.nan if kind == "nan" else math.inf
    if kind == "strided" and g.ndim >= 1:
        g = g.repeat_interleave(2, dim=-1)[..., ::2]
    return g


def train(dtype, tensors, steps, options, save: bool) -> tuple[list[nn.Parameter], MetaOptimize]:
    params = [leaf(shape, layout, dtype, i) for i, (shape, layout) in enumerate(tensors)]

    def make() -> MetaOptimize:
        return MetaOptimize(params, lr=1e-2, **options)

    opt = make()
    for number, (kinds, reload) in enumerate(steps):
        if save and reload:
            buffer = io.BytesIO()
            torch.save(opt.state_dict(), buffer)
            buffer.seek(0)
            opt = make()
            opt.load_state_dict(torch.load(buffer, weights_only=True))
        for i, (p, kind) in enumerate(zip(params, kinds, strict=True)):
            p.grad = grad_of(p.detach(), kind, 100 * number + i)
        opt.step()
    return params, opt


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.too_slow], derandomize=True)
@given(runs())
def test_whatever_happens(run) -> None:
    dtype, tensors, steps, options = run
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", StepSizeWarning)
        params, opt = train(dtype, tensors, steps, options, save=False)
        others, again = train(dtype, tensors, steps, options, save=True)
    # β is never NaN, nor infinite.
    assert bool(torch.isfinite(opt.param_groups[0]["beta"]).all())
    # Saving and loading in between changes nothing, bit by bit.
    for p, q in zip(params, others, strict=True):
        assert torch.equal(p.nan_to_num(7.0), q.nan_to_num(7.0))
    assert torch.equal(opt.step_sizes(), again.step_sizes())
    assert opt.skipped == again.skipped
    # Weights whose gradients were always missing never moved; sound runs skip nothing and stay finite.
    kinds = [kind for row, _ in steps for kind in row]
    for i, p in enumerate(params):
        if all(row[i] == "missing" for row, _ in steps):
            assert torch.equal(p, leaf(*tensors[i], dtype, i))
    if not {"nan", "inf", "huge"} & set(kinds) and options["meta_lr"] < 1 and dtype != torch.float16:
        assert opt.skipped == 0
        assert all(bool(torch.isfinite(p).all()) for p in params)
    # The trace of a parameter has its shape and at least single precision.
    for p in params:
        assert opt.state[p]["h"].shape == p.shape
        short = options["trace_dtype"] if dtype != torch.float64 else None
        assert opt.state[p]["h"].dtype == (
            short or (torch.float64 if dtype == torch.float64 else torch.float32)
        )


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.too_slow], derandomize=True)
@given(runs())
def test_the_fast_kernel_and_the_plain_one_agree(run) -> None:
    _, tensors, steps, options = run
    steps = [
        ([kind if kind in ("missing", "strided", "zero") else "normal" for kind in row], s)
        for row, s in steps
    ]
    options = {**options, "meta_lr": 0.01 if options["meta"] != "lion" else 0.0}
    results = []
    for kernel in ["auto", "eager"]:
        params, opt = train(torch.float64, tensors, steps, {**options, "compile": kernel}, save=False)
        results.append(
            [*(p.detach() for p in params), *(opt.state[p]["h"] for p in params), opt.step_sizes()]
        )
    for a, b in zip(*results, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-9, atol=1e-12)
