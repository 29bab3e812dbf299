"""What races cost: medians in target runs, ratios to a baseline, and the intervals that seeds leave open."""

from __future__ import annotations

import math

import pandas as pd

from metaopt_hpo.comparison.statistics import bootstrap_median, ratio_of_medians
from metaopt_hpo.markdown import markdown_table

KEYS = ["problem", "engine", "method", "seed"]
"""Columns that name one search; `cost` (target runs so far) and `excess` follow at each of its improvements."""

THRESHOLDS = (0.001, 0.0025, 0.005, 0.01)
"""Relative loss above the best. The last is for targets whose noise from run to run is larger than the others."""

LIMIT = 40.0
"""Target runs after which a method has failed; it then counts as this many."""

BASELINE = "tpe"

OURS = ("law", "metaoptimize")
"""How our methods' names begin; the others are what they are held against."""


def costs(frame: pd.DataFrame, within: float, limit: float = LIMIT) -> pd.DataFrame:
    """Cost of each search to come within a relative excess, `limit` where it never did; columns by method."""
    hit = frame[frame["excess"] <= within].groupby(KEYS)["cost"].min()
    every = frame.groupby(KEYS)["cost"].max()
    filled = hit.reindex(every.index).clip(upper=limit).fillna(limit)
    return filled.reset_index().pivot(index=["problem", "seed"], columns="method", values="cost")


def summary(frame: pd.DataFrame, limit: float = LIMIT, baseline: str = BASELINE) -> pd.DataFrame:
    """One row a problem, tolerance and method.

    Columns: `median` with `median_low` and `median_high`; `ratio` (of medians, the baseline's over the method's on the
    seeds both have) with `low` and `high`; all intervals 90 %, by bootstrap over seeds. `reached` is the share of
    searches that arrived before the limit.
    """
    out = []
    for within in THRESHOLDS:
        table = costs(frame, within, limit)
        for problem, g in table.groupby(level="problem", sort=False):
            for method in table.columns:
                v = g[method].dropna()
                if v.empty:
                    continue
                low, high = bootstrap_median(v.tolist())
                row = {"problem": problem, "within": within, "method": method, "seeds": len(v)}
                row |= {"median": float(v.median()), "median_low": low, "median_high": high}
                row |= {"mean": float(v.mean()), "reached": float((v < limit).mean())}
                pairs = g[[baseline, method]].dropna() if baseline in g and method != baseline else g[:0]
                if len(pairs):
                    ratio = ratio_of_medians(pairs[baseline].tolist(), pairs[method].tolist())
                    row |= dict(zip(("ratio", "low", "high"), ratio, strict=True))
                out.append(row)
    columns = ["problem", "within", "method", "seeds", "median", "median_low", "median_high", "mean"]
    return pd.DataFrame(out, columns=[*columns, "reached", "ratio", "low", "high"])


def markdown(found: pd.DataFrame, within: float = 0.0025, limit: float = LIMIT) -> str:
    """A row a problem: median target runs of each method with its interval, and how much cheaper ours are."""
    rows = found[found["within"] == within]
    names = sorted(dict.fromkeys(rows["method"]), key=lambda m: (not m.startswith(OURS), m != BASELINE))
    ours = [m for m in names if m.startswith(OURS)]
    heads = ["target", "seeds", *names, *(f"{m}: × cheaper than {BASELINE}" for m in ours)]
    lines = []
    for problem, g in rows.groupby("problem", sort=False):
        by = {str(m): r for m, r in zip(g["method"], g.to_dict("records"), strict=True)}
        seeds = sorted({r["seeds"] for r in by.values()})
        cells = [str(problem), "–".join(map(str, dict.fromkeys((seeds[0], seeds[-1]))))]
        for m in names:
            values = [by[m][k] for k in ("median", "median_low", "median_high")] if m in by else []
            text = [f"{v:.1f}" if v < limit else f"> {limit:.0f}" for v in values]
            cells.append(f"{text[0]} ({text[1]} to {text[2]})" if text else "–")
        for m in ours:
            r = by.get(m, {"ratio": math.nan})
            known = not math.isnan(r["ratio"])
            cells.append(f"{r['ratio']:.2g} ({r['low']:.2g} to {r['high']:.2g})" if known else "–")
        lines.append(cells)
    return markdown_table(heads, lines)
