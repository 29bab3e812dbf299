"""What a tier found, as text for a terminal and as tables of numbers."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import pandas as pd

from metaopt_hpo.attribution.estimand import BATCH_EXPONENTS
from metaopt_hpo.attribution.findings import WorldFinding
from metaopt_hpo.scaling.estimates import Estimate

TUNED = "a tuned in every cell"
"""The level of the tables that is no setting of its own: momentum tuned over a grid."""


@dataclass(frozen=True)
class BatchPaths:
    """Exponents of the optimal lr in tokens along batch paths B ~ D^b."""

    exponents: tuple[float, ...]
    """b of each path."""
    along: dict[tuple[str, str], tuple[Estimate, ...]]
    """(world, setting) → the exponent on each path."""


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

    def parts(self) -> dict[str, dict[str, Estimate]]:
        """World → part of the gap → estimate; their sum, "total", is the last."""
        return {
            f.world: {p.name: p.phi for p in f.decomposition.parts} | {"total": f.decomposition.total}
            for f in self.findings
        }

    def paths(self) -> BatchPaths:
        """Exponents of the optimal lr in tokens along B ~ D^b, by final loss."""
        along = {
            (f.world, name): tuple(f.plane(setting, "final-loss").joint(b) for b in BATCH_EXPONENTS)
            for f in self.findings
            for name, setting in (("assumptions met", f.ideal), ("practice", f.practice))
        }
        return BatchPaths(BATCH_EXPONENTS, along)

    def notes(self) -> list[str]:
        """What was run in each world, and what of it cannot be used."""
        return [note for f in self.findings for note in _notes(f)]

    def frame(self) -> pd.DataFrame:
        """Every level as numbers, one row a (world, setting, criterion): estimates, interval ends, censoring, seeds."""
        rows: list[dict[str, Any]] = []
        for f in self.findings:
            named = [*f.planes.items(), *(((TUNED, c), p) for c, p in f.tuned.items())]
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
                rows.append(row | _seeds(f))
        return pd.DataFrame(rows)

    def parts_frame(self) -> pd.DataFrame:
        """The signed parts as numbers, one row a part, the total last."""
        rows: list[dict[str, Any]] = []
        for f in self.findings:
            for p in f.decomposition.parts:
                numbers = {"gap": p.phi.value, "low": p.phi.low, "high": p.phi.high}
                numbers |= {"share": p.share.value, "share_low": p.share.low, "share_high": p.share.high}
                rows.append({"world": f.world, "part": p.name, **numbers, "verdict": p.verdict, **_seeds(f)})
            t = f.decomposition.total
            total = {"gap": t.value, "low": t.low, "high": t.high}
            rows.append({"world": f.world, "part": "total", **total, **_seeds(f)})
        return pd.DataFrame(rows)

    def protocol_frame(self) -> pd.DataFrame:
        """What practice's runs say under other protocols, one row a level; effects are against practice's own grid."""
        rows: list[dict[str, Any]] = []
        for f in self.findings:
            for level in f.protocol:
                row: dict[str, Any] = {"world": f.world, "level": level.name, "b": f.config.b}
                for name, e in (("lr", level.lr), ("effect", level.effect), ("batch", level.batch)):
                    ends = (None, None, None) if e is None else (e.value, e.low, e.high)
                    row |= dict(zip((name, f"{name}_low", f"{name}_high"), ends, strict=True))
                rows.append(row | {"censored": level.censored, **_seeds(f)})
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
                **_seeds(f),
            }
            for f in self.findings
            for c in f.proxy
        ]
        return pd.DataFrame(rows)

    def protocol_rows(self) -> list[dict[str, str]]:
        """The protocol levels as text: exponent along the batch path, effect against practice's own grid, censoring."""
        return [
            {
                "world": f.world,
                "protocol": level.name,
                "exponent of lr": _signed(level.lr),
                "effect": _signed(level.effect),
                "batch path": "" if level.batch is None else _signed(level.batch),
                "censored": f"{level.censored:.0%}",
            }
            for f in self.findings
            for level in f.protocol
        ]

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


def _seeds(finding: WorldFinding) -> dict[str, Any]:
    """What a row's numbers depend on besides the code: the seeds of the runs and of the bootstrap."""
    config = finding.config
    return {"seeds": " ".join(map(str, config.seeds)), "bootstrap_seed": config.seed}


def _signed(e: Any) -> str:
    return f"{e.value:+.3f} [{e.low:+.3f}, {e.high:+.3f}]"


def _notes(finding: WorldFinding) -> list[str]:
    c = finding.config
    notes = [
        f"{finding.world}: {len(c.tokens)} budgets × {len(c.batch)} batches, seeds {', '.join(map(str, c.seeds))}, "
        f"b = {c.b:g}, {c.bootstrap} resamples, {finding.decomposition.method}"
    ]
    reasons = {
        reason: [k for k, v in finding.unusable.items() if v == reason]
        for reason in finding.unusable.values()
    }
    notes += [
        f"{finding.world}: criteria {', '.join(names)} unusable: {why}" for why, names in reasons.items()
    ]
    if finding.plane(finding.practice, "final-loss").curved:
        notes.append(
            f"{finding.world}: the curvature test rejects a single power of D for practice's final loss"
        )
    return notes
