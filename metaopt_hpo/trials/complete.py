"""What every table passes last: the schema's checks, units that can be meant, each run once, each with its own id."""

from __future__ import annotations

from collections.abc import Collection

import numpy as np
import pandas as pd

from metaopt_hpo.trials import plausible, schema
from metaopt_hpo.trials.schema import CURVE_COLUMNS, Note, TableError


def complete(
    frame: pd.DataFrame,
    notes: list[Note],
    *,
    told: Collection[str] = (),
    refuse: bool = False,
    foreign: bool = False,
) -> pd.DataFrame:
    """Checked frame with plain text columns, unique trials and a fresh index; `told`, … as `plausible.check`."""
    frame = frame.reset_index(drop=True)
    if len(frame) == 0:
        raise TableError("the table has no rows")
    schema.check(frame, notes)
    plausible.check(frame, notes, told=told, refuse=refuse, foreign=foreign)
    same = frame.drop(columns=list(CURVE_COLUMNS)).duplicated().to_numpy()
    if same.any():
        n = int(same.sum())
        notes.append(Note("duplicates", n, f"{n} rows repeat another row exactly and were left out"))
        frame = frame.loc[~same].reset_index(drop=True)
    named = frame["trial"].to_numpy() != ""
    clash = frame.loc[named].duplicated(["study", "trial"]).to_numpy()
    if clash.any():
        row = frame.loc[named].iloc[int(np.flatnonzero(clash)[0])]
        times = int(((frame["trial"] == row["trial"]) & (frame["study"] == row["study"])).sum())
        raise TableError(
            f"trial {row['trial']!r} of study {row['study']!r} appears {times} times with "
            "different values; give each run its own trial id, or name the column that counts a run's reports with "
            "columns={'progress': …}"
        )
    if not named.all():
        trial = frame["trial"].to_numpy().astype(object)
        width = len(str(len(frame)))
        taken = set(trial[named])
        for i in np.flatnonzero(~named):
            name = f"row-{i:0{width}d}"
            while name in taken:
                name += "'"
            trial[i] = name
        frame["trial"] = trial
    # plain lists: a frame's own look-ups would take most of the time of a long table
    curves, trials = frame["curve_tokens"].tolist(), frame["trial"].tolist()
    for name in CURVE_COLUMNS[1:]:
        for trial, tokens, values in zip(trials, curves, frame[name].tolist(), strict=True):
            if tokens is not None and values is not None and len(values) not in (0, len(tokens)):
                raise TableError(
                    f"trial {trial!r}: {name} has {len(values)} values for {len(tokens)} token counts"
                )
    return frame
