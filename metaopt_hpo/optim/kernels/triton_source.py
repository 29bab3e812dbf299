"""The Triton source of the step for a pair of described rules, and the module made of it.

Two kernels. ``advance``: one program a chunk of one tensor, weights, base state and trace read and written once, the
sum of h·g of the chunk on the way. ``settle``: one program a block, the chunks' sums added up in a fixed order, the
meta update, exp, the live step sizes and the tensors' step counters. Everything that changes from step to step or from
run to run (pointers, sizes, multipliers, decay, γ, η, the rules' numbers) is read from tables on the device, so that
nothing is compiled anew for it, and a captured graph reads what stands there when it is replayed.
"""

from __future__ import annotations

import hashlib
import importlib.util
import sys
import tempfile
import threading
from pathlib import Path
from typing import Any

from metaopt_hpo.atomic import write_text
from metaopt_hpo.optim.kernels.build import cache_folder
from metaopt_hpo.optim.kernels.describe import Program
from metaopt_hpo.optim.kernels.emit import TRITON, emit

FIXED = 4
"""Entries of a row of the pointer table before the base rule's states: weights, gradient, trace, step counter."""

SOURCE = '''"""Written by metaopt_hpo.optim.kernels.triton_source from the descriptions of two rules."""
import triton
import triton.language as tl


@triton.jit
def dither(x, seed, i):
    noise = i.to(tl.uint32) * 0x9E3779B1 + seed
    noise = (noise ^ (noise >> 16)) * 0x85EBCA6B
    noise = (noise ^ (noise >> 13)) * 0xC2B2AE35
    bits = x.to(tl.uint32, bitcast=True)
    up = tl.where((bits & 0x7F800000) == 0x7F800000, 0, noise >> 16).to(tl.uint32)
    cut = ((bits + up) & 0xFFFF0000).to(tl.uint32).to(tl.float32, bitcast=True)
    return tl.where(x != x, x, cut)


@triton.jit
def nearest(x):
    bits = x.to(tl.uint32, bitcast=True)
    cut = ((bits + 0x7FFF + ((bits >> 16) & 1)) & 0xFFFF0000).to(tl.uint32).to(tl.float32, bitcast=True)
    return tl.where(x - x == 0, cut, x)


@triton.jit
def advance(order, chunks, rows, sizes, factors, numbers, common, beta, partial, scale, ticks, number_count, first,
            HAS_SCALE: tl.constexpr, W: tl.constexpr, T: tl.constexpr, H: tl.constexpr, DITHER_H: tl.constexpr,
            ROUND_W: tl.constexpr, ROW: tl.constexpr, CHUNK: tl.constexpr, BLOCK: tl.constexpr):
    pid = tl.program_id(0)
    if first * (pid == 0):
        tl.store(ticks, tl.load(ticks) + 1)
    chunk = tl.load(order + pid)
    tensor = tl.load(chunks + 2 * chunk)
    start = tl.load(chunks + 2 * chunk + 1)
    n = tl.load(sizes + 2 * tensor)
    block = tl.load(sizes + 2 * tensor + 1)
    row = rows + tensor * ROW
    p = tl.load(row).to(tl.pointer_type(W))
    grad = tl.load(row + 1).to(tl.pointer_type(W))
    h = tl.load(row + 2).to(tl.pointer_type(H))
    t = tl.load(tl.load(row + 3).to(tl.pointer_type(tl.float32))).to(tl.float64) + 1.0
{base_pointers}
    c = numbers + tensor * number_count
    zero_ = t * 0.0
    size = tl.exp(tl.load(beta + block).to(tl.float64)) * tl.load(factors + 3 * tensor)
    kappa = tl.load(factors + 3 * tensor + 1)
    factor = tl.load(factors + 3 * tensor + 2)
    if HAS_SCALE:
        factor = factor * tl.load(scale).to(tl.float64)
    sign = factor.to(T)
    alpha = size.to(T)
    decay = kappa.to(T)
    keep = (tl.load(common) * (1.0 - kappa * size)).to(T)
    seed = t.to(tl.int64).to(tl.uint32) * 0x27D4EB2F
{base_scalars}
    total = tl.zeros([BLOCK], dtype=T)
    for offset in range(0, CHUNK, BLOCK):
        i = start + offset + tl.arange(0, BLOCK)
        here = i < n
        w = tl.load(p + i, mask=here, other=0.0).to(T)
        g = sign * tl.load(grad + i, mask=here, other=0.0).to(T)
        trace = tl.load(h + i, mask=here, other=0.0).to(T)
        total += tl.where(here, trace * g, 0.0).to(T)
{base_load}
{base_ops}
        delta = -alpha * ({base_u} + decay * w)
{base_store}
        moved = keep * trace + delta
        if DITHER_H:
            moved = dither(moved, seed, i)
        tl.store(h + i, moved.to(H), mask=here)
        new = w + delta
        if ROUND_W == 1:
            new = nearest(new)
        if ROUND_W == 2:
            new = dither(new, seed ^ 0x5BD1E995, i)
        tl.store(p + i, new.to(W), mask=here)
    tl.store(partial + chunk, tl.sum(total, axis=0).to(tl.float64))


@triton.jit
def settle(partial, extra, ranges, rows, common, numbers, beta, meta_step{meta_arguments}, skipped, ticks, live,
           live_ratio, HAS_EXTRA: tl.constexpr, T: tl.constexpr, ROW: tl.constexpr, BLOCK: tl.constexpr):
    b = tl.program_id(0)
    at = ranges + 6 * b
    low_ = tl.load(common + 2)
    acc = tl.zeros([BLOCK], dtype=tl.float64)
    first = tl.load(at)
    last = tl.load(at + 1)
    for k in range(first, last, BLOCK):
        i = k + tl.arange(0, BLOCK)
        acc += tl.load(partial + i, mask=i < last, other=0.0)
    z = tl.sum(acc, axis=0).to(T)
    if HAS_EXTRA:
        z += tl.load(extra + b)
    t = tl.load(meta_step + b).to(tl.float64) + 1.0
    zero_ = t * 0.0
    c = numbers
    own = tl.load(beta + b)
    rate = tl.load(common + 1).to(T)
    low = low_.to(T)
    high = tl.load(common + 3).to(T)
{meta_load}
{meta_scalars}
{meta_ops}
    moved = own - rate * {meta_d}
    ok = ((z - z) == 0) & ((moved - moved) == 0){meta_finite}
    held = tl.where(moved < low, low, tl.where(moved > high, high, moved))
    new = tl.where(ok, held, own)
    tl.store(beta + b, new)
{meta_store}
    tl.store(meta_step + b, tl.where(ok, t, t - 1.0).to(T))
    tick = tl.load(ticks)
    if ok == 0:
        if tl.atomic_xchg(ticks + 1, tick) != tick:
            tl.atomic_add(skipped, 1)
    alpha = tl.exp(new.to(tl.float64))
    for k in range(tl.load(at + 4), tl.load(at + 5)):
        where = tl.load(live + k).to(tl.pointer_type(T))
        tl.store(where, (alpha * tl.load(live_ratio + k)).to(T))
    end = tl.load(at + 3)
    for k in range(tl.load(at + 2), end, BLOCK):
        i = k + tl.arange(0, BLOCK)
        here = i < end
        counts = tl.load(rows + i * ROW + 3, mask=here, other=0).to(tl.pointer_type(tl.float32))
        tl.store(counts, tl.load(counts, mask=here, other=0.0) + 1.0, mask=here)
'''


