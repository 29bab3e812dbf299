"""The loss floor over size and tokens: exp F = E + (A·N^-a + C·D^-b)^γ, with effective exponents γa and γb.

γ = 1 is Hoffmann et al. 2022 (eq. 2), where a step in tokens is worth the same at every size; E = 0 is Kaplan et
al. 2020 (eq. 1.5), where a model too small for its tokens gains little from more of them. The tables measured
here want γ near 0.4: their separable fits leave residuals of ±1.5 % that change sign from small to large sizes
(docs/studies/laws/README.md). Parabolas of argmins ("Approach 2") are biased even without noise and are not used.

A new form is a subclass of `FloorForm` with `name`, `further` and `combine`; a fit takes it by its name:
`fit(table, floor="power")`.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np

from metaopt_hpo.scaling.forms.axes import Array
from metaopt_hpo.scaling.forms.registry import named

PRIOR = {
    "level": (math.log(0.5), 1.0),
    "share": (math.log(0.25), 1.5),
    "exponent": (math.log(0.16), 0.3),
    "power": (-1.2, 1.2),
}
"""Mean and standard deviation of the logarithm of: E and each term over the mean loss, effective exponents, γ.

Exponents and γ lie halfway, in logarithms, between Kaplan et al. (0.076, 0.095; γ = 0.095) and Hoffmann et al.
(0.34, 0.28; γ = 1). For γ either is one standard deviation away. Exponents of tables scatter by 0.3, as those of a base
do (`FLOOR_SPREAD`): three sizes show a bend where one of them is a little off, a wide prior takes that for a floor that
flattens, and the loss beyond is predicted too high. They decide what few cells leave open: docs/studies/laws/README.md
compares others."""

STEP = 1e-5
"""Step of the numerical derivatives of a form that has none of its own."""


class FloorForm(ABC):
    """How the constant and the terms of size and tokens combine to a loss.

    A fit varies θ = (ln E, ln coefficients, ln effective exponents[, ln γ], further parameters); loss is in units of
    its mean.

    Attributes:
        name: what a fit and a law's file call it.
        further: (name, prior mean, prior standard deviation) of each parameter beside those; free of units.
    """

    name: ClassVar[str]
    further: ClassVar[tuple[tuple[str, float, float], ...]] = ()

    def __init_subclass__(cls, **options: Any) -> None:
        super().__init_subclass__(**options)
        FLOORS[cls.name] = cls()

    @abstractmethod
    def combine(self, level: Array, terms: Array, power: Array, further: Sequence[Array]) -> Array:
        """The loss.

        Args:
            level: E.
            terms: A·N^-a, C·D^-b along the last axis, over that of `level`.
            power: γ; 1 where there is one term.
            further: the further parameters.
        """

    def unpack(self, theta: Array, t: Array) -> tuple[Array, Array, Array, Array, list[Array]]:
        """(E, γ, exponents, terms, further parameters) of θ (fits × parameters); terms are fits × cells × names."""
        k, q = t.shape[1], len(self.further)
        theta, rest = (theta[:, : theta.shape[1] - q], theta[:, theta.shape[1] - q :])
        gamma = np.exp(theta[:, -1:]) if k > 1 else np.ones((len(theta), 1))
        exponent = np.exp(theta[:, 1 + k : 1 + 2 * k]) / gamma
        power = theta[:, None, 1 : 1 + k] - exponent[:, None, :] * t
        with np.errstate(over="ignore"):
            terms = np.exp(np.clip(power, -200.0, 200.0))
        return np.exp(theta[:, :1]), gamma, exponent, terms, [rest[:, i : i + 1] for i in range(q)]

    def log_loss(self, theta: Array, t: Array) -> Array:
        """ln loss (fits × cells) at t (cells × names), the logarithms about their centre."""
        level, gamma, _, terms, further = self.unpack(theta, t)
        return np.asarray(np.log(np.maximum(self.combine(level, terms, gamma, further), 1e-300)))

    def model(self, theta: Array, t: Array) -> tuple[Array, Array]:
        """(ln loss, its derivatives by θ as fits × cells × parameters)."""
        steps = STEP * np.eye(theta.shape[1])
        by = [(self.log_loss(theta + s, t) - self.log_loss(theta - s, t)) / (2 * STEP) for s in steps]
        return self.log_loss(theta, t), np.stack(by, axis=2)


FLOORS: dict[str, FloorForm] = {}
"""Forms by name; a subclass of `FloorForm` is added where it is defined."""


class Power(FloorForm):
    """E + (A·N^-a + C·D^-b)^γ."""

    name = "power"

    def combine(self, level: Array, terms: Array, power: Array, further: Sequence[Array]) -> Array:
        return np.asarray(level + terms.sum(axis=-1) ** power)

    def model(self, theta: Array, t: Array) -> tuple[Array, Array]:
        k = t.shape[1]
        level, gamma, exponent, terms, _ = self.unpack(theta, t)
        inside = terms.sum(axis=2)
        power = inside**gamma
        total = level + power
        jac = np.empty((*total.shape, theta.shape[1]))
        jac[:, :, 0] = level / total
        share = jac[:, :, 1 : 1 + k]
        np.multiply((gamma * power / (total * inside))[:, :, None], terms, out=share)
        slope = np.multiply(share, exponent[:, None, :] * t, out=jac[:, :, 1 + k : 1 + 2 * k])
        if k > 1:
            jac[:, :, -1] = power / total * gamma * np.log(inside) + slope.sum(axis=2)
        np.negative(slope, out=slope)
        return np.log(total), jac


POWER = FLOORS["power"]
"""The form of every law that does not ask for another."""


def floor_of(name: str) -> FloorForm:
    """The form of this name; see `registry.named`."""
    return named(FLOORS, name, "the loss floor")


@dataclass(frozen=True)
class Floor:
    """The fitted floor; terms are relative to `centre` (ln).

    Attributes:
        names: which of size and tokens the terms are in.
        centre: ln of the value at which a term equals its coefficient.
        level: E.
        coefficient, exponent: one of each per name, inside the power.
        scatter: robust standard deviation of the cells about the fit, ln loss.
        power: γ; 1 where there is one term only.
        further: parameters of a form that has more of them.
        form: name of the form.
        features: products of further coordinates that move ln loss, as `Axes.features` reads them.
        shift: by how much each does.
    """

    names: tuple[str, ...]
    centre: Array
    level: float
    coefficient: Array
    exponent: Array
    scatter: float
    power: float = 1.0
    further: tuple[float, ...] = ()
    form: str = "power"
    features: tuple[str, ...] = ()
    shift: tuple[float, ...] = ()

    def log_loss(self, size: Array | float, tokens: Array | float, features: Array | None = None) -> Array:
        """F(N, D), ln loss at the optimum.

        Args:
            size, tokens: they broadcast.
            features: values of `features` along the last axis; without them F is that of the law's defaults.
        """
        size, tokens = np.broadcast_arrays(np.asarray(size, dtype=float), np.asarray(tokens, dtype=float))
        terms = [
            k * np.exp(-e * (np.log(size if name == "size" else tokens) - c))
            for name, c, k, e in zip(self.names, self.centre, self.coefficient, self.exponent, strict=True)
        ]
        further = [np.asarray(x) for x in self.further]
        loss = floor_of(self.form).combine(
            np.asarray(self.level), np.stack(terms, axis=-1), np.asarray(self.power), further
        )
        out = np.log(loss)
        return np.asarray(out if features is None else out + features @ np.array(self.shift))

    def parameters(self) -> Array:
        """(E, coefficients, exponents, γ, further parameters, shifts): one row of the draws."""
        return np.concatenate(
            [[self.level], self.coefficient, self.exponent, [self.power], self.further, self.shift]
        )

    def formula(self) -> str:
        """The floor in letters and numbers."""
        terms = [
            f"{c:.4g}·({n}/{math.exp(m):.3g})^-{e:.3f}"
            for n, m, c, e in zip(self.names, self.centre, self.coefficient, self.exponent, strict=True)
        ]
        inside = " + ".join(terms)
        text = f"{self.level:.4g} + " + (f"({inside})^{self.power:.3f}" if self.power != 1.0 else inside)
        rest = zip(floor_of(self.form).further, self.further, strict=True)
        named = "".join(f", {name} {value:.3g}" for (name, _, _), value in rest)
        return text + (f" (form {self.form}{named})" if self.form != "power" else "")


def log_loss_of_draws(
    draws: Array, floor: Floor, size: float, tokens: float, features: Array | None = None
) -> Array:
    """F(N, D) for rows of `Floor.parameters` about the centre of `floor`."""
    k, q = len(floor.names), len(floor.further)
    terms = np.empty((len(draws), k))
    for i, name in enumerate(floor.names):
        t = math.log(size if name == "size" else tokens) - float(floor.centre[i])
        terms[:, i] = draws[:, 1 + i] * np.exp(-draws[:, 1 + k + i] * t)
    rest = 2 + 2 * k
    further = [draws[:, rest + i] for i in range(q)]
    loss = floor_of(floor.form).combine(draws[:, 0], terms, draws[:, 1 + 2 * k], further)
    out = np.log(np.maximum(loss, 1e-300))
    return np.asarray(out if features is None else out + draws[:, rest + q :] @ features)


def recentre(draws: Array, old: Floor, new: Floor) -> Array:
    """Draws about the centre of `old`, moved so that their middle is `new` and their centre its centre."""
    k = len(old.names)
    rest = 2 + 2 * k
    out = draws.copy()
    move = new.centre - old.centre
    out[:, 1 : 1 + k] *= np.exp(-draws[:, 1 + k : 1 + 2 * k] * move)
    was = old.parameters()
    was[1 : 1 + k] *= np.exp(-old.exponent * move)
    now = new.parameters()
    with np.errstate(divide="ignore", invalid="ignore"):
        factor = np.where(was > 0, now / np.maximum(was, 1e-300), 1.0)
    out[:, :rest] *= factor[:rest]
    out[:, rest:] += now[rest:] - was[rest:]
    return np.asarray(out)
