"""Meta-parameters by traces: what is held back, what is planned, what is compared with what."""

from __future__ import annotations

from typing import Any

import pandas as pd
import pytest
import torch
from torch import Tensor, nn

from studies.one_run.meta_jobs import RATES, Few
from studies.one_run.meta_parameters import (
    FIRST_SEED,
    GRID,
    JOBS,
    KEY,
    OUTSIDE,
    cell,
    markdown,
    outside,
    plan,
)


class Seen(nn.Module):
    """Keeps the inputs that it was given."""

    def __init__(self) -> None:
        super().__init__()
        self.inputs: list[Tensor] = []

    def forward(self, x: Tensor) -> Tensor:
        self.inputs.append(x)
        return torch.zeros(len(x), Few.classes)


def rows(parts: list[Tensor]) -> list[tuple[float, ...]]:
    return [tuple(row) for part in parts for row in part.tolist()]


@pytest.mark.parametrize("held_back", [0, 512])
def test_an_epoch_has_every_example_once_but_those_held_back(held_back: int) -> None:
    data, trained, checked = Few("few", 8), Seen(), Seen()
    data.held_back = held_back
    kept = data.examples - held_back
    for step in range(kept // data.batch):
        data.loss(trained, step, 3)
    once = rows(trained.inputs)
    assert len(once) == kept == len(set(once))
    if held_back:
        data.check(checked, 3)
        assert len(rows(checked.inputs)) == held_back
        assert not set(once) & set(rows(checked.inputs))


def test_another_seed_has_other_examples() -> None:
    data, first, second = Few("few", 8), Seen(), Seen()
    data.loss(first, 0, 3)
    data.loss(second, 0, 4)
    assert not set(rows(first.inputs)) & set(rows(second.inputs))


def test_no_comparison_has_a_job_that_something_was_chosen_on() -> None:
    compared, chosen = list(plan(list(JOBS), 2)), list(outside(list(OUTSIDE)))
    assert all(set(c) == set(KEY) for c in compared + chosen)
    assert not {c["job"] for c in compared} & {c["job"] for c in chosen}


def test_adapted_against_the_default_and_the_best_fixed_value() -> None:
    """Only at the job's rate; the grid of another parameter does not count."""

    def row(loss: float, **changed: Any) -> dict[str, Any]:
        return cell("teach64", FIRST_SEED, **changed) | {"held_out": loss, "middle": 0.02, "end": 0.01}

    table = pd.DataFrame(
        [
            row(1.0),
            row(0.5, lr=2 * RATES["adamw"]["teach64"]),
            row(0.98, decay=GRID["decay"][1]),
            row(1.2, decay=GRID["decay"][2]),
            row(0.9, momentum=GRID["momentum"][0]),
            row(0.97, adapt="decay"),
        ]
    )
    line = next(x for x in markdown(table).splitlines() if x.startswith("| decay"))
    assert [x.strip() for x in line.strip("|").split("|")] == [
        "decay", "adamw", "teach64", "training", "1.0000", "-3.0 %", "0.025 (of 3)", "-2.0 %", "0.1 → 0.02 → 0.01",
    ]  # fmt: skip
