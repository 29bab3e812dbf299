"""How fast a step of MetaOptimize is, as ratios to torch's own optimizers taken in the same run.

``make bench`` runs this file and prints the table of the README's performance section. Before every timed
round the reference takes a step and is timed too, so that whatever else the machine does hits both. Nothing
is asserted. On a machine that others use, measure the processor's time of one thread:

    METAOPT_BENCH_THREADS=1 pytest tests/benchmarks/test_optim_speed.py --benchmark-only \
        --benchmark-timer=time.process_time -s
"""

from __future__ import annotations

import math
import os
import statistics
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from metaopt_hpo.markdown import markdown_table
from metaopt_hpo.optim import MetaOptimize
from metaopt_hpo.optim.muon import is_hidden_matrix

THREADS = int(os.environ.get("METAOPT_BENCH_THREADS", "2"))
ROUNDS = 40
ROWS: list[tuple[str, ...]] = []


@pytest.fixture(autouse=True)
def only_as_a_benchmark(request: pytest.FixtureRequest) -> Iterator[None]:
    if not request.config.getoption("--benchmark-only"):
        pytest.skip("measures speed: run `make bench`")
    threads = torch.get_num_threads()
    torch.set_num_threads(THREADS)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="module", autouse=True)
def table() -> Iterator[None]:
    yield
    if ROWS:
        head = ["measured beside", "min ms", "ratio of minima", "ratio of medians", "reach"]
        print(f"\n\n{THREADS} threads\n\n{markdown_table(head, ROWS)}")


def llama_shapes() -> list[tuple[str, tuple[int, ...]]]:
    """15.2 M parameters: width 288, 6 layers, 32,000 tokens."""
    width, hidden = 288, 768
    shapes: list[tuple[str, tuple[int, ...]]] = [("tokens", (32_000, width))]
    for layer in range(6):
        shapes += [(f"layers.{layer}.attention.{name}", (width, width)) for name in "qkvo"]
        shapes += [(f"layers.{layer}.mlp.{name}", (hidden, width)) for name in ("gate", "up")]
        shapes += [(f"layers.{layer}.mlp.down", (width, hidden))]
        shapes += [(f"layers.{layer}.{name}", (width,)) for name in ("norm1", "norm2")]
    return [*shapes, ("norm", (width,))]


def small_shapes() -> list[tuple[str, tuple[int, ...]]]:
    """A two-layer byte-level transformer of 119 k parameters."""
    shapes: list[tuple[str, tuple[int, ...]]] = [
        ("tokens", (128, 64)),
        ("positions", (64, 64)),
        ("head", (128, 64)),
    ]
    for layer in range(2):
        shapes += [(f"layers.{layer}.attention.{name}", (64, 64)) for name in "qkvo"]
        shapes += [(f"layers.{layer}.mlp.up", (256, 64)), (f"layers.{layer}.mlp.down", (64, 256))]
        shapes += [(f"layers.{layer}.{name}", (64,)) for name in ("norm1", "norm2")]
    return [*shapes, ("norm", (64,))]


def parameters(shapes: list[tuple[str, tuple[int, ...]]], device: str) -> list[tuple[str, nn.Parameter]]:
    torch.manual_seed(0)
    made = [(name, nn.Parameter(0.02 * torch.randn(shape, device=device))) for name, shape in shapes]
    for _, p in made:
        p.grad = 1e-3 * torch.randn_like(p)
    return made


def ours(shapes: list[tuple[str, tuple[int, ...]]], device: str = "cpu", **options) -> Callable[[], object]:
    return MetaOptimize(parameters(shapes, device), lr=1e-4, weight_decay=0.1, **options).step


def adamw(shapes: list[tuple[str, tuple[int, ...]]], device: str = "cpu", **options) -> Callable[[], object]:
    params = [p for _, p in parameters(shapes, device)]
    return torch.optim.AdamW(params, lr=1e-4, weight_decay=0.1, **options).step


