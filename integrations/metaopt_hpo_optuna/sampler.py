"""ScalingLawSampler: lr and batch of a trial from a law of the trials so far; the rest from a base sampler."""

from __future__ import annotations

import math
from collections import OrderedDict
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from optuna.distributions import (
    BaseDistribution,
    CategoricalDistribution,
    FloatDistribution,
    IntDistribution,
)
from optuna.samplers import BaseSampler, TPESampler
from optuna.study import Study
from optuna.trial import FrozenTrial, TrialState

from metaopt_hpo_optuna import _compat
from metaopt_hpo_optuna.evidence import Cell, Evidence
from metaopt_hpo_optuna.fields import Fields
from metaopt_hpo_optuna.study_table import check_single_objective

if TYPE_CHECKING:
    from metaopt_hpo.scaling.law import Law
    from metaopt_hpo.scaling.policy import Config

SAME = 1e-3
"""Relative difference below which two sizes, or two token counts, are one."""

REMEMBERED = 256
"""Trials whose batch was chosen together with lr and is yet to be asked for."""


class ScalingLawSampler(BaseSampler):
    """Sampler that lets trials of small models choose where large ones search.

    The objective sets the user attributes `size` and `tokens` (and `batch` where it is not searched) before it
    suggests `lr`; names may differ. Then

    - while no law can be fitted, lr (and batch) fill the range evenly at each size;
    - at a size below the largest with evidence, they are put where a trial teaches most about the largest;
    - at the largest size, or a larger one, they are drawn from the law's distribution of the optimum there:
      first its centre, then with a spread that narrows as evidence grows.

    Every other parameter, and trials without a size, come from the base sampler.

    Args:
        size, tokens, batch, lr: parameter or user attribute that holds the quantity; for the first three a
            number that all trials share.
        source_studies: further studies to learn from, of smaller models or of an earlier search.
        base_sampler: for everything else (default `TPESampler`).
        seed: of the proposals and of the default base sampler. A proposal depends on the seed, the trial's
            number and the trials finished before, not on the process that makes it.

    Raises:
        ValueError: a bad name; later, a multi-objective study or a source of the other direction.
    """

    def __init__(
        self,
        *,
        size: str | float = "size",
        tokens: str | float = "tokens",
        batch: str | float = "batch",
        lr: str = "lr",
        source_studies: Sequence[Study] = (),
        base_sampler: BaseSampler | None = None,
        seed: int | None = None,
    ) -> None:
        if base_sampler is not None and not isinstance(base_sampler, BaseSampler):
            raise ValueError(
                f"base_sampler must be an optuna sampler or None, got {type(base_sampler).__name__}"
            )
        if seed is not None and (isinstance(seed, bool) or not isinstance(seed, int) or seed < 0):
            raise ValueError(f"seed must be a whole number >= 0 or None, got {seed!r}")
        self._evidence = Evidence(Fields(size, tokens, batch, lr), source_studies, allow_weak=False, need=6)
        self._base = TPESampler(seed=seed) if base_sampler is None else base_sampler
        self._entropy = _fresh_entropy() if seed is None else seed
        self._chosen: OrderedDict[tuple[str, int], float] = OrderedDict()

    def reseed_rng(self) -> None:
        """Draw new entropy; Optuna calls it in each thread of `n_jobs > 1`."""
        self._entropy = _fresh_entropy()
        self._base.reseed_rng()

    def before_trial(self, study: Study, trial: FrozenTrial) -> None:
        """Passed on to the base sampler."""
        self._base.before_trial(study, trial)

    def after_trial(
        self, study: Study, trial: FrozenTrial, state: TrialState, values: Sequence[float] | None
    ) -> None:
        """Passed on to the base sampler; says once when trials have no size."""
        self._chosen.pop((study.study_name, trial.number), None)
        if state == TrialState.COMPLETE and self._evidence.place(trial) is None:
            names = self._evidence.names
            self._evidence.tell_once(
                "no-size",
                f"ScalingLawSampler: trial {trial.number} of study {study.study_name!r} has no {names.size!r} or no "
                f"{names.tokens!r}, so it was sampled by {type(self._base).__name__} alone; set both with "
                "trial.set_user_attr before suggesting lr",
            )
        self._base.after_trial(study, trial, state, values)

    def infer_relative_search_space(self, study: Study, trial: FrozenTrial) -> dict[str, BaseDistribution]:
        """The base sampler's, without lr and batch where a law may set them."""
        space = self._base.infer_relative_search_space(study, trial)
        ours = self._ours()
        if not ours & space.keys():
            return space
        # a size that is itself a parameter is not known yet when the first parameter is suggested
        sized = self._evidence.place(trial) is not None or self._evidence.names.size in space
        return {k: v for k, v in space.items() if k not in ours} if sized else space

    def sample_relative(
        self, study: Study, trial: FrozenTrial, search_space: dict[str, BaseDistribution]
    ) -> dict[str, Any]:
        """From the base sampler."""
        check_single_objective(study, "ScalingLawSampler")
        return self._base.sample_relative(study, trial, search_space)

    def sample_independent(
        self, study: Study, trial: FrozenTrial, param_name: str, param_distribution: BaseDistribution
    ) -> Any:
        """lr and batch from the law where the trial has a size; anything else from the base sampler."""
        check_single_objective(study, "ScalingLawSampler")
        if param_name in self._ours():
            bounds = log_range(param_distribution)
            place = self._evidence.place(trial)
            if bounds is not None and place is not None:
                value = self._propose(study, trial, place, param_name, bounds)
                return nearest(param_distribution, value)
        return self._base.sample_independent(study, trial, param_name, param_distribution)

    def _ours(self) -> set[str]:
        return {n for n in (self._evidence.names.lr, self._evidence.names.batch) if isinstance(n, str)}

    def _propose(
        self, study: Study, trial: FrozenTrial, place: Cell, name: str, bounds: tuple[float, float]
    ) -> float:
        names = self._evidence.names
        batch = names.get(trial, "batch")
        chosen = self._chosen.get((study.study_name, trial.number))
        if name == names.batch and chosen is not None:
            return chosen
        known = self._evidence.read(study, at_ask=True)
        lr_bounds = (
            bounds if name == names.lr else known_range(study, names.lr) or _around(known.law, place, "lr")
        )
        if batch is not None:
            batch_bounds = (batch, batch)
        elif name == names.batch:
            batch_bounds = bounds
        else:
            batch_bounds = (isinstance(names.batch, str) and known_range(study, names.batch)) or _around(
                known.law, place, "batch"
            )
        lr, proposed = self._decide(study, trial, place, known.law, lr_bounds, batch_bounds)
        if name == names.batch:
            return proposed
        if batch is None:
            self._chosen[study.study_name, trial.number] = proposed
            while len(self._chosen) > REMEMBERED:
                self._chosen.popitem(last=False)
        return lr

    def _decide(
        self,
        study: Study,
        trial: FrozenTrial,
        place: Cell,
        law: Law | None,
        lr_bounds: tuple[float, float],
        batch_bounds: tuple[float, float],
    ) -> tuple[float, float]:
        """(lr, batch) by `scaling.policy`."""
        from metaopt_hpo.scaling import Context, propose, sample_near_optimum

        size, tokens = place
        seed = int(np.random.SeedSequence([self._entropy, trial.number]).generate_state(1)[0])
        there = self._at(study, trial, place)
        if law is None or size < law.domain.size[1] * (1 - SAME):
            context = Context(
                target=place if law is None else (law.domain.size[1], law.domain.tokens[1]),
                candidates=(place,),
                lr=lr_bounds,
                batch=batch_bounds,
                running=tuple(there),
                # the even filling of a range needs one seed for all trials
                seed=self._entropy if law is None else seed,
            )
            config = propose(None, context, law=law).config
            if (config.size, config.tokens) == place:
                return config.lr, config.batch
            # nothing more is to be learned at this size: take what the law holds best
            there = []
        if law is None:
            return math.sqrt(lr_bounds[0] * lr_bounds[1]), math.sqrt(batch_bounds[0] * batch_bounds[1])
        lr, batch = sample_near_optimum(
            law,
            size=size,
            tokens=tokens,
            lr_bounds=(1e-300, 1e300),
            batch_bounds=batch_bounds,
            rng=np.random.default_rng(seed),
            temperature=1.0 if there else 0.0,
        )
        if batch_bounds[0] == batch_bounds[1]:
            # the batch is given: move along the valley of the bowl to it
            given, free = law.predict(size, tokens, batch), law.predict(size, tokens)
            lr *= given.lr.value / free.lr.value
        return min(max(lr, lr_bounds[0]), lr_bounds[1]), batch

    def _at(self, study: Study, trial: FrozenTrial, place: Cell) -> list[Config]:
        """Trials of the same size and tokens, running ones included."""
        from metaopt_hpo.scaling import Config

        found = []
        names = self._evidence.names
        for other in _compat.trials_at_ask(study):
            if other.number == trial.number or other.state in (TrialState.WAITING, TrialState.FAIL):
                continue
            at = self._evidence.place(other)
            if at is None or abs(at[0] / place[0] - 1) > SAME or abs(at[1] / place[1] - 1) > SAME:
                continue
            lr, batch = names.get(other, "lr"), names.get(other, "batch")
            if lr is not None:
                found.append(Config(place[0], place[1], batch or 1.0, lr))
        return found


