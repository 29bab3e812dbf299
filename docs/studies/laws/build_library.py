"""Write the library's fitted laws and all errors: `python -m studies.laws.build_library --data DIR`.

Laws are fitted only from tables whose licence allows it (Step Law CC-BY-4.0, mup MIT); errors are measured only
on tables a law was not fitted on.
"""

from __future__ import annotations

import json
import warnings
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import typer

from metaopt_hpo.atomic import write_text
from metaopt_hpo.comparison.scoring import Centre, cells_of, of_law, published, score
from metaopt_hpo.errors import MetaOptWarning
from metaopt_hpo.scaling import Law, fit, library
from metaopt_hpo.trials.table import TrialTable
from studies import benchmarks

MUP_FITTED = "muP+fixRMS+fixEmbedLR+fixUnembed+fixWD"
MUP_OTHER = "muP+fixRMS+fixEmbedLR+fixUnembed"


def errors(centre: Centre, tables: dict[str, TrialTable]) -> dict[str, dict[str, float]]:
    """Relative excess loss at the law's optimum over every cell of each table."""
    out = {}
    for name, table in tables.items():
        values = score(centre, cells_of(table))
        out[name] = {
            "cells": len(values),
            "mean": round(float(np.mean(values)), 5),
            "max": round(float(np.max(values)), 5),
        }
    return out


def fitted(
    title: str, source: str, licence: str, units: str, law: Law, tables: dict[str, TrialTable]
) -> dict[str, Any]:
    """The data file of a fitted law."""
    return {
        "kind": "fitted",
        "title": title,
        "source": source,
        "licence": licence,
        "units": units,
        "errors": errors(of_law(law), tables),
        "law": json.loads(law.to_json()),
    }


def main(data: Annotated[Path, typer.Option(help="Folder that holds the tables.")]) -> None:
    """Rewrite the data files in metaopt_hpo/scaling/laws."""
    warnings.simplefilter("ignore", MetaOptWarning)
    folder = Path(__file__).parents[3] / "metaopt_hpo" / "scaling" / "laws"
    o, s, m = benchmarks.openeurollm(data), benchmarks.steplaw(data), benchmarks.mup_widths(data)
    files = {
        "fitted-step-law": fitted(
            "Law of the Step Law runs up to 429 M parameters",
            "Li et al. 2025 (arXiv:2503.04715), runs as released in active-sl; fitted by metaopt-hpo",
            "CC-BY-4.0, attribution: StepFun, Step Law",
            "size: non-embedding parameters; tokens and batch: tokens; loss: nats per token",
            fit(s, draws=100),
            {"OpenEuroLLM ≤ 589 M": o},
        ),
        "fitted-mup-widths": fitted(
            f"Law of transformers of four widths, {MUP_FITTED}",
            "MikhailTerekhov/mup; fitted by metaopt-hpo",
            "MIT, Mikhail Terekhov",
            "size: width² (fixed depth); one batch (16) and one number of tokens; loss: nats per token",
            fit(m[MUP_FITTED], draws=100),
            {f"mup widths, {MUP_OTHER}": m[MUP_OTHER]},
        ),
    }
    for name, tables in (
        ("step-law", {"OpenEuroLLM ≤ 589 M": o}),
        ("deepseek", {"OpenEuroLLM ≤ 589 M": o, "Step Law ≤ 429 M": s}),
    ):
        entry = json.loads((folder / f"{name}.json").read_text(encoding="utf-8"))
        entry["errors"] = errors(published(name), tables)
        files[name] = entry
    for name, content in files.items():
        text = json.dumps(content, ensure_ascii=False, indent=None if "law" in content else 1)
        write_text(folder / f"{name}.json", text + "\n")
        typer.echo(f"{name}: {content['errors']}")
    typer.echo(f"{len(library.names())} laws in the library")


if __name__ == "__main__":
    typer.run(main)