def compare(
    benchmark, name: str, reach: str, step: Callable[[], object], reference: Callable[[], object], repeat: int
        = 1,
    rounds: int = ROUNDS,
) -> None:  # fmt: skip
    wait = torch.cuda.synchronize if torch.cuda.is_available() else lambda: None
    for _ in range(3):
        step()
        reference()
    times: list[float] = []
    timer = benchmark._timer

    def many(run: Callable[[], object]) -> None:
        for _ in range(repeat):
            run()
        wait()

    def before() -> None:
        start = timer()
        many(reference)
        times.append(timer() - start)

    benchmark.pedantic(lambda: many(step), setup=before, rounds=rounds)
    stats = benchmark.stats.stats
    least, median = stats.min / min(times), stats.median / statistics.median(times)
    benchmark.extra_info.update(ratio_min=least, ratio_median=median)
    shown = f"{stats.min * 1e3 / repeat:.3f} against {min(times) * 1e3 / repeat:.3f}"
    ROWS.append((name, shown, f"{least:.2f}×", f"{median:.2f}×", reach))


@pytest.mark.parametrize(
    ("name", "reach", "options"),
    [
        ("fast step, AdamW base, scalar / torch fused AdamW", "≤1.20×", {}),
        ("fast step, layer blocks / torch fused AdamW", "≤1.25×", {"blocks": "layer"}),
        ("fast step, Lion base / torch fused AdamW", "≤1.05×", {"base": "lion"}),
        ("fast step, bfloat16 trace / torch fused AdamW", "–", {"trace_dtype": torch.bfloat16}),
    ],
)
def test_fast_step(benchmark, name: str, reach: str, options) -> None:
    compare(benchmark, name, reach, ours(llama_shapes(), **options), adamw(llama_shapes(), fused=True))


WEIGHTS = [("w", (1000, 1000))]


@pytest.mark.parametrize(
    ("meta", "reach"), [("adam", "≤1.6×; 17 words a weight against 7: 2.43×"), ("sgd", "13 words: 1.86×")]
)
def test_weight_blocks(benchmark, meta: str, reach: str) -> None:
    """A meta rule of single weights has as much to do as a base rule, so meta-Adam is a second AdamW."""
    name = f"weight blocks, meta {meta}, 1 M weights / torch fused AdamW"
    step = ours(WEIGHTS, blocks="weight", meta=meta)
    compare(benchmark, name, reach, step, adamw(WEIGHTS, fused=True), repeat=5)


