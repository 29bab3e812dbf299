"""A plan whose runs are tiny programs: the loss is a known function of size, tokens and lr."""

from __future__ import annotations

import sys
import textwrap
from collections.abc import Callable
from pathlib import Path

import pytest

from metaopt_hpo.plan.api import Plan, plan
from metaopt_hpo.plan.costs import Budget, Hardware
from metaopt_hpo.plan.model import Pilot, Target, Uncertainty, Vary
from metaopt_hpo.plan.recipes import Recipe

# the tests are no package: makes the helper module beside it importable
sys.path.insert(0, str(Path(__file__).parent))

SIZES = {4: 1e4, 8: 4e4, 16: 1.6e5, 64: 2.56e6}
BATCH = 100.0
TOKENS = 20_000.0

PROGRAM = """
import json, math, os, sys, time
width, lr, steps, seed, strategy, out = sys.argv[1:]
width, lr, steps, seed = int(width), float(lr), int(steps), int(seed)
size = 625 * width**2
best = 0.02 * (size / 1e4) ** -0.3
if strategy == "metaoptimize":
    lr = best * (0.8 + 0.05 * (seed + width) % 0.3)
    open(out + "/found.json", "w").write(json.dumps({"found_lr": lr}))
floor = 2.0 + 40 * size**-0.4
for i in range(1, 9):
    step = steps * i // 8
    loss = floor * math.exp(0.05 * math.log(lr / best) ** 2) + 3 * (1 - i / 8)
    print(json.dumps({"step": step, "val_loss": loss}), flush=True)
    time.sleep(float(os.environ.get("SLOW", 0)))
"""
LINE = f"{sys.executable} job.py {{width}} {{lr}} {{steps}} {{seed}} {{strategy}} {{out}}"


def unknown(sd: float) -> Uncertainty:
    return Uncertainty(lr=sd, batch=0.0, weight_decay=0.3, loss=0.1)


@pytest.fixture
def make_plan(tmp_path: Path) -> Callable[..., Plan]:
    return builder(tmp_path)


def builder(tmp_path: Path) -> Callable[..., Plan]:
    """Makes plans whose program lies in a folder."""

    def make(**changes: object) -> Plan:
        (tmp_path / "job.py").write_text(textwrap.dedent(PROGRAM))
        hardware = Hardware(name="cpu", peak_flops=1e11, utilisation=0.5, watts=20.0, price=0.05)

        def pilot(width: int, sd: float, **more: object) -> Pilot:
            size = SIZES[width]
            name = f"w{width}" + ("" if "lr" not in more else f"-{more.pop('suffix', '')}")
            return Pilot(
                name=name,
                size=size,
                tokens=TOKENS,
                batch=BATCH,
                width=width,
                cost=hardware.cost(6 * size * TOKENS, TOKENS),
                expected=unknown(sd),
                **more,  # type: ignore[arg-type]
            )

        pilots = [pilot(4, 1.0), pilot(8, 0.8), pilot(16, 0.6)]
        pilots += [pilot(8, 0.5, strategy="wsd", lr="law", suffix=str(i)) for i in range(3)]
        fields: dict[str, object] = {
            "target": Target(size=SIZES[64], tokens=2 * TOKENS, batch=BATCH, width=64),
            "vary": Vary(sizes=(1e4, 4e4, 1.6e5), widths=(4, 8, 16), lr=(1e-4, 1e-1)),
            "budget": Budget(kind="share", amount=0.5, text="50 % of the target"),
            "hardware": hardware,
            "workload": LINE,
            "workload_options": {
                "sizes": ",".join(f"{w}:{s}" for w, s in SIZES.items()),
                "batch": str(BATCH),
                "cwd": str(tmp_path),
            },
            "pilots": tuple(pilots),
            "before": unknown(2.0),
        }
        return Plan(**{**fields, **changes})  # type: ignore[arg-type]

    return make


@pytest.fixture(scope="module")
def made() -> Plan:
    from known_world import TARGET

    return plan(**TARGET, batch=2**18)


@pytest.fixture(scope="module")
def recipe(made: Plan) -> Recipe:
    from known_world import worlds_trials

    return made.recipe(list(worlds_trials(made)))
