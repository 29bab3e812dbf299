"""A law in words and numbers."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

from metaopt_hpo.scaling.fitting.checks import exponent_interval
from metaopt_hpo.scaling.fitting.ordered import COPYING, MIN_SCORED

if TYPE_CHECKING:
    from metaopt_hpo.scaling.law import Law


def describe(law: Law) -> str:
    """The law in words and numbers, a few lines."""
    lines = [
        f"law from {law.trials} trials, {len(law.domain.sizes)} sizes, {law.cells['size'].size} cells (size × tokens)"
    ]
    if law.size_counts != "size":
        lines.append(f"size counts {law.size_counts}")
    targets = [("lr*", law.surface.a, law.draws.a, "lr")]
    if law.surface.has_batch:
        targets.append(("batch*", law.surface.b, law.draws.b, "batch"))
    for label, coef, draws, key in targets:
        parts, factors = [], []
        for i, name in enumerate(law.axes.names, start=1):
            low, high = exponent_interval(float(coef[i]), draws[:, i], law.widen[key], law.level)
            if "=" in name:
                value, least, most = (math.exp(v) for v in (float(coef[i]), low, high))
                factors.append(f"{name} {value:.3g} [{least:.3g}, {most:.3g}]")
            else:
                parts.append(f"{name}^{coef[i]:.3f} [{low:.3f}, {high:.3f}]")
        lines.append(f"{label} ∝ " + " · ".join(parts) if parts else f"{label} constant")
        if factors:
            lines.append(f"{label} by setting, as a factor: " + ", ".join(factors))
    lines.append(f"loss* = {law.floor.formula()}")
    if law.floor.features:
        moved = ", ".join(
            f"{name} {100 * value:+.2g} %"
            for name, value in zip(law.floor.features, law.floor.shift, strict=True)
        )
        lines.append(f"moved, for a setting or an e-fold, by {moved}")
    if law.curvature:
        bends = ", ".join(f"{name} {e:.3f}" for name, e in law.curvature.items())
        lines.append(f"curvature of ln lr*, measured and not extrapolated: {bends}")
    lines.append(f"losses of single runs scatter by {100 * law.noise:.2g} % about the law")
    if law.fall is not None:
        lines.append(f"running losses are judged by the curves of {law.fall.runs} finished runs")
    for name, t in law.trust.items():
        if t.cells:
            where = "sizes" if name == "size" else name
            form = f"its exponents shrunk by {t.copying:.0%}" if t.copying else "unchanged"
            cells = f"{t.cells} held-out cell{'s' if t.cells > 1 else ''}"
            lines.append(
                f"beyond the fitted {where}: the power law, {form}; "
                + (f"tested on {cells}" if t.cells >= MIN_SCORED else f"hardly tested, only {cells}")
                # laws of earlier releases kept no score where cells were few
                + (f", {100 * t.scores[COPYING.index(t.copying)]:.2g} % excess loss" if t.scores else "")
            )
    lines += [f"warning ({c.code}): {c.message}" for c in law.warnings]
    return "\n".join(lines)
