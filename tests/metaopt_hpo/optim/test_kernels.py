"""Every kernel against the pure function, and how one is chosen."""

from __future__ import annotations

import dataclasses
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from metaopt_hpo.optim import (
    SGD,
    SGDM,
    AdamW,
    KernelWarning,
    Lion,
    MetaOptimize,
    RMSprop,
    Rule,
    StepSizeWarning,
)
from metaopt_hpo.optim.kernels import choose as choosing
from metaopt_hpo.optim.kernels.bucket import Bucket, Kernel
from metaopt_hpo.optim.kernels.build import BuildError, cache_folder
from metaopt_hpo.optim.kernels.compiled import CompiledKernel
from metaopt_hpo.optim.kernels.eager import EagerKernel, gradient, one_tensor
from metaopt_hpo.optim.kernels.layout import is_dense
from metaopt_hpo.optim.kernels.native import NativeKernel, library

RULES = [SGD(), SGDM(), RMSprop(), AdamW(), Lion()]
NO_COMPILER = "the native kernel cannot be built here"


def native() -> NativeKernel:
    try:
        library(SGD())
    except BuildError as error:
        pytest.skip(f"{NO_COMPILER}: {error}")
    return NativeKernel()


def bucket(rule: Rule, dtype: torch.dtype, device: str = "cpu", maximize: bool = False) -> Bucket:
    """Tensors of many layouts: longer than a chunk, a scalar, an empty one, transposed, channels-last, with
    gaps."""
    gen = torch.Generator().manual_seed(0)
    shapes = [(70_001,), (), (0, 3), (40, 30), (2, 3, 8, 8), (5, 7)]
    b = Bucket(0.5, 0.1, maximize, states=tuple([] for _ in rule.states))
    wide = torch.float64 if dtype == torch.float64 else torch.float32

    def draw(i: int, kind: torch.dtype) -> Tensor:
        x = torch.randn(shapes[i], generator=gen, dtype=torch.float64).to(kind).to(device)
        if i == 3:
            return x.t().contiguous().t()
        if i == 4:
            return x.contiguous(memory_format=torch.channels_last)
        return x.repeat_interleave(2, dim=1)[:, ::2] if i == 5 else x

    for i in range(len(shapes)):
        b.params.append(draw(i, dtype))
        b.grads.append(draw(i, dtype))
        b.traces.append(draw(i, wide).mul(0.1) if i != 5 else draw(i, wide).contiguous().mul(0.1))
        for column in b.states:
            x = draw(i, wide).square().mul(0.01)
            column.append(x.contiguous() if i == 5 else x)
        b.steps.append(torch.tensor(float(i % 2)))
        b.blocks.append(i % 3)
    return b


def expected(
    rule: Rule, b: Bucket, alpha: Tensor, gamma: float, scale: Tensor | None
) -> tuple[list[Tensor], Tensor]:
    z = torch.zeros_like(alpha)
    out: list[Tensor] = []
    for i, (p, h) in enumerate(zip(b.params, b.traces, strict=True)):
        g = gradient(b.grads[i], h.dtype, scale, b.maximize)
        state = tuple(column[i] for column in b.states)
        a = (alpha[b.blocks[i]] * b.ratio).to(h.dtype)
        delta, new_h, new, hg = one_tensor(
            rule, p.to(h.dtype), g, h, state, float(b.steps[i]) + 1, a, gamma, b.decay
        )
        z[b.blocks[i]] += hg.sum()
        out += [(p.to(h.dtype) + delta).to(p.dtype), new_h, *new]
    return out, z


def check(
    kernel: Kernel, rule: Rule, dtype: torch.dtype, maximize: bool, scaled: bool, device: str = "cpu"
) -> None:
    b = bucket(rule, dtype, device, maximize)
    wide = b.traces[0].dtype
    alpha = torch.tensor([1e-2, 2e-2, 5e-3], dtype=wide, device=device)
    scale = torch.tensor(0.3, dtype=wide, device=device) if scaled else None
    want, z = expected(rule, b, alpha, 0.9, scale)
    parts = [i for i, p in enumerate(b.params) if not isinstance(kernel, NativeKernel) or is_dense(p)]
    got = torch.zeros_like(alpha)
    kernel.advance(b.pick(parts), rule, alpha, 0.9, scale, got)
    if len(parts) < len(b.params):
        rest = [i for i in range(len(b.params)) if i not in parts]
        EagerKernel().advance(b.pick(rest), rule, alpha, 0.9, scale, got)
    columns = [b.params, b.traces, *b.states]
    have = [column[i] for i in range(len(b.params)) for column in columns]
    tolerance = {torch.float64: 1e-11, torch.float32: 2e-5, torch.bfloat16: 1e-2}[dtype]
    for x, y in zip(have, want, strict=True):
        torch.testing.assert_close(x, y, rtol=tolerance, atol=tolerance * 1e-2)
    torch.testing.assert_close(
        got, z, rtol=max(tolerance, 1e-4) if wide == torch.float32 else 1e-11, atol=1e-3
    )
    assert [float(t) for t in b.steps] == [1.0, 2.0, 1.0, 2.0, 1.0, 2.0]


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
@pytest.mark.parametrize("rule", RULES, ids=lambda rule: type(rule).__name__)
@pytest.mark.parametrize("name", ["eager", "native"])
def test_kernels_equal_the_pure_function(name: str, rule: Rule, dtype: torch.dtype) -> None:
    kernel: Kernel = EagerKernel() if name == "eager" else native()
    for maximize, scaled in [(False, False), (True, True)]:
        check(kernel, rule, dtype, maximize, scaled)


