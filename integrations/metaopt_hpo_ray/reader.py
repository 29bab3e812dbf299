"""Reads an experiment's folder for the command line: `metaopt-hpo inspect | fit | report EXPERIMENT_FOLDER`.

Found by the entry point `metaopt_hpo.readers`, and asked before the reader of Tune's own files, which lose rows.
"""

from __future__ import annotations

from pathlib import Path

from metaopt_hpo.trials.readers.base import Export, Reader, one_frame
from metaopt_hpo_ray.journal import JOURNAL
from metaopt_hpo_ray.result_table import trial_table


def recognises(path: str) -> bool:
    """A folder with a journal, or the journal."""
    given = Path(path)
    return given.name == JOURNAL or (given / JOURNAL).is_file()


def read(path: str) -> Export:
    """The trials of the journal, one row a trial.

    Raises:
        TableError: no trial in it has a size, tokens, batch and lr.
    """
    given = Path(path)
    folder = given.parent if given.name == JOURNAL else given
    return Export("journal of a Ray Tune experiment", one_frame(trial_table(folder).frame))


READER = Reader("ray-journal", recognises, read)
