"""Decay, momentum and clip norm adapted by traces, as the step size is: `python -m studies.one_run.meta_parameters`.

The step size follows WSD at the best rate known for the job, so that only the other parameter is asked about. Each is
adapted by itself from the end of the warm-up on (`traced`), beside the fixed default and a grid of fixed values, whose
best is chosen on the same seeds. Meta step and discount were chosen on the jobs of `OUTSIDE` (`--outside`), which no
comparison has. Jobs named few go over 4,096 examples of the taught network 31 times, so that decay can matter to the
held-out loss; there z is also taken on an eighth of the examples, held back from training.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import pandas as pd
import torch
import typer

from metaopt_hpo.markdown import markdown_table
from studies import run as commands
from studies.one_run.kept import has, keep, read, rows_of
from studies.one_run.meta_jobs import DEFAULTS, NOTHING, RATES, train

KEPT = Path(__file__).parent / "meta_parameters.parquet"
KEY = ["job", "seed", "base", "lr", "decay", "momentum", "clip", "adapt", "against", "meta_lr", "gamma"]
JOBS = ("teach64", "shorttf48", "shortgru48", "few64")
OUTSIDE = ("teach32", "few32", "shorttf16")
FIRST_SEED, OUTSIDE_SEED = 700, 760
TRIED = (0.0005, 0.001, 0.002, 0.004, 0.008)
"""Rates of the jobs named few, at the defaults."""

GRID = {
    "decay": (0.0, 0.025, 0.4, 1.6),
    "momentum": (0.8, 0.95, 0.98),
    "clip": (0.25, 4.0, float("inf")),
}
META = {"decay": (0.003, 1.0), "momentum": (0.003, 0.99), "clip": (0.003, 0.99)}
"""Meta step η and discount γ in use."""

META_TRIED = ((0.003, 1.0), (0.01, 1.0), (0.003, 0.99))
MORE = {"teach64": 8, "few64": 4}
"""Seeds of decay on the jobs that are cheap; single runs of teach64 scatter by 1 %."""

STARTS = {"decay": (0.01, 1.6), "momentum": (0.98,), "clip": (4.0,)}
"""Other starts of an adapted value."""


def cell(name: str, seed: int, base: str = "adamw", **changed: Any) -> dict[str, Any]:
    """A row's key: the default run of a job, and what is changed of it."""
    meta_lr, gamma = META[changed["adapt"]] if changed.get("adapt") else (0.0, 1.0)
    usual = {"job": name, "seed": seed, "base": base, "lr": RATES[base][name], **DEFAULTS[base]}
    return usual | {"adapt": "", "against": "training", "meta_lr": meta_lr, "gamma": gamma} | changed


def plan(jobs: list[str], seeds: int) -> Iterator[dict[str, Any]]:
    """The comparison: defaults, adapted, other starts, fixed values."""
    every = [(seed, name) for seed in range(FIRST_SEED, FIRST_SEED + seeds) for name in jobs]
    few = [name for name in jobs if name.startswith("few")]
    yield from (cell(name, FIRST_SEED, lr=lr) for name in few for lr in TRIED)
    for seed, name in every:
        yield cell(name, seed)
        for adapt in GRID:
            yield cell(name, seed, adapt=adapt)
        if name in few:
            yield cell(name, seed, adapt="decay", against="held back")
        yield cell(name, seed, adapt="decay", against=NOTHING)
    for name in set(jobs) & set(MORE):
        for seed in range(FIRST_SEED + seeds, FIRST_SEED + MORE[name]):
            yield cell(name, seed)
            yield cell(name, seed, adapt="decay", against="held back" if name in few else "training")
            if name not in few:
                yield cell(name, seed, adapt="decay", against=NOTHING)
                yield cell(name, seed, decay=GRID["decay"][1])
    for seed, name in every:
        if name in RATES["sgdm"]:
            yield cell(name, seed, base="sgdm")
            yield cell(name, seed, base="sgdm", adapt="momentum")
    for seed, name in every:
        yield from (cell(name, seed, "adamw", decay=value) for value in GRID["decay"])
    for name in jobs:
        for adapt, starts in STARTS.items():
            yield from (cell(name, FIRST_SEED, "adamw", adapt=adapt, **{adapt: start}) for start in starts)
        if name in few:
            yield from (
                cell(name, FIRST_SEED, adapt="decay", against="held back", decay=start)
                for start in STARTS["decay"]
            )
    for seed, name in every:
        for adapt in ("momentum", "clip"):
            yield from (cell(name, seed, "adamw", **{adapt: value}) for value in GRID[adapt])
        if name in RATES["sgdm"]:
            yield from (cell(name, seed, base="sgdm", momentum=value) for value in GRID["momentum"])


