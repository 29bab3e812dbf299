"""How well the multi-power law predicts the curves of schedules it has not seen: Luo et al.'s released runs.

`python -m studies.laws.schedules --data DIR`, where DIR (or DIR/curves/multipower) holds SIZE_SCHEDULE.csv with columns
step, lr, loss, from github.com/thu-yao-01-luo/MultiPowerLaw (MIT). Every size found there is measured.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated

import numpy as np
import pandas as pd
import typer

from metaopt_hpo.scaling.schedule_fit import fit_schedule_law
from metaopt_hpo.scaling.schedule_law import ScheduledCurve, ScheduleLaw
from studies.benchmarks import BenchmarkMissing
from studies.section import Section

FITTED = (
    ("constant_24000", "cosine_24000", "wsdcon_9"),
    ("constant_24000", "cosine_24000"),
    ("constant_24000", "wsd_20000_24000"),
    ("constant_24000", "wsdcon_9"),
    ("cosine_24000",),
)
"""Curves that a law is fitted to; the first are those of the authors."""

ALONE = ("constant_24000", "cosine_24000", "wsd_20000_24000")
"""Single curves, each fitted with another size's law as the prior."""

LAST = 5
"""Reports whose mean is the end of a run: one report scatters by 0.03 to 0.1 %."""

Curves = Mapping[str, ScheduledCurve]


def multipower(data: Path) -> dict[str, dict[str, ScheduledCurve]]:
    """Curves by size, smallest first, and schedule.

    Raises:
        BenchmarkMissing: there are none in the folder.
    """
    folder = next((f for f in (data / "curves" / "multipower", data / "multipower", data) if _files(f)), None)
    if folder is None:
        raise BenchmarkMissing(
            f"no curves are in {str(data)!r}: SIZE_SCHEDULE.csv of github.com/thu-yao-01-luo/MultiPowerLaw (MIT)"
        )
    out: dict[str, dict[str, ScheduledCurve]] = {}
    for path in _files(folder):
        size, _, schedule = path.stem.partition("_")
        frame = pd.read_csv(path)
        out.setdefault(size, {})[schedule] = ScheduledCurve(frame["step"], frame["loss"], frame["lr"])
    return dict(sorted(out.items(), key=lambda item: float(item[0][:-1])))


def _files(folder: Path) -> list[Path]:
    return sorted(folder.glob("[0-9]*M_*.csv"))


def schedule_section(data: Path) -> Section:
    """Error of every curve that was not fitted, by the curves that were."""
    header = [
        "size",
        "fitted to",
        "other curves",
        "mean %",
        "worst report %",
        "end of the run, mean (worst) %",
    ]
    section = Section("Other schedules' curves, by the multi-power law", header)
    sizes = multipower(data)
    first: dict[str, ScheduleLaw] = {}
    for size, curves in sizes.items():
        for chosen in FITTED:
            if set(chosen) <= set(curves):
                law = fit_schedule_law([curves[name] for name in chosen])
                first.setdefault(size, law)
                section.rows.append([size, ", ".join(chosen), *errors(law, curves, chosen)])
    for size, curves in sizes.items():
        for other, law in first.items():
            for name in ALONE if other != size else ():
                if name in curves:
                    own = fit_schedule_law([curves[name]], prior=law)
                    section.rows.append([size, f"{name}, prior {other}", *errors(own, curves, (name,))])
    section.note = (
        "Relative errors, each curve alike. The end is the mean of the last five reports. The authors report 0.11 % "
        "(25M) and 0.14 % (100M), worst 0.41 and 0.58 %, for their own fit."
    )
    return section


def errors(law: ScheduleLaw, curves: Curves, fitted: Sequence[str]) -> list[str]:
    """Cells of a row: how many other curves, and their errors."""
    off = [
        law.predict(c.steps, c.lr, before=c.before) / c.loss - 1.0
        for k, c in curves.items()
        if k not in fitted
    ]
    ends = [100.0 * abs(float(np.mean(e[-LAST:]))) for e in off]
    means = [100.0 * float(np.abs(e).mean()) for e in off]
    worst = 100.0 * max(float(np.abs(e).max()) for e in off)
    return [str(len(off)), f"{np.mean(means):.3f}", f"{worst:.2f}", f"{np.mean(ends):.3f} ({max(ends):.2f})"]


app = typer.Typer(add_completion=False)


@app.command()
def main(data: Annotated[Path, typer.Option(help="Folder that holds the curves.")]) -> None:
    """Print the table of docs/studies/laws/README.md."""
    typer.echo(schedule_section(data).markdown())


if __name__ == "__main__":
    app()
