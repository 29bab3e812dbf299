"""The study's page, and the same tables as Markdown: one run against tuned schedules, rivals and its own starts."""

from __future__ import annotations

import math
from collections.abc import Sequence

import plotly.graph_objects as go

from metaopt_hpo.comparison.statistics import Difference
from metaopt_hpo.markdown import markdown_table
from metaopt_hpo.report import sections
from metaopt_hpo.report.axes import empty_figure, log_axis
from metaopt_hpo.report.palette import NEUTRAL, of_rank
from metaopt_hpo.report.words import DASH, scientific
from metaopt_hpo.trials.table import TrialTable
from studies.one_run.cases import STARTS, TUNED, Case
from studies.one_run.outcome import CLAIM, StudyOutcome, judge
from studies.one_run.results import Results

AGAINST_SCHEDULES = "One run against tuned schedules"
FROM_STARTS = "From twelve starts"
STEP_SIZES = "Step sizes over the run"

PARTS = (1 / 64, 1 / 32, 1 / 16, 1 / 8, 0.2, 0.5, 0.8, 1.0)
"""Parts of a run at which the table shows step sizes."""

Table = tuple[str, tuple[str, ...], list[tuple[str, ...]]]
"""Title, head, rows."""


def tables(outcome: StudyOutcome) -> list[Table]:
    """Every table of the study; those without rows are left out."""
    every = [
        _against_schedules(outcome),
        _against_rivals(outcome),
        _from_starts(outcome),
        _step_sizes(outcome),
        _sensitivity(outcome),
        _transfers(outcome),
        _stream(outcome),
    ]
    return [t for t in every if t[2]]


def markdown(outcome: StudyOutcome) -> str:
    """The tables as Markdown."""
    return "\n".join(
        f"### {title}\n\n{markdown_table(head, rows)}\n" for title, head, rows in tables(outcome)
    )


def render(table: TrialTable) -> str:
    """The page of a study, about 5 MB of HTML."""
    outcome = judge(table)
    parts = []
    for title, head, rows in tables(outcome):
        extra = []
        if title == AGAINST_SCHEDULES:
            extra.append(
                sections.figure(
                    landscape(table, [o.case for o in outcome.cases]),
                    "landscape",
                    alt="Loss of tuned schedules against peak lr, and where each single run ended",
                    summary="Loss of a WSD schedule against its peak lr, one line a case; the star of the same colour "
                    "is the single MetaOptimize run, at the lr it found.",
                )
            )
        if title == FROM_STARTS:
            extra.append(
                sections.figure(
                    starts_figure(outcome), "starts", alt="Loss of single runs against the lr they start from"
                )
            )
        if title == STEP_SIZES:
            extra.append(
                sections.figure(
                    step_sizes(outcome), "step-sizes", alt="Step size over the run, one line a start"
                )
            )
        parts.append(sections.section(title, sections.table(head, rows, label=title), *extra))
    intro = (
        f"{outcome.runs} runs, {outcome.flops:.3g} training FLOPs. Differences are of the held-out loss, paired by "
        "seed, with 90 % intervals; a minus sign is in favour of the one run."
    )
    return sections.page(
        [sections.words(intro), *parts],
        title="One run instead of a grid",
        answer=answer(outcome),
        kicker="One MetaOptimize run against tuned schedules and every rival",
        sources=[
            sections.METAOPTIMIZE,
            sections.Source(
                "Command: make study; its runs: docs/studies/one_run/study.parquet in the repository"
            ),
        ],
    )


def answer(outcome: StudyOutcome) -> str:
    """On how many cases one run is worse than the tuned setting, in one sentence."""
    compared = [(o.case.name, d) for o in outcome.cases if (d := o.against_chosen) is not None]
    if not compared:
        return "No case has both a single run and tuned schedules on two seeds yet."
    near = [d for _, d in compared if math.expm1(d.mean) <= NEAR]
    name, worst = max(compared, key=lambda pair: pair[1].mean)
    return (
        f"On {len(near)} of {len(compared)} cases one run ends at most {NEAR:.0%} above the schedule and lr that other "
        f"seeds would choose; the worst is {name}, {percent(worst)}."
    )


NEAR = 0.02
"""Excess loss, relative, up to which a run counts as good as the tuned setting."""


