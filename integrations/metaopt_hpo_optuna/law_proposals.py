"""What the law of a study proposes: which model a trial trains, and its lr and batch."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence
from contextlib import suppress
from typing import Any

from optuna.distributions import BaseDistribution, CategoricalDistribution
from optuna.study import Study
from optuna.trial import FrozenTrial

from metaopt_hpo.errors import MetaOptError
from metaopt_hpo.scaling.policy import Context, Limits, next_cell, propose_at
from metaopt_hpo.scaling.policy.history import Cell
from metaopt_hpo.scaling.policy.points import Runs
from metaopt_hpo_optuna import _compat
from metaopt_hpo_optuna.evidence import Evidence
from metaopt_hpo_optuna.ranges import range_so_far

USUAL_LR = (1e-4, 1e-1)
"""Range of lr before any trial has shown one; only its width counts, for what a first pilot may be worth."""

REMEMBERED = 256
"""Trials whose batch was chosen together with lr and is yet to be asked for."""


class Proposals:
    """Asks the policy what to run next.

    Args:
        evidence: what is known of the study and its sources.
        target: (size, tokens) whose lr is wanted; None for the most expensive there is.
        limits: what the study may spend, or None.
        entropy: of the proposals.
    """

    def __init__(
        self, evidence: Evidence, target: tuple[float, float] | None, limits: Limits | None, entropy: int
    ) -> None:
        self.entropy = entropy
        self._evidence = evidence
        self._target = target
        self._limits = limits
        self._chosen: OrderedDict[tuple[str, int], float] = OrderedDict()

    def forget(self, study: Study, trial: FrozenTrial) -> None:
        """The trial has ended."""
        self._chosen.pop((study.study_name, trial.number), None)

    def model(self, study: Study, trial: FrozenTrial, distribution: BaseDistribution) -> Any:
        """The choice whose run is the best buy: a pilot, or the target."""
        names = self._evidence.names
        offered = distribution.choices if isinstance(distribution, CategoricalDistribution) else ()
        unknown = [c for c in offered if c not in names.models]
        if not offered or unknown:
            raise ValueError(
                f"parameter {names.model!r} must be suggested with suggest_categorical, from the choices given as "
                f"models; unknown: {', '.join(map(repr, unknown)) or distribution!r}"
            )
        cells = {c: _pair(names.models[c]) for c in offered}
        runs, bowl = self._evidence.runs(study, trial)
        context = self._context(study, trial, runs, tuple(cells.values()), None, None)
        try:
            cell = next_cell(runs, context, bowl=bowl)
        except MetaOptError as error:  # nothing can finish any more
            return self._stop(study, min(cells, key=lambda c: cells[c][0] * cells[c][1]), str(error))
        if not context.bears(*cell):
            self._stop(study, cell, "what is left of the limits does not pay for another run")
        dearest = max(cells, key=lambda c: cells[c][0] * cells[c][1])
        return next((c for c, pair in cells.items() if pair == cell), dearest)

    def _stop(self, study: Study, choice: Any, why: str) -> Any:
        """The study ends after the present trial, where `optimize` runs it."""
        self._evidence.tell_once("limits", f"ScalingLawSampler: {why}; the study is stopped")
        with suppress(RuntimeError):  # ask and tell: its caller decides
            study.stop()
        return choice

    def value(
        self, study: Study, trial: FrozenTrial, place: Cell, name: str, bounds: tuple[float, float]
    ) -> float:
        """The law's lr or batch at the place of a trial, by the parameter's name."""
        names = self._evidence.names
        chosen = self._chosen.get((study.study_name, trial.number))
        if name == names.batch and chosen is not None:
            return chosen
        if name == names.lr and chosen is not None and names.get(trial, "batch") is None:
            return chosen
        runs, bowl = self._evidence.runs(study, trial)
        waiting = self._evidence.undecided(study, trial)
        runs = runs.with_unfinished(place, waiting)
        given = names.get(trial, "lr" if name == names.batch else "batch")
        context = self._context(
            study,
            trial,
            runs,
            (place,),
            bounds if name == names.lr else None,
            bounds
            if name == names.batch
            else (given, given)
            if given is not None and name == names.lr
            else None,
        )
        config = propose_at(runs, place, context, bowl=bowl)
        if given is None:
            # lr and batch belong together: the other one is kept until it is asked for
            self._chosen[study.study_name, trial.number] = config.batch if name == names.lr else config.lr
            while len(self._chosen) > REMEMBERED:
                self._chosen.popitem(last=False)
        return config.lr if name == names.lr else config.batch

    def _context(
        self,
        study: Study,
        trial: FrozenTrial,
        runs: Runs,
        candidates: tuple[Cell, ...],
        lr: tuple[float, float] | None,
        batch: tuple[float, float] | None,
    ) -> Context:
        """What may be chosen; a range that the trial has not shown yet is that of trials before it."""
        names = self._evidence.names
        target = self._target
        if target is None:
            cells = [_pair(p) for p in names.models.values()]
            cells = cells or [*candidates, *zip(runs.size.tolist(), runs.tokens.tolist(), strict=True)]
            target = max(cells, key=lambda c: c[0] * c[1])
        if batch is None:
            given = names.get(trial, "batch")
            found = range_so_far(study, names.batch) if isinstance(names.batch, str) else None
            batch = (given, given) if given is not None else found or _seen(runs.batch)
        return Context(
            target=target,
            candidates=candidates,
            lr=lr or range_so_far(study, names.lr) or _seen(runs.lr) or USUAL_LR,
            batch=batch or (1.0, 1.0),
            base=self._evidence.base,
            seed=self.entropy & 0xFFFFFFFF,
            **self._left(study, trial),
        )

    def _left(self, study: Study, trial: FrozenTrial) -> dict[str, Any]:
        """What is left of the limits, for a context; time runs from the study's first trial."""
        if self._limits is None:
            return {}
        flops, tokens = self._evidence.spent(study, trial)
        begins = [t.datetime_start for t in _compat.trials_at_ask(study) if t.datetime_start is not None]
        now = trial.datetime_start
        gone = 0.0 if now is None or not begins else (now - min(begins)).total_seconds()
        return vars(self._limits.after(flops=flops, tokens=tokens, seconds=gone))


def _pair(pair: Sequence[float]) -> Cell:
    return float(pair[0]), float(pair[1])


def _seen(values: Any) -> tuple[float, float] | None:
    return (float(values.min()), float(values.max())) if values.size else None
