"""Tables with one row a report: which rows are one run, and what counts its reports.

Ray's `progress.csv` files put together, exported histories of W&B or MLflow and logs of a training loop are such
tables; read as one row a run, every report would count as a finished run of its own. `trials.folding` makes the runs.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pandas as pd

from metaopt_hpo.trials import quantities
from metaopt_hpo.trials.folding import Reports, folded
from metaopt_hpo.trials.schema import Note, TableError

ID, PROGRESS = "_id:", "_progress:"
"""Prefixes of the columns that `conform` keeps for this module."""

SURE_IDS = ("trial_id", "run_id", "run_uuid", "experiment_tag", "trial_name")
"""Names that are a run's id; others, such as a job's name, may be shared by runs of several lengths."""

SURE_PROGRESS = ("training_iteration", "timesteps_total", "_step")
"""What only a report has: a finished run's row does not say which report it was."""

EVEN = (*quantities.PROGRESS_STEPS, "iter", "epoch", "timesteps_total")
"""Progress that counts what has been seen, if not in tokens."""

REPORTED = (*quantities.PROGRESS_TOKENS[:5], "global_step", "step", "iteration", "iter", "epoch")
"""Progress by names that tables of finished runs seldom have for what a run has seen in all."""

MOST, EVENLY = 0.8, 0.1
"""Shares of rows and runs, and of the step from one report to the next, from which a table counts as one of reports."""

SEVERAL, MANY = 3, 8
"""Reports that a run has at least: by a name of `REPORTED`, and by another."""

BY_CLOCK = ("time_total_s", "runtime", "timestamp")
"""Progress that says nothing of how much a run has seen; two runs of one setting differ in it too."""


def id_columns(names: Sequence[object]) -> list[str]:
    """Columns that may tell runs apart, surest first."""
    return _ranked(names, quantities.RUN_IDS)


def progress_columns(names: Sequence[object]) -> list[str]:
    """Columns of what grows within a run, those that count tokens first."""
    return _ranked([n for n in names if quantities.parts(n)[0] != "config"], quantities.PROGRESS)


def _ranked(names: Sequence[object], known: Sequence[str]) -> list[str]:
    found = [(known.index(rest), str(n)) for n in names if (rest := quantities.parts(n)[1]) in known]
    return [name for _, name in sorted(found, key=lambda f: f[0])]


def fold(
    frame: pd.DataFrame,
    notes: list[Note],
    *,
    named: Sequence[str] = (),
    sparse: bool = False,
    lr_is_set: bool = False,
    refuse: bool = True,
) -> pd.DataFrame:
    """`frame` with one row a run; unchanged, but for the helping columns, where it has that already.

    Args:
        frame: the schema's columns, and those of `ID` and `PROGRESS`.
        notes: what was folded is said here.
        named: quantities that the user named: "trial" makes its column the runs' id.
        sparse: a report without a loss did not evaluate it; one whose loss was lost has an infinite one. Elsewhere
            a loss that is missing from some report on was lost.
        lr_is_set: the column of lr is a setting and no scheduler's current value.
        refuse: raise where rows look like reports and nothing tells the runs apart, instead of noting it.

    Raises:
        TableError: rows are reports, and nothing tells the runs apart.
    """
    ids = [c for c in frame.columns if c.startswith(ID)]
    progress = [c for c in frame.columns if c.startswith(PROGRESS)]
    helpers = [*ids, *progress]
    if not helpers:
        return frame
    out = frame
    if progress and frame["curve_tokens"].isna().all():
        found = _runs(frame, ids, progress, named)
        if found is not None:
            key, counter = found
            what = Reports(
                counter=counter.removeprefix(PROGRESS),
                key=key,
                at=frame[counter].to_numpy(dtype=float),
                seen=_tokens_seen(frame, key, progress),
                even=_name(counter, PROGRESS) in EVEN,
                by_clock=_by_clock(counter),
                sparse=sparse,
                lr_is_set=lr_is_set,
            )
            out = folded(frame, what, notes)
        elif not _one_row_each(frame, ids, named):
            question = _question(frame, progress, named)
            if question and refuse:
                raise TableError(question)
            if question:
                notes.append(Note("reports", len(frame), question))
    return out.drop(columns=helpers)


