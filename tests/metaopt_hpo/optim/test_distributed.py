"""Two processes on gloo equal one process on the joined batch; torch.distributed.checkpoint round trips."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
import torch.distributed as dist

SCRIPT = """
import os
import sys
import torch
import torch.distributed as dist
import torch.distributed.checkpoint as dcp
from dataclasses import dataclass
from torch import nn
from torch.distributed.checkpoint.state_dict import (
    StateDictOptions, get_optimizer_state_dict, set_optimizer_state_dict, get_model_state_dict,
    set_model_state_dict)
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor
from torch.nn.parallel import DistributedDataParallel as DDP
from metaopt_hpo.optim import MetaOptimize, Rule

rank, folder, scenario = int(sys.argv[1]), sys.argv[2], sys.argv[3]
torch.set_num_threads(1)
dist.init_process_group("gloo", init_method=f"file://{folder}/rendezvous-{scenario}", rank=rank, world_size=2)
mesh = init_device_mesh("cpu", (2,))

def net():
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(3, 5), nn.Tanh(), nn.Linear(5, 1)).double()

def batch(step):
    gen = torch.Generator().manual_seed(step)
    x = torch.randn(8, 3, generator=gen, dtype=torch.float64)
    return x, torch.sin(x.sum(1, keepdim=True))

OPTIONS = dict(lr=1e-2, meta_lr=0.05, weight_decay=0.1, blocks="layer", max_grad_norm=0.5)

def loss_of(model, step, share):
    x, y = batch(step)
    if share:
        x, y = x[rank::2], y[rank::2]
    return (model(x) - y).square().mean()

def train(model, opt, steps, share):
    hessian = opt._settings.trace != "hessian_free"
    for step in steps:
        opt.zero_grad()
        if hessian:
            opt.step(lambda: loss_of(model, step, share))
        else:
            loss_of(model, step, share).backward()
            opt.step()

def whole(x):
    return x.full_tensor() if isinstance(x, DTensor) else x

def named(module):
    return [(name.removeprefix("module."), p) for name, p in module.named_parameters()]

def compare(model, opt, ref, other, exactly=False):
    tolerance = dict(rtol=0.0, atol=0.0) if exactly else dict(rtol=1e-12, atol=1e-14)
    key = "h" if opt._settings.trace == "hessian_free" else "H"
    for (_, p), (_, q) in zip(named(model), named(ref), strict=True):
        torch.testing.assert_close(whole(p.detach()), whole(q.detach()), **tolerance)
        torch.testing.assert_close(whole(opt.state[p][key]), whole(other.state[q][key]), **tolerance)
    torch.testing.assert_close(opt.step_sizes(), other.step_sizes(), **tolerance)

def single(**options):
    model = net()
    opt = MetaOptimize(model.named_parameters(), **OPTIONS | options)
    train(model, opt, range(6), share=False)
    return model, opt

def ddp(**options):
    model = DDP(net())
    opt = MetaOptimize(named(model), **OPTIONS | options)
    train(model, opt, range(6), share=True)
    compare(model, opt, *single(**options))

def sharded(**options):
    model = net()
    for layer in (model[0], model[2]):
        fully_shard(layer, mesh=mesh)
    fully_shard(model, mesh=mesh)
    return model, MetaOptimize(model.named_parameters(), **OPTIONS | options)

def fsdp(**options):
    model, opt = sharded(**options)
    train(model, opt, range(6), share=True)
    assert all(isinstance(opt.state[p]["h"], DTensor) for p in model.parameters())
    compare(model, opt, *single(**options))

def checkpoint(kind, flatten):
    options = StateDictOptions(flatten_optimizer_state_dict=flatten)
    def fresh():
        if kind == "fsdp":
            return sharded()
        model = DDP(net())
        return model, MetaOptimize(named(model), **OPTIONS)
    model, opt = fresh()
    train(model, opt, range(3), share=True)
    opt.meta_lr = 0.07
    path = f"{folder}/checkpoint-{kind}-{flatten}"
    dcp.save({"model": get_model_state_dict(model),
              "opt": get_optimizer_state_dict(model, opt, options=options)}, checkpoint_id=path)
    train(model, opt, range(3, 6), share=True)
    twin, other = fresh()
    state = {"model": get_model_state_dict(twin),
             "opt": get_optimizer_state_dict(twin, other, options=options)}
    dcp.load(state, checkpoint_id=path)
    set_model_state_dict(twin, state["model"])
    set_optimizer_state_dict(twin, other, state["opt"], options=options)
    assert other.meta_lr == 0.07
    train(twin, other, range(3, 6), share=True)
    compare(twin, other, model, opt, exactly=True)

@dataclass(frozen=True)
class Scaled(Rule):
    # not elementwise: of a shard it would take the shard's norm
    def update(self, g, state, t):
        return g / g.norm(), ()

def refused():
    for options, word in [({"blocks": "weight"}, "blocks='weight'"), ({"trace": "2x2"}, "sharded"),
                          ({"base": Scaled()}, "Scaled needs whole tensors"),
                          ({"base": "muon"}, "MuonMatrix needs whole tensors")]:
        try:
            model, opt = sharded(**options, max_grad_norm=None)
            train(model, opt, range(1), share=True)
        except ValueError as error:
            assert word in str(error), error
        else:
            raise AssertionError(f"{options} was not refused")

SCENARIOS = {
    "ddp": lambda: [ddp(), ddp(base="lion", meta="sgd", compile="eager"), ddp(blocks="scalar", gamma=0.9)],
    "ddp-hessian": lambda: [ddp(trace="2x2"), ddp(trace="l"), ddp(trace="exact", base="sgd", blocks="scalar")],
    "fsdp": lambda: [
        fsdp(), fsdp(compile="eager"), fsdp(base="sgdm", max_grad_norm=None, blocks="tensor"), refused()],
    "checkpoint": lambda: [checkpoint("fsdp", False), checkpoint("fsdp", True), checkpoint("ddp", False)],
}
SCENARIOS[scenario]()
dist.barrier()
os._exit(0)  # on a busy machine torch's own threads abort an orderly exit now and then
"""

pytestmark = pytest.mark.skipif(
    not (dist.is_available() and dist.is_gloo_available()), reason="torch has no gloo here"
)


@pytest.mark.parametrize("scenario", ["ddp", "ddp-hessian", "fsdp", "checkpoint"])
def test_two_processes_equal_one(scenario: str, tmp_path: Path) -> None:
    script = tmp_path / "worker.py"
    script.write_text(SCRIPT)
    workers = [
        subprocess.Popen(
            [sys.executable, str(script), str(rank), str(tmp_path), scenario],
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        for rank in range(2)
    ]
    try:
        outputs = [worker.communicate(timeout=180)[0] for worker in workers]
    finally:
        for worker in workers:
            worker.kill()
    assert [worker.returncode for worker in workers] == [0, 0], "\n".join(o[-3000:] for o in outputs)
