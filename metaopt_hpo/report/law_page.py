"""A law as one page that needs no network: what it says in a sentence, in words, and in figures."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import plotly.graph_objects as go

from metaopt_hpo.atomic import write_text
from metaopt_hpo.report import sections
from metaopt_hpo.report.law_figures import (
    SLICE_TOP,
    optimum_against,
    surface_slices,
)
from metaopt_hpo.report.law_misses import calibration, residuals
from metaopt_hpo.report.words import count, scientific
from metaopt_hpo.scaling import Law
from metaopt_hpo.trials.table import TrialTable

SLICES, RESIDUALS, CALIBRATION = (
    "Loss against learning rate",
    "Residuals",
    "Calibration on the sizes held out",
)
OPTIMUM = (
    "Lines are the law; the band is the interval of the last line in the legend. Markers are the best run of each size "
    "and token count, open where that run has the lowest or highest value that was tried. Right of the dotted line the "
    "law is extrapolated."
)
CAPTIONS = {
    SLICES: "Points are runs, lines are the law, both as a difference from the lowest loss that the law predicts for "
    f"that size and token count; runs more than {SLICE_TOP:.0%} above it are drawn at the top edge.",
    RESIDUALS: "Residual of each run (measured loss minus the law's, in percent of loss) against its lr, as a "
    "multiple of the predicted optimum. A pattern here means the law's form does not fit.",
    CALIBRATION: "Share of held-out cells (one size and token count each) inside the law's intervals, against the "
    "level of the interval; below the diagonal the intervals are too short.",
}


def figures_of(law: Law, table: TrialTable, held: TrialTable | None = None) -> list[tuple[str, go.Figure]]:
    """Every figure of a law with its heading; of calibration only where trials were held out."""
    figures = [(SLICES, surface_slices(law, table))]
    for what, label in (("lr", "learning rate"), ("batch", "batch")):
        if what == "lr" or law.surface.has_batch:
            figures += [
                (
                    f"Where the optimal {label} moves with {axis}",
                    optimum_against(law, table, what, axis=axis),
                )
                for axis in law.axes.scale_names[: 1 if law.path is not None else 2]
            ]
    figures.append((RESIDUALS, residuals(law, table)))
    if held is not None:
        figures.append((CALIBRATION, calibration(law, held)))
    return figures


def law_page(
    title: str,
    law: Law,
    figures: Sequence[tuple[str, go.Figure]],
    path: str | Path,
    sources: Sequence[sections.Source] = (),
) -> Path:
    """One self-contained HTML page: what the law says in a sentence, in words, and in figures with their headings."""
    size, tokens = law.domain.size[1], law.domain.tokens[1]
    found = law.predict(size, tokens)
    answer = (
        f"At {count(size)} parameters and {count(tokens)} tokens, the largest that were tried, the optimal learning "
        f"rate is {scientific(found.lr.value)} ({law.level:.0%} interval {scientific(found.lr.low)} to "
        f"{scientific(found.lr.high)})."
    )
    if found.warnings:
        reasons = "; ".join(dict.fromkeys(w.message for w in found.warnings))
        answer += f" The law warns about this prediction: {reasons}."
    parts = [
        sections.section(
            heading, sections.figure(plot, f"law-{i}", alt=heading, summary=CAPTIONS.get(heading, OPTIMUM))
        )
        for i, (heading, plot) in enumerate(figures)
    ]
    words = sections.section("The law in numbers", sections.numbers(law.describe()))
    out = Path(path)
    write_text(
        out,
        sections.page(
            [*parts, words], title=title, answer=answer, kicker="A law across model sizes", sources=sources
        ),
    )
    return out