def outside(jobs: list[str]) -> Iterator[dict[str, Any]]:
    """What meta step and discount were chosen by."""
    yield from (cell(name, OUTSIDE_SEED, lr=lr) for name in jobs if name.startswith("few") for lr in TRIED)
    for name in jobs:
        yield cell(name, OUTSIDE_SEED)
    for meta_lr, gamma in META_TRIED:
        for adapt in GRID:
            for name in jobs:
                if name.startswith("few") and adapt != "decay":
                    continue
                against = "held back" if name.startswith("few") else "training"
                yield cell(name, OUTSIDE_SEED, adapt=adapt, against=against, meta_lr=meta_lr, gamma=gamma)


def study(
    out: Annotated[
        Path, typer.Option(help="Parquet file of the runs; finished ones are not repeated.")
    ] = KEPT,
    jobs: Annotated[str, typer.Option(help="Jobs, by comma.")] = "",
    seeds: Annotated[int, typer.Option(help="Seeds of each cell.", min=1)] = 2,
    outside_only: Annotated[
        bool, typer.Option("--outside", help="Choose meta step and discount, on other jobs.")
    ] = False,
    report_only: Annotated[bool, typer.Option("--report-only", help="Run nothing.")] = False,
) -> None:
    """Weight decay, momentum and clip norm adapted by traces, beside fixed ones.

    Example: python -m studies.one_run.meta_parameters --jobs teach64
    """
    torch.set_num_threads(1)
    names = jobs.split(",") if jobs else list(OUTSIDE if outside_only else JOBS)
    cells = [] if report_only else outside(names) if outside_only else plan(names, seeds)
    for key in cells:
        if has(read(out, KEY), key):
            continue
        keep(out, key, found := train(key))
        typer.echo(
            " ".join(map(str, key.values())) + f": {found['held_out']:.4f}, {found['end']:.3g}", err=True
        )
    if not outside_only:
        typer.echo(markdown(read(out, KEY)))


def markdown(table: pd.DataFrame) -> str:
    """Adapted against the default and the best fixed value; in the mean; other starts; the choice of meta step."""
    table = table[
        [lr == RATES[base][job] for base, job, lr in zip(table.base, table.job, table.lr, strict=True)]
    ]
    plain, adapted = table[table.adapt == ""], table[table.adapt != ""]
    usual = plain[_at_defaults(plain)].set_index(["base", "job", "seed"]).held_out
    adapted = _over(adapted, usual)
    adapted = adapted.assign(start=[float(getattr(r, str(r.adapt))) for r in adapted.itertuples()])
    weaker = GRID["decay"][1]
    fixed = plain[(plain.decay == weaker) & (plain.base == "adamw")]
    fixed = _over(fixed.assign(adapt="decay", against=f"none: fixed {weaker:g}"), usual)
    compared = adapted[adapted.job.isin(JOBS)]
    return "\n\n".join(
        [
            _comparison(compared[_at_defaults(compared)], plain, usual),
            _means(pd.concat([compared[_at_defaults(compared)], fixed])),
            _starts(compared),
            _choice(adapted[adapted.job.isin(OUTSIDE)]),
        ]
    )


def _over(table: pd.DataFrame, usual: pd.Series) -> pd.DataFrame:
    """With per cent over the default of the same job and seed, where there is one."""
    of = [usual.get((r.base, r.job, r.seed), float("nan")) for r in table.itertuples()]
    return table.assign(excess=100 * (table.held_out / of - 1)).dropna(subset=["excess"])


def _at_defaults(table: pd.DataFrame) -> pd.Series:
    """Which rows have, or start from, the default values."""
    wanted = pd.DataFrame([DEFAULTS[str(base)] for base in table.base], index=table.index, columns=list(GRID))
    return (table[list(GRID)] == wanted).all(axis=1)


def _percent(values: pd.Series) -> str:
    """Each, or of more than three their mean and its standard error."""
    if len(values) <= 3:
        return ", ".join(f"{v:+.1f} %" for v in values)
    return f"{values.mean():+.1f} ± {values.std() / len(values) ** 0.5:.1f} % (of {len(values)})"


