"""How much the start matters: which weights begin at zero, and what the differences are taken from."""

from __future__ import annotations

import pandas as pd
import torch

from studies.one_run.starts import DEFAULT, STARTS, LoRA, markdown, named


def test_a_zero_head_predicts_nothing_and_the_rest_is_the_plain_job() -> None:
    plain, zero = (named(n).model(3) for n in ("shorttf8", "shorttf8 zero head"))
    x = torch.zeros(1, 4, dtype=torch.long)
    assert not zero(x).any()
    different = [n for n, p in zero.named_parameters() if not torch.equal(p, plain.get_parameter(n))]
    assert different == ["head.weight"]


def test_adapters_begin_at_the_plain_model_and_its_trunk_is_frozen() -> None:
    plain, lora = (named(n).model(3) for n in ("shorttf8", "shorttf8 lora"))
    x = torch.arange(4)[None]
    assert torch.equal(lora(x), plain(x))
    adapters = [m for m in lora.modules() if isinstance(m, LoRA)]
    assert len(adapters) == 8
    assert not any(m.frozen.weight.requires_grad or m.b.any() for m in adapters)
    assert all(m.a.any() for m in adapters)


def test_differences_are_from_the_default_start_of_the_same_seed() -> None:
    losses = dict.fromkeys(STARTS, 2.0) | {DEFAULT: 2.0, 1e-6: 2.02, 1e-1: 1.92}
    rows = [
        {"job": "j", "steps": 10, "seed": seed, "lr": lr, "held_out": seed * loss, "step_size": 0.01}
        for seed in (1, 2)
        for lr, loss in losses.items()
    ]
    lines = markdown(pd.DataFrame(rows[:-1])).splitlines()[2:]  # of the second seed a run is missing
    assert len(lines) == 1
    *_, mean, worst, largest = (cell.strip() for cell in lines[0].strip("|").split("|"))
    assert (mean, worst, largest) == ("-0.60 %", "+1.00 %", "4.00 %")
