"""Convergence bounds of LMO methods as functions of lr, momentum, batch and steps: pure, no training.

An LMO method steps w⁺ = w − η·lmo(m⁺) with ‖lmo‖ = 1 and momentum m⁺ = (1−a)m + a·g: normalised SGD, signSGD (a
proxy for Adam) and Muon. With batch B, K steps, tokens D = BK, initial gap Δ, smoothness L, noise rs (the standard
deviation of one unit of batch in the dual norm) and initial momentum error E₀:

    avg ‖∇f‖* ≤ Δ/(ηK) + Λ(a)·η + 2E₀/(aK) + N(a, B)

Every formula says in its docstring whether it is *proved*, *derived* (a proof step of ours, checked with computer
algebra in the tests) or *heuristic*, and where it comes from. Papers: Kovalev, arXiv 2503.12645 (Theorem 2);
Pethick et al., arXiv 2502.07529 (weight decay as Frank–Wolfe); Shulgin et al., arXiv 2603.15958 (the laws).
"""

from __future__ import annotations

from dataclasses import dataclass
from numbers import Real
from typing import Any, Literal, get_args

import numpy as np
from numpy.typing import ArrayLike, NDArray

from metaopt_hpo.theory import _tuning as tuning
from metaopt_hpo.theory._checks import check_momentum, check_number
from metaopt_hpo.theory._forms import Form as Form
from metaopt_hpo.theory._forms import Init
from metaopt_hpo.theory._forms import Kind as Kind
from metaopt_hpo.theory._tuning import Optimum, Ridge
from metaopt_hpo.theory.schedules import Schedule, check_schedule, schedule_factors

Status = Literal["proved", "derived", "heuristic"]
Array = NDArray[np.float64]

_ALIASES = {"weight-decay": "frank-wolfe", "kl": "star-convex"}
KINDS: tuple[Kind, ...] = get_args(Kind)
FORMS: tuple[Form, ...] = get_args(Form)
KOVALEV_C = 3.5
"""Kovalev's additive smoothness constant: Λ = L(7/2 + 2/a)."""