@pytest.mark.slow
@pytest.mark.parametrize("rule", [AdamW(), Lion()], ids=lambda rule: type(rule).__name__)
def test_the_compiled_kernel_equals_the_pure_function(rule: Rule) -> None:
    if subprocess.run(["which", os.environ.get("CXX", "g++")], capture_output=True, check=False).returncode:
        pytest.skip("torch.compile needs a C++ compiler on a CPU")
    check(CompiledKernel(), rule, torch.float32, True, True)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU is present")
@pytest.mark.parametrize("rule", RULES, ids=lambda rule: type(rule).__name__)
@pytest.mark.parametrize("name", ["eager", "inductor"])
def test_kernels_equal_the_pure_function_on_a_gpu(name: str, rule: Rule) -> None:
    check(EagerKernel() if name == "eager" else CompiledKernel(), rule, torch.float32, False, True, "cuda")


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU is present")
@pytest.mark.parametrize("kernel", ["eager", "inductor"])
def test_a_step_on_a_gpu_never_waits_for_it(kernel: str) -> None:
    model = nn.Linear(64, 64).cuda()
    opt = MetaOptimize(model.parameters(), compile=kernel, max_grad_norm=1.0)
    model(torch.randn(8, 64, device="cuda")).sum().backward()
    opt.step()
    torch.cuda.set_sync_debug_mode("error")
    try:
        opt.step()
    finally:
        torch.cuda.set_sync_debug_mode("default")


def trained(steps: int = 6, groups: int = 1, **options) -> tuple[list[Tensor], MetaOptimize]:
    torch.manual_seed(0)
    params = [nn.Parameter(torch.randn(300, 210)) for _ in range(groups)]
    opt = MetaOptimize([{"params": [p], "weight_decay": 0.01 * i} for i, p in enumerate(params)], lr=1e-3,
                       meta_lr=0.1, **options)  # fmt: skip
    gen = torch.Generator().manual_seed(1)
    for _ in range(steps):
        for p in params:
            p.grad = torch.randn(p.shape, generator=gen)
        opt.step()
    return [p.detach() for p in params], opt


def test_results_do_not_depend_on_the_number_of_threads() -> None:
    native()
    threads = torch.get_num_threads()
    try:
        runs = []
        for count in [1, 2, 3]:
            torch.set_num_threads(count)
            params, opt = trained(groups=3, compile="native")
            runs.append([*params, opt.step_sizes()])
    finally:
        torch.set_num_threads(threads)
    for other in runs[1:]:
        assert all(torch.equal(a, b) for a, b in zip(runs[0], other, strict=True))


def test_the_native_step_keeps_denormals_and_nan() -> None:
    native()
    p = nn.Parameter(torch.tensor([1e-40, 1.0, 1.0]))
    opt = MetaOptimize([p], lr=1e-3, base="sgd", meta_lr=0.0, compile="native")
    p.grad = torch.tensor([0.0, float("nan"), float("inf")])
    opt.step()
    assert float(p[0]) == float(torch.tensor(1e-40))
    assert torch.isnan(p[1])
    assert float(p[2]) == -float("inf")
    assert float(torch.tensor(1e-40) * 0.5) > 0, "the process flushes denormals to zero now"


def test_autograd_sees_that_the_weights_changed() -> None:
    native()
    p = nn.Parameter(torch.ones(3))
    opt = MetaOptimize([p], compile="native")
    loss = (p * p).sum()
    p.grad = torch.ones(3)
    opt.step()
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        loss.backward()


def test_replaced_state_and_storage_are_noticed() -> None:
    """Frameworks move state and weights behind the optimizer's back; the next step must use the new
    memory."""
    native()
    _, opt = trained(compile="native")
    _, ref = trained(compile="native")
    p, q = opt.param_groups[0]["params"][0], ref.param_groups[0]["params"][0]
    opt.state[p] = {name: value.clone() for name, value in opt.state[p].items()}
    p.data = p.data.clone()
    for x, o in [(p, opt), (q, ref)]:
        x.grad = torch.ones_like(x)
        o.step()
        assert float(o.state[x]["step"]) == 7
    assert torch.equal(p, q)
    p.data = p.data.double()
    p.grad = torch.ones_like(p)
    opt.step()
    assert p.dtype == torch.float64


