"""The rows that a part has measured, kept beside the page: Parquet, or JSON lines where pyarrow is missing."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from metaopt_hpo.atomic import replacing, write_text


def keep(rows: list[dict[str, Any]], path: Path) -> None:
    """Write the rows of one part; `path` has no ending."""
    write_text(path.with_suffix(".jsonl"), "".join(json.dumps(row) + "\n" for row in rows))
    try:
        import pyarrow as pa  # type: ignore[import-untyped]
        import pyarrow.parquet as pq  # type: ignore[import-untyped]
    except ImportError:
        print(
            f"pyarrow is not installed: {path.with_suffix('.jsonl')} is kept, `page` makes Parquet of it elsewhere"
        )
        return
    names = list(dict.fromkeys(name for row in rows for name in row))
    with replacing(path.with_suffix(".parquet")) as temporary:
        pq.write_table(pa.table({name: [row.get(name) for row in rows] for name in names}), temporary)
    path.with_suffix(".jsonl").unlink()


def read(path: Path) -> list[dict[str, Any]]:
    """The rows of one part, or none."""
    text, table = path.with_suffix(".jsonl"), path.with_suffix(".parquet")
    if text.is_file():
        rows: list[dict[str, Any]] = [json.loads(line) for line in text.read_text().splitlines()]
        keep(rows, path)
        return rows
    if not table.is_file():
        return []
    import pyarrow.parquet as pq

    found: list[dict[str, Any]] = pq.read_table(table).to_pylist()
    return found
