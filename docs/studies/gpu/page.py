"""gpu.md from the results of the parts."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from metaopt_hpo.atomic import write_text
from metaopt_hpo.markdown import markdown_table
from studies.gpu.kept import read

TITLES = {"checks": "Checks", "speed": "Speed of a step", "race": "A short race"}


def write(folder: Path) -> None:
    """Read gpu_<part>.parquet or .jsonl and write gpu.md (and Parquet, where only JSON lines are there)."""
    lines = [
        "# MetaOptimize on a GPU",
        "",
        "Written by `make gpu`; times in milliseconds, ratios to fused AdamW.",
        "",
    ]
    for part, title in TITLES.items():
        rows = read(folder / f"gpu_{part}")
        lines += [f"## {title}", ""]
        if not rows:
            lines += ["Not measured.", ""]
            continue
        lines += [f"Card: {rows[0]['card']}, torch {rows[0]['torch']}, Python {rows[0]['python']}.", ""]
        names = [
            n for n in dict.fromkeys(k for row in rows for k in row) if n not in ("card", "torch", "python")
        ]
        lines += [markdown_table(names, [[_text(row.get(name)) for name in names] for row in rows]), ""]
    write_text(folder / "gpu.md", "\n".join(lines))
    print(f"  {folder / 'gpu.md'}")


def _text(value: Any) -> str:
    return "" if value is None else "yes" if value is True else "no" if value is False else str(value)
