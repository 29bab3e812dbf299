"""From gaps to causes: exact Shapley values where every world was run, else single changes plus pairs.

The gap of practice is the gap left when every assumption is met (slack: looseness of the bound itself) plus one part a
factor; the parts sum to the total exactly, for every bootstrap sample.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations
from math import factorial
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from metaopt_hpo.attribution.estimand import MAX_CENSORED
from metaopt_hpo.attribution.levels import FACTORS
from metaopt_hpo.scaling.estimates import Estimate
from metaopt_hpo.theory.intervals import interval

Array = NDArray[np.float64]
Verdict = Literal["primary", "contributing", "opposing", "minor", "unresolved"]
MIN_SHARE = 0.15
"""Share of Σ|φ| from which a part whose interval excludes 0 counts as contributing."""
Gaps = Callable[[frozenset[str]], Array]
"""Gap samples (1 + bootstrap,) with the given factors at their practice level and the others ideal."""


@dataclass(frozen=True, slots=True)
class Part:
    """One signed part of the gap."""

    name: str
    hypothesis: str
    """looseness, assumptions or protocol; interactions have none."""
    phi: Estimate
    share: Estimate
    """|φ| over Σ|φ|."""
    verdict: Verdict


@dataclass(frozen=True)
class Decomposition:
    """The signed parts of one world's gap at one b; they sum to `total` exactly."""

    total: Estimate
    parts: tuple[Part, ...]
    method: Literal["shapley", "pairs"]
    censored: float
    """Largest share of censored cells among the levels of a leading part."""

    @property
    def resolved(self) -> bool:
        """Whether any part carries a verdict."""
        return any(p.verdict != "unresolved" for p in self.parts)

    def hypotheses(self) -> dict[str, float]:
        """Signed sum of the parts of each hypothesis of the open question."""
        out: dict[str, float] = {}
        for part in self.parts:
            out[part.hypothesis] = out.get(part.hypothesis, 0.0) + part.phi.value
        return out


def shapley(factors: Sequence[str], gaps: Gaps) -> dict[str, Array]:
    """Exact Shapley values of each factor, per bootstrap sample; with "slack" (nothing changed) they sum to the gap."""
    n = len(factors)
    parts = {"slack": gaps(frozenset())}
    for factor in factors:
        others = [f for f in factors if f != factor]
        value = np.zeros_like(parts["slack"])
        for size in range(n):
            weight = factorial(size) * factorial(n - size - 1) / factorial(n)
            for subset in combinations(others, size):
                before = frozenset(subset)
                value = value + weight * (gaps(before | {factor}) - gaps(before))
        parts[factor] = value
    return parts


def single_and_pairs(factors: Sequence[str], gaps: Gaps) -> dict[str, Array]:
    """Main effects from the ideal corner, pairwise interactions, and what is left of the total: they sum exactly."""
    empty = gaps(frozenset())
    parts = {"slack": empty}
    single = {f: gaps(frozenset({f})) - empty for f in factors}
    parts.update(single)
    for a, b in combinations(factors, 2):
        parts[f"{a} × {b}"] = gaps(frozenset({a, b})) - empty - single[a] - single[b]
    if len(factors) > 2:
        total = gaps(frozenset(factors))
        parts["higher order"] = total - np.sum(list(parts.values()), axis=0)
    return parts


def decompose(
    factors: Sequence[str],
    gaps: Gaps,
    *,
    censored: Mapping[str, float] | None = None,
    method: Literal["shapley", "pairs"] = "shapley",
) -> Decomposition:
    """Parts with intervals, shares and verdicts.

    Args:
        factors: names; slack is added.
        gaps: gap samples of any subset of factors at their practice level.
        censored: share of censored cells behind each part, for the verdict.
        method: "shapley" needs all 2^n subsets; "pairs" the singles, the pairs and the full set.

    Raises:
        ValueError: no factors, or an unknown method.
    """
    if not factors:
        raise ValueError("factors must name at least one factor")
    if method not in ("shapley", "pairs"):
        raise ValueError(f"method must be shapley or pairs, got {method!r}")
    values = shapley(factors, gaps) if method == "shapley" else single_and_pairs(factors, gaps)
    total = gaps(frozenset(factors))
    scale = np.maximum(np.sum([np.abs(v) for v in values.values()], axis=0), 1e-300)
    whole = interval(float(total[0]), total[1:])
    phis = {n: interval(float(v[0]), v[1:]) for n, v in values.items()}
    shares = {n: interval(float(abs(v[0]) / scale[0]), np.abs(v[1:]) / scale[1:]) for n, v in values.items()}
    significant = {n: e.low > 0 or e.high < 0 for n, e in phis.items()}
    leading = max(phis, key=lambda n: np.nan_to_num(shares[n].value))
    behind = dict(censored or {})
    cut = behind.get(leading, 0.0)
    undecided = cut > MAX_CENSORED or np.isnan(whole.value) or (0 in whole and not any(significant.values()))
    parts = tuple(
        Part(
            name,
            "looseness" if name == "slack" else FACTORS.get(name, "interaction"),
            phis[name],
            shares[name],
            "unresolved" if undecided else verdict(phis[name], shares[name], whole),
        )
        for name in values
    )
    return Decomposition(whole, parts, method, cut)


def verdict(phi: Estimate, share: Estimate, total: Estimate) -> Verdict:
    """The rule: opposing if φ is significant with the other sign than the total; primary if the share's lower end
    exceeds one half; contributing if φ is significant with a share of at least .15; minor otherwise."""
    significant = phi.low > 0 or phi.high < 0
    if significant and phi.value * total.value < 0:
        return "opposing"
    if share.low > 0.5:
        return "primary"
    if significant and share.value >= MIN_SHARE:
        return "contributing"
    return "minor"
