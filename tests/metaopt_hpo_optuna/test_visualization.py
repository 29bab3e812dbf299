"""Figures are drawn from info tuples: the tuples hold what was tried, and both libraries draw all of them."""

from __future__ import annotations

import math
from pathlib import Path

import matplotlib as mpl
import optuna
import pytest

from metaopt_hpo.report import study_figures
from metaopt_hpo.report.study_views import pruning_info, scaling_law_info, trajectories_info
from metaopt_hpo.trials.record import Curve, TrialRecord
from metaopt_hpo_optuna import add_records, visualization, visualization_matplotlib

mpl.use("Agg")
ROOT = Path(__file__).resolve().parents[2]
PLOTS = ("plot_scaling_law", "plot_lr_trajectories", "plot_pruning")


def best_lr(size: float) -> float:
    return 0.03 * (size / 1e4) ** -0.4


def record(size: float, lr: float, number: int, **changes: object) -> TrialRecord:
    loss = 2.0 + 2.0 * (size / 1e4) ** -0.3 + 0.15 * math.log(lr / best_lr(size)) ** 2
    tokens = (100.0, 1000.0, 4096.0)
    fields: dict[str, object] = {
        "size": size, "tokens": 4096.0, "batch": 64.0, "lr": lr, "loss": loss, "trial": str(number),
        "target_tokens": 4096.0, "cost": 6 * size * 4096, "strategy": "cosine",
        "curve": Curve(tokens, (loss + 1, loss + 0.2, loss), step_size=(lr / 2, lr, 0.0)),
    }  # fmt: skip
    return TrialRecord(**{**fields, **changes})  # type: ignore[arg-type]


def records(*studies: optuna.Study) -> list[TrialRecord]:
    return [r for study in studies for r in visualization._records(study, None)]


@pytest.fixture
def study() -> optuna.Study:
    study = optuna.create_study(study_name="<b>s</b>")
    rows = [
        record(size, lr, i)
        for i, (size, lr) in enumerate((s, x) for s in (1e4, 2e4, 4e4) for x in (3e-3, 1e-2, 3e-2, 0.1, 0.3))
    ]
    rows.append(
        record(
            4e4,
            0.5,
            99,
            tokens=1000.0,
            cost=6 * 4e4 * 1000,
            state="pruned",
            reason="no chance",
            curve=Curve((100.0, 1000.0), (6.0, 5.0)),
        )
    )
    add_records(study, rows)
    return study


def test_the_law_of_the_figure_is_the_law_of_the_trials(study: optuna.Study) -> None:
    info = scaling_law_info(records(study))
    assert len(info.points) == 15  # completed trials
    assert [p.lr for p in info.points if p.best] == [0.03, 0.03, 0.01]
    assert info.sizes[0] == pytest.approx(1e4)
    assert info.sizes[-1] == pytest.approx(1.6e5)
    for size, lr, low, high in zip(info.sizes, info.lr, info.low, info.high, strict=True):
        assert low <= lr <= high
        assert lr == pytest.approx(best_lr(size), rel=0.3)


def test_source_studies_are_drawn_too(study: optuna.Study) -> None:
    other = optuna.create_study()
    add_records(other, [record(8e4, 0.01, 0)])
    assert len(scaling_law_info(records(study, other)).points) == 16


def test_trajectories_are_the_recorded_step_sizes(study: optuna.Study) -> None:
    info = trajectories_info(records(study))
    assert len(info.trajectories) == 15  # the pruned one recorded none
    first = info.trajectories[0]
    assert (first.tokens, first.step_size) == ([100.0, 1000.0], [1.5e-3, 3e-3])  # a zero has no logarithm


def test_pruning_counts_what_was_not_spent(study: optuna.Study) -> None:
    info = pruning_info(records(study))
    planned = 4096 * 6 * (5 * (1e4 + 2e4 + 4e4) + 4e4)
    assert info.saved == pytest.approx(6 * 4e4 * (4096 - 1000) / planned)
    assert [c.reason for c in info.curves if c.state == "pruned"] == ["no chance"]


@pytest.mark.parametrize("name", PLOTS)
def test_both_libraries_draw_every_line_of_the_info(study: optuna.Study, name: str) -> None:
    plotly = getattr(visualization, name)(study)
    axes = getattr(visualization_matplotlib, name)(study)
    expected = {"plot_scaling_law": 1, "plot_lr_trajectories": 15, "plot_pruning": 16}[name]
    lines = [t for t in plotly.data if "lines" in t.mode and t.hoverinfo != "skip"]
    assert len(lines) == expected
    drawn = [x for x in axes.get_lines() if x.get_linestyle() != "None" and len(x.get_xdata()) > 1]
    assert len(drawn) == expected
    assert plotly.layout.title.text == axes.get_title()
    mpl.pyplot.close("all")


