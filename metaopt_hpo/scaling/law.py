"""A fitted law: its data, predictions with intervals, the loss surface, and its JSON form (no pickle).

What fits, judges or says one is above: `scaling.api`.
"""

from __future__ import annotations

import math
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, NamedTuple, Self

import numpy as np

from metaopt_hpo.scaling import storage
from metaopt_hpo.scaling.cautions import ABSTAIN, doubts_of
from metaopt_hpo.scaling.domain import Domain
from metaopt_hpo.scaling.draws import Draws
from metaopt_hpo.scaling.estimates import Caution, Estimate, Prediction, no_answer, positive
from metaopt_hpo.scaling.fitting.alternatives import Alternatives
from metaopt_hpo.scaling.fitting.floor_error import own_error
from metaopt_hpo.scaling.fitting.ordered import OrderedValidation
from metaopt_hpo.scaling.fitting.running import RemainingFall
from metaopt_hpo.scaling.forms.axes import Axes
from metaopt_hpo.scaling.forms.bowl import Bowl
from metaopt_hpo.scaling.forms.decay import NAME, Decay
from metaopt_hpo.scaling.forms.edge import Edge
from metaopt_hpo.scaling.forms.floor import Floor, log_loss_of_draws
from metaopt_hpo.scaling.forms.surface import Array, Surface
from metaopt_hpo.scaling.predicting import below_edge, predicted, settled

CACHED = 4096
"""Places and predictions that a law keeps: a search asks for the same ones again and again."""


class PointPrediction(NamedTuple):
    """What a law says of a size and number of tokens, as plain floats: ln lr*, ln B*, F, variances of F and of both.

    `doubts` are the cautions that it may be wrong there.
    """

    x: float
    y: float
    f: float
    var_f: float
    var_x: float
    var_y: float
    doubts: tuple[Caution, ...]


