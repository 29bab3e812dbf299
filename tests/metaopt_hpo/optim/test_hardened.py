"""What may not break the step: tensors changed behind its back, other defaults of torch, threads, odd builds."""

from __future__ import annotations

import dataclasses
import os
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import ClassVar

import pytest
import torch
from torch import nn

from metaopt_hpo.optim import AdamW, KernelWarning, MetaOptimize, Rule
from metaopt_hpo.optim.kernels import build, compiled

KERNELS = ["native", "eager"]


def stepped(kernel: str, **options) -> tuple[nn.Parameter, nn.Parameter, MetaOptimize]:
    torch.manual_seed(0)
    p, q = nn.Parameter(torch.randn(20, 4)), nn.Parameter(torch.randn(6, 6))
    opt = MetaOptimize([("p", p), ("q", q)], lr=1e-2, compile=kernel, **options)
    again(opt, p, q)
    return p, q, opt


def again(opt: MetaOptimize, *params: nn.Parameter) -> None:
    for x in params:
        x.grad = torch.ones_like(x)
    opt.step()


@pytest.mark.parametrize("kernel", KERNELS)
@pytest.mark.parametrize("blocks", ["scalar", "weight"])
@pytest.mark.parametrize(
    "change", [lambda x: x[:7].clone(), lambda x: torch.cat([x, x]), lambda x: x.t().contiguous()]
)
def test_a_changed_shape_is_refused_by_name(kernel: str, blocks: str, change) -> None:
    p, q, opt = stepped(kernel, blocks=blocks)
    p.data, p.grad = change(p.data), None
    with pytest.raises(ValueError, match="'p' has changed its shape"):
        again(opt, p, q)


@pytest.mark.parametrize("kernel", KERNELS)
def test_a_stale_gradient_is_refused_by_name(kernel: str) -> None:
    p, q, opt = stepped(kernel)
    q.data = q.data[:3].clone()
    del opt.state[q]
    p.grad = torch.ones_like(p)
    with pytest.raises(ValueError, match="'q' has the shape"):
        opt.step()


@pytest.mark.parametrize("kernel", KERNELS)
def test_other_memory_of_the_same_shape_goes_on(kernel: str) -> None:
    """Swapped storage, another order in memory, another dtype: the run stays the run without the change."""
    results = []
    for change in [lambda x: x, lambda x: x.clone(), lambda x: x.t().contiguous().t(), lambda x: x.double()]:
        p, q, opt = stepped(kernel)
        q.data, q.grad = change(q.data), None
        again(opt, p, q)
        again(opt, p, q)
        results.append(q.detach().float())
        wide = torch.float64 if q.dtype == torch.float64 else torch.float32
        assert opt.state[q]["h"].dtype == opt.state[q]["m"].dtype == wide
    for other in results[1:]:
        torch.testing.assert_close(other, results[0], rtol=1e-5, atol=1e-6)


DEFAULTS = """
import torch, warnings
warnings.simplefilter("error")
from metaopt_hpo import MetaOptimize
p = torch.nn.Parameter(torch.ones(8)); p.grad = torch.ones(8)
{setting}
for blocks in ("scalar", "weight"):
    opt = MetaOptimize([p], lr=1e-3, blocks=blocks, max_grad_norm=1.0)
    opt.step(); opt.step()
    assert opt.param_groups[0]["kernel"] == "native"
    assert opt.state[p]["step"].device.type == "cpu" and opt.state[p]["step"].dtype == torch.float32
"""


@pytest.mark.parametrize(
    "setting", ["torch.set_default_device('meta')", "torch.set_default_dtype(torch.float64)",
                "torch.set_default_dtype(torch.bfloat16)"])  # fmt: skip
def test_defaults_of_torch_do_not_matter(setting: str) -> None:
    code = DEFAULTS.format(setting=setting)
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-2000:]


@dataclasses.dataclass(frozen=True)
class Mine(AdamW):
    """A rule of one's own."""