@pytest.mark.parametrize("n", [50_000, 200_000, 1_000_000, 4_000_000])
@pytest.mark.parametrize(
    "options",
    [{}, {"blocks": "weight"}, {"blocks": "weight", "meta": "sgd"}],
    ids=["scalar", "weight", "weight, meta sgd"],
)
def test_sizes(benchmark, n: int, options, request: pytest.FixtureRequest) -> None:
    """From the second-level cache to main memory: one tensor of n weights."""
    shapes = [("w", (n,))]
    name = f"{request.node.callspec.id} / torch fused AdamW"
    step, reference = ours(shapes, **options), adamw(shapes, fused=True)
    compare(benchmark, name, "–", step, reference, repeat=max(1, 1_000_000 // n), rounds=15)


def test_weight_blocks_against_two_adams(benchmark) -> None:
    """The same work by torch, but for the trace: AdamW for the weights, and one for their log step sizes."""
    both = [adamw(WEIGHTS, fused=True) for _ in range(2)]
    name = "weight blocks, meta adam, 1 M weights / two torch fused AdamW"
    step = ours(WEIGHTS, blocks="weight")
    compare(benchmark, name, "–", step, lambda: [one() for one in both], repeat=5)


@pytest.mark.skipif(not hasattr(torch.optim, "Muon"), reason="this torch has no Muon")
def test_muon_whole_step(benchmark) -> None:
    """Forward, backward and update of the byte-level model, ours with the Muon base beside torch's Muon + AdamW."""
    torch.manual_seed(0)
    model, twin = Transformer(), Transformer()
    x = torch.randint(128, (16, 64))
    opt = MetaOptimize(model.named_parameters(), lr=1e-3, base="muon")
    hidden = [p for n, p in twin.named_parameters() if is_hidden_matrix(n, p)]
    rest = [p for n, p in twin.named_parameters() if not is_hidden_matrix(n, p)]
    torchs = [torch.optim.Muon(hidden, lr=1e-3), torch.optim.AdamW(rest, lr=1e-3, fused=True)]

    def whole(m: nn.Module, optimizers: list[torch.optim.Optimizer]) -> None:
        m.zero_grad()
        nn.functional.cross_entropy(m(x).flatten(0, 1), x.flatten()).backward()
        for o in optimizers:
            o.step()

    name = "Muon base, whole training step / torch Muon + AdamW"
    compare(benchmark, name, "≤1.1×", lambda: whole(model, [opt]), lambda: whole(twin, torchs), rounds=20)


def test_eager_fallback(benchmark) -> None:
    name = "eager fallback / torch loop AdamW"
    compare(
        benchmark, name, "≤1.6×", ours(llama_shapes(), compile="eager"), adamw(llama_shapes(), foreach=False)
    )


def test_small_model(benchmark) -> None:
    name = "119 k parameters, one step / torch fused AdamW"
    compare(benchmark, name, "≤3×", ours(small_shapes()), adamw(small_shapes(), fused=True), repeat=50)


def test_small_model_against_eager(benchmark) -> None:
    name = "119 k parameters, auto / eager"
    compare(benchmark, name, "≤1×", ours(small_shapes()), ours(small_shapes(), compile="eager"), repeat=20)


class Transformer(nn.Module):
    """The byte-level model of the small row, to run forward and backward."""

    def __init__(self, width: int = 64) -> None:
        super().__init__()
        self.tokens = nn.Embedding(128, width)
        layer = nn.TransformerEncoderLayer(
            width, 4, 4 * width, dropout=0.0, batch_first=True, norm_first=True
        )
        self.body = nn.TransformerEncoder(layer, 2, enable_nested_tensor=False)
        self.head = nn.Linear(width, 128)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.body(self.tokens(x)))


def test_hessian_vector_products(benchmark) -> None:
    torch.manual_seed(0)
    model, twin = Transformer(), Transformer()
    x = torch.randint(128, (16, 64))

    def loss(m: nn.Module) -> Tensor:
        return nn.functional.cross_entropy(m(x).flatten(0, 1), x.flatten())

    opt = MetaOptimize(model.parameters(), lr=1e-4, trace="2x2")

    def reference() -> None:
        twin.zero_grad()
        loss(twin).backward()

    name = "2×2 step with its Hessian-vector product / one forward + backward"
    compare(benchmark, name, "≤2.5×", lambda: opt.step(lambda: loss(model)), reference, rounds=20)


FIRST = """
import time, torch
from metaopt_hpo.optim import MetaOptimize
params = [torch.nn.Parameter(torch.zeros(300, 300)) for _ in range(20)]
for p in params:
    p.grad = torch.ones_like(p)
opt = MetaOptimize(params)
start = time.perf_counter()
opt.step()
print(time.perf_counter() - start)
"""


def test_first_step(benchmark, tmp_path: Path) -> None:
    env = {**os.environ, "METAOPT_HPO_CACHE": str(tmp_path)}
    seconds: list[float] = []

    def first() -> None:
        out = subprocess.run(
            [sys.executable, "-c", FIRST], env=env, capture_output=True, text=True, check=True
        )
        seconds.append(float(out.stdout))

    benchmark.pedantic(first, rounds=3)
    ROWS.append(
        (
            "first step, cold cache / warm cache",
            f"{seconds[0]:.2f} s / {seconds[1]:.3f} s",
            "–",
            "–",
            "≤15 s / ≤3 s",
        )
    )


def test_extra_state(benchmark) -> None:
    """Not a time: bytes of state beyond AdamW's, in floats a parameter."""
    row = []
    for dtype in [None, torch.bfloat16]:
        params = parameters(small_shapes(), "cpu")
        opt = MetaOptimize(params, trace_dtype=dtype)
        benchmark.pedantic(opt.step, rounds=1) if dtype is None else opt.step()
        n = sum(p.numel() for _, p in params)
        size = sum(opt.state[p]["h"].nbytes for _, p in params)
        row.append(size / 4 / n)
    assert math.isclose(row[0], 1.0)
    ROWS.append(
        (
            "extra state, float32 / bfloat16 trace, floats a parameter",
            f"{row[0]:.2f} / {row[1]:.2f}",
            "–",
            "–",
            "1 / 0.5",
        )
    )
