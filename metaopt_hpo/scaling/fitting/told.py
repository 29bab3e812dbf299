"""What trials say of settings beside lr, batch, size and tokens: as coordinates of a law, or as a reason to warn."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from metaopt_hpo.scaling.estimates import Caution
from metaopt_hpo.scaling.forms.axes import Array, allowed
from metaopt_hpo.trials import settings
from metaopt_hpo.trials.quantities import normalise, parts
from metaopt_hpo.trials.table import TrialTable

Mask = NDArray[np.bool_]

KNOWN_EXTRAS = ("weight_decay", "beta1", "beta2", "momentum", "width", "depth", "warmup", "dropout")
"""Numbers that are known to move the optimum: one that varies and is no coordinate gives a warning."""

KNOWN_WORDS = ("corpus", "dataset", "tokenizer", "lab", "model_family")
"""Words that are known to move it, or the loss floor: the same."""

SAMPLED = 50
"""Trials looked at to see whether any says anything: a table of a million is not read in vain."""

SHOWN = 12
"""Names of hyperparameters that an error lists."""

NEVER = ("parametrisation",)
"""Settings that are no coordinate: learning rates of two parametrisations are different quantities, whose optima move
differently with size."""


class Told:
    """Settings of a table's trials.

    Args:
        table: the trials.
        strategies: of each.
    """

    def __init__(self, table: TrialTable, strategies: Sequence[Any] | NDArray[Any]) -> None:
        self.texts = table.frame["params"].to_numpy()
        self.strategies = np.asarray(strategies)
        self.parsed: dict[str, dict[str, Any]] = {}

    def params(self, index: int) -> dict[str, Any]:
        """Hyperparameters of one trial."""
        text = self.texts[index]
        if text not in self.parsed:
            self.parsed[text] = json.loads(text)
        return self.parsed[text]

    def mentions(self, name: str, rows: NDArray[np.intp]) -> bool:
        """Whether a sample of these trials has a hyperparameter of this name, or one that means it."""
        wanted = {*settings.CALLED.get(name, (name,)), *(("base",) if name == "optimizer" else ())}
        for i in rows[:: max(rows.size // SAMPLED, 1)].tolist():
            for key in self.params(i):
                rest = parts(key)[1]
                if rest in wanted or rest.removesuffix("_name").removesuffix("_type") in wanted:
                    return True
        return False

    def words(self, name: str, rows: NDArray[np.intp], *, by_strategy: bool) -> list[str]:
        """A setting of each of these trials; empty where it does not say."""
        if not by_strategy and not self.mentions(name, rows):
            return [""] * rows.size
        known: dict[tuple[str, str], str] = {}
        out = []
        for i in rows.tolist():
            key = self.texts[i], str(self.strategies[i]) if by_strategy else ""
            if key not in known:
                known[key] = settings.setting(self.params(i), name, key[1])
            out.append(known[key])
        return out

    def alone(self, name: str, ok: Mask, extra: Sequence[str], cautions: list[Caution]) -> Mask:
        """Which trials may be fitted together as far as this setting goes; a caution where others are left out."""
        rows, keep = np.flatnonzero(ok), np.ones(ok.size, dtype=bool)
        if name in extra and name in NEVER:
            raise ValueError(
                f"{name} is no coordinate of a law, for learning rates of two parametrisations are different "
                "quantities: fit the trials of each by themselves (TrialTable.select)"
            )
        if name in extra or not rows.size:
            return keep
        values = np.array(self.words(name, rows, by_strategy=False), dtype=object)
        counts = Counter(v for v in values if v)
        if len(counts) < 2:
            return keep
        main = min(counts, key=lambda v: (-counts[v], v))
        others = (values != main) & (values != "")
        keep[rows[others]] = False
        remedy = (
            f"extra=({name!r},) makes it a coordinate"
            if name not in NEVER
            else "fit the others by themselves"
        )
        message = (
            f"only trials with {name} {main!r} were fitted; {int(others.sum())} with others were left out "
            f"({remedy})"
        )
        cautions.append(Caution(f"{name}-mixed", message))
        return keep

    def further(
        self, ok: Mask, names: Sequence[str], cautions: list[Caution]
    ) -> tuple[dict[str, Array], dict[str, tuple[str, ...]]]:
        """(values of the further coordinates of each trial marked, levels of the settings in words)."""
        rows = np.flatnonzero(ok)
        self._unnamed(rows, names, cautions)
        out: dict[str, Array] = {}
        levels: dict[str, tuple[str, ...]] = {}
        for name in names:
            found = (
                None
                if name in settings.TEXT
                else [settings.find(self.params(i), name) for i in rows.tolist()]
            )
            if found is not None and all(v is None for v in found):
                raise ValueError(self._unknown(name, rows))
            if found is not None and not any(isinstance(v, (str, bool)) for v in found):
                out[name] = _numbers(name, found)
                continue
            texts = (
                self.words(name, rows, by_strategy=name == "schedule")
                if found is None
                else ["" if v is None else normalise(v) for v in found]
            )
            missing = sum(not t for t in texts)
            if missing:
                raise ValueError(
                    f"extra coordinate {name!r} must be known of every trial; {missing} of {len(texts)} do not say it"
                )
            counts = Counter(texts)
            levels[name] = tuple(sorted(counts, key=lambda v: (-counts[v], v)))
            out[name] = np.array([levels[name].index(t) for t in texts], dtype=float)
        for name in settings.TEXT:
            if name not in levels:
                same = set(self.words(name, rows, by_strategy=name == "schedule"))
                if len(same) == 1 and "" not in same:
                    levels[name] = (same.pop(),)
        return out, levels

    def _unknown(self, name: str, rows: NDArray[np.intp]) -> str:
        """That no trial holds this hyperparameter, and which they do hold."""
        known = sorted(
            {key for i in rows[:: max(rows.size // SAMPLED, 1)].tolist() for key in self.params(i)}
        )
        return (
            f"extra coordinate {name!r} is among the hyperparameters of no trial; they hold "
            f"{', '.join(known[:SHOWN]) + (' …' if len(known) > SHOWN else '') or 'none'}"
        )

    def _unnamed(self, rows: NDArray[np.intp], names: Sequence[str], cautions: list[Caution]) -> None:
        for name in (*KNOWN_EXTRAS, *KNOWN_WORDS):
            if name in names or not self.mentions(name, rows):
                continue
            found = (settings.find(self.params(i), name) for i in rows.tolist())
            if name in KNOWN_WORDS:
                values: set[Any] = {normalise(v) for v in found if v is not None}
            else:
                values = {v for v in found if isinstance(v, (int, float))}
            if len(values) > 1:
                message = (
                    f"{name} takes {len(values)} values in the table and is no coordinate of the law "
                    f"(extra=({name!r},) makes it one)"
                )
                cautions.append(Caution("extra-varies", message))


def _numbers(name: str, found: Sequence[Any]) -> Array:
    """Values of a numeric coordinate.

    Raises:
        ValueError: one is no number inside its range.
    """
    column = np.array([np.nan if v is None else v for v in found], dtype=float)
    low, high = allowed(name)
    bad = ~((column > low) & (column < high))
    if bad.any():
        raise ValueError(
            f"extra coordinate {name!r} must be a number in ({low:g}, {high:g}) in every trial; "
            f"{int(bad.sum())} of {column.size} are not"
        )
    return column