def test_what_was_pruned_is_drawn_over_what_finished(study: optuna.Study) -> None:
    study.add_trial(study.trials[0])  # the pruned one is no longer the last
    plotly = visualization.plot_pruning(study).data
    assert [t.name for t in plotly] == ["complete"] * 16 + ["pruned"]
    assert plotly[0].opacity < plotly[-1].opacity == 1.0
    lines = visualization_matplotlib.plot_pruning(study).get_lines()
    above = {line.get_zorder() for line in lines if line.get_alpha() == 1.0}
    assert min(above) > max(line.get_zorder() for line in lines if line.get_alpha() < 1.0)
    mpl.pyplot.close("all")


@pytest.mark.parametrize("name", PLOTS)
def test_a_study_without_trials_says_so_in_the_figure(name: str) -> None:
    empty = optuna.create_study()
    if name == "plot_scaling_law":
        assert "has no trials yet" in getattr(visualization, name)(empty).layout.annotations[0].text
        assert "has no trials yet" in getattr(visualization_matplotlib, name)(empty).texts[0].get_text()
    else:
        with pytest.raises(Exception, match="has no trials yet"):
            getattr(visualization, name)(empty)
    mpl.pyplot.close("all")


def test_a_refused_law_is_a_message(study: optuna.Study) -> None:
    few = optuna.create_study()
    add_records(few, [record(1e4, 0.01, 0)])
    info = scaling_law_info(records(few))
    assert not info.sizes
    assert info.message in study_figures.scaling_law(info).layout.annotations[0].text


def test_a_law_of_records_that_do_not_say_what_they_were_planned_for() -> None:
    study = optuna.create_study()
    for size in (1e4, 2e4, 4e4):
        for lr in (0.003, 0.01, 0.03, 0.1):
            x = math.log(lr / (0.02 * (size / 1e4) ** -0.4))
            add_records(study, [TrialRecord(size=size, tokens=4096, batch=64, lr=lr, loss=2.0 + 0.1 * x * x)])
    law = scaling_law_info(records(study))
    assert law.sizes
    assert "the law puts the best learning rate at" in study_figures.note(law, pruning_info(records(study)))


def test_the_dashboard_gets_the_same_ids_again(study: optuna.Study) -> None:
    pytest.importorskip("optuna_dashboard", reason="optuna-dashboard is not installed")
    visualization.save_to_dashboard(study)
    before = set(study._storage.get_study_system_attrs(study._study_id))
    visualization.save_to_dashboard(study)
    attributes = study._storage.get_study_system_attrs(study._study_id)
    assert set(attributes) == before  # replaced, not added
    for name in visualization.DASHBOARD_IDS:
        assert any(name in f"{key}{value}" for key, value in attributes.items()), list(attributes)
    assert any("the law puts the best learning rate at" in str(v) for v in attributes.values())


def test_refuses_multi_objective() -> None:
    with pytest.raises(ValueError, match="multi-objective"):
        visualization.plot_pruning(optuna.create_study(directions=["minimize"] * 2))


@pytest.mark.parametrize(
    ("kind", "name"), [("samplers", "ScalingLawSampler"), ("pruners", "ScalingLawPruner")]
)
def test_the_optunahub_packages_load(kind: str, name: str) -> None:
    optunahub = pytest.importorskip("optunahub", reason="optunahub is not installed")
    module = optunahub.load_local_module(
        f"{kind}/metaopt_scaling_law", registry_root=str(ROOT / "optunahub" / "package")
    )
    assert module.__all__ == [name]
    assert isinstance(
        getattr(module, name)(),
        optuna.samplers.BaseSampler if kind == "samplers" else optuna.pruners.BasePruner,
    )
    readme = (ROOT / "optunahub" / "package" / kind / "metaopt_scaling_law" / "README.md").read_text()
    assert readme.startswith("---\n")
    for part in ("author:", "title:", "description:", "tags:", "optuna_versions:", "license:", "## Example"):
        assert part in readme
    import inspect
    import re

    # what the registry's own checks ask of a package
    folder = ROOT / "optunahub" / "package" / kind / "metaopt_scaling_law"
    assert re.search(rf"^tags: \[.*\b{kind.removesuffix('s')}\b", readme, flags=re.M)
    assert "license: MIT License" in readme
    assert "Copyright (c)" in (folder / "LICENSE").read_text()
    assert (folder / "requirements.txt").read_text() == "metaopt-hpo[optuna]\n"
    (shown,) = re.findall(r"```python\n(.*?)```", readme, flags=re.S)
    assert (folder / "example.py").read_text() == shown

    # the example runs, with the folder here in place of the registry
    (example,) = re.findall(r"```python\n(.*?)```", readme, flags=re.S)
    registry = f", registry_root={str(ROOT / 'optunahub' / 'package')!r})"
    names: dict[str, object] = {}
    exec(re.sub(r"load_module\((\S+)\)", rf"load_local_module(\1{registry}", example), names)
    assert len(names["study"].trials) == 20  # type: ignore[attr-defined]

    said = re.search(rf"`{name}\(\*, (.*)\)`", readme)
    assert said is not None
    assert re.findall(r"(\w+)=", said[1]) == list(inspect.signature(getattr(module, name)).parameters)
