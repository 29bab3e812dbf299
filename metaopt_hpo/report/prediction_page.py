"""Pages of `register` and `check`: a prediction as it was written down, and beside what was found."""

from __future__ import annotations

import plotly.graph_objects as go

from metaopt_hpo.report import sections, words
from metaopt_hpo.report.axes import empty_figure
from metaopt_hpo.report.palette import LAW, of_method
from metaopt_hpo.scaling.preregistration import Registered, Score


def prediction_page(registered: Registered) -> str:
    """The prediction: one sentence, its interval as a figure, every number and what it rests on."""
    r = registered
    answer = (
        f"Before the run, the law expects {words.count(r.size)} parameters on {words.count(r.tokens)} tokens to end "
        f"at a loss of {words.loss(r.loss.value)} ({r.level:.0%} interval {words.loss(r.loss.low)} to "
        f"{words.loss(r.loss.high)}), trained at lr {words.scientific(r.lr.value, 3)}."
    )
    if r.warnings:
        answer += f" The law attached a warning to it: {words.listed(r.warnings)}."
    return _page(r, None, answer, "A prediction made before the run")


def score_page(score: Score) -> str:
    """The prediction beside the loss that was found."""
    r = score.registered
    where = "inside" if score.inside else "outside"
    answer = (
        f"The run ended at {words.loss(score.loss)}, {where} the {r.level:.0%} interval that was registered before it "
        f"({words.loss(r.loss.low)} to {words.loss(r.loss.high)}): the prediction was {abs(score.error):.2%} too "
        f"{'high' if score.error > 0 else 'low'}."
    )
    return _page(r, score.loss, answer, "A prediction beside the result")


def interval_figure(registered: Registered, found: float | None = None) -> go.Figure:
    """The predicted loss with its interval, and the loss that was found."""
    r = registered
    plot = empty_figure()
    name = f"predicted, {r.level:.0%} interval"
    plot.add_scatter(
        x=[r.loss.low, r.loss.high], y=["loss", "loss"], mode="lines", name=name, showlegend=False, meta="interval",
        line={"width": 5, "color": LAW.colour}, hoverinfo="skip",
    )  # fmt: skip
    plot.add_scatter(
        x=[r.loss.value], y=["loss"], mode="markers", name=name, meta="predicted",
        marker={"size": 15, "symbol": "star", "color": LAW.colour},
    )  # fmt: skip
    if found is not None:
        look = of_method("tpe")
        plot.add_scatter(
            x=[found], y=["loss"], mode="markers", name="found", meta="found",
            marker={"size": 13, "symbol": "x", "color": look.colour},
        )  # fmt: skip
    plot.update_xaxes(title_text="Held-out loss, in the unit of the trials")
    plot.update_yaxes(showticklabels=False, ticks="", showgrid=False, fixedrange=True)
    return plot


def _page(r: Registered, found: float | None, answer: str, title: str) -> str:
    rows = []
    for name, e, said in (
        ("loss", r.loss, words.loss),
        ("lr", r.lr, lambda x: words.scientific(x, 3)),
        ("batch, tokens", r.batch, words.count),
    ):
        rows.append(
            (name, said(e.value), said(e.low), said(e.high), said(found) if found and name == "loss" else "")
        )
    size, tokens = r.largest
    facts = (
        ("made (UTC)", r.made),
        ("model", f"{words.count(r.size)} parameters, {words.count(r.tokens)} tokens"),
        (
            "rests on",
            f"{r.trials} runs, the largest {words.count(size)} parameters on {words.count(tokens)} tokens",
        ),
        ("compute", f"{r.size * r.tokens / (size * tokens):.3g} times the largest fitted"),
        ("warnings", words.listed(r.warnings) if r.warnings else "none"),
        ("law (SHA-256)", r.law),
    )
    head = ("quantity", "predicted", "low", "high", *(("found",) if found is not None else ()))
    figure = sections.figure(interval_figure(r, found), "prediction", alt="Predicted loss with its interval")
    return sections.page(
        [
            sections.section("Loss", figure),
            sections.section(
                "What was predicted",
                sections.table(head, [row[: len(head)] for row in rows], label="Predictions"),
            ),
            sections.section("What it rests on", sections.facts(facts)),
        ],
        title=title,
        answer=answer,
        kicker=f"{words.count(r.size)} parameters, {words.count(r.tokens)} tokens",
        sources=[
            sections.Source("metaopt-hpo register LAW wrote the prediction; metaopt-hpo check FILE scores it")
        ],
    )
