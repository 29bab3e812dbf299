"""Follow a plan, an Optuna store or a Ray experiment on the terminal; nothing in it is written."""

from __future__ import annotations

import math
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.table import Table
from rich.text import Text

from metaopt_hpo.errors import MetaOptError
from metaopt_hpo.plan.costs import PlanError
from metaopt_hpo.plan.status import Status, decisions, is_plan, status
from metaopt_hpo.plan.status_words import cost_words, pilot_rows
from metaopt_hpo.plan.store import folder_of
from metaopt_hpo.plan.words import decided
from metaopt_hpo.trials.record import TrialRecord
from metaopt_hpo.trials.table import TrialTable

PIPED = 200
"""Columns where there is no terminal: nothing is cut off."""

SHOWN = 12
"""Runs of somebody else's store that are listed: the best."""


def follow(
    place: Path,
    *,
    once: bool = False,
    every: float = 2.0,
    page: bool = False,
    console: Console | None = None,
) -> None:
    """Show a plan's folder, a store or an experiment until Ctrl-C, or once.

    Args:
        place: what to follow.
        once: show it once; so it is, too, where the output is piped.
        every: seconds between two looks.
        page: keep the page in a plan's folder up to date.
        console: where to write.

    Raises:
        PlanError: there is nothing to follow.
    """
    to = console or Console()
    if not to.is_terminal:
        to = Console(file=to.file, width=PIPED, highlight=False)
    if once or not to.is_terminal:
        to.print(_look(place, page), soft_wrap=True)
        return
    with Live(_look(place, page), console=to, auto_refresh=False, screen=False) as live:
        while True:
            time.sleep(every)
            try:
                live.update(_look(place, page), refresh=True)
            except (
                MetaOptError,
                OSError,
            ) as error:  # a file between two versions of itself, a disk away for a moment
                live.update(Text(str(error)), refresh=True)


def _look(place: Path, page: bool) -> RenderableType:
    if place.suffix == ".toml" and place.is_file():
        if not is_plan(folder_of(place)):
            raise PlanError(f"{place} has not been run; start it with: metaopt-hpo run {place}")
        place = folder_of(place)
    if is_plan(place):
        now = status(place)
        if page:
            from metaopt_hpo.plan.page import write_page  # draws, which takes half a second to import

            write_page(place)
        return Group(*plan_lines(now))
    if not place.exists():
        raise PlanError(
            f"there is nothing at {place}; give a plan's folder, an Optuna store or a Ray experiment"
        )
    return Group(*store_lines(place, TrialTable.read(place).records()))


def plan_lines(now: Status) -> Iterator[RenderableType]:
    """A plan's status."""
    yield Text(now.answer, style="bold")
    yield Text(f"{now.state}; {cost_words(now)}")
    for run in now.running:
        where = "" if run.band is None else f", expected {run.band.low:.4g} to {run.band.high:.4g}"
        loss = f"loss {run.loss:.4g}" if math.isfinite(run.loss) else "no loss yet"
        yield Text(f"{run.name}: {run.share:.0%} done, {loss}{where}")
        if run.remark:
            yield Text(run.remark, style="bold red")
    if now.failed:
        yield Text(f"the store cannot be read just now: {now.failed}", style="yellow")
    yield pilots_table(now)
    yield Text("What was decided, and why", style="bold")
    for decision, record in decisions(now):
        ended = "" if record is None else f" → {record.state}, loss {record.loss:.4f}"
        yield Text(
            f"{decision.number:>3}  {decided(decision.what, decision.pilot)}: {decision.reason}{ended}"
        )


def pilots_table(now: Status) -> Table:
    """Pilots: what each is, and what became of it."""
    table = Table(box=None, pad_edge=False)
    for name in ("pilot", "size", "tokens", "lr by", "lr", "state", "loss", "of the target"):
        table.add_column(
            name, justify="left" if name in ("pilot", "lr by", "state") else "right", no_wrap=True
        )
    for row in pilot_rows(now):
        table.add_row(*row)
    return table


def store_lines(place: Path, records: list[TrialRecord]) -> Iterator[RenderableType]:
    """A store that is no plan's: its states, its best runs, its law where there are enough."""
    states = Counter(r.state for r in records)
    told = ", ".join(f"{n} {s}" for s, n in sorted(states.items()))
    yield Text(f"{place}: {len(records)} runs ({told})", style="bold")
    yield Text(_law_words(records))
    finished = sorted((r for r in records if math.isfinite(r.loss)), key=lambda r: r.loss)
    table = Table(box=None, pad_edge=False)
    for name in ("study", "run", "size", "tokens", "strategy", "lr", "state", "loss"):
        table.add_column(name)
    for r in [*(r for r in records if r.state == "running"), *finished][:SHOWN]:
        lr = r.found_lr if r.self_tuning and r.found_lr > 0 else r.lr
        table.add_row(
            r.study,
            r.trial,
            f"{r.size:.4g}",
            f"{r.tokens:.4g}",
            r.strategy,
            f"{lr:.3g}",
            r.state,
            f"{r.loss:.4f}",
        )
    yield table


def _law_words(records: list[TrialRecord]) -> str:
    from metaopt_hpo.scaling import LawRefused, fit

    try:
        law = fit(TrialTable.from_records([r for r in records if r.state != "running"], warn=False), draws=50)
    except (LawRefused, ValueError) as error:
        return f"no law yet: {error}"
    largest = max(records, key=lambda r: r.size * r.planned_tokens)
    p = law.predict(size=largest.size, tokens=largest.planned_tokens)
    return (
        f"law so far: lr {p.lr.value:.3g} [{p.lr.low:.3g}, {p.lr.high:.3g}] at {largest.size:.4g} parameters"
    )
