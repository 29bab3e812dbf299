"""Block step sizes hold together but for lasting evidence."""

import pytest
import torch
from torch import nn

from metaopt_hpo.optim.rules import AdamW, meta_rule
from metaopt_hpo.strategies import make
from metaopt_hpo.strategies.shared_meta import SharedAdam


def walk(rule, zs: torch.Tensor) -> torch.Tensor:  # type: ignore[no-untyped-def]
    """Sum of the directions, one entry a block."""
    state = tuple(torch.zeros(zs.shape[1]) for _ in rule.states)
    total = torch.zeros(zs.shape[1])
    for t, z in enumerate(zs, start=1):
        direction, state = rule.update(z, state, float(t))
        total += direction
    return total


def test_one_block_is_adam() -> None:
    zs = torch.randn(50, 1, generator=torch.Generator().manual_seed(0))
    assert torch.allclose(walk(SharedAdam(), zs), walk(meta_rule(AdamW(betas=(0.5, 0.95))), zs))


def test_noise_leaves_blocks_together_and_lasting_evidence_parts_them() -> None:
    noise = torch.randn(400, 8, generator=torch.Generator().manual_seed(0))
    alone, together = walk(meta_rule(AdamW(betas=(0.5, 0.95))), noise), walk(SharedAdam(), noise)
    assert together.std() < 0.5 * alone.std()
    signal = noise.clone()
    signal[:, 0] += 3.0
    parted = walk(SharedAdam(), signal)
    assert parted[0] - parted[1:].mean() > 4 * together.std()


@pytest.mark.parametrize("blocks", ["layer", "tensor"])
def test_blocks_end_where_one_step_size_does(blocks: str) -> None:
    ends = {}
    for spec in ("scalar", blocks):
        torch.manual_seed(0)
        x = torch.randn(512, 8)
        y = torch.tanh(x @ torch.randn(8, 4))
        model = nn.Sequential(nn.Linear(8, 32), nn.Tanh(), nn.Linear(32, 4))
        run = make("metaoptimize", blocks=spec).build(model, 300)
        for step in range(300):
            i = torch.randint(512, (64,), generator=torch.Generator().manual_seed(step))
            loss = (model(x[i]) - y[i]).square().mean()
            loss.backward()
            run.step(loss)
        ends[spec] = float((model(x) - y).square().mean().detach())
    assert ends[blocks] < 1.2 * ends["scalar"]