def percent(d: Difference | None) -> str:
    """`+0.3 % (−0.4 to +1.0)`."""
    if d is None:
        return DASH
    mean = f"{100 * math.expm1(d.mean):+.1f} %"
    if not math.isfinite(d.low):
        return f"{mean} (one seed)".replace("-", "−")
    return f"{mean} ({100 * math.expm1(d.low):+.1f} to {100 * math.expm1(d.high):+.1f})".replace("-", "−")


def _against_schedules(outcome: StudyOutcome) -> Table:
    head = (
        "case", "seeds", "one run", "best WSD", "best cosine", "vs best of all runs, per seed",
        "selection bias", "vs the setting chosen on the other seeds", "vs best constant lr", "seed noise",
    )  # fmt: skip
    rows: list[tuple[str, ...]] = []
    for o in outcome.cases:
        rows.append(
            (
                o.case.name,
                str(len(o.seeds)),
                _loss_at(o.loss, o.lr),
                *(_loss_at(o.schedule_loss.get(n), o.schedule_lr.get(n)) for n in TUNED),
                f"{percent(o.against_best)} of {o.runs}",
                percent(o.luck),
                percent(o.against_chosen),
                percent(o.against_constant),
                f"{100 * o.noise:.1f} %" if math.isfinite(o.noise) else DASH,
            )
        )
    if rows:
        rows.append(
            (
                f"mean of {outcome.counted}",
                f"≥ {CLAIM}",
                *[""] * 3,
                percent(outcome.mean_against_best),
                percent(outcome.mean_luck),
                percent(outcome.mean_against_chosen),
                "",
                "",
            )
        )
    return AGAINST_SCHEDULES, head, rows


def _against_rivals(outcome: StudyOutcome) -> Table:
    head = (
        "rival, at its defaults", "better in", "median difference", "p, these cases", "p, cases drawn", "its failures",
    )  # fmt: skip
    rows: list[tuple[str, ...]] = [
        (
            r.name,
            f"{r.wins} of {r.pairs} ({r.wins / r.pairs:.0%})",
            f"{100 * math.expm1(r.difference):+.1f} %".replace("-", "−")
            if math.isfinite(r.difference)
            else DASH,
            _probability(r.p),
            _probability(r.p_cases),
            str(r.failed),
        )
        for r in outcome.rivals
    ]
    if rows:
        rows.append(
            ("all", f"{outcome.wins} of {outcome.pairs} ({outcome.wins / outcome.pairs:.0%})", "", "", "", "")
        )
    return "One run against one run of every rival", head, rows


def _from_starts(outcome: StudyOutcome) -> Table:
    head = ("case", "seeds", "spread, 1e-5 to 3e-2", "spread, 1e-6 to 1e-1", *(scientific(s) for s in STARTS))
    rows: list[tuple[str, ...]] = [
        (
            s.case.name,
            str(len(s.seeds)),
            f"{100 * s.spread:.1f} %",
            f"{100 * s.full_spread:.1f} %",
            *(_loss(x) for x in s.losses),
        )
        for s in outcome.starts
    ]
    return FROM_STARTS, head, rows


def _step_sizes(outcome: StudyOutcome) -> Table:
    head = ("case", "start", *(f"{100 * p:.3g} %" for p in PARTS))
    rows: list[tuple[str, ...]] = [
        (w.case.name, scientific(w.start), *(scientific(w.at(p)) for p in PARTS)) for w in outcome.watched
    ]
    return STEP_SIZES, head, rows


def _sensitivity(outcome: StudyOutcome) -> Table:
    rows: list[tuple[str, ...]] = [
        (v.label, percent(v.difference), str(v.difference.pairs)) for v in outcome.sensitivity
    ]
    return "One option changed, against the defaults", ("change", "loss", "seeds"), rows


def _transfers(outcome: StudyOutcome) -> Table:
    head = ("to", "from widths below", "predicted lr", "tuned lr", "ratio", "excess loss")
    rows: list[tuple[str, ...]] = [
        (
            t.case.name,
            str(t.sizes),
            scientific(t.predicted),
            scientific(t.found),
            f"{t.ratio:.2f}",
            f"{100 * t.excess:.2f} %",
        )
        for t in outcome.transfers
    ]
    return "A law through MetaOptimize's own step sizes", head, rows


