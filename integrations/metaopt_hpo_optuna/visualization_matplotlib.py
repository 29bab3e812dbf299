"""The figures of `visualization`, drawn by matplotlib: the same names and arguments; each returns matplotlib Axes."""

from __future__ import annotations

from collections.abc import Callable
from functools import wraps
from typing import Any

import plotly.graph_objects as go

from metaopt_hpo.report.matplotlib_figures import to_matplotlib
from metaopt_hpo_optuna import visualization


def _drawn(plot: Callable[..., go.Figure]) -> Callable[..., Any]:
    @wraps(plot)
    def draw(*args: Any, **options: Any) -> Any:
        return to_matplotlib(plot(*args, **options))

    return draw


plot_scaling_law = _drawn(visualization.plot_scaling_law)
plot_lr_trajectories = _drawn(visualization.plot_lr_trajectories)
plot_pruning = _drawn(visualization.plot_pruning)
