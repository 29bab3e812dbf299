"""A loop over two processes, under DDP and under FSDP2, without a learning rate; beside AdamW at torch's default lr.

Runs offline on CPUs in some seconds. Three lines differ, as in a loop of one process: wrap after `fully_shard`, give
each rank's own loss to `run.step`, and all ranks find the same lr.
"""

from __future__ import annotations

import os
import socket
from typing import Any

import torch
import torch.distributed as dist
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.nn.parallel import DistributedDataParallel

from metaopt_hpo import wrap

PROCESSES, STEPS = 2, 200
KINDS = ("ddp", "fsdp2")
X = torch.randn(512, 8, generator=torch.Generator().manual_seed(0))
Y = (X[:, :4] * X[:, 4:]).sum(1, keepdim=True)


def network(kind: str) -> torch.nn.Module:
    torch.manual_seed(0)
    model = torch.nn.Sequential(torch.nn.Linear(8, 32), torch.nn.Tanh(), torch.nn.Linear(32, 1))
    if kind == "fsdp2":
        fully_shard(model, mesh=init_device_mesh("cpu", (PROCESSES,)))
        return model
    return DistributedDataParallel(model)


def batch(step: int) -> tuple[torch.Tensor, torch.Tensor]:
    """This rank's part of the batch of a step."""
    rows = torch.randint(len(X), (64,), generator=torch.Generator().manual_seed(step)).view(PROCESSES, -1)
    return X[rows[dist.get_rank()]], Y[rows[dist.get_rank()]]


def loss_on_all(model: torch.nn.Module) -> float:
    with torch.no_grad():
        return (model(X) - Y).square().mean().item()


def with_adamw(kind: str) -> float:
    model = network(kind)
    optimizer = torch.optim.AdamW(model.parameters())
    for step in range(STEPS):
        x, y = batch(step)
        loss = (model(x) - y).square().mean()
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    return loss_on_all(model)


def with_wrap(kind: str) -> tuple[float, float]:
    model = network(kind)
    run = wrap(torch.optim.AdamW(model.parameters()), horizon=STEPS)  # its lr is found
    for step in range(STEPS):
        x, y = batch(step)
        loss = (model(x) - y).square().mean()
        loss.backward()
        run.step(loss)  # in the place of optimizer.step() and optimizer.zero_grad()
    return loss_on_all(model), float(run.found_lr)


def work(rank: int, port: int, results: Any) -> None:
    """One process; torchrun sets what is set here."""
    os.environ.update(
        MASTER_ADDR="127.0.0.1", MASTER_PORT=str(port), RANK=str(rank), WORLD_SIZE=str(PROCESSES)
    )
    torch.set_num_threads(1)
    dist.init_process_group("gloo")
    results[rank] = [(kind, with_adamw(kind), *with_wrap(kind)) for kind in KINDS]
    dist.destroy_process_group()


def main() -> tuple[float, float]:
    """Return the loss of (ours, AdamW's) under FSDP2 after printing those under DDP too."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    context = torch.multiprocessing.get_context("spawn")
    with context.Manager() as manager:
        results = manager.dict()
        torch.multiprocessing.spawn(work, (port, results), nprocs=PROCESSES)
        measured = results[0]
    for kind, theirs, ours, lr in measured:
        print(
            f"{kind}, loss after {STEPS} steps: AdamW at lr 1e-3 {theirs:.4f}; wrapped {ours:.4f}, which found lr "
            f"{lr:.1e}"
        )
    return ours, theirs


if __name__ == "__main__":
    main()
