"""The figures of `visualization`, in matplotlib: the same names, from the same data."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from optuna.study import Study

from metaopt_hpo.errors import MetaOptError
from metaopt_hpo.report.palette import LAW, NEUTRAL, SERIES, STATES
from metaopt_hpo_optuna.fields import Fields
from metaopt_hpo_optuna.study_views import pruning_info, scaling_law_info, trajectories_info
from metaopt_hpo_optuna.visualization import FAINT

LINES = {"solid": "-", "dash": "--", "dot": ":"}


def plot_scaling_law(
    study: Study, *, source_studies: Sequence[Study] = (), names: Fields | None = None
) -> Any:
    """Learning rate against size; returns matplotlib Axes. See `visualization.plot_scaling_law`."""
    info = scaling_law_info(study, names, source_studies)
    axes = _axes("Learning rate against size", "size (parameters)", "learning rate")
    axes.set_yscale("log")
    if info.sizes:
        axes.plot(info.sizes, info.lr, color=LAW.colour, label="law")
        axes.fill_between(info.sizes, info.low, info.high, color=LAW.colour, alpha=0.18, linewidth=0)
    for best, name, marker in ((False, "trials", "o"), (True, "best of a size", "D")):
        points = [p for p in info.points if p.best is best]
        if points:
            axes.scatter(
                [p.size for p in points],
                [p.lr for p in points],
                marker=marker,
                label=name,
                facecolors=SERIES[1] if best else "none",
                edgecolors=SERIES[1] if best else NEUTRAL.colour,
            )
    return _finish(axes, "" if info.sizes else info.message)


def plot_lr_trajectories(study: Study, *, names: Fields | None = None) -> Any:
    """Step size over tokens; returns matplotlib Axes. See `visualization.plot_lr_trajectories`."""
    info = trajectories_info(study, names)
    axes = _axes("Step sizes during training", "tokens", "step size")
    axes.set_yscale("log")
    strategies = sorted({t.strategy for t in info.trajectories})
    shown: set[str] = set()
    for t in info.trajectories:
        label = t.strategy if t.strategy not in shown else "_nolegend_"
        axes.plot(
            t.tokens, t.step_size, color=SERIES[strategies.index(t.strategy) % len(SERIES)], label=label
        )
        shown.add(t.strategy)
    return _finish(axes, "" if info.trajectories else "no trial recorded its step sizes; train with TrialRun")


def plot_pruning(study: Study, *, names: Fields | None = None) -> Any:
    """Loss over tokens; returns matplotlib Axes. See `visualization.plot_pruning`."""
    info = pruning_info(study, names)
    title = f"Pruned against finished: {info.saved:.0%} of the planned FLOPs not spent"
    axes = _axes(title, "tokens", "loss")
    shown: set[str] = set()
    for c in info.curves:
        ended = STATES.get(c.state, NEUTRAL)
        label = c.state if c.state not in shown else "_nolegend_"
        # finished runs are many: they stay behind, so that what was pruned can be seen among them
        behind = c.state == "complete"
        look = {"color": ended.colour, "alpha": FAINT if behind else 1.0, "zorder": 2 if behind else 3}
        axes.plot(c.tokens, c.loss, linestyle=LINES[ended.dash], linewidth=1.2, label=label, **look)
        axes.plot(c.tokens[-1:], c.loss[-1:], "x" if c.reason else "o", markersize=5, **look)
        shown.add(c.state)
    return _finish(axes, "" if info.curves else "no trial reported between its start and its end")


def _axes(title: str, x: str, y: str) -> Any:
    try:
        from matplotlib import pyplot
    except ImportError as error:
        raise MetaOptError(
            "these figures need matplotlib; run: pip install matplotlib, or use visualization"
        ) from error
    _, axes = pyplot.subplots()
    axes.set(title=title, xlabel=x, ylabel=y, xscale="log")
    return axes


def _finish(axes: Any, message: str) -> Any:
    if message:
        axes.text(0.5, 0.5, message, transform=axes.transAxes, ha="center", va="center", wrap=True)
    elif axes.get_legend_handles_labels()[0]:
        axes.legend()
    return axes
