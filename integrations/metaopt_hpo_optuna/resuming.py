"""What a trial needs to go on in another process as if it had never stopped: its reports, and its pruner's last answer.

Everything here is for trials of `OptunaEngine`, of which one process works at a study at a time.
"""

from __future__ import annotations

import copy
from pathlib import Path
from urllib.parse import quote

import optuna
from optuna.distributions import FloatDistribution
from optuna.pruners import NopPruner
from optuna.study import Study
from optuna.trial import FrozenTrial, Trial

from metaopt_hpo_optuna import _compat
from metaopt_hpo_optuna.store import check_folder, store_file

RUNG = "completed_rung_"
"""Optuna's successive halving writes a system attribute of this name and number when it judges a trial at a rung."""


class Reports:
    """A trial's reports to its study, each of them once, whichever process makes it.

    A trial that goes on from a checkpoint, or from its beginning, reports again what the study already holds. Only the
    last of those reports may not have been judged: the process may have ended between report and answer.

    Args:
        study, trial: a live trial of the study.
        held: the trial as it stands in the store.
    """

    def __init__(self, study: Study, trial: Trial, held: FrozenTrial) -> None:
        self._study = study
        self._trial = trial
        self._held = held

    def __call__(self, tokens: int, loss: float) -> str | None:
        """Report; the reason to stop, or None."""
        step = int(tokens)
        if step in self._held.intermediate_values:
            stop = step == self._held.last_step and judge_again(self._study, self._held)
        else:
            self._trial.report(float(loss), step=step)
            stop = self._trial.should_prune()
        if not stop:
            return None
        return f"{type(self._study.pruner).__name__} stopped it after {tokens} tokens at loss {loss:.4g}"


def judge_again(study: Study, held: FrozenTrial) -> bool:
    """The pruner's answer to the trial's last report, as it was before the pruner noted anything about it.

    Successive halving notes a trial's value at a rung before it answers, and judges by such notes. The question is
    put in a copy of the study in which this report's notes are missing; what is noted there is then noted here.
    """
    if isinstance(study.pruner, NopPruner) or held.last_step is None:
        return False
    value = held.intermediate_values[held.last_step]
    before = copy.deepcopy(held)
    before.system_attrs = {
        k: v for k, v in held.system_attrs.items() if not (k.startswith(RUNG) and v == value)
    }
    mirror = optuna.create_study(study_name=study.study_name, direction=study.direction, pruner=study.pruner)
    for other in study.get_trials(deepcopy=False):
        mirror.add_trial(before if other.number == held.number else other)
    stop = study.pruner.prune(mirror, mirror.get_trials(deepcopy=True)[held.number])
    noted = mirror.get_trials(deepcopy=False)[held.number].system_attrs
    for key, note in noted.items():
        if key not in held.system_attrs:
            _compat.write_system_attr(study, held, key, note)
    return stop


def draw_again(study: Study, begun: FrozenTrial, low: float, high: float) -> float:
    """The lr that the study's sampler would have drawn after the parameters that a trial already holds."""
    mirror = optuna.create_study(
        study_name=study.study_name, direction=study.direction, sampler=study.sampler
    )
    mirror.add_trials(study.get_trials(deepcopy=False)[: begun.number])
    trial = mirror.ask()
    for name, held in begun.distributions.items():
        if isinstance(held, FloatDistribution):
            trial.suggest_float(name, held.low, held.high, log=held.log)
    return trial.suggest_float("lr", low, high, log=True)


def running_folder(store: str | None) -> Path | None:
    """Where checkpoints and locks of a store's searches are: a folder beside its file; None where it has no file.

    Raises:
        EngineError: there is no folder for the file itself.
    """
    file = store_file(store)
    if file is None:
        return None
    check_folder(file)
    return file.with_name(file.name + ".running")


def checkpoint_file(store: str | None, study: str, number: int) -> Path | None:
    """The checkpoint of a trial under way; None for stores without a file."""
    folder = running_folder(store)
    return None if folder is None else folder / f"{quote(study, safe='')}-{number}.pt"
