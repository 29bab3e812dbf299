"""gpu.md from the results of the parts."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from metaopt_hpo.atomic import write_text

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
        lines += ["| " + " | ".join(names) + " |", "|" + "---|" * len(names)]
        lines += ["| " + " | ".join(_text(row.get(name)) for name in names) + " |" for row in rows]
        lines.append("")
    write_text(folder / "gpu.md", "\n".join(lines))
    print(f"  {folder / 'gpu.md'}")


def read(path: Path) -> list[dict[str, Any]]:
    """The rows of one part, or none."""
    text, table = path.with_suffix(".jsonl"), path.with_suffix(".parquet")
    if text.is_file():
        rows: list[dict[str, Any]] = [json.loads(line) for line in text.read_text().splitlines()]
        from studies.gpu.__main__ import _keep

        _keep(rows, path)
        return rows
    if not table.is_file():
        return []
    import pyarrow.parquet as pq  # type: ignore[import-untyped]

    found: list[dict[str, Any]] = pq.read_table(table).to_pylist()
    return found


def _text(value: Any) -> str:
    return "" if value is None else "yes" if value is True else "no" if value is False else str(value)