def _fresh_entropy() -> int:
    return int(np.random.SeedSequence().generate_state(1)[0])


def _around(law: Law | None, place: Cell, what: str) -> tuple[float, float]:
    """Bounds for a quantity that has no range yet: the law's optimum, or a placeholder nothing depends on."""
    if law is None:
        return (1.0, 1.0)
    value = float(getattr(law.predict(*place), what))
    return value, value


def log_range(distribution: BaseDistribution) -> tuple[float, float] | None:
    """(low, high) of a positive numeric distribution; None where a law's number cannot be placed in it."""
    if isinstance(distribution, CategoricalDistribution):
        if all(
            isinstance(c, int | float) and not isinstance(c, bool) and c > 0 for c in distribution.choices
        ):
            values = [float(c) for c in distribution.choices if isinstance(c, int | float)]
            return min(values), max(values)
        return None
    if isinstance(distribution, FloatDistribution | IntDistribution) and distribution.low > 0:
        return float(distribution.low), float(distribution.high)
    return None


def known_range(study: Study, name: str) -> tuple[float, float] | None:
    """The range a parameter had in the newest trial that has it."""
    for trial in reversed(_compat.trials_at_ask(study)):
        if name in trial.distributions:
            return log_range(trial.distributions[name])
    return None


def nearest(distribution: BaseDistribution, value: float) -> Any:
    """The value of the distribution that is nearest to `value`, in the logarithm for choices."""
    if isinstance(distribution, CategoricalDistribution):
        return min(distribution.choices, key=lambda c: abs(math.log(float(c) / value)))  # type: ignore[arg-type]
    assert isinstance(distribution, FloatDistribution | IntDistribution)
    low, high = distribution.low, distribution.high
    value = min(max(value, low), high)
    if distribution.step is not None and not distribution.log:
        value = min(low + round((value - low) / distribution.step) * distribution.step, high)
    return round(value) if isinstance(distribution, IntDistribution) else float(value)
