"""CONTRIBUTING's table, held: each new thing is one file, here one block of one, and nothing else is touched."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from dataclasses import dataclass
from importlib.metadata import EntryPoint
from pathlib import Path
from types import ModuleType
from typing import Any, ClassVar

import numpy as np
import pandas as pd
import pytest
import torch
from torch import nn

from metaopt_hpo import LawRefused, MetaOptimize, TrialTable, fit, judge
from metaopt_hpo.comparison import engine, protocol, race
from metaopt_hpo.comparison.design import ComparisonPlan
from metaopt_hpo.comparison.engine import SearchTask
from metaopt_hpo.comparison.methods import Method
from metaopt_hpo.comparison.protocol import compare
from metaopt_hpo.comparison.replay import replay
from metaopt_hpo.comparison.table_objective import TableObjective
from metaopt_hpo.optim.rules import Rule
from metaopt_hpo.plan import exporters
from metaopt_hpo.plan.costs import Cost, PlanError
from metaopt_hpo.plan.exporters.base import Exporter
from metaopt_hpo.plan.model import Target
from metaopt_hpo.plan.recipe import Basis, Range
from metaopt_hpo.plan.recipes import Recipe
from metaopt_hpo.report import render, sections
from metaopt_hpo.report.axes import empty_figure
from metaopt_hpo.scaling.forms.bowl import BOWLS, Bowl
from metaopt_hpo.scaling.forms.floor import FLOORS, FloorForm
from metaopt_hpo.strategies import make, registry
from metaopt_hpo.strategies.schedules import Constant
from metaopt_hpo.trials import exports
from metaopt_hpo.trials.readers.base import Export, Reader, one_frame
from metaopt_hpo.trials.record import TrialRecord

HERE = Path(__file__).parent
sys.path.insert(0, str(HERE))
sys.path.insert(0, str(HERE.parent / "metaopt_hpo" / "comparison"))

from plain_loop import Run, Study  # noqa: E402
from toy import DictEngine, Parabola  # noqa: E402


def offer(monkeypatch: pytest.MonkeyPatch, where: ModuleType, name: str, thing: Any) -> None:
    """As if an installed distribution offered the thing under the entry-point group that `where` asks."""
    module = ModuleType(f"offered_{name}")
    module.thing = thing  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, module.__name__, module)
    found = where.entry_points

    def entry_points(*, group: str) -> list[EntryPoint]:
        return [*found(group=group), EntryPoint(name, f"{module.__name__}:thing", group)]

    monkeypatch.setattr(where, "entry_points", entry_points)


# -- a base rule ----------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Damped(Rule):
    """Sign descent that fades with the steps."""

    states: ClassVar[tuple[str, ...]] = ()
    elementwise: ClassVar[bool] = True

    def update(self, g: Any, state: Any, t: Any) -> tuple[Any, Any]:
        return g / (g.abs() + 1e-2) / t**0.5, state


@pytest.mark.parametrize("trace", ["hessian_free", "l"])
def test_a_base_rule(trace: str) -> None:
    torch.manual_seed(0)
    w = nn.Parameter(torch.randn(8))
    optimizer = MetaOptimize([w], lr=0.1, base=Damped(), meta="adam", trace=trace)
    losses = []
    for _ in range(60):

        def closure() -> torch.Tensor:
            optimizer.zero_grad()
            return (w**2).sum()

        if trace == "hessian_free":
            loss = closure()
            loss.backward()
            optimizer.step()
        else:
            loss = optimizer.step(closure)
        losses.append(loss.item())
    assert losses[-1] < 0.5 * losses[0]


# -- a strategy -----------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Staircase(Constant):
    """A constant learning rate under a name of its own."""


def test_a_strategy(request: pytest.FixtureRequest) -> None:
    request.addfinalizer(lambda: registry._registered.pop("staircase"))
    registry.register("staircase")(Staircase)
    assert isinstance(make("staircase", lr=1e-2), Staircase)
    record = _train(make("staircase", lr=1e-2), Path("unused"), keep=False)
    assert record.strategy == "staircase"
    assert record.state == "complete"


# -- a reader -------------------------------------------------------------------------------------------------


def test_a_reader(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def read(path: str) -> Export:
        names = ["size", "tokens", "batch", "lr", "loss"]
        return Export("our log", one_frame(pd.read_csv(path, sep="|", names=names)))

    reader = Reader("bars", lambda path: path.endswith(".bars"), read)
    offer(monkeypatch, exports, "bars", reader)
    path = tmp_path / "runs.bars"
    path.write_text("1e6|1e8|1024|0.01|2.5\n2e6|1e8|1024|0.02|2.4\n")
    assert list(TrialTable.read(path).frame["lr"]) == [0.01, 0.02]
    assert "bars" in exports.names()


# -- an engine, and a figure ----------------------------------------------------------------------------------

PLAN = ComparisonPlan(
    workload="parabola",
    methods=("grid", "metaoptimize"),
    seeds=(0, 1),
    size=1e6,
    pilot_sizes=(),
    tokens=1e6,
    batch=1e3,
    lr_bounds=(1e-4, 1e-1),
    runs=3,
    pilot_runs=3,
    engine="dict",
)


def test_an_engine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    offer(monkeypatch, engine, "dict", DictEngine)
    outcome = judge(compare(Parabola(), PLAN, tmp_path, workers=1))
    assert {m.name for m in outcome.methods} == {"grid", "metaoptimize"}
    assert "MetaOptimize" in render(outcome)
    assert protocol.Comparison.read(tmp_path).plan == PLAN


class Guesser(DictEngine):
    """An engine that also races: it runs the middle of the box."""

    race_methods = ("cmaes",)

    def race(self, method: Method, task: SearchTask) -> Iterator[TrialRecord]:
        lr, batch = (float(np.sqrt(low * high)) for low, high in task.box.values())
        yield task.objective.run(task.configuration(lr, batch=batch))


def test_an_engine_that_races(monkeypatch: pytest.MonkeyPatch) -> None:
    offer(monkeypatch, engine, "guess", Guesser)
    offer(monkeypatch, race, "guess", Guesser)
    lr = np.geomspace(1e-3, 1e-1, 5)
    loss = 2 + np.log(lr / 1e-2) ** 2
    table = TrialTable.from_frame(
        pd.DataFrame({"size": 1e6, "tokens": 1e8, "batch": 1024.0, "lr": lr, "loss": loss})
    )
    result = replay(TableObjective(table), (1e6, 1e8), methods=("cmaes", "grid"), seeds=2)
    costs = result.costs().set_index("method")["0.10%"]
    assert set(costs["cmaes"]) == {1.0}
    assert costs["grid"].max() <= 5


def test_a_figure_on_a_page_of_its_own() -> None:
    plot = empty_figure()
    plot.add_scatter(x=[1, 2], y=[3, 4], name="</script>")
    section = sections.section("Ours", sections.figure(plot, "ours", alt="Two points"))
    page = sections.page([section], title="A page", answer="It is one function.")
    assert 'id="plot-ours"' in page
    assert "Content-Security-Policy" in page
    assert page.count("</script>") == page.count("<script")


# -- a recipe exporter ----------------------------------------------------------------------------------------

ONE = Range(value=1e-3, low=5e-4, high=2e-3)
RECIPE = Recipe(
    target=Target(size=7e9, tokens=1.4e12),
    lr=ONE,
    batch=Range(value=4e6, low=2e6, high=8e6),
    weight_decay=ONE,
    warmup=1e10,
    cooldown=2.8e11,
    loss=Range(value=2.0, low=1.9, high=2.1),
    within=2.0,
    cost=Cost(flops=5.9e22),
    basis=Basis(runs=6, size=1e8, tokens=2e9, ln_size=4.2, ln_tokens=6.5),
)


def test_a_recipe_exporter(monkeypatch: pytest.MonkeyPatch) -> None:
    ours = Exporter("make", "variables of a Makefile", lambda recipe, setup: f"LR = {recipe.lr.value:g}\n")
    offer(monkeypatch, exporters, "make", ours)
    assert RECIPE.export("make") == "LR = 0.001\n"
    with pytest.raises(PlanError, match=r"make \(variables of a Makefile\)"):
        RECIPE.export("cmake")


def test_a_recipe_exporter_of_another_distribution_never_replaces_ours(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    offer(monkeypatch, exporters, "yaml", Exporter("yaml", "another", lambda recipe, setup: "other"))
    assert RECIPE.export("yaml") != "other"


def test_each_exporter_is_one_file_of_its_folder() -> None:
    folder = Path(exporters.__file__).parent
    assert len(exporters.exporters()) == len({p.stem for p in folder.glob("*.py")} - {"__init__", "base"})


# -- a framework ----------------------------------------------------------------------------------------------

SIZES = (9, 17, 33)
TOKENS, BATCH = 16 * 64, 16


def _train(strategy: Any, path: Path, *, size: int = 9, keep: bool = True, seed: int = 0) -> Any:
    torch.manual_seed(seed)
    model = nn.Linear(size - 1, 1)
    held_out = torch.randn(256, size - 1)

    def loss(x: torch.Tensor) -> torch.Tensor:
        return 0.1 + ((model(x)[:, 0] - x.sum(dim=1) / size**0.5) ** 2).mean()

    study = Study(path)
    study.keep = study.keep if keep else (lambda record: None)  # type: ignore[method-assign]
    options = {"size": size, "tokens": TOKENS, "batch": BATCH, "evaluate": lambda: float(loss(held_out))}
    with Run(study, model, strategy, workload="line", **options) as run:
        for _ in run:
            run.step(loss(torch.randn(BATCH, size - 1)))
    return run.record()


def test_a_framework_keeps_its_trials_and_learns_from_them(tmp_path: Path) -> None:
    path = tmp_path / "study.json"
    for size in SIZES:
        for lr in (3e-3, 1e-2, 3e-2, 1e-1):
            _train(make("constant", lr=lr), path, size=size)
    study = Study(path)
    assert len(study.records) == len(SIZES) * 4
    assert {r.state for r in study.records} <= {"complete", "pruned", "diverged"}
    assert all(r.curve is not None for r in study.records)
    try:
        law = study.law()
    except LawRefused:
        law = None
    if law is not None:
        assert law.predict(size=65, tokens=TOKENS).lr.value > 0


def test_a_framework_ends_a_run_as_the_verdict_says(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from metaopt_hpo.scaling.policy import Verdict

    class Stern:
        def verdict(self, **run: Any) -> Verdict:
            assert run["curve"]
            assert run["tokens"] == TOKENS
            return Verdict("stop", 0.01, "no chance")

    monkeypatch.setattr(Study, "law", lambda self: Stern())
    path = tmp_path / "study.json"
    stopped = _train(make("constant", lr=1e-2), path)
    assert (stopped.state, stopped.reason) == ("pruned", "no chance")
    assert Study(path).records[0].state == "pruned"
    free = _train(make("metaoptimize"), path)
    assert free.state == "complete"


def test_a_framework_survives_a_run_that_diverges(tmp_path: Path) -> None:
    path = tmp_path / "study.json"
    lost = _train(make("constant", lr=1e6), path)
    assert lost.state == "diverged"
    assert Study(path).records[0].state == "diverged"


def test_the_integration_is_small() -> None:
    assert len((HERE / "plain_loop.py").read_text(encoding="utf-8").splitlines()) <= 150


# -- a form of a law ------------------------------------------------------------------------------------------


class Quartic(Bowl):
    """A quadratic with skew and an even fourth order."""

    name = "quartic-for-a-test"
    further = (("c", 0.5), ("q", 0.3))
    along_lr = (0, 3, 4)

    def terms(self, u: Any, v: Any) -> Any:
        return np.stack([u * u / 2, u * v, v * v / 2, u**3, u**4])

    def slopes(self, h: Any, u: Any, v: Any) -> Any:
        return h[0] * u + h[1] * v + 3 * h[3] * u**2 + 4 * h[4] * u**3, h[1] * u + h[2] * v


class Separable(FloorForm):
    """Hoffmann et al.'s floor, with a product of its terms."""

    name = "product-for-a-test"
    further = (("product", 0.0, 0.5),)

    def combine(self, level: Any, terms: Any, power: Any, further: Any) -> Any:
        return level + terms.sum(axis=-1) + further[0] * terms.prod(axis=-1)