@dataclass(frozen=True)
class LMOBound:
    """One convergence bound with its constants.

    Args:
        delta: Δ, initial loss gap f(w₀) − inf f, in loss units; > 0.
        smoothness: L of ‖∇f(w)−∇f(v)‖* ≤ L‖w−v‖, loss per weight²; > 0.
        noise: rs of one `unit` of batch; >= 0. The bound needs E‖Σ c_j ξ_j‖* <= rs·(Σ c_j²)^½ for sums of independent
            gradient noise ξ. That is proved for (norm equivalence) × σ, and for signSGD for the sum of coordinates'
            standard deviations; E‖ξ‖* itself is too small where noise is sparse. Measured, take the dual norm of
            differences of whole batches (`attribution.estimate_constants`): norm equivalence overstates it by up to √d.
        e0: E‖m₀ − ∇f(w₀)‖*, initial momentum error, same units as `noise`; default 0 (exact first gradient).
        q: noise falls like B^-q; 1/2 for finite variance (default), (p−1)/p when only the p-th moment exists.
        kind: nonconvex (value = avg ‖∇f‖*), frank-wolfe (alias weight-decay; value = duality gap; it assumes a start
            inside the ball and λη <= 1), star-convex (alias kl; value = last loss gap) or power-law (the (s, r) proxy;
            value = loss gap).
        form: simplified (Λ = 2L/a), tight (Λ = L[1/2 + 2(1−a)/a], noise √(a/((2−a)B))) or kovalev
            (Λ = L(7/2 + 2/a)). The three have different ridges, so results always state the form.
        init: "given" takes `e0` as it is; "first-gradient" sets E₀ = noise·B^-q, Kovalev's m₀ = g₀.
        schedule: shape of the lr, whose peak is η; constant (default), linear, cosine, wsd.
        weight_decay: λ of frank-wolfe, the iterates' ball has radius 1/λ; default 1.
        radius: R of star-convex problems, f − f* ≤ R‖∇f‖*; default 1, in weight units.
        source, capacity: s > 0 and r >= 0 of the power-law proxy; both required there, as exponents depend on them.
        unit: what one unit of batch and tokens is ("token", "sequence", "example"); constants without it mean nothing.

    Raises:
        ValueError: naming the field, its value and what is allowed.

    Examples:
        >>> from metaopt_hpo.theory import LMOBound
        >>> LMOBound(delta=1.0, smoothness=1.0, noise=1.0).kind
        'nonconvex'
    """

    delta: float
    smoothness: float
    noise: float
    e0: float = 0.0
    q: float = 0.5
    kind: Kind = "nonconvex"
    form: Form = "simplified"
    init: Init = "given"
    schedule: Schedule = "constant"
    weight_decay: float = 1.0
    radius: float = 1.0
    source: float | None = None
    capacity: float | None = None
    unit: str = "token"

    def __post_init__(self) -> None:
        object.__setattr__(self, "kind", _ALIASES.get(self.kind, self.kind))
        for name, allowed in (("kind", KINDS), ("form", FORMS), ("init", get_args(Init))):
            if getattr(self, name) not in allowed:
                raise ValueError(f"{name} must be one of {', '.join(allowed)}, got {getattr(self, name)!r}")
        check_schedule(self.schedule)
        for name in ("delta", "smoothness", "weight_decay", "radius"):
            check_number(name, getattr(self, name), positive=True)
        for name in ("noise", "e0"):
            check_number(name, getattr(self, name), positive=False)
        if not (isinstance(self.q, Real) and 0 < self.q <= 0.5):
            raise ValueError(
                f"q must lie in (0, 0.5] (0.5 is finite variance, (p-1)/p heavy tails), got {self.q!r}"
            )
        if not (isinstance(self.unit, str) and self.unit.strip()):
            raise ValueError(f"unit must name what one unit of batch is, such as 'token', got {self.unit!r}")
        if self.init == "first-gradient" and self.e0:
            raise ValueError("e0 is set by init='first-gradient' (noise · B^-q); leave e0 at 0 there")
        if self.kind == "power-law":
            if self.source is None or self.capacity is None:
                raise ValueError(
                    "kind='power-law' needs source (s > 0) and capacity (r >= 0): they set the exponents"
                )
            check_number("source", self.source, positive=True)
            check_number("capacity", self.capacity, positive=False)
            check_number("noise", self.noise, positive=True)
        elif self.source is not None or self.capacity is not None:
            raise ValueError(f"source and capacity belong to kind='power-law', got kind={self.kind!r}")
        if self.schedule != "constant" and self.kind not in ("nonconvex", "frank-wolfe"):
            raise ValueError(
                f"schedule={self.schedule!r}: factors are derived for nonconvex and frank-wolfe only; use 'constant'"
            )

    @property
    def status(self) -> Status:
        """What the bound itself rests on: proved, derived or heuristic.

        Proved: nonconvex with finite variance (simplified is tight with 2/a − 3/2 <= 2/a and 2 − a >= 1, so it is a
        bound too). Derived: heavy tails up to a constant, schedules, Frank–Wolfe, star-convex. Heuristic: power-law.
        """
        if self.kind == "power-law":
            return "heuristic"
        plain = self.kind == "nonconvex" and self.q == 0.5 and self.schedule == "constant"
        return "proved" if plain else "derived"

    # --- the pieces of the bound ------------------------------------------------------------------------------

    def slope(self, momentum: ArrayLike) -> Any:
        """Λ(a), the coefficient of η (units of smoothness).

        Simplified 2L/a; tight L[1/2 + 2(1−a)/a]; kovalev L(7/2 + 2/a) (proved). For Frank–Wolfe one step moves by
        up to 2η (the ball's diameter 2/λ times λη), so the descent term grows fourfold and the drift twofold (derived).
        """
        a = np.asarray(momentum, dtype=float)
        descent, drift = {
            "simplified": (0.0, 2 / a),
            "tight": (0.5, 2 * (1 - a) / a),
            "kovalev": (KOVALEV_C, 2 / a),
        }[self.form]
        wide = 2.0 if self.kind == "frank-wolfe" else 1.0
        return self.smoothness * (wide**2 * descent + wide * drift)

    def noise_floor(self, momentum: ArrayLike, batch: ArrayLike) -> Any:
        """N(a, B) = 2 rs (a/B)^q, tight 2 rs (a/((2−a)B))^q: what is left of the noise after momentum.

        Proved at q = 1/2 (variance of an exponential average); derived up to a constant for heavy tails.
        """
        a, b = np.asarray(momentum, dtype=float), np.asarray(batch, dtype=float)
        return 2 * self.noise * (a / ((2 - a) * b if self.form == "tight" else b)) ** self.q

    def start_error(self, batch: ArrayLike) -> Any:
        """E₀ at this batch: `e0`, or noise·B^-q for m₀ = g₀."""
        b = np.asarray(batch, dtype=float)
        return self.noise * b**-self.q if self.init == "first-gradient" else np.full_like(b, self.e0)

    def drift_time(self, lr: ArrayLike, momentum: ArrayLike, batch: ArrayLike, steps: ArrayLike) -> Any:
        """τ = L·ηuK of the proxy, dimensionless: noise-dominated steps drift at u = (B/a)^q / rs (heuristic)."""
        ratio = np.asarray(batch, dtype=float) / np.asarray(momentum, dtype=float)
        return self.smoothness * np.asarray(lr) * ratio**self.q / self.noise * np.asarray(steps)

    # --- value and optima -------------------------------------------------------------------------------------

    def value(self, lr: ArrayLike, momentum: ArrayLike, batch: ArrayLike, steps: ArrayLike) -> Any:
        """The bound at peak lr η, momentum a, batch B and K steps; arguments broadcast.

        * nonconvex: Δ/(ηK) + Λη + 2E₀/(aK) + N on the step-weighted average of ‖∇f‖* (proved; with a schedule the
          Δ and E₀ terms × 1/mean s and the Λ term × mean s²/mean s, by Cauchy–Schwarz: derived).
        * frank-wolfe: the same with its own Λ, × 1/λ, on the average duality gap (derived).
        * star-convex: Δe^(−ηK/R) + R(Λη + N) + decaying E₀ on the last gap (derived from the descent recursion).
        * power-law: Δτ^-s + (rs²/L)·τ^(1+r)/D^(2q), τ = `drift_time` (heuristic; the bound is s + r = 1).
        """
        h, a, b, k = self._checked(lr, momentum, batch, steps)
        if self.kind == "power-law":
            s, r = self._source_capacity()
            tau = self.drift_time(h, a, b, k)
            return self.delta * tau**-s + self.noise**2 / self.smoothness * tau ** (1 + r) / (b * k) ** (
                2 * self.q
            )
        slope, floor, start = self.slope(a), self.noise_floor(a, b), self.start_error(b)
        if self.kind == "star-convex":
            # exp(−hK), never exp(−h)^K: at small steps exp(−h) rounds to 1.
            x = h / self.radius
            decay, apart = np.exp(-x * k), a + np.expm1(-x)
            # Σ e^(−x(K−1−j)) (1−a)^j, whose closed form is 0/0 where both bases are equal.
            same = np.abs(apart) < 1e-9
            carried = (decay - (1 - a) ** k) / np.where(same, 1.0, apart)
            carried = np.where(same, k * np.exp(-x * (k - 1)), carried)
            return self.delta * decay + self.radius * (slope * h + floor) + 2 * h * start * carried
        f = schedule_factors(self.schedule)
        total = (self.delta / h + 2 * start / a) / (k * f.mean) + slope * h * f.mean_square / f.mean + floor
        return total / self.weight_decay if self.kind == "frank-wolfe" else total

    def best_lr(self, momentum: ArrayLike, batch: ArrayLike, steps: ArrayLike) -> Any:
        """η*(a, B, K), exact: √(Δ/(KΛ mean s²)); (R/K)·ln(ΔK/(R²Λ)) star-convex; from τ* for the power law.

        Star-convex: the E₀ term, which decays exponentially, is left out of η* (of relative weight 2RE₀/(aKΔ)); where
        no step pays (ΔK <= R²Λ, a vacuous bound) η* vanishes, and 1e-9·R/K stands for it.
        """
        _, a, b, k = self._checked(1.0, momentum, batch, steps)
        if self.kind == "power-law":
            s, r = self._source_capacity()
            noise = self.noise**2 / self.smoothness / (b * k) ** (2 * self.q)
            tau = (s * self.delta / ((1 + r) * noise)) ** (1 / (1 + s + r))
            return tau / self.drift_time(1.0, a, b, k)
        if self.kind == "star-convex":
            log = np.log(self.delta * k / (self.radius**2 * self.slope(a)))
            return self.radius / k * np.maximum(log, 1e-9)
        return np.sqrt(self.delta / (k * self.slope(a) * schedule_factors(self.schedule).mean_square))

    def simplified(self) -> LMOBound:
        """The same problem in the simplified form, with an exact first gradient and a constant lr."""
        return LMOBound(
            self.delta, self.smoothness, self.noise, q=self.q, kind=self.kind, radius=self.radius,
            source=self.source, capacity=self.capacity,
        )  # fmt: skip

    def optimum(self, tokens: float, *, batch: float | None = None, momentum: float | None = None) -> Optimum:
        """The best (lr, momentum, batch) at D tokens; what is given is held, the rest is tuned.

        Momentum is tuned over [1/K, 1] and batch over [1, D]. On an exactly flat ridge (simplified form, E₀ = 0,
        both free) the largest batch of the ridge, B_c with a = 1, is returned; `ridge` shows the whole valley.

        Raises:
            ValueError: batch > tokens, momentum outside (0, 1], or a power-law problem with batch or momentum free
                (its tuned value depends on neither).
        """
        return tuning.optimum(self, tokens, batch=batch, momentum=momentum)

    def critical_batch(self, tokens: ArrayLike) -> Any:
        """B_c, where the simplified form's tuned momentum reaches 1 at E₀ = 0 (derived).

        nonconvex, frank-wolfe: a/B = (φ√(2ΔL/D)/(2q·rs))^(1/(q+1/2)) on the ridge, so B_c = rs√(D/(2ΔL))/φ at q = 1/2
        (Frank–Wolfe with 2L for L; φ is the schedule's value factor, 1 when constant). star-convex: the batch that
        minimises the simplified bound at a = 1 (numeric). The tight form's own optimum at a = 1 is 2·B_c.

        Raises:
            ValueError: tokens below 1, a power-law problem, or noise 0: there is no critical batch.
        """
        return tuning.critical_batch(self, tokens)

    def ridge(self, tokens: float, *, tolerance: float = 0.02, points: int = 241) -> Ridge:
        """The valley along B with lr and momentum tuned: B from 1 to D, and where the value is within `tolerance`.

        Exactly flat up to B_c in the simplified form, a 19 % slope in the tight one, a shallow minimum in Kovalev's.

        Raises:
            ValueError: tokens below 1, or a power-law problem, which is flat everywhere.
        """
        return tuning.ridge(self, tokens, tolerance=tolerance, points=points)

    # --- helpers ----------------------------------------------------------------------------------------------

    def _source_capacity(self) -> tuple[float, float]:
        # __post_init__ refused a power-law problem without them.
        return self.source or 0.0, self.capacity or 0.0

    def _checked(
        self, lr: ArrayLike, momentum: ArrayLike, batch: ArrayLike, steps: ArrayLike
    ) -> tuple[Array, ...]:
        h, a, b, k = (np.asarray(x, dtype=float) for x in (lr, momentum, batch, steps))
        if not np.all(h > 0):
            raise ValueError(f"lr must be positive, got {lr!r}")
        check_momentum(a)
        if not np.all(b > 0):
            raise ValueError(f"batch must be positive, got {batch!r}")
        # A hair below 1 is the rounding of tokens / batch at batch = tokens.
        if not np.all(k >= 1 - 1e-9):
            raise ValueError(f"steps must be at least 1 (batch must not exceed tokens), got {steps!r}")
        return h, a, b, k
