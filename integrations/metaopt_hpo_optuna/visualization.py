"""Figures of a study, in Plotly: its scaling law, its step sizes, its pruning decisions; and the dashboard.

What they show and how they are drawn is `metaopt_hpo.report`'s to say (`study_views`, `study_figures`).
"""

from __future__ import annotations

from collections.abc import Sequence

import plotly.graph_objects as go
from optuna.study import Study

from metaopt_hpo.errors import MetaOptError
from metaopt_hpo.report import study_figures, study_views
from metaopt_hpo.trials.record import TrialRecord
from metaopt_hpo.trials.schema import TableError
from metaopt_hpo_optuna.fields import Fields
from metaopt_hpo_optuna.study_table import check_single_objective, study_records

DASHBOARD_IDS = ("metaopt-scaling-law", "metaopt-lr-trajectories", "metaopt-pruning")


def plot_scaling_law(
    study: Study, *, source_studies: Sequence[Study] = (), names: Fields | None = None
) -> go.Figure:
    """Learning rate against size: completed trials, the best of each size, the law's optimum and interval.

    Args:
        study: the study.
        source_studies: further studies whose trials count.
        names: where trials keep size, tokens, batch and lr.
    """
    return study_figures.scaling_law(_law(study, source_studies, names))


def plot_lr_trajectories(study: Study, *, names: Fields | None = None) -> go.Figure:
    """Step size over tokens, one line a trial, one colour a strategy."""
    return study_figures.trajectories(study_views.trajectories_info(_records(study, names)))


def plot_pruning(study: Study, *, names: Fields | None = None) -> go.Figure:
    """Loss over tokens: finished trials, and stopped ones up to where they were stopped, with the reason."""
    return study_figures.pruning(study_views.pruning_info(_records(study, names)))


def save_to_dashboard(
    study: Study, *, source_studies: Sequence[Study] = (), names: Fields | None = None
) -> None:
    """Put the three figures and a note with the law into the study, for Optuna Dashboard.

    Called again, it replaces what it had put there.

    Raises:
        MetaOptError: optuna-dashboard is not installed.
    """
    try:
        from optuna_dashboard import save_note, save_plotly_graph_object
    except ImportError as error:
        raise MetaOptError(
            "save_to_dashboard needs optuna-dashboard; run: pip install optuna-dashboard"
        ) from error
    law, records = _law(study, source_studies, names), _records(study, names)
    pruning = study_views.pruning_info(records)
    figures = (
        study_figures.scaling_law(law),
        study_figures.trajectories(study_views.trajectories_info(records)),
        study_figures.pruning(pruning),
    )
    for name, figure in zip(DASHBOARD_IDS, figures, strict=True):
        figure.update_layout(template=None)  # the default template is ten times the figure
        save_plotly_graph_object(study, figure, graph_object_id=name)
    save_note(study, study_figures.note(law, pruning))


def _law(study: Study, sources: Sequence[Study], names: Fields | None) -> study_views.ScalingLawInfo:
    try:
        records = [r for each in (study, *sources) for r in _records(each, names)]
    except TableError as error:  # said in the figure
        return study_views.ScalingLawInfo([], [], [], [], [], str(error))
    return study_views.scaling_law_info(records)


def _records(study: Study, names: Fields | None) -> list[TrialRecord]:
    check_single_objective(study, "a figure of a law")
    return study_records(study, names or Fields(), study.get_trials(deepcopy=False))
