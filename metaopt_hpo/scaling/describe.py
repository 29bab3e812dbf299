"""A law in words and numbers."""

from __future__ import annotations

from typing import TYPE_CHECKING

from metaopt_hpo.scaling.checks import exponent_interval
from metaopt_hpo.scaling.ordered import COPYING, MIN_SCORED

if TYPE_CHECKING:
    from metaopt_hpo.scaling.law import Law


def describe(law: Law) -> str:
    """The law in words and numbers, a few lines."""
    lines = [f"law from {law.trials} trials, {len(law.domain.sizes)} sizes, {law.cells['size'].size} cells"]
    targets = [("lr*", law.surface.a, law.draws.a, "lr")]
    if law.surface.has_batch:
        targets.append(("batch*", law.surface.b, law.draws.b, "batch"))
    for label, coef, draws, key in targets:
        parts = []
        for i, name in enumerate(law.axes.names, start=1):
            low, high = exponent_interval(float(coef[i]), draws[:, i], law.widen[key], law.level)
            parts.append(f"{name}^{coef[i]:.3f} [{low:.3f}, {high:.3f}]")
        lines.append(f"{label} ∝ " + " · ".join(parts) if parts else f"{label} constant")
    lines.append(f"loss* = {law.floor.formula()}")
    if law.curvature:
        bends = ", ".join(f"{name} {e:.3f}" for name, e in law.curvature.items())
        lines.append(f"bend of ln lr* in log-log, not extrapolated: {bends}")
    lines.append(f"one run scatters by {100 * law.noise:.2g} % about the surface")
    if law.fall is not None:
        lines.append(f"running losses are judged by the curves of {law.fall.runs} finished runs")
    for name, t in law.trust.items():
        if t.cells:
            few = "" if t.cells >= MIN_SCORED else ", too few to choose by"
            scored = f"ordered validation on {t.cells} cell{'s' if t.cells > 1 else ''}{few}"
            if t.scores:  # laws of earlier releases kept none where cells were few
                scored += f": {100 * t.scores[COPYING.index(t.copying)]:.2g} % excess"
            where = "sizes" if name == "size" else name
            lines.append(
                f"beyond the fitted {where} {t.copying:.0%} is copied, the rest extrapolated ({scored})"
            )
    lines += [f"caution ({c.code}): {c.message}" for c in law.warnings]
    return "\n".join(lines)
