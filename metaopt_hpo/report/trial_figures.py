"""The report's figures of single trials: their loss curves, and which parameters their losses depend on."""

from __future__ import annotations

import numpy as np

from metaopt_hpo.report import palette, words
from metaopt_hpo.report.axes import empty_figure, log_axis
from metaopt_hpo.report.legends import Figure, LegendEntry, plain, with_legend
from metaopt_hpo.report.trial_views import Importance, LossCurves

SKIPPED = 0.25
"""Share of the tokens before which losses do not set the figure's range: a start would hide every end."""


def loss_curves(view: LossCurves) -> Figure:
    """One line a trial in its method's look; a cross where it was stopped."""
    plot = empty_figure()
    legend: dict[str, LegendEntry] = {}
    end = max(line.tokens[-1] for line in view.lines)
    for line in view.lines:
        look = palette.of_method(line.method)
        whole = line.state == "complete"
        plot.add_scatter(
            x=list(line.tokens), y=list(line.loss), mode="lines+markers", name=line.title,
            line={"width": 1.3, "color": look.colour, "dash": look.dash},
            marker={"size": [0] * (len(line.loss) - 1) + [6], "symbol": look.symbol if whole else "x",
                    "color": look.colour, "opacity": 1},
            meta=plain(f"trial {line.trial}, seed {line.seed}"),
            hovertemplate=(
                f"{line.title}, {plain(line.state)}, seed {line.seed}, lr {words.scientific(line.lr)}"
                "<br>%{x:.3s} tokens: %{y:.5g}<extra></extra>"
            ),
        )  # fmt: skip
        legend[line.method] = LegendEntry(line.title, look, marker=True, group=line.title)
    values = [
        v for line in view.lines for t, v in zip(line.tokens, line.loss, strict=True) if t >= SKIPPED * end
    ] or [v for line in view.lines for v in line.loss]
    low = min(values)
    high = max(low * 1.02, float(np.quantile(values, 0.95))) if low > 0 else max(values)
    if low > 0:
        log_axis(plot.update_yaxes, low, high, "Held-out loss", pad=0.05)
    else:
        plot.update_yaxes(title_text="Held-out loss")
    plot.update_xaxes(title_text="Tokens seen", rangemode="tozero", exponentformat="B")
    stopped = any(line.state != "complete" for line in view.lines)
    note = (
        f"Losses above {words.loss(high)} are cut off. "
        if high < max(max(line.loss) for line in view.lines)
        else ""
    )
    note += "A cross ends a trial that was stopped or failed." if stopped else ""
    return Figure(with_legend(plot, list(legend.values())), note)


def importance(view: Importance) -> Figure:
    """A bar a parameter, and one for what none explains."""
    plot = empty_figure()
    rows = [*view.shares, ("explained by none", view.unexplained)][::-1]
    plot.add_bar(
        y=[plain(name, 24) for name, _ in rows], x=[share for _, share in rows], orientation="h", width=0.6,
        name="share of variance",
        marker={"color": [palette.NEUTRAL.colour] + [palette.of_method("grid").colour] * len(view.shares)},
        hovertemplate="%{y}: %{x:.1%}<extra></extra>",
    )  # fmt: skip
    plot.update_xaxes(title_text="Share of the variance of ln loss", tickformat=".0%", range=[0, 1.02])
    plot.update_yaxes(automargin=True, showgrid=False, ticks="", fixedrange=True)
    return Figure(with_legend(plot, []))