@dataclass(frozen=True)
class Law:
    """Loss over (size, tokens, batch, lr), fitted to a table of trials. Build one with `fit`.

    Attributes:
        domain: what the fitted trials covered.
        warnings: cautions about the table and the fit.
        level: coverage of the intervals (0.9).
        surface, axes, floor: the fitted parts (see `scaling.forms.surface`, `scaling.forms.floor`).
        noise: robust standard deviation of ln loss of one run about the surface.
    """

    axes: Axes
    surface: Surface
    floor: Floor
    draws: Draws
    domain: Domain
    noise: float
    cells: dict[str, Array]
    trials: int
    level: float = 0.9
    widen: dict[str, float] = field(default_factory=lambda: {"lr": 1.0, "batch": 1.0, "loss": 1.0})
    """Factors on the bootstrap's spread for the number of cells behind it."""
    scatter: dict[str, float] = field(
        default_factory=lambda: {"lr": 0.0, "batch": 0.0, "lr_given_batch": 0.0}
    )
    """Standard deviation, ln units, of a cell's best run about the law: part of the intervals, not of the law."""
    trust: dict[str, OrderedValidation] = field(default_factory=dict)
    """By axis, how much of an extrapolated way is copied from the range's edge (`scaling.fitting.ordered`)."""
    curvature: dict[str, Estimate] = field(default_factory=dict)
    """Second-order coefficients of ln lr* in the axes' logarithms, from a separate fit; the law itself is linear."""
    warnings: tuple[Caution, ...] = ()
    open_valley: bool = False
    """Whether the best batch lies beyond the table's: `predict` then keeps to the batches that were run."""
    settings: dict[str, Any] = field(default_factory=dict)
    """Options of `fit`, and `trials`, the number of them at the last fit with a bootstrap: what `refit` needs."""
    path: tuple[float, float] | None = None
    """(ln coefficient, exponent) of tokens = c·size^k where the table held only such pairs."""
    alternatives: Alternatives | None = None
    """What else than a straight line explains the cells, for doubts; None in files written before it was kept."""
    fall: RemainingFall | None = None
    """How far unfinished runs still fall, where the table holds enough curves."""
    decay: Decay | None = None
    """The best weight decay, where it is a coordinate and the trials show one; the floor is then that at the best."""
    edge: Edge | None = None
    """The edge of stability, where runs diverged: lr is then set by expected loss, divergence included."""
    _cache: dict[tuple[float, float], PointPrediction] = field(
        default_factory=dict, init=False, repr=False, compare=False
    )
    _predicted: dict[tuple[float, float, float | None], Prediction] = field(
        default_factory=dict, init=False, repr=False, compare=False
    )

    # -- predicting -----------------------------------------------------------------------------------------

    def predict(
        self,
        size: float,
        tokens: float,
        batch: float | None = None,
        *,
        schedule: str | None = None,
        extra: Mapping[str, float | str] | None = None,
    ) -> Prediction:
        """Best lr and batch at a size and number of tokens, and the loss to expect there.

        Args:
            size: parameters.
            tokens: training tokens.
            batch: tokens per step, where it is given rather than chosen: lr and loss are then the best at it.
            schedule: of the run that is asked about ("constant", "cosine", "linear", "wsd", …). One that the trials
                did not have is answered by published factors, with a warning; by default that of the largest size.
            extra: values of further coordinates (`fit(..., extra=…)`); by default those of the largest size.

        Returns:
            Estimates with intervals at the law's level, and cautions that hold for this prediction. The lr is
            that of least *expected* loss (see `margin`); the interval is that of the optimum.

        Raises:
            ValueError: an argument that is no positive, finite number, or a coordinate the law does not have.
            MetaOptError: so far outside that the law gives no finite answer.
        """
        size, tokens = positive("size", size), positive("tokens", tokens)
        given = None if batch is None else positive("batch", batch)
        extra, other = settled(self, extra, schedule)
        if not extra and other is None and (known := self._predicted.get((size, tokens, given))) is not None:
            return known
        try:
            with np.errstate(all="ignore"):
                found = predicted(self, size, tokens, given, extra, other)
            finite = all(
                0 < e.value < math.inf and e.low >= 0 and e.high < math.inf
                for e in (found.lr, found.batch, found.loss)
            )
        except (OverflowError, ValueError, ZeroDivisionError):
            finite = False
        if not finite:
            raise no_answer(size, tokens)
        if not extra and other is None:
            if len(self._predicted) > CACHED:
                self._predicted.clear()
            self._predicted[size, tokens, given] = found
        return found

    def decayed(self, row: Array, extra: Mapping[str, Any] | None) -> float:
        """ln loss above that at the best weight decay, at the one asked for or the law's default."""
        if self.decay is None:
            return 0.0
        asked = (extra or {}).get(NAME, self.axes.defaults[NAME])
        return float(self.decay.excess(row, math.log(asked)))

    def divergence(
        self,
        size: float,
        tokens: float,
        batch: float,
        lr: Sequence[float] | Array | float,
        *,
        extra: Mapping[str, Any] | None = None,
    ) -> Array:
        """P(a run diverges) at each learning rate; 0 where no run of the table did.

        Raises:
            ValueError: an argument that is no positive, finite number, or a coordinate the law does not have.
        """
        lrs = _arguments(size, tokens, batch, lr)[3]
        if self.edge is None:
            return np.zeros(lrs.shape)
        x, v, t = self._from_optimum(size, tokens, batch, extra)
        return self.edge.chance(np.log(lrs) - x, v, t)

    def edge_lr(
        self, size: float, tokens: float, batch: float, *, extra: Mapping[str, Any] | None = None
    ) -> float:
        """The learning rate at which half of the runs diverge; infinite where no run of the table did."""
        size, tokens, batch = positive("size", size), positive("tokens", tokens), positive("batch", batch)
        if self.edge is None:
            return math.inf
        x, v, t = self._from_optimum(size, tokens, batch, extra)
        return math.exp(x + self.edge.place(v, t))

    def _from_optimum(
        self, size: float, tokens: float, batch: float, extra: Mapping[str, Any] | None
    ) -> tuple[float, float, Array]:
        """ln lr*, ln batch from the optimum, and the axes of scale."""
        row = self.axes.design(*self.anchor(size, tokens), settled(self, extra, None)[0])
        x, y = self.surface.centre(row)
        v = (math.log(batch) - float(y)) * self.surface.has_batch
        return float(x), v, row[1 : 1 + len(self.axes.scale_names)]

    def margin(self, variance: float) -> float:
        """Shift of ln lr from the likeliest optimum to the lr of least expected loss.

        The true optimum scatters about the law's, and a skewed bowl punishes one side more (`Bowl.margin`).

        Args:
            variance: of ln lr* in the law's draws; the cells' own scatter is added.
        """
        return self.surface.margin(variance + self.scatter["lr_given_batch"] ** 2)

    def choose(
        self, size: float, tokens: float, lr: Sequence[float] | Array, batch: Sequence[float] | Array
    ) -> int:
        """Index of the configuration of least expected loss among those listed (equally long lr and batch)."""
        lrs, batches = np.asarray(lr, dtype=float), np.asarray(batch, dtype=float)
        if lrs.shape != batches.shape or lrs.size == 0:
            raise ValueError(
                f"lr and batch must be equally long and not empty, got {lrs.size} and {batches.size}"
            )
        values = _arguments(size, tokens, batches, lrs)
        shift = math.exp(self.margin(self.at(size, tokens).var_x))
        return int(self._losses(*values[:3], values[3] / shift).argmin())

    def anchor(self, size: float, tokens: float) -> tuple[float, float]:
        """Where the centre's power law is read: (size, tokens), moved back by what is copied beyond the range."""
        out = []
        for name, value, edge in (
            ("size", size, self.domain.size[1]),
            ("tokens", tokens, self.domain.tokens[1]),
        ):
            share = self.trust[name].copying if name in self.trust else 0.0
            out.append(edge * (value / edge) ** (1.0 - share) if share and value > edge else value)
        return out[0], out[1]

    @property
    def size_counts(self) -> str:
        """The column that the law's sizes are counted in; "size" is the table's own."""
        return str(self.settings.get("size") or "size")

    @cached_property
    def bowl(self) -> Bowl:
        """The form of the quadratic."""
        return self.surface.bowl

    @cached_property
    def scalars(self) -> tuple[float, ...]:
        """The bowl's coefficients as plain floats, for calls of microseconds."""
        return tuple(float(x) for x in self.surface.coefficients)

    def at(self, size: float, tokens: float) -> PointPrediction:
        """What the law says of a size and number of tokens; cached."""
        key = (size, tokens)
        found = self._cache.get(key)
        if found is None:
            try:
                with np.errstate(all="ignore"):
                    found = self._place(size, tokens)
            except (OverflowError, ValueError, ZeroDivisionError):
                raise no_answer(size, tokens) from None
            if not all(map(math.isfinite, found[:6])):
                raise no_answer(size, tokens)
            if len(self._cache) > CACHED:
                self._cache.clear()
            self._cache[key] = found
        return found

    def _place(self, size: float, tokens: float) -> PointPrediction:
        row = self.axes.design(*self.anchor(size, tokens))
        x, y = float(row @ self.surface.a), float(row @ self.surface.b)
        dx, dy = self.optimum_draws(size, tokens)
        df = self.floor_draws(size, tokens)
        var_f = (df.std() * self.widen["loss"]) ** 2 + own_error(self.floor, self.domain, size, tokens) ** 2
        var_y = float(dy.var()) if self.surface.has_batch else 0.0
        f = float(self.floor.log_loss(size, tokens)) + self.decayed(row, None)
        answer = x + below_edge(self, row, self.margin(float(dx.var())), x, y)[0], y
        doubts = doubts_of(self, size, tokens, answer, given=self.open_valley, limit=ABSTAIN)
        return PointPrediction(x, y, f, float(var_f), float(dx.var()), var_y, doubts)

    def optimum_draws(self, size: float, tokens: float) -> tuple[Array, Array]:
        """Draws of (ln lr*, ln B*) at a size and number of tokens."""
        row = self.axes.design(*self.anchor(size, tokens))
        x, y = float(row @ self.surface.a), float(row @ self.surface.b)
        dx = (self.draws.a @ row - x) * self.widen["lr"] + x
        dy = (self.draws.b @ row - y) * self.widen["batch"] + y
        return dx, dy if self.surface.has_batch else np.full_like(dx, y)

    def moved(self, size: float, tokens: float, extra: Mapping[str, Any] | None) -> Array | None:
        """Values of what moves the floor beside size and tokens; None at the law's defaults."""
        if not extra or not self.floor.features:
            return None
        return self.axes.features(self.floor.features, size, tokens, extra)

    def floor_draws(self, size: float, tokens: float, moved: Array | None = None) -> Array:
        return log_loss_of_draws(self.draws.floor, self.floor, size, tokens, moved)

    def loss(
        self, size: Any, tokens: Any, batch: Any, lr: Any, *, extra: Mapping[str, Any] | None = None
    ) -> Array:
        """Expected final loss of configurations; all arguments broadcast. Returns an array of losses.

        Raises:
            ValueError: an argument that is no positive, finite number, or arguments that do not broadcast.
            MetaOptError: so far outside that the law gives no finite answer.
        """
        extra, _ = settled(self, extra, None)
        values = _arguments(size, tokens, batch, lr)
        with np.errstate(all="ignore"):
            found = self._losses(*values, extra=extra)
        if not np.isfinite(found).all():
            first = np.unravel_index(int(np.argmin(np.isfinite(found))), found.shape)
            raise no_answer(float(values[0][first]), float(values[1][first]))
        return found

    def _losses(
        self, size: Array, tokens: Array, batch: Array, lr: Array, extra: Mapping[str, Any] | None = None
    ) -> Array:
        """`loss` unchecked: infinite where it is too large for a float."""
        at = [self._anchors(name, v) for name, v in (("size", size), ("tokens", tokens))]
        x, y = self.surface.centre(self.axes.design(at[0], at[1], extra))
        moved = (
            self.axes.features(self.floor.features, size, tokens, extra)
            if extra and self.floor.features
            else None
        )
        f = self.floor.log_loss(size, tokens, moved)
        if self.decay is not None:
            asked = np.asarray((extra or {}).get(NAME, self.axes.defaults[NAME]), dtype=float)
            f = f + self.decay.excess(self.axes.design(at[0], at[1], extra), np.log(asked))
        return np.asarray(np.exp(f + self.surface.excess(np.log(lr) - x, np.log(batch) - y)))

    def _anchors(self, name: str, values: Array) -> Array:
        """`anchor` along one axis, vectorised."""
        share = self.trust[name].copying if name in self.trust else 0.0
        edge = self.domain.size[1] if name == "size" else self.domain.tokens[1]
        if not share:
            return values
        return np.asarray(np.where(values > edge, edge * (values / edge) ** (1.0 - share), values))

    def to_json(self, path: str | os.PathLike[str] | None = None) -> str:
        """The law as JSON text with a checksum, also written to `path` where one is given: no pickle.

        Raises:
            WriteError: the file cannot be written; one that was there is unchanged.
            MetaOptError: the law holds a number that is not finite.
        """
        return storage.write(self, path)

    @classmethod
    def from_json(cls, source: str | os.PathLike[str]) -> Self:
        """A law from JSON text or from a file's path.

        Raises:
            NotALaw: the content is something else (`metaopt_hpo.scaling.storage`).
            MetaOptError: the file cannot be read, is of another version, or damaged.
        """
        return cls(**storage.read(source))


def _arguments(size: Any, tokens: Any, batch: Any, lr: Any) -> tuple[Array, Array, Array, Array]:
    """All four as arrays of one shape; ValueError naming one that is not positive and finite."""
    values = []
    for name, value in (("size", size), ("tokens", tokens), ("batch", batch), ("lr", lr)):
        try:
            array = np.asarray(value, dtype=float)
        except (TypeError, ValueError, OverflowError):
            raise ValueError(
                f"{name} must be a number or an array of numbers, got {str(value)[:80]!r}"
            ) from None
        wrong = ~(np.isfinite(array) & (array > 0))
        if wrong.any():
            raise ValueError(f"{name} must be positive and finite, got {array[wrong][0]!r}")
        values.append(array)
    sizes, lengths, batches, lrs = np.broadcast_arrays(*values)
    return sizes, lengths, batches, lrs