def source(base: Program, meta: Program) -> str:
    """The module's text."""
    states, meta_states = range(base.states), range(meta.states)
    inputs = {
        "t": "t",
        "g": "g",
        "w": "w",
        "number": "tl.load(c + {0})",
        **{f"s{k}": f"s{k}" for k in states},
    }
    text = emit(base, TRITON, "b", inputs)
    inputs = {"t": "t", "g": "z", "w": "own", "number": "tl.load(c + {0})"}
    inputs |= {f"s{k}": f"ms{k}" for k in meta_states}
    other = emit(meta, TRITON, "m", inputs)

    def lines(parts: Any, indent: int) -> str:
        return "\n".join(" " * indent + part for part in parts) or " " * indent + "pass"

    values = {
        "base_pointers": lines(
            [f"q{k} = tl.load(row + {FIXED + k}).to(tl.pointer_type(T))" for k in states], 4
        ),
        "base_scalars": lines(text.scalars, 4),
        "base_load": lines([f"s{k} = tl.load(q{k} + i, mask=here, other=0.0)" for k in states], 8),
        "base_ops": lines(text.elements, 8),
        "base_u": text.direction,
        "base_store": lines([f"tl.store(q{k} + i, {new}, mask=here)" for k, new in enumerate(text.new)], 8),
        "meta_arguments": "".join(f", r{k}" for k in meta_states),
        "meta_load": lines([f"ms{k} = tl.load(r{k} + b)" for k in meta_states], 4),
        "meta_scalars": lines(other.scalars, 4),
        "meta_ops": lines(other.elements, 4),
        "meta_d": other.direction,
        "meta_finite": "".join(f" & (({new} - {new}) == 0)" for new in other.new),
        "meta_store": lines(
            [f"tl.store(r{k} + b, tl.where(ok, {new}, ms{k}))" for k, new in enumerate(other.new)], 4
        ),
    }
    out = SOURCE
    for name, value in values.items():
        out = out.replace("{" + name + "}", value)
    return out


_modules: dict[tuple[Program, Program], Any] = {}
_lock = threading.Lock()


def module(base: Program, meta: Program) -> Any:
    """The module with ``advance`` and ``settle``; its source lies in the cache, for Triton reads it from a file."""
    with _lock:
        if (base, meta) not in _modules:
            text = source(base, meta)
            name = f"metaopt_triton_{hashlib.sha256(text.encode()).hexdigest()[:24]}"
            folder = cache_folder() or Path(tempfile.mkdtemp(prefix="metaopt_hpo-triton-"))
            path = folder / f"{name}.py"
            if not path.is_file() or path.read_text() != text:
                write_text(path, text)
            spec = importlib.util.spec_from_file_location(name, path)
            assert spec is not None
            assert spec.loader is not None
            made = importlib.util.module_from_spec(spec)
            sys.modules[name] = made
            spec.loader.exec_module(made)
            _modules[base, meta] = made
        return _modules[base, meta]
