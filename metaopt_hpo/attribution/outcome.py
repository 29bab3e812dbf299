"""What a tier found, as text for a terminal and as tables of numbers."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import pandas as pd

from metaopt_hpo.attribution.estimand import BATCH_EXPONENTS
from metaopt_hpo.attribution.findings import WorldFinding

TUNED, COARSE, ARGMIN = (
    "a tuned in every cell",
    "practice, grid twice as coarse",
    "practice, joint argmin over (lr, B)",
)
"""Levels of the tables that are no setting of their own."""


@dataclass(frozen=True)
class Attribution:
    """What a tier found."""

    tier: int
    findings: tuple[WorldFinding, ...]
    seconds: float
    """CPU seconds of this call; stored grids cost nothing."""

    def rows(self) -> list[dict[str, str]]:
        """The signed table: one row a part of each world's gap, with interval, share and verdict."""
        out = []
        for f in self.findings:
            d = f.decomposition
            for part in d.parts:
                out.append(
                    {
                        "world": f.world,
                        "part": part.name,
                        "hypothesis": part.hypothesis,
                        "gap": _signed(part.phi),
                        "share": f"{part.share.value:.2f} [{part.share.low:.2f}, {part.share.high:.2f}]",
                        "verdict": part.verdict,
                    }
                )
            out.append(
                {
                    "world": f.world,
                    "part": "total",
                    "hypothesis": "",
                    "gap": _signed(d.total),
                    "share": "",
                    "verdict": "",
                }
            )
        return out

    def frame(self) -> pd.DataFrame:
        """Every level as numbers, one row a (world, setting, criterion): estimates, interval ends, censoring, seeds.

        Levels that are no setting of their own have names: momentum tuned in every cell, practice on a grid twice as
        coarse, and practice's joint argmins over (lr, batch), whose x is the exponent of lr and y that of the batch.
        """
        rows: list[dict[str, Any]] = []
        for f in self.findings:
            named = [*f.planes.items(), *(((TUNED, c), p) for c, p in f.tuned.items())]
            named += [((COARSE, "final-loss"), f.coarse)] if f.coarse is not None else []
            for (label, criterion), plane in named:
                row: dict[str, Any] = {
                    "tier": self.tier,
                    "world": f.world,
                    "setting": label,
                    "criterion": criterion,
                }
                estimates = {
                    "x": plane.x,
                    "y": plane.y,
                    "curvature": plane.curvature,
                    "loss_slope": plane.loss_slope,
                }
                estimates |= {f"joint_{b:g}": plane.joint(b) for b in BATCH_EXPONENTS}
                for name, e in estimates.items():
                    row |= {name: e.value, f"{name}_low": e.low, f"{name}_high": e.high}
                row |= {"censored": plane.censored, "usable": criterion not in f.unusable}
                rows.append(row | {"seeds": len(f.config.seeds), "bootstrap_seed": f.config.seed})
            x, y = f.joint_argmin
            rows.append(
                {
                    "tier": self.tier,
                    "world": f.world,
                    "setting": ARGMIN,
                    "criterion": "final-loss",
                    "x": x,
                    "y": y,
                }
            )
        return pd.DataFrame(rows)

    def parts_frame(self) -> pd.DataFrame:
        """The signed parts as numbers, one row a part, the total last."""
        rows: list[dict[str, Any]] = []
        for f in self.findings:
            for p in f.decomposition.parts:
                numbers = {"gap": p.phi.value, "low": p.phi.low, "high": p.phi.high}
                numbers |= {"share": p.share.value, "share_low": p.share.low, "share_high": p.share.high}
                rows.append({"world": f.world, "part": p.name, **numbers, "verdict": p.verdict})
            t = f.decomposition.total
            rows.append({"world": f.world, "part": "total", "gap": t.value, "low": t.low, "high": t.high})
        return pd.DataFrame(rows)

    def proxy_frame(self) -> pd.DataFrame:
        """The generalised proxy's checks, one row a prediction."""
        rows = [
            {
                "world": f.world,
                "check": c.name,
                "predicted": c.predicted,
                "measured": c.measured.value,
                "low": c.measured.low,
                "high": c.measured.high,
                "holds": c.holds,
            }
            for f in self.findings
            for c in f.proxy
        ]
        return pd.DataFrame(rows)

    def level_rows(self, b: float | None = None) -> list[dict[str, str]]:
        """Exponents of every level: x, y, lr along B ~ D^b and its gap, by world, setting and criterion."""
        out = []
        for f in self.findings:
            at = f.config.b if b is None else b
            for (label, criterion), plane in f.planes.items():
                out.append(
                    {
                        "world": f.world,
                        "setting": label,
                        "criterion": criterion,
                        "x": _signed(plane.x),
                        "y": _signed(plane.y),
                        f"along b = {at:g}": _signed(plane.joint(at)),
                        "gap": _signed(plane.gap(at)),
                        "censored": f"{plane.censored:.0%}",
                        "curved": "yes" if plane.curved else "no",
                        "usable": f.unusable.get(criterion, "yes"),
                    }
                )
        return out


def _signed(e: Any) -> str:
    return f"{e.value:+.3f} [{e.low:+.3f}, {e.high:+.3f}]"