def test_a_form_of_a_law(request: pytest.FixtureRequest) -> None:
    request.addfinalizer(lambda: (BOWLS.pop(Quartic.name), FLOORS.pop(Separable.name)))
    rng = np.random.default_rng(0)
    rows = []
    for n in (1e7, 4e7, 1.6e8):
        for d in (1e9, 4e9, 1.6e10):
            for u in np.linspace(-1.5, 1.5, 9):
                lr, floor = 4e-3 * (n / 1e7) ** -0.3 * np.exp(u), 2 + (n / 1e7) ** -0.3 + (d / 1e9) ** -0.3
                loss = floor * np.exp(0.01 * u * u + 0.01 * u**4 + 1e-4 * rng.standard_normal())
                rows.append({"size": n, "tokens": d, "batch": 1e5, "lr": lr, "loss": loss})
    table = TrialTable.from_frame(pd.DataFrame(rows))
    law = fit(table, bowl=Quartic.name, floor=Separable.name, draws=20)
    assert law.surface.coefficients[4] == pytest.approx(0.01, rel=0.1)
    assert law.noise < 0.5 * fit(table, draws=20).noise
    p = law.predict(1e9, 1e11)
    assert p.lr.value == pytest.approx(4e-3 * 100**-0.3, rel=0.03)
    assert (
        law.verdict(size=1e9, tokens=1e11, lr=p.lr.value, batch=1e5, incumbent=2.0 * p.loss.value).action
        == "launch"
    )
    again = type(law).from_json(law.to_json())
    assert again.predict(1e9, 1e11) == p
    assert again.refit(table).surface.form == Quartic.name