def test_auto_is_native_where_it_can_be_and_says_so_in_the_state() -> None:
    native()
    _, opt = trained(steps=1)
    assert opt.state_dict()["param_groups"][0]["kernel"] == "native"
    _, opt = trained(steps=1, compile="eager")
    assert opt.state_dict()["param_groups"][0]["kernel"] == "eager"


def test_a_loaded_choice_is_kept() -> None:
    """Saved by the plain kernel, a run goes on with it although a faster one is at hand."""
    params, opt = trained(compile="eager")
    twins, other = trained(steps=1)
    for p, q in zip(twins, params, strict=True):
        p.copy_(q)
    other.load_state_dict(opt.state_dict())
    for o in (opt, other):
        o.param_groups[0]["params"][0].grad = torch.ones(300, 210)
        o.step()
    assert other.param_groups[0]["kernel"] == "eager"
    assert torch.equal(opt.param_groups[0]["params"][0], other.param_groups[0]["params"][0])


FALLBACK = """
import sys, warnings
import torch
from metaopt_hpo.optim import KernelWarning, MetaOptimize
with warnings.catch_warnings(record=True) as seen:
    warnings.simplefilter("always")
    for _ in range(2):
        p = torch.nn.Parameter(torch.ones(3))
        opt = MetaOptimize([p], lr=0.1, base="sgd")
        for _ in range(3):
            p.grad = torch.ones(3)
            opt.step()
        assert opt.param_groups[0]["kernel"] == "eager"
        assert torch.isfinite(p).all() and p[0] < 1
ours = [w for w in seen if issubclass(w.category, KernelWarning)]
assert len(ours) == 1, ours
print(ours[0].message)
"""


@pytest.mark.parametrize(
    ("compiler", "reason"), [("no-such-compiler", "no C compiler"), ("false", "false failed")]
)
def test_without_a_compiler_one_warning_and_a_correct_run(compiler: str, reason: str, tmp_path: Path) -> None:
    env = {**os.environ, "CC": compiler, "METAOPT_HPO_CACHE": str(tmp_path)}
    done = subprocess.run(
        [sys.executable, "-c", FALLBACK], env=env, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    assert reason in done.stdout


WITHOUT_OPENMP = """
import torch
from metaopt_hpo.optim import MetaOptimize
p = torch.nn.Parameter(torch.ones(100_000))
opt = MetaOptimize([p], lr=0.1, base="sgd", compile="native")
p.grad = torch.ones(100_000)
opt.step()
print(opt.param_groups[0]["kernel"])
"""


def test_a_compiler_without_openmp_still_builds(tmp_path: Path) -> None:
    native()
    wrapper = tmp_path / "cc"
    real = os.environ.get("CC", "cc")
    wrapper.write_text(
        f'#!/bin/sh\nfor a in "$@"; do [ "$a" = -fopenmp ] && exit 1; done\nexec {real} "$@"\n'
    )
    wrapper.chmod(0o755)
    env = {**os.environ, "CC": str(wrapper), "METAOPT_HPO_CACHE": str(tmp_path / "cache")}
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", WITHOUT_OPENMP],
        env=env,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == "native"


def test_a_folder_that_others_may_write_is_not_trusted(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    open_folder = tmp_path / "open"
    open_folder.mkdir()
    open_folder.chmod(0o777)
    monkeypatch.setenv("METAOPT_HPO_CACHE", str(open_folder))
    assert cache_folder() != open_folder
    monkeypatch.setenv("METAOPT_HPO_CACHE", str(tmp_path / "own"))
    assert cache_folder() == tmp_path / "own"


def test_a_rule_that_the_loop_does_not_know_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    @dataclasses.dataclass(frozen=True)
    class Mine(SGD):
        def update(self, g, state, t):
            return torch.tanh(g), ()

    monkeypatch.setattr(choosing, "_warned", set())
    p = nn.Parameter(torch.ones(2))
    p.grad = torch.ones(2)
    with pytest.warns(KernelWarning, match="no description of Mine: it calls tanh"):
        MetaOptimize([p], base=Mine(), compile="native").step()


@pytest.mark.parametrize("kernel", ["eager", "auto"])
@pytest.mark.parametrize(("sign", "what"), [(1.0, "collapsed"), (-1.0, "exploded")])
def test_a_step_size_that_runs_away_warns_once(kernel: str, sign: float, what: str) -> None:
    p = nn.Parameter(torch.zeros(1))
    opt = MetaOptimize([p], lr=1e-3, base="sgd", meta="lion", meta_lr=10.0, compile=kernel)

    def steps(count: int, start: float) -> None:
        for i in range(count):
            # Gradients of one sign push β up, alternating ones push it down.
            p.grad = torch.full((1,), 1.0 if sign < 0 else (-1.0) ** i)
            opt.step()

    with pytest.warns(StepSizeWarning, match=what) as seen:
        steps(6, 0.0)
    assert len(seen) == 1
    steps(2, 0.0)