def _comparison(adapted: pd.DataFrame, plain: pd.DataFrame, usual: pd.Series) -> str:
    lines = []
    for group, rows in adapted.groupby(["base", "adapt", "job", "against"], sort=False):
        base, name, job, against = map(str, group)
        rest = {k: v for k, v in DEFAULTS[base].items() if k != name}
        fixed = rows_of(plain, base=base, job=job, **rest).pivot_table(
            index=name, columns="seed", values="held_out", dropna=False
        )
        default = usual.loc[base].loc[job]
        # over two seeds where values other than the default have both, else over the first
        fixed = fixed[[seed for seed in (FIRST_SEED, FIRST_SEED + 1) if seed in fixed.columns]]
        fixed = both if len(both := fixed.dropna()) > 1 else fixed.iloc[:, :1].dropna()
        best = int(fixed.mean(axis=1).to_numpy().argmin())
        gain = 100 * (fixed.iloc[best] / default[fixed.columns] - 1)
        lines.append(
            (
                name,
                base,
                job,
                against,
                f"{default[rows.seed].mean():.4f}",
                _percent(rows.sort_values("seed").excess),
                *((f"{fixed.index[best]:g} (of {len(fixed)})", _percent(gain)) if len(fixed) > 1 else "––"),
                f"{rows.start.iloc[0]:g} → {_mean(rows.middle)} → {_mean(rows.end)}",
            )
        )
    head = [
        "parameter", "base", "job", "z on", "default", "adapted against it", "best fixed", "against the default",
        "start → before the cooldown → end",
    ]  # fmt: skip
    return markdown_table(head, lines)


def _mean(values: pd.Series) -> str:
    """Geometric mean."""
    return f"{np.exp(np.log(values).mean()):.3g}"


def _means(adapted: pd.DataFrame) -> str:
    """Means over jobs, with the error by the spread of seeds; z on examples not yet used is taken together too."""
    repeated = adapted.job.str.startswith("few") & (adapted.against != "held back")
    fresh = adapted.against.isin(["training", "held back"]) & ~repeated & (adapted["adapt"] == "decay")
    shown = adapted.assign(against=adapted.against.where(~repeated, adapted.against + ", repeated"))
    both = adapted[fresh].assign(against="examples not trained on yet")
    lines = []
    for group, rows in pd.concat([shown, both], ignore_index=True).groupby(
        ["base", "adapt", "against"], sort=False
    ):
        base, name, against = map(str, group)
        of_jobs = rows.groupby("job").excess
        means, count = of_jobs.mean().to_numpy(float), of_jobs.count().to_numpy(float)
        error, free = "", (count - 1).sum()
        if free:
            within = float(((rows.excess - of_jobs.transform("mean")) ** 2).sum()) / free
            error = f" ± {(within * (1 / count).sum()) ** 0.5 / len(count):.1f}"
        mean, worst = f"{means.mean():+.1f}{error} %", f"{means.max():+.1f} %"
        lines.append((name, base, against, len(count), len(rows), mean, worst))
    head = ["parameter", "base", "z on", "jobs", "runs", "against the default", "worst job"]
    return markdown_table(head, lines)


def _starts(adapted: pd.DataFrame) -> str:
    lines = []
    groups = adapted[(adapted.seed == FIRST_SEED) & (adapted.base == "adamw")]
    for group, rows in groups.groupby(["adapt", "job", "against"], sort=False):
        for r in rows.sort_values("start").to_dict("records") if len(rows) > 1 else ():
            lines.append(
                (
                    *map(str, group),
                    f"{r['start']:g}",
                    f"{r['middle']:.3g}",
                    f"{r['end']:.3g}",
                    f"{r['excess']:+.1f} %",
                )
            )
    head = ["parameter", "job", "z on", "start", "before the cooldown", "end", "against the default"]
    return markdown_table(head, lines)


def _choice(adapted: pd.DataFrame) -> str:
    cells = adapted.pivot_table(
        index=["adapt", "meta_lr", "gamma"], columns="job", values="excess", sort=False
    )
    lines = [
        (*map(str, key), *("–" if np.isnan(v) else f"{v:+.1f} %" for v in row), f"{np.nanmean(row):+.1f} %")
        for key, row in zip(cells.index, cells.to_numpy(), strict=True)
    ]
    return markdown_table(["parameter", "η", "γ", *map(str, cells.columns), "mean"], lines)


if __name__ == "__main__":
    commands.run(study)