@pytest.mark.parametrize("options", [{}, {"meta": Mine()}, {"base": Mine()}, {"blocks": "weight"}])
def test_two_threads_train_as_one(options: dict) -> None:
    def train(seed: int, out: dict) -> None:
        gen = torch.Generator().manual_seed(seed)
        params = [nn.Parameter(torch.randn(64, 64, generator=gen)) for _ in range(3)]
        opt = MetaOptimize(params, lr=1e-3, meta_lr=1e-2, **options)
        for _ in range(60):
            for p in params:
                p.grad = torch.randn(p.shape, generator=gen)
            opt.step()
        out[seed] = torch.stack([p.detach() for p in params])

    alone: dict = {}
    both: dict = {}
    for seed in range(2):
        train(seed, alone)
    threads = [threading.Thread(target=train, args=(seed, both)) for seed in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert all(torch.equal(alone[seed], both[seed]) for seed in range(2))


@pytest.mark.parametrize("kernel", KERNELS)
def test_threads_that_share_an_optimizer_step_one_after_another(kernel: str) -> None:
    params = [nn.Parameter(torch.randn(100, 100)) for _ in range(4)]
    opt = MetaOptimize(params, lr=1e-3, compile=kernel)
    for p in params:
        p.grad = torch.ones_like(p)
    failed: list[Exception] = []

    def step() -> None:
        try:
            for _ in range(30):
                opt.step()
        except Exception as error:
            failed.append(error)

    threads = [threading.Thread(target=step) for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not failed
    assert [float(opt.state[p]["step"]) for p in params] == [90.0] * 4


@dataclasses.dataclass(frozen=True)
class Decides(Rule):
    """Cannot be traced: it looks at a value. Rules that are not elementwise are never compiled."""

    elementwise: ClassVar[bool] = True

    def update(self, g, state, t):
        n = float(g.norm())
        return (g / n if n > 1 else g), ()


@pytest.fixture
def quick_compiler(monkeypatch: pytest.MonkeyPatch) -> None:
    real = torch.compile
    monkeypatch.setattr(compiled.torch, "compile", lambda f, **k: real(f, backend="eager", **k))
    monkeypatch.setattr(compiled, "_warned", set())
    compiled._graphs.clear()
    torch._dynamo.reset()  # a frame that an earlier test made it skip would never be tried


@pytest.mark.usefixtures("quick_compiler")
def test_a_rule_that_cannot_be_compiled_runs_eagerly_with_one_warning() -> None:
    results = []
    for kernel in ("inductor", "eager"):
        p = nn.Parameter(torch.ones(4))
        opt = MetaOptimize([p], base=Decides(), compile=kernel)
        p.grad = torch.full((4,), 3.0)
        if kernel == "inductor":
            with pytest.warns(KernelWarning, match="cannot compile Decides"):
                opt.step()
        else:
            opt.step()
        opt.step()
        results.append((p.detach().clone(), float(opt.state[p]["step"])))
    assert torch.equal(results[0][0], results[1][0])
    assert results[0][1] == results[1][1] == 2


@pytest.mark.usefixtures("quick_compiler")
def test_what_a_search_varies_is_not_compiled_anew() -> None:
    torch._dynamo.utils.counters.clear()
    for trial in range(70):
        p = nn.Parameter(torch.ones(4))
        p.grad = torch.ones(4)
        MetaOptimize([p], lr=1e-3 * (trial + 1), weight_decay=1e-3 * trial, gamma=1 - 1e-3 * trial, compile="inductor",
                     base=Mine(betas=(0.9, 0.9 + 1e-3 * trial))).step()  # fmt: skip
    assert torch._dynamo.utils.counters["stats"]["unique_graphs"] == 1


BUILD = """
import warnings, torch
warnings.simplefilter("error")
from metaopt_hpo import MetaOptimize
p = torch.nn.Parameter(torch.ones(8)); p.grad = torch.ones(8)
opt = MetaOptimize([p], lr=1e-3); opt.step()
assert opt.param_groups[0]["kernel"] == "native", opt.param_groups[0]["kernel"]
"""


def built(cache: Path, **env: str) -> None:
    whole = {**os.environ, "METAOPT_HPO_CACHE": str(cache), **env}
    done = subprocess.run(
        [sys.executable, "-c", BUILD], env=whole, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr[-2000:]


def test_a_compiler_with_arguments_builds(tmp_path: Path) -> None:
    built(tmp_path / "cache", CC="gcc -O2 -g0")
    assert len(list((tmp_path / "cache").glob("*.so"))) >= 1


def test_an_empty_library_and_leftovers_are_replaced(tmp_path: Path) -> None:
    cache = tmp_path / "cache"
    built(cache)
    libraries = list(cache.glob("*.so"))
    for path in libraries:
        path.write_bytes(b"")
    left = cache / "build-killed"
    left.mkdir()
    (left / "x").write_text("")
    old = time.time() - 2 * build.STALE
    os.utime(left, (old, old))
    built(cache)
    assert all(path.stat().st_size > 0 for path in libraries)
    assert not left.exists()


def test_a_cache_that_others_may_write_keeps_a_private_part(tmp_path: Path) -> None:
    cache, temporary = tmp_path / "cache", tmp_path / "tmp"
    cache.mkdir()
    temporary.mkdir()
    cache.chmod(0o775)
    built(cache, TMPDIR=str(temporary))
    inside = list(cache.glob("user-*/*.so"))
    assert len(inside) >= 1
    assert not inside[0].parent.stat().st_mode & 0o022
    assert not list(temporary.glob("metaopt_hpo-*"))


def test_a_cache_that_is_a_file_is_done_without(tmp_path: Path) -> None:
    cache, temporary = tmp_path / "cache", tmp_path / "tmp"
    cache.write_text("")
    temporary.mkdir()
    built(cache, TMPDIR=str(temporary))
    assert not list(temporary.glob("metaopt_hpo-*"))
