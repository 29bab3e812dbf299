"""The short form of the damage that `make chaos` does: what is damaged is refused in one sentence, or read rightly."""

import random
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
from damage import Counted, arguments
from damage_plans import losses, plans, predictions

from metaopt_hpo.attribution.levels import CRITERIA, Setting
from metaopt_hpo.attribution.stepping import GridResult
from metaopt_hpo.attribution.storage import as_kept, load_grid, save_grid
from metaopt_hpo.errors import MetaOptError
from metaopt_hpo.trials.record import TrialRecord
from metaopt_hpo.trials.table import TrialTable


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize(("kind", "count"), [(losses, 60), (predictions, 15), (plans, 6), (arguments, 10)])
def test_what_is_damaged_is_one_sentence_or_read_rightly(
    kind: Callable[[int, int], Counted], count: int
) -> None:
    counted = kind(0, count)
    assert counted.tried == count
    assert not counted.wrong, counted.notes


def flips(file: Path, draw: random.Random, count: int) -> Iterator[None]:
    """The file with one bit flipped, so many times; whole again at the end."""
    whole = file.read_bytes()
    for _ in range(count):
        data = bytearray(whole)
        data[draw.randrange(len(data))] ^= 1 << draw.randrange(8)
        file.write_bytes(data)
        yield
    file.write_bytes(whole)


def read_or_refused(read: Callable[[], str]) -> str:
    try:
        return read()
    except MetaOptError as error:
        return "" if "\n" not in str(error) else f"no sentence: {error}"


def test_a_flipped_bit_in_a_table_or_a_grid_changes_no_number(tmp_path: Path) -> None:
    records = [
        TrialRecord(size=1e6 * i, tokens=2e7, batch=1e4, lr=1e-3 * i, loss=2 + 1 / i, trial=str(i))
        for i in range(1, 20)
    ]
    table = TrialTable.from_records(records).write(tmp_path / "t.parquet")
    shape = (1, 1, 3, 2)
    setting = (Setting(noise="gaussian"),)
    numbers = np.linspace(1.0, 2.0, 6 * len(CRITERIA)).reshape(*shape, len(CRITERIA))
    grid = GridResult(
        "w", np.ones(1), np.ones(1), np.array([[0.1, 0.2, 0.3]]), setting, (0, 1), numbers, numbers[..., 0]
    )
    file = tmp_path / "g.parquet"
    save_grid(as_kept(grid), file, "mark")

    def of_table() -> str:
        return repr(
            TrialTable.read(table).frame[["size", "tokens", "batch", "lr", "loss"]].to_numpy().tolist()
        )

    def of_grid() -> str:
        found = load_grid(file, "mark")
        return (
            "" if found is None else repr((found.lr.tolist(), found.criteria.tolist(), found.growth.tolist()))
        )

    for path, read in ((table, of_table), (file, of_grid)):
        whole, refused = read(), 0
        for _ in flips(path, random.Random(0), 150):
            found = read_or_refused(read)
            refused += not found
            assert found in ("", whole)
        assert refused > 30
