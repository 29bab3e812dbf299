"""What a bound says about a rule: rates, losses of rate, a verdict, and the rows that show them.

Two labels are kept apart, always: *proved* is an exact program with its dual certificate, under the stated
assumptions; *checked* is a number computed.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from fractions import Fraction
from typing import Literal

from metaopt_hpo import markup
from metaopt_hpo.theory._constant import Factor
from metaopt_hpo.theory.bounds import LMOBound
from metaopt_hpo.theory.rules import CONTROLS, SCALES

Label = Literal["proved", "checked"]
Verdict = Literal["optimal", "aligned", "unidentified", "misaligned"]

ROUNDING = 1e-9
"""Rate losses up to this are those of an exponent written in decimals, such as -0.333333333333."""


@dataclass(frozen=True)
class RuleCheck:
    """What a bound says about a rule along one scale. Rates are exponents of the bound's value: lower is better.

    Examples:
        >>> from metaopt_hpo.theory import LMOBound, verify_rule
        >>> check = verify_rule("lr ~ B^0.5 D^-0.5", LMOBound(1.0, 1.0, 1.0), "B ~ D^0.5")
        >>> check.verdict, check.label
        ('optimal', 'proved')
    """

    rule: str
    path: str
    bound: LMOBound
    scale: str
    """The scale the rates are exponents of: tokens, width, depth or size."""
    exponents: Mapping[str, float]
    """The rule's exponents of lr, momentum and batch in that scale."""
    rate: float
    """Best rate over all (lr, momentum, batch)."""
    face: Mapping[str, tuple[float, float]]
    """Range of each exponent over the whole set of optimal rules."""
    vertices: tuple[Mapping[str, float], ...]
    """Corners of that set."""
    rule_rate: float
    """Rate of the rule: its slowest term."""
    rate_held: float
    """Best rate with the rule's own momentum and batch (held fixed where it names none)."""
    rate_loss: float
    """rule_rate − rate_held."""
    rate_loss_free: float
    """rule_rate − rate."""
    rate_loss_lr_terms: float
    """The loss counted on the terms that hold lr alone: what tells rules apart where the noise floor hides them."""
    lr_interval: tuple[float, float]
    """All lr exponents without loss at the rule's momentum and batch."""
    identified: bool
    """Whether that interval is a single point."""
    label: Label
    """proved: exact program with certificate on a proved or derived bound; checked: the bound itself is heuristic."""
    constant_factor: Factor | None
    """What the rule costs in the bound itself at finite sizes (*checked*, never proved); None along other scales and
    where the bound's constants move with tokens."""
    certificate: tuple[tuple[str, Fraction], ...]
    """Exact dual multipliers of the free program."""
    lines: tuple[tuple[str, float, float], ...]
    """Each term as a line (name, slope, intercept) in the lr exponent, at the rule's momentum and batch."""
    also: tuple[RuleCheck, ...] = ()
    """The same check along the rule's other scales."""
    notes: tuple[str, ...] = ()

    @property
    def verdict(self) -> Verdict:
        """optimal: no loss even against free (a, B); aligned: none at its own; unidentified: the noise floor hides the
        lr exponent, and on the terms that hold lr the rule loses; misaligned: it loses rate."""
        if self.rate_loss > ROUNDING:
            return "misaligned"
        if not self.identified and self.rate_loss_lr_terms > ROUNDING:
            return "unidentified"
        return "optimal" if self.rate_loss_free <= ROUNDING else "aligned"

    def _repr_html_(self) -> str:
        """For notebooks: the check's rows."""
        return markup.table(("quantity", "value"), self.rows(), caption=f"Rule {self.rule}")

    @property
    def constant(self) -> float | None:
        """Value of `constant_factor`."""
        return None if self.constant_factor is None else self.constant_factor.value

    @property
    def assumptions(self) -> str:
        """The assumptions every number rests on, in one line."""
        b = self.bound
        held = f"; {self.path}" if self.path else ""
        return f"{b.kind} bound, {b.form} form, noise ~ B^-{b.q:g}, E₀ {_start(b)} ({b.status}){held}"

    def rows(self) -> list[tuple[str, str]]:
        """The check as (quantity, value) rows for a table."""
        face = ", ".join(
            f"{CONTROLS[n]} ∈ [{_number(lo)}, {_number(hi)}]" for n, (lo, hi) in self.face.items()
        )
        rows = [
            ("rule", self.rule),
            ("assumptions", self.assumptions),
            ("along", SCALES[self.scale]),
            ("verdict", f"{self.verdict} ({self.label})"),
            ("optimal rate", f"{_number(self.rate)}, on {face}"),
            (
                "rule's rate",
                f"{_number(self.rule_rate)} (best at its momentum and batch {_number(self.rate_held)})",
            ),
            ("rate loss, same momentum and batch", _number(self.rate_loss)),
            ("rate loss, all free", _number(self.rate_loss_free)),
            ("rate loss, terms that hold lr", _number(self.rate_loss_lr_terms)),
            (
                "lr exponents without loss",
                f"[{_number(self.lr_interval[0])}, {_number(self.lr_interval[1])}]",
            ),
            ("identified", "yes" if self.identified else "no: the noise floor hides the lr exponent"),
        ]
        if self.constant_factor is not None:
            f = self.constant_factor
            rows.append(("constant factor (checked)", f"{f.value:.3g}, at {f.where}"))
        return rows + [("note", n) for n in self.notes]


def _start(bound: LMOBound) -> str:
    return "= noise·B^-q" if bound.init == "first-gradient" else f"= {bound.e0:g}"


def _number(x: float) -> str:
    return f"{x:.4g}".replace("inf", "∞")
