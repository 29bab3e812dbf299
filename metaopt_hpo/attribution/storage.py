"""Grids as Parquet files: one row a run, with the config's fingerprint, so that results are resumed and never mixed."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from metaopt_hpo.atomic import replacing
from metaopt_hpo.attribution.estimand import AttributionError
from metaopt_hpo.attribution.levels import CRITERIA, Setting
from metaopt_hpo.attribution.stepping import GridResult

if TYPE_CHECKING:
    import pandas as pd


def as_kept(result: GridResult) -> GridResult:
    """The grid as a file holds it: measurements in single precision, so that a resumed run equals one that was not."""
    return replace(
        result,
        criteria=result.criteria.astype(np.float32).astype(float),
        growth=result.growth.astype(np.float32).astype(float),
    )


def save_grid(result: GridResult, path: Path, fingerprint: str) -> None:
    """Write a grid as Parquet: one row a run, single precision, with the config's fingerprint in its metadata."""
    import pyarrow as pa  # type: ignore[import-untyped]
    import pyarrow.parquet as pq  # type: ignore[import-untyped]

    cells, settings, lrs, seeds = result.growth.shape
    index = np.indices((cells, settings, lrs, seeds)).reshape(4, -1)
    columns: dict[str, Any] = {
        "tokens": result.tokens[index[0]],
        "batch": result.batch[index[0]],
        "setting": pa.DictionaryArray.from_arrays(
            pa.array(index[1], pa.int32()), [s.label for s in result.settings]
        ),
        "lr": result.lr[index[0], index[2]],
        "seed": np.array(result.seeds)[index[3]].astype(np.int32),
    }
    for i, name in enumerate(CRITERIA):
        columns[name] = result.criteria[..., i].ravel().astype(np.float32)
    columns["growth"] = result.growth.ravel().astype(np.float32)
    settings_json = json.dumps([asdict(s) for s in result.settings])
    table = pa.table(columns).replace_schema_metadata(
        {"fingerprint": fingerprint, "world": result.world, "settings": settings_json}
    )
    with replacing(path) as temporary:
        pq.write_table(table, temporary, compression="zstd", write_page_checksum=True)


def load_grid(path: Path, fingerprint: str | None = None) -> GridResult | None:
    """Read a stored grid; None when it belongs to another config.

    Raises:
        AttributionError: the file is not a grid of this experiment.
    """
    import pyarrow.parquet as pq

    try:
        table = pq.read_table(path, page_checksum_verification=True)
        meta = {k.decode(): v.decode() for k, v in (table.schema.metadata or {}).items()}
        if fingerprint is not None and meta.get("fingerprint", fingerprint) != fingerprint:
            return None
        if not {"fingerprint", "world", "settings"} <= meta.keys():
            raise AttributionError(
                f"{path} holds no grid of this experiment; delete it or choose another folder"
            )
        return _grid(table.to_pandas(), meta)
    except AttributionError:
        raise
    except Exception as error:  # whatever a damaged Parquet file makes of itself
        reason = (str(error) or type(error).__name__).splitlines()[0]
        raise AttributionError(
            f"{path} cannot be read as a grid in Parquet ({reason:.100}); delete it to run its grid again"
        ) from error


def _grid(frame: pd.DataFrame, meta: Mapping[str, str]) -> GridResult:
    """The grid of a table that `save_grid` wrote."""
    settings = tuple(Setting(**s) for s in json.loads(meta["settings"]))
    seeds = tuple(int(s) for s in frame["seed"].unique())
    cells = len(frame[["tokens", "batch"]].drop_duplicates())
    shape = (cells, len(settings), -1, len(seeds))
    at = {
        n: frame[n].to_numpy(dtype=float).reshape(shape)
        for n in (*CRITERIA, "growth", "tokens", "batch", "lr")
    }
    for name in ("tokens", "batch", "lr"):
        if not (np.isfinite(at[name]) & (at[name] > 0)).all():
            raise ValueError(f"{name} must be positive")
    return GridResult(
        meta["world"],
        at["tokens"][:, 0, 0, 0],
        at["batch"][:, 0, 0, 0],
        at["lr"][:, 0, :, 0],
        settings,
        seeds,
        np.stack([at[c] for c in CRITERIA], axis=-1),
        at["growth"],
    )