def _stream(outcome: StudyOutcome) -> Table:
    head = (
        "stream of ten tasks", "seeds", "loss", "its lr", "best constant lr's loss", "at lr",
        "vs best, per seed", "vs the setting chosen on the other seeds",
    )  # fmt: skip
    rows: list[tuple[str, ...]] = [
        (
            label,
            str(len(o.seeds)),
            _loss(o.loss),
            scientific(o.lr),
            _loss(o.schedule_loss["constant"]),
            scientific(o.schedule_lr["constant"]),
            percent(o.against_best),
            percent(o.against_chosen),
        )
        for label, o in outcome.stream
    ]
    return "A stream of tasks", head, rows


def landscape(table: TrialTable, cases: Sequence[Case]) -> go.Figure:
    """Tuned schedules' loss against lr, relative to the best, with the single run's step size and loss."""
    results = Results(table)
    plot = empty_figure()
    for rank, case in enumerate(cases):
        look = of_rank(rank, len(cases))
        means = []
        for lr in case.grid:
            losses = [x for s in results.seeds() if math.isfinite(x := results.run(case, "wsd", s, lr))]
            means.append(sum(losses) / len(losses) if losses else math.nan)
        if not any(math.isfinite(m) for m in means):
            continue
        best = min(m for m in means if math.isfinite(m))
        plot.add_scatter(
            x=list(case.grid), y=[m / best - 1 for m in means], mode="lines+markers", name=case.name,
            line={"color": look.colour}, legendgroup=case.name,
        )  # fmt: skip
        own = [r for seed in results.seeds() if (r := results.own(case, seed)) is not None]
        good = [r for r in own if r.state == "complete" and r.found_lr > 0]
        if good:
            at = math.exp(sum(math.log(r.found_lr) for r in good) / len(good))
            plot.add_scatter(
                x=[at], y=[sum(r.loss for r in good) / len(good) / best - 1], mode="markers", showlegend=False,
                marker={"color": look.colour, "symbol": "star", "size": 13}, legendgroup=case.name,
                name=f"{case.name}, one run",
            )  # fmt: skip
    log_axis(plot.update_xaxes, 5e-4, 6.4e-2, "Peak lr of WSD, or of the single run")
    plot.update_yaxes(title_text="Loss above the grid's best", tickformat=".0%", range=[-0.03, 0.25])
    return plot


def starts_figure(outcome: StudyOutcome) -> go.Figure:
    """Loss against start, relative to the best start."""
    plot = empty_figure()
    for rank, s in enumerate(outcome.starts):
        least = min(s.losses)
        plot.add_scatter(
            x=list(STARTS), y=[x / least - 1 for x in s.losses], mode="lines+markers", name=s.case.name,
            line={"color": of_rank(rank, len(outcome.starts)).colour},
        )  # fmt: skip
    plot.add_hline(y=0.01, line={"width": 1, "dash": "dot", "color": NEUTRAL.colour})
    log_axis(plot.update_xaxes, STARTS[0], STARTS[-1], "Learning rate at the start")
    plot.update_yaxes(title_text="Loss above the best start", tickformat=".1%")
    return plot


def step_sizes(outcome: StudyOutcome) -> go.Figure:
    """Step size over the run, one line a start."""
    plot = empty_figure()
    for rank, w in enumerate(outcome.watched):
        plot.add_scatter(
            x=list(w.part), y=list(w.step_size), mode="lines", name=f"{w.case.name} from {scientific(w.start)}",
            line={"color": of_rank(rank, len(outcome.watched)).colour, "width": 1.8},
        )  # fmt: skip
    log_axis(plot.update_yaxes, STARTS[0], STARTS[-1], "Step size")
    log_axis(plot.update_xaxes, min(w.part[0] for w in outcome.watched), 1.0, "Fraction of the run")
    return plot


def _probability(p: float) -> str:
    if not math.isfinite(p):
        return DASH
    return "< 0.001" if p < 0.001 else f"{p:.3f}"


def _loss_at(loss: float | None, lr: float | None) -> str:
    return DASH if loss is None or lr is None else f"{_loss(loss)} at {scientific(lr)}"


def _loss(x: float) -> str:
    return f"{x:.4f}" if math.isfinite(x) else DASH
