"""Time and memory of reading a million rows: `pytest tests/benchmarks/test_table_size.py --benchmark-only -s`.

Each file is read by a process of its own, whose peak memory is the operating system's count.
"""

import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

ROWS = 1_000_000

READ = """
import resource, sys, time, warnings
from metaopt_hpo import TrialTable
warnings.simplefilter("ignore")
begun = time.perf_counter()
table = TrialTable.read(sys.argv[1])
print(len(table), time.perf_counter() - begun, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024**2)
"""


def plain(path: Path) -> int:
    with path.open("w") as file:
        file.write("size,tokens,batch,lr,loss,seed\n")
        for i in range(ROWS):
            file.write(
                f"{1e6 * (1 + i % 6)},{1e8 * (1 + i % 5)},65536,{1e-3 * (1 + i % 7)},{3 + i / ROWS},{i}\n"
            )
    return ROWS


def decimal_commas(path: Path) -> int:
    with path.open("w") as file:
        file.write("size;tokens;batch;lr;loss;seed\n")
        for i in range(ROWS):
            lr, loss = f"{1e-3 * (1 + i % 7):.4f}", f"{3 + i / ROWS:.6f}"
            file.write(
                f"{1000000 * (1 + i % 6)};{100000000 * (1 + i % 5)};65536;{lr};{loss};{i}\n".replace(".", ",")
            )
    return ROWS


def reports(path: Path) -> int:
    runs = ROWS // 20
    with path.open("w") as file:
        file.write("trial_id,size,tokens,batch,lr,tokens_seen,loss\n")
        for i in range(ROWS):
            run, report = divmod(i, 20)
            file.write(
                f"t{run},{1e6 * (1 + run % 6)},2e8,65536,{1e-3 * (1 + run % 7)},{1e7 * (report + 1)},"
                f"{4 - report / 20 + run / ROWS}\n"
            )
    return runs


@pytest.mark.parametrize("write", [plain, decimal_commas, reports])
def test_a_million_rows(benchmark: Any, tmp_path: Path, write: Any) -> None:
    path = tmp_path / "runs.csv"
    trials = write(path)
    out: list[str] = []

    def read() -> None:
        done = subprocess.run(
            [sys.executable, "-c", READ, str(path)], capture_output=True, text=True, check=True
        )
        out[:] = done.stdout.split()

    benchmark.pedantic(read, rounds=1)
    count, seconds, peak = int(out[0]), float(out[1]), float(out[2])
    print(f"\n{write.__name__}: {ROWS} rows, {count} trials, {seconds:.1f} s, peak {peak:.2f} GB")
    assert count == trials
