"""The gain: FLOPs until a method has run a target model within a tolerance of the best, pilots included.

`python -m studies.gain --engine optuna` replays tables of real runs through an engine's own samplers,
pruners and schedulers. Every method searches the same box of learning rate and batch, the one the table covers. What
a run is charged is what it used: a pilot 6·N·D of its own size, a stopped run what it saw. Results go to a Parquet
file; what it holds is not run again.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import pandas as pd
import typer

from metaopt_hpo.atomic import replacing
from metaopt_hpo.comparison.engine import EngineError, Racer, get_engine
from metaopt_hpo.comparison.methods import method as method_named
from metaopt_hpo.comparison.race import Problem, improvements
from metaopt_hpo.errors import MetaOptError
from metaopt_hpo.locks import only_process
from studies import live_table
from studies.gain.problems import problems
from studies.gain.summary import KEYS, LIMIT, THRESHOLDS, markdown, summary


def run(
    racer: Racer, method: str, problem: Problem, seed: int, limit: float = LIMIT
) -> list[dict[str, float]]:
    """One search: cost (target runs so far) and excess at every improvement, and at the end."""
    records = racer.race(method_named(method), problem.race(seed, limit))
    found = improvements(records, problem, limit=limit, enough=THRESHOLDS[0])
    return [asdict(improvement) for improvement in found]


def race_all(
    engine: str, found: Sequence[Problem], methods: Sequence[str], seeds: int, out: Path, limit: float = LIMIT
) -> pd.DataFrame:
    """Run what `out` does not hold yet, saving after each search, and return all rows of the engine."""
    racer = get_engine(engine)
    if not isinstance(racer, Racer):
        raise EngineError(f"engine {engine!r} races nothing")
    offered = racer.race_methods
    unknown = [m for m in methods if m not in offered]
    if unknown:
        raise EngineError(f"engine {engine!r} races {', '.join(offered)}; not {', '.join(unknown)}")
    frame = pd.read_parquet(out) if out.exists() else pd.DataFrame(columns=[*KEYS, "cost", "excess"])
    done = set(map(tuple, frame[KEYS].drop_duplicates().to_numpy().tolist()))
    for problem in found:
        for seed in range(seeds):
            for method in methods or offered:
                key = (problem.name, engine, method, seed)
                if key in done:
                    continue
                rows = run(racer, method, problem, seed, limit)
                new = pd.DataFrame([dict(zip(KEYS, key, strict=True)) | r for r in rows])
                frame = new if frame.empty else pd.concat([frame, new], ignore_index=True)
                with replacing(out) as temporary:
                    frame.to_parquet(temporary, index=False)
    return frame[frame["engine"] == engine]


def main(
    engine: Annotated[str, typer.Option(help="optuna or ray.")] = "optuna",
    data: Annotated[
        Path | None, typer.Option(help="Folder of published tables (docs/studies/laws/README.md).")
    ] = None,
    live: Annotated[Path, typer.Option(help="Table of live text-lm runs.")] = live_table.FILE,
    seeds: Annotated[int, typer.Option(help="Repetitions of each method.", min=1)] = 30,
    methods: Annotated[str, typer.Option(help="Comma-separated; all by default.")] = "",
    only: Annotated[str, typer.Option(help="Only problems whose name contains this.")] = "",
    out: Annotated[Path | None, typer.Option(help="Results; docs/studies/gain/gain_ENGINE.parquet.")] = None,
    report: Annotated[bool, typer.Option(help="Only print what the file holds.")] = False,
) -> None:
    """Race an engine's methods on every table at hand and print what each one spent."""
    out = out or Path(__file__).with_name(f"gain_{engine}.parquet")
    try:
        if report:
            frame = pd.read_parquet(out)
        else:
            found = [p for p in problems(data, live) if only in p.name]
            if not found:
                raise MetaOptError("no table is at hand: give --data or --live")
            wanted = [m.strip() for m in methods.split(",") if m.strip()]
            with only_process(out.with_name(out.name + ".lock"), f"the table {out}"):
                frame = race_all(engine, found, wanted, seeds, out)
    except (MetaOptError, FileNotFoundError) as error:
        typer.echo(f"error: {error}", err=True)
        raise typer.Exit(2) from error
    found_rows = summary(frame)
    for within in THRESHOLDS:
        typer.echo(f"\nTarget runs (median over seeds) to come within {within:.2%} of the best\n")
        typer.echo(markdown(found_rows, within))