def _runs(
    frame: pd.DataFrame, ids: list[str], progress: list[str], named: Sequence[str]
) -> tuple[pd.Series, str] | None:
    """The runs' key and the column that grows within them; None where every row is a run of its own."""
    for column in ids:
        key = frame[column].astype("object")
        blank = key.isna() | (key == "")
        if frame["study"].nunique() > 1:
            key = frame["study"].astype(str) + "\0" + key.astype(str)
        if blank.any() or not key.duplicated().any():
            continue
        if not _constant(frame, key, ["size", "batch", "seed"]):
            continue
        sure = _name(column, ID) in SURE_IDS or ("trial" in named and column == ids[0])
        same_lr = _constant(frame, key, ["lr"])
        grows = [
            p
            for p in progress
            if (sure or not _by_clock(p)) and _grows(frame[p], key, repeats=sure and same_lr)
        ]
        if (
            not same_lr
        ):  # an lr that changes is a scheduler's only where something else than tokens counts the reports
            grows = [p for p in grows if _name(p, PROGRESS) != "tokens"]
        if grows and (sure or any(map(_sure_progress, grows)) or _constant(frame, key, ["tokens"])):
            return key, grows[0]
    for planned in (False, True):
        key = _configuration(frame, planned=planned)
        if not key.duplicated().any():
            continue
        for column in progress:
            if _by_clock(column) or not _grows(frame[column], key, repeats=False):
                continue
            in_turn = _constant(frame, key, ["tokens"]) and _in_turn(frame[column], key)
            if (in_turn and (not planned or _falls(frame["loss"], key) >= MOST)) or (
                not planned and _sure_progress(column)
            ):
                return key, column
    return None


def _name(column: str, prefix: str) -> str:
    return quantities.parts(column.removeprefix(prefix))[1]


def _by_clock(column: str) -> bool:
    return _name(column, PROGRESS) in BY_CLOCK


def _sure_progress(column: str) -> bool:
    name = column.removeprefix(PROGRESS)
    return name in SURE_PROGRESS or quantities.normalise(name) in SURE_PROGRESS[:2]


def _configuration(frame: pd.DataFrame, *, planned: bool) -> pd.Series:
    """Rows of equal settings, as far as the schema's columns say; `planned` tokens are one of them."""
    columns = ["study", "size", "batch", "lr", "seed", "strategy", "target_tokens"]
    if planned or frame.groupby(["size", "batch", "lr", "seed"], dropna=False)["tokens"].nunique().max() <= 1:
        columns.append("tokens")
    return frame.groupby(columns, dropna=False, sort=False).ngroup()


def _in_turn(values: pd.Series, key: pd.Series) -> bool:
    """Whether runs stand one after the other, each counting up from one common start."""
    run = key.to_numpy()
    starts = np.append(True, run[1:] != run[:-1])
    rising = np.diff(values.to_numpy()) > 0
    return bool(
        starts.sum() == key.nunique() and np.ptp(values.to_numpy()[starts]) == 0 and rising[~starts[1:]].all()
    )


def _one_row_each(frame: pd.DataFrame, ids: list[str], named: Sequence[str]) -> bool:
    """Whether a column that the user, or its name, calls the runs' id has another value in every row."""
    for column in ids:
        sure = _name(column, ID) in SURE_IDS or ("trial" in named and column == ids[0])
        key = frame[column]
        if (
            sure
            and key.notna().all()
            and not pd.DataFrame({"s": frame["study"], "k": key}).duplicated().any()
        ):
            return True
    return False


def _question(frame: pd.DataFrame, progress: list[str], named: Sequence[str]) -> str:
    """What is asked where rows are, or look like, reports that nothing assigns to runs; empty where they do not."""
    for column in progress:
        name = column.removeprefix(PROGRESS)
        key = _configuration(frame, planned=False)
        if _sure_progress(column) and bool((frame[column].groupby(key.to_numpy()).nunique() > 1).any()):
            return (
                f"the table has one row a report ({name!r} counts them), and nothing tells "
                "its runs apart; name the column of the runs' ids with columns={'trial': …}"
            )
        if "progress" in named and frame[column].nunique() > 1:
            return (
                f"{name!r} counts the reports of runs, and nothing says which run a row belongs to; name the column of "
                "the runs' ids with columns={'trial': …}"
            )
        if not _by_clock(column) and (_plan_repeats(frame, column) or _saw_teeth(frame, column)):
            return (
                f"rows look like reports of runs that {name!r} counts, and nothing says which run they belong to; name "
                "the column of the runs' ids with columns={'trial': …}, or pass implausible='warn' where every row is "
                "a finished run"
            )
    return ""


