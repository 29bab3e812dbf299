"""ScalingLawSampler: lr and batch of a trial from a law of the trials so far; the rest from a base sampler."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from optuna.distributions import BaseDistribution
from optuna.samplers import BaseSampler, TPESampler
from optuna.study import Study
from optuna.trial import FrozenTrial, TrialState

from metaopt_hpo.scaling.base.sources import BaseLike
from metaopt_hpo.scaling.law import Law
from metaopt_hpo.scaling.policy import Limits
from metaopt_hpo.trials.quantities import did_you_mean
from metaopt_hpo_optuna.evidence import Evidence
from metaopt_hpo_optuna.fields import RECORD, Fields, is_pair, tuning_of
from metaopt_hpo_optuna.law_proposals import REMEMBERED, Proposals
from metaopt_hpo_optuna.ranges import log_range, nearest
from metaopt_hpo_optuna.study_table import check_single_objective


class ScalingLawSampler(BaseSampler):
    """Sampler that lets trials of small models choose where large ones search.

    Which model a trial trains is the sampler's choice where it is told what there is:

        sampler = ScalingLawSampler(models={"small": (1e6, 2e7), "medium": (4e6, 8e7), "large": (6.4e7, 1.3e9)})
        ...
        model = trial.suggest_categorical("model", ["small", "medium", "large"])
        batch = trial.suggest_int("batch", 2**14, 2**20, log=True)  # or a user attribute
        lr = trial.suggest_float("lr", 1e-4, 1e-1, log=True)

    It then buys small runs while they save more runs of the target than they cost, and trains the target where
    the law of them says. Where your code chooses the model, the objective sets the user attributes `size` and
    `tokens` (and `batch` where it is not searched) before it suggests `lr`; names may differ. Then

    - a run cheaper than the target goes where it shows its bowl: evenly over the range at first, then evenly
      around the optimum the law predicts there, as wide as that is unsure;
    - a run of the target is put at the law's optimum, later ones where its own runs and the law together
      see the best chance to gain; where the law is wrong that is plain Bayesian optimisation.

    Every other parameter, and trials without a size, come from the base sampler.

    Args:
        size, tokens, batch, lr: parameter or user attribute that holds the quantity; for the first three a
            number that all trials share.
        models: choices of the categorical parameter `model`, each with its (size, tokens).
        model: that parameter's name, "width" for one.
        target: (size, tokens) whose lr is wanted. By default the dearest of `models`, or of the trials so far.
        source_studies: further studies to learn from, of smaller models or of an earlier search.
        base: tables or laws of like models to borrow strength from, as in `metaopt_hpo.fit`: the first trials are then
            near their optimum, and fewer small models are trained.
        prior: a law whose exponents are believed, as in `metaopt_hpo.fit`; not together with `base`.
        limits: what this study may spend: FLOPs, tokens, energy, money, or time since its first trial began, with so
            many workers (`metaopt_hpo.scaling.policy.Limits`). With `models`, small runs are bought only where the
            target can still be run after them; where nothing more can be, the study is stopped.
        base_sampler: for everything else (default `TPESampler`).
        seed: of the proposals and of the default base sampler. A proposal depends on the seed and the trials
            before, not on the process that makes it.

    Raises:
        ValueError: a bad name; later, a multi-objective study or a source of the other direction.

    Examples:
        >>> import optuna
        >>> from metaopt_hpo_optuna import ScalingLawSampler
        >>> def objective(trial):
        ...     size = trial.suggest_categorical("size", [1e6, 4e6, 16e6])
        ...     lr = trial.suggest_float("lr", 1e-4, 1e-1, log=True)
        ...     return 3 + (lr - 1e-2 * (size / 1e6) ** -0.4) ** 2
        ...
        >>> study = optuna.create_study(sampler=ScalingLawSampler(tokens=1e9, batch=65536, seed=0))
        >>> study.optimize(objective, n_trials=5)
        >>> len(study.trials)
        5
    """

    def __init__(
        self,
        *,
        size: str | float = "size",
        tokens: str | float = "tokens",
        batch: str | float = "batch",
        lr: str = "lr",
        models: Mapping[Any, tuple[float, float]] | None = None,
        model: str = "model",
        target: tuple[float, float] | None = None,
        source_studies: Sequence[Study] = (),
        base: BaseLike | Sequence[BaseLike] | None = None,
        prior: Law | None = None,
        limits: Limits | None = None,
        base_sampler: BaseSampler | None = None,
        seed: int | None = None,
    ) -> None:
        if base_sampler is not None and not isinstance(base_sampler, BaseSampler):
            raise ValueError(
                f"base_sampler must be an optuna sampler or None, got {type(base_sampler).__name__}"
            )
        if seed is not None and (isinstance(seed, bool) or not isinstance(seed, int) or seed < 0):
            raise ValueError(f"seed must be a whole number >= 0 or None, got {seed!r}")
        if models is not None and not isinstance(models, Mapping):
            raise ValueError(f"models must map each choice of {model!r} to (size, tokens), got {models!r}")
        if target is not None and not is_pair(target):
            raise ValueError(f"target must be (size, tokens), both > 0, or None, got {target!r}")
        names = Fields(size, tokens, batch, lr, dict(models or {}), model)
        self._evidence = Evidence(names, source_studies, base=base, prior=prior)
        self._base = TPESampler(seed=seed) if base_sampler is None else base_sampler
        entropy = _fresh_entropy() if seed is None else seed
        self._proposals = Proposals(self._evidence, target, limits, entropy)
        self._by_base: OrderedDict[tuple[str, int], bool] = OrderedDict()

    def reseed_rng(self) -> None:
        """Draw new entropy; Optuna calls it in each thread of `n_jobs > 1`."""
        self._proposals.entropy = _fresh_entropy()
        self._base.reseed_rng()

    def before_trial(self, study: Study, trial: FrozenTrial) -> None:
        """Passed on to the base sampler."""
        self._base.before_trial(study, trial)

    def after_trial(
        self, study: Study, trial: FrozenTrial, state: TrialState, values: Sequence[float] | None
    ) -> None:
        """Passed on to the base sampler; says once why trials were sampled without the law."""
        self._proposals.forget(study, trial)
        by_base = self._by_base.pop((study.study_name, trial.number), False)
        if state == TrialState.COMPLETE:
            self._tell_why(study, trial, by_base)
        self._base.after_trial(study, trial, state, values)

    def _tell_why(self, study: Study, trial: FrozenTrial, by_base: bool) -> None:
        names, base = self._evidence.names, type(self._base).__name__
        try:
            placed = self._evidence.cell_of(trial) is not None
        except ValueError as error:
            self._evidence.tell_once("no-number", f"ScalingLawSampler: {error}")
            return
        if not placed:
            self._evidence.tell_once(
                "no-size",
                f"ScalingLawSampler: trial {trial.number} of study {study.study_name!r} has no {names.size!r} or no "
                f"{names.tokens!r}, so it was sampled by {base} alone; set both with "
                "trial.set_user_attr before suggesting lr",
            )
        elif by_base:
            self._evidence.tell_once(
                "late",
                f"ScalingLawSampler: trial {trial.number} of study {study.study_name!r} had no {names.size!r} or no "
                f"{names.tokens!r} yet when {names.lr!r} was suggested, so {base} sampled it alone; set both with "
                f"trial.set_user_attr before suggesting {names.lr!r} (with ask(fixed_distributions) ask without "
                f"{names.lr!r} and suggest it afterwards), or give models=…",
            )
        elif tuning_of(trial) != "self" and RECORD not in trial.user_attrs:
            self._tell_missing(study, trial)

    def _tell_missing(self, study: Study, trial: FrozenTrial) -> None:
        """Say once that trials have no lr or no batch of the names that were given, and which may be meant."""
        names = self._evidence.names
        for quantity in ("lr", "batch"):
            source = getattr(names, quantity)
            if not isinstance(source, str) or names.get(trial, quantity) is not None:
                continue
            known = [*trial.params, *trial.user_attrs]
            meant = did_you_mean(source, [n for n in known if n not in names.names()], quantity)
            hint = f"{quantity}={meant[0]!r}" if meant else f"{quantity}=NAME"
            self._evidence.tell_once(
                f"no-{quantity}",
                f"ScalingLawSampler: trial {trial.number} of study {study.study_name!r} has no {source!r}, so it "
                f"teaches no law; name the {quantity} with ScalingLawSampler({hint}), or the parameter or user "
                f"attribute {source!r}",
            )

    def infer_relative_search_space(self, study: Study, trial: FrozenTrial) -> dict[str, BaseDistribution]:
        """The base sampler's, without what a law may set."""
        space = self._base.infer_relative_search_space(study, trial)
        ours = self._ours()
        if not ours & space.keys():
            return space
        # a size that is itself a parameter is not known yet when the first parameter is suggested
        names = self._evidence.names
        try:
            sized = bool(names.models) or names.size in space or self._evidence.cell_of(trial) is not None
        except ValueError:  # said when it is sampled
            sized = True
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
        """Model, lr and batch from the law where the trial has a size; anything else from the base sampler."""
        check_single_objective(study, "ScalingLawSampler")
        names = self._evidence.names
        if names.models and param_name == names.model:
            return self._proposals.model(study, trial, param_distribution)
        if param_name in self._ours():
            value = self._by_law(study, trial, param_name, param_distribution)
            if value is not None:
                return nearest(param_distribution, value)
        return self._base.sample_independent(study, trial, param_name, param_distribution)

    def _by_law(
        self, study: Study, trial: FrozenTrial, name: str, distribution: BaseDistribution
    ) -> float | None:
        """The law's value; None where it cannot propose one, which is said once."""
        bounds = log_range(distribution)
        try:
            place = self._evidence.place_of(study, trial)
            if place is None:
                self._by_base[study.study_name, trial.number] = True
                while len(self._by_base) > REMEMBERED:
                    self._by_base.popitem(last=False)
                return None
            if bounds is None:
                self._evidence.tell_once(
                    f"range-{name}",
                    f"ScalingLawSampler: the range of {name!r}, {distribution!r}, has values that are not positive, so "
                    f"no law can place it and {type(self._base).__name__} samples it alone; suggest a range above 0, "
                    f"such as suggest_float({name!r}, 1e-5, 1e-1, log=True)",
                )
                return None
            return self._proposals.value(study, trial, place, name, bounds)
        except ValueError as error:
            self._evidence.tell_once("no-number", f"ScalingLawSampler: {error}")
        except Exception as error:  # a proposal that fails must not end a search
            self._evidence.tell_once(
                "failed",
                f"ScalingLawSampler: no proposal for trial {trial.number} ({type(error).__name__}: {error}); "
                f"{type(self._base).__name__} samples it alone",
            )
        return None

    def _ours(self) -> set[str]:
        names = self._evidence.names
        found = {n for n in (names.lr, names.batch) if isinstance(n, str)}
        return found | {names.model} if names.models else found


def _fresh_entropy() -> int:
    return int(np.random.SeedSequence().generate_state(1)[0])
