"""ScalingLawPruner: stops a large trial that, by a law of the trials so far, has no chance left."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from optuna.pruners import BasePruner, HyperbandPruner
from optuna.study import Study
from optuna.trial import FrozenTrial, TrialState

from metaopt_hpo.scaling.base.sources import BaseLike
from metaopt_hpo.scaling.law import Law
from metaopt_hpo.scaling.policy import PATIENCE, Decision, History, Rule, Run, decide
from metaopt_hpo_optuna import _compat, fairness
from metaopt_hpo_optuna.evidence import Evidence
from metaopt_hpo_optuna.fields import REASON, SPARED, Fields, reports_of
from metaopt_hpo_optuna.study_table import check_single_objective


class ScalingLawPruner(BasePruner):
    """Pruner that asks a law fitted to the study's finished trials whether a trial can still win.

    The law is fitted over size, tokens, batch and lr, to the trials that completed in this study and in
    `source_studies`. Its forecast, with the trial's loss so far and how far finished trials still fell from there,
    gives a distribution of the trial's final loss; the trial is pruned when its chance to beat the best finished
    trial of the same size and tokens is below 5 %. Before there is such a trial, the top of the law's interval for
    the best stands for it. The decision is `scaling.policy.stopping.decide`, the same as everywhere.

    Trials of a size below the largest with evidence are what the law learns from; until ten have finished there they
    are left to the wrapped pruner, as is everything the law cannot judge: too few trials, sizes or learning rates, a
    size too far away, a strategy that finds its own lr or is another than the law's, and the early part of a run,
    where finished trials still changed ranks. After five pruned trials in a row one is let finish, so that a law that
    is wrong meets the evidence. The reason of each stop is the user attribute `metaopt:reason`.

    The decision is a function of the trial and of the ended trials, so all workers that have seen the same
    trials decide alike. The law is kept in the process and fitted again when a tenth more trials have finished.

    `report` takes tokens as its step; `TrialRun` does all of this. Objectives that report epochs say how many tokens
    one has in the user attribute `tokens_per_epoch`. What keeps the law from being used is said once, as a
    `StudyWarning`; nothing but a wrong study raises.

    Args:
        size, tokens, batch, lr: parameter or user attribute that holds the quantity; for the first three a
            number that all trials share.
        source_studies: further studies to learn from, of smaller models or of an earlier search.
        wrapped: pruner for what the law cannot judge, asked as `fairness` says; None keeps such trials.
        n_startup_trials: completed trials with a size, those of the sources included, before which nothing is
            pruned (default 6; the law itself also refuses fewer than three sizes; with a base 3, of any sizes).
        n_warmup_tokens: tokens of a trial before which it is not pruned by the law (default 0).
        min_size: trials from this size on are judged by the law; default the largest size with evidence, and
            smaller ones once ten have finished there.
        base: tables or laws of like models to borrow strength from, as in `metaopt_hpo.fit`: a few trials of one size
            are then enough for a law.
        prior: a law whose exponents are believed, as in `metaopt_hpo.fit`; not together with `base`.

    Raises:
        ValueError: an argument out of range; later, a multi-objective study, or a source whose direction
            contradicts the study's.

    Examples:
        >>> import optuna
        >>> from metaopt_hpo_optuna import ScalingLawPruner
        >>> study = optuna.create_study(pruner=ScalingLawPruner(wrapped=optuna.pruners.MedianPruner()))
    """

    compares_fairly = True
    """It asks the pruner that it wraps through `fairness`, which therefore leaves it alone."""

    def __init__(
        self,
        *,
        size: str | float = "size",
        tokens: str | float = "tokens",
        batch: str | float = "batch",
        lr: str = "lr",
        source_studies: Sequence[Study] = (),
        wrapped: BasePruner | None = None,
        n_startup_trials: int | None = None,
        n_warmup_tokens: float = 0,
        min_size: float | None = None,
        base: BaseLike | Sequence[BaseLike] | None = None,
        prior: Law | None = None,
    ) -> None:
        if n_startup_trials is not None and n_startup_trials < 0:
            raise ValueError(f"n_startup_trials must be at least 0, got {n_startup_trials!r}")
        if not n_warmup_tokens >= 0:
            raise ValueError(f"n_warmup_tokens must be at least 0, got {n_warmup_tokens!r}")
        if min_size is not None and not min_size > 0:
            raise ValueError(f"min_size must be a number of parameters > 0, or None, got {min_size!r}")
        if isinstance(wrapped, HyperbandPruner):
            raise ValueError(
                "wrapped cannot be a HyperbandPruner: Optuna forms its brackets only where it is the study's own "
                "pruner; wrap a SuccessiveHalvingPruner"
            )
        if wrapped is not None and not isinstance(wrapped, BasePruner):
            raise ValueError(f"wrapped must be an optuna pruner or None, got {type(wrapped).__name__}")
        names = Fields(size, tokens, batch, lr)
        self._evidence = Evidence(names, source_studies, need=n_startup_trials, base=base, prior=prior)
        self._wrapped = wrapped
        self._n_warmup_tokens = n_warmup_tokens
        self._min_size = min_size

    def prune(self, study: Study, trial: FrozenTrial) -> bool:
        """Whether the trial should stop; see the class."""
        check_single_objective(study, "ScalingLawPruner")
        if trial.last_step is None:
            return False
        decision = self.decision(study, trial)
        if decision is None or decision.action == "abstain":
            return self._wrapped is not None and fairness.prune(self._wrapped, study, trial)
        if decision.spared:
            _compat.write_user_attr(study, trial, SPARED, True)
        if decision.action != "stop":
            return False
        _compat.write_user_attr(study, trial, REASON, f"after {self._seen(trial)}: {decision.reason}")
        return True

    def refuse_launch(self, study: Study, trial: FrozenTrial) -> str | None:
        """Why the trial should not be started at all, or None; `TrialRun` asks before the first step."""
        if len(study.directions) > 1:
            return None
        decision = self.decision(study, trial)
        if decision is None or decision.action != "stop":
            if decision is not None and decision.spared:
                _compat.write_user_attr(study, trial, SPARED, True)
            return None
        return f"not started: {decision.reason}"

    def decision(self, study: Study, trial: FrozenTrial) -> Decision | None:
        """The policy's decision on a trial as it stands; None where the trial does not say enough.

        Raises:
            ValueError: a source whose direction contradicts the study's.
        """
        evidence = self._evidence
        try:
            run = evidence.run_of(study, trial)
        except ValueError as error:
            evidence.tell_once("no-number", f"ScalingLawPruner: {error}")
            return None
        past = evidence.read(study)
        if run is None:
            self._tell_missing(study, trial)
            return None
        reports = reports_of(trial, evidence.names)
        if reports.problem:
            evidence.tell_once(
                "steps",
                f"ScalingLawPruner: trial {trial.number} of study {study.study_name!r} cannot be judged while it runs: "
                f"{reports.problem}",
            )
        if trial.last_step is not None and not run.curve:
            return None
        try:
            rule = Rule(grace_tokens=self._n_warmup_tokens, min_size=self._min_size)
            if past.history.stops_in_a_row(run.size) >= PATIENCE:
                run = self._with_spared(study, trial, run, past.history)
            assert past.fitted is not None
            others = [k.history for k in past.sources]
            return decide(run, past.history, past.fitted, rule, others=others)
        except Exception as error:  # a law that fails must not end a search
            evidence.tell_once(
                "failed",
                f"ScalingLawPruner: trial {trial.number} was not judged ({type(error).__name__}: {error})",
            )
            return None

    def _with_spared(self, study: Study, trial: FrozenTrial, run: Run, history: History) -> Run:
        """Which running trials are being let finish, as the storage has it: a trial's own copy may be older."""
        running = study.get_trials(deepcopy=False, states=(TrialState.RUNNING,))
        spared = {t.number: self._evidence.size_of(t) for t in running if SPARED in t.user_attrs}
        history.sparing_only({number: size for number, size in spared.items() if size is not None})
        return replace(run, spared=trial.number in spared)

    def _tell_missing(self, study: Study, trial: FrozenTrial) -> None:
        names = self._evidence.names
        if self._evidence.cell_of(trial) is None:
            self._evidence.tell_once(
                "no-size",
                f"ScalingLawPruner: trial {trial.number} of study {study.study_name!r} has no "
                f"{names.size!r} or no {names.tokens!r}, so no law can judge it; "
                "set both with trial.set_user_attr before the first report, or use TrialRun",
            )
        else:
            self._evidence.tell_once(
                "no-lr",
                f"ScalingLawPruner: trial {trial.number} of study {study.study_name!r} has no {names.batch!r} or no "
                f"{names.lr!r}, so no law can judge it; set it with trial.set_user_attr, or name another with batch=…, "
                "lr=…",
            )

    def _seen(self, trial: FrozenTrial) -> str:
        points = reports_of(trial, self._evidence.names).points
        return f"{points[-1][0]:.0f} tokens" if points else f"step {trial.last_step}"