def _plan_repeats(frame: pd.DataFrame, column: str) -> bool:
    """Whether most plans have several rows, told apart by steps along which the loss falls.

    Finished runs of one batch and as many tokens took as many steps; repeats that differ in them, such as the step of
    the best checkpoint, have no falling loss.
    """
    if _name(column, PROGRESS) not in (*quantities.PROGRESS_STEPS, "iteration", "iter"):
        return False
    key = _configuration(frame, planned=True)
    size = key.map(key.value_counts())
    if (size >= SEVERAL).mean() < MOST or not _grows(frame[column], key, repeats=False):
        return False
    order = np.argsort(frame[column].to_numpy(), kind="stable")
    return _falls(frame["loss"].iloc[order], key.iloc[order]) >= MOST


def _saw_teeth(frame: pd.DataFrame, column: str) -> bool:
    """Whether nearly all rows stand in stretches of one size and batch, each counting evenly up with a falling loss.

    A grid of finished runs can look like that where its token budgets are evenly spaced; as these mostly double,
    and a name such as `steps` is that of a whole run, even steps of the few names that reports have are asked about.
    """
    name = _name(column, PROGRESS)
    at = frame[column].to_numpy(dtype=float)
    shared = frame.groupby(["study", "size", "batch", "seed", "strategy"], dropna=False).ngroup().to_numpy()
    starts = np.append(True, (shared[1:] != shared[:-1]) | ~(np.diff(at) > 0))
    run = pd.Series(np.cumsum(starts), index=frame.index)
    least = SEVERAL if name in REPORTED else MANY
    length = run.map(run.value_counts()).to_numpy()
    if starts.sum() < 2 or (length >= least).mean() < MOST:
        return False
    step = pd.Series(np.diff(at, prepend=np.nan), index=frame.index).mask(starts).groupby(run)
    even = (step.max() - step.min() <= EVENLY * step.max()) & (step.count() >= least - 1)
    return bool(even[run].mean() >= MOST) and _falls(frame["loss"], run) >= MOST


def _falls(loss: pd.Series, key: pd.Series) -> float:
    """Share of the runs of several rows whose last loss is below their first."""
    kept = loss[np.isfinite(loss)].groupby(key)
    first, last = kept.first()[kept.size() > 1], kept.last()[kept.size() > 1]
    return float((last < first).mean()) if len(first) else 0.0


def _constant(frame: pd.DataFrame, key: pd.Series, columns: list[str]) -> bool:
    """Whether columns have one value in all rows of a run."""
    grouped = frame[columns].groupby(key.to_numpy(), sort=False)
    high, low = grouped.max(), grouped.min()
    return bool(((high - low) <= 1e-9 * high.abs()).where(high.notna(), True).all(axis=None))


def _grows(values: pd.Series, key: pd.Series, *, repeats: bool) -> bool:
    """Whether a column tells the rows of each run apart; `repeats` allows a report that a retry made again."""
    pairs = pd.DataFrame({"key": key.to_numpy(), "value": values.to_numpy()}).dropna(subset=["value"])
    if pairs.empty or (pairs.duplicated().any() and not repeats):
        return False
    runs = pairs.groupby("key", sort=False)["value"]
    several = runs.size() > 1
    return bool(several.any()) and bool((runs.nunique()[several] > 1).all())


def _tokens_seen(frame: pd.DataFrame, key: pd.Series, progress: list[str]) -> np.ndarray | None:
    """Tokens seen at each report: a column that counts them, the tokens where they grow, or steps times batch."""
    for column in progress:
        counts = _name(column, PROGRESS) in quantities.PROGRESS_TOKENS
        if counts and not _constant(frame, key, [column]):
            return _filled(frame[column], key)
    if not _constant(frame, key, ["tokens"]):
        return _filled(frame["tokens"], key)
    for column in progress:
        if _name(column, PROGRESS) in quantities.PROGRESS_STEPS:
            seen: np.ndarray = frame[column].to_numpy(dtype=float) * frame["batch"].to_numpy()
            ends = pd.DataFrame({"seen": seen, "tokens": frame["tokens"]}).groupby(key.to_numpy()).max()
            share = ends["seen"] / ends["tokens"]
            if (share <= 1.02).all() and (share >= 0.98).any():
                return seen
    return None


def _filled(values: pd.Series, key: pd.Series) -> np.ndarray:
    """`values`, where a row has none that of its run's row before."""
    out: np.ndarray = values.groupby(key.to_numpy(), sort=False).ffill().to_numpy(dtype=float)
    return out
