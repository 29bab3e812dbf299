"""ScalingLawSearch: what to run next, from a law across sizes: pilots while it learns, then the optimum it predicts.

Every proposal is `scaling.policy.propose_next`'s. What is added is the book of what Tune has run.
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from ray.tune.search import Searcher

from metaopt_hpo.errors import MetaOptError
from metaopt_hpo.scaling import Config, Context, Law
from metaopt_hpo.scaling.base.sources import BaseLike, lent
from metaopt_hpo.scaling.build import MIN_SIZES
from metaopt_hpo.scaling.policy import Limits, propose_next
from metaopt_hpo.scaling.policy.logged_search import all_runs, spent
from metaopt_hpo.trials.logbook import Logbook
from metaopt_hpo.trials.logged_results import ENDED, METRIC, PROGRESS, Results
from metaopt_hpo.trials.record import TrialRecord
from metaopt_hpo.trials.saved_state import SavedAsJson
from metaopt_hpo.trials.table import TrialTable
from metaopt_hpo_ray.columns import Columns, agreed_metric, describe
from metaopt_hpo_ray.result_table import trial_table
from metaopt_hpo_ray.spaces import resolve, whole

Pair = tuple[float, float]


class ScalingLawSearch(SavedAsJson, Searcher):
    """Suggests sizes, tokens, batch and lr: what teaches most about the target per FLOP, then the target itself.

    Pilots are suggested while they save more runs of the target than they cost; then the target at the predicted
    optimum, and further runs there where its own runs and the law together see the best chance to gain. A trial that
    a scheduler stopped is not taken for a finished one.

        search = ScalingLawSearch(candidates=[(1e6, 2e7), (2e6, 4e7), (4e6, 8e7)], target=(3.2e7, 6.4e8),
                                  lr=(1e-4, 1e-1), batch=32768)
        tuner_configs(param_space={"strategy": "wsd"}, search_alg=search, num_samples=32, max_concurrent_trials=8)

    Args:
        candidates: (size, tokens) pairs that may be run.
        target: the (size, tokens) whose optimum is wanted; the largest candidate by default.
        lr: (low, high).
        batch: (low, high) in tokens, or a number.
        sources: what is known already: trial tables, lists of records, results of `Tuner.fit`, or folders of
            experiments. An Optuna study comes as the table `metaopt_hpo_optuna.trial_table(study)` makes of it.
        law: a law to begin with, until trials of three sizes have finished.
        base: tables or laws of like models to borrow strength from, as in `metaopt_hpo.fit`.
        prior: a law whose exponents are believed, as in `metaopt_hpo.fit`; not together with `base`.
        limits: what the search may spend: FLOPs, tokens, energy, money, or time since its first suggestion, with so
            many workers (`metaopt_hpo.scaling.policy.Limits`). Pilots are suggested only where the target can still be
            run after them; where nothing more can be, the search is finished.
        metric, mode: of the trials; a loss, so mode is "min". From `TuneConfig` where not given.
        size, tokens, batch_name, lr_name: entries of the config the four numbers are written to.
        progress: result that counts tokens.
        seed: of everything random here.

    Raises:
        ValueError: an argument out of range; the message names it.

    Examples:
        >>> from metaopt_hpo_ray import ScalingLawSearch
        >>> search = ScalingLawSearch(
        ...     candidates=[(1e6, 1e9), (4e6, 1e9), (16e6, 1e9)],
        ...     lr=(1e-4, 1e-1), batch=65536, metric="loss", mode="min",
        ... )
        >>> search.suggest("first")["size"] in (1e6, 4e6, 16e6)
        True
    """

    _limits: Limits | None = None  # here, for searches that were pickled before there were any
    _began: float | None = None
    """Seconds since the epoch at the first suggestion."""

    def __init__(
        self,
        *,
        candidates: Sequence[Pair],
        lr: Pair,
        batch: Pair | float,
        target: Pair | None = None,
        sources: Sequence[Any] = (),
        law: Law | None = None,
        base: BaseLike | Sequence[BaseLike] | None = None,
        prior: Law | None = None,
        limits: Limits | None = None,
        metric: str | None = None,
        mode: str | None = None,
        size: str = "size",
        tokens: str = "tokens",
        batch_name: str = "batch",
        lr_name: str = "lr",
        progress: str = PROGRESS,
        seed: int = 0,
    ) -> None:
        agreed_metric("ScalingLawSearch", None, metric, mode)
        super().__init__(metric=metric, mode=mode if metric else None)
        pairs = tuple((float(s), float(t)) for s, t in candidates)
        if not pairs:
            raise ValueError("candidates must hold at least one (size, tokens)")
        self._target = max(pairs) if target is None else (float(target[0]), float(target[1]))
        self._candidates = pairs
        self._lr = (float(lr[0]), float(lr[1]))
        low, high = (batch, batch) if isinstance(batch, int | float) else batch
        self._batch = (float(low), float(high))
        self._columns = Columns(size, tokens, batch_name, lr_name)
        self._results = Results(metric or METRIC, progress)
        self._seed = seed
        self._space: dict[str, Any] = {}
        self._made = 0
        self._law = law
        self._leans_on = lent(base, prior)
        self._limits = limits
        self.book = Logbook()
        self.reasons: dict[str, str] = {}
        """trial id → why it was suggested."""
        self._given: list[dict[str, Any]] = []
        """What `add_evaluated_point` was told."""
        self._evidence = [r for source in sources for r in read_records(source)]
        self._context()  # says now, and not in the first trial, what is out of range

    def set_search_properties(
        self, metric: str | None, mode: str | None, config: dict[str, Any], **spec: Any
    ) -> bool:
        """Take metric and the rest of the parameter space from the Tuner."""
        agreed = agreed_metric("ScalingLawSearch", self._metric, metric, mode)
        self._metric, self._mode = agreed or METRIC, "min"
        own = {self._columns.size, self._columns.tokens, self._columns.batch, self._columns.lr}
        for key, value in config.items():
            if key in own:
                raise ValueError(f"param_space has {key!r}, which ScalingLawSearch sets; leave it out there")
            if isinstance(value, Mapping) and "grid_search" in value:
                raise ValueError(
                    f"param_space has a grid search for {key!r}, which a searcher cannot follow; use tune.choice"
                )
        self._space = dict(config)
        return True

    def suggest(self, trial_id: str) -> dict[str, Any] | str | None:  # type: ignore[override]
        """The next configuration; its reason is in `reasons`. None while what runs may leave enough for another, and
        `FINISHED` where the limits bear no other."""
        self._began = time.time() if self._began is None else self._began
        try:
            config, reason = self._next()
        except MetaOptError:  # nothing can finish any more
            return Searcher.FINISHED
        if self._limits is not None and not self._context().bears(config.size, config.tokens):
            open_yet = any(not e.closed for e in self.book.entries.values())
            return None if open_yet else Searcher.FINISHED
        rng = np.random.default_rng([self._seed & 0xFFFFFFFF, self._made, 1])
        self._made += 1
        names = self._columns
        suggestion = {
            str(names.size): whole(config.size),
            str(names.tokens): whole(config.tokens),
            str(names.batch): whole(config.batch),
            names.lr: config.lr,
        }
        full = {**resolve(self._space, rng), **suggestion}
        self.reasons[trial_id] = reason
        self.book.add(trial_id, **describe(full, self._columns))
        return full

    def on_trial_result(self, trial_id: str, result: dict[str, Any]) -> None:
        """A point of a running trial."""
        self._enter(trial_id, result)

    def on_trial_complete(
        self, trial_id: str, result: dict[str, Any] | None = None, error: bool = False
    ) -> None:
        """A trial has ended; one that was stopped early, diverged or failed teaches no optimum."""
        if trial_id not in self.book.entries:
            return
        result = result or {}
        self._enter(trial_id, result)
        if error:
            self.book.close(trial_id, "failed", "the trial's process failed")
            return
        self._results.close(self.book, trial_id, result, ended_by=ENDED)  # a searcher is not told by whom

    def add_evaluated_point(
        self,
        parameters: dict[str, Any],
        value: float,
        error: bool = False,
        pruned: bool = False,
        intermediate_values: list[float] | None = None,
    ) -> None:
        """A trial that was run elsewhere; one that failed or was pruned is passed over."""
        facts = describe(parameters, self._columns)
        if error or pruned or not {"size", "tokens", "batch", "lr"} <= facts.keys():
            return
        self._give(float(value), facts)

    def _give(self, loss: float, facts: dict[str, Any]) -> None:
        self._given.append({"loss": loss, **facts})
        key = f"given-{len(self._evidence)}"
        self._evidence.append(TrialRecord(loss=loss, trial=key, study="given", **facts))

    # -- deciding ------------------------------------------------------------------------------------------

    def _next(self) -> tuple[Config, str]:
        runs = all_runs(self.book, self._evidence)
        taught = len(set(runs.done().size.tolist())) >= MIN_SIZES
        proposal = propose_next(runs, self._context(), law=None if taught else self._law)
        return proposal.config, proposal.reason

    def _context(self) -> Context:
        return Context(
            target=self._target,
            candidates=self._candidates,
            lr=self._lr,
            batch=self._batch,
            base=self._leans_on,
            seed=self._seed,
            **self._left(),
        )

    def _left(self) -> dict[str, Any]:
        """What is left of the limits, for a context; a run under way counts with all it will see."""
        if self._limits is None:
            return {}
        gone = 0.0 if self._began is None else time.time() - self._began
        flops, tokens = spent(self.book)
        return vars(self._limits.after(flops=flops, tokens=tokens, seconds=gone))

    def _enter(self, trial_id: str, result: Mapping[str, Any]) -> None:
        self._results.metric = self._metric or METRIC
        if trial_id in self.book.entries:
            self._results.enter(self.book, trial_id, result)

    # -- state ---------------------------------------------------------------------------------------------

    def get_state(self) -> dict[str, Any]:
        """Everything a restored search needs, as plain data."""
        return {
            "book": self.book.to_state(),
            "made": self._made,
            "reasons": dict(self.reasons),
            "given": list(self._given),
            "began": self._began,
        }

    def set_state(self, state: dict[str, Any]) -> None:
        """Become the search `get_state` described.

        Raises:
            LogbookError: not such a state.
        """
        made, reasons, given = int(state["made"]), dict(state["reasons"]), list(state.get("given", ()))
        self.book.load_state(state["book"])
        self._made, self.reasons = made, reasons
        began = state.get("began")
        self._began = None if began is None else float(began)
        for facts in given[len(self._given) :]:
            self._give(facts["loss"], {k: v for k, v in facts.items() if k != "loss"})


def read_records(source: Any) -> list[TrialRecord]:
    """Trials to learn from: a table, records, or an experiment of Tune."""
    if isinstance(source, TrialTable):
        return source.records()
    if isinstance(source, Sequence) and not isinstance(source, str):
        strange = next((r for r in source if not isinstance(r, TrialRecord)), None)
        if strange is not None:
            raise ValueError(f"sources must hold trial tables, records or experiments, got {strange!r}")
        return list(source)
    return trial_table(source).records()
