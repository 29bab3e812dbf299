"""Too little memory, and no folder for temporary files: one sentence and an exit code, or the right answer."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

pytestmark = pytest.mark.skipif(not Path("/proc/self/statm").exists(), reason="sets limits by /proc")

COMMAND = """
import importlib, sys
for module in {modules!r}:
    importlib.import_module(module)
{before}
from metaopt_hpo.cli import main
sys.argv = ["metaopt-hpo", *sys.argv[1:]]
main()
"""
LITTLE_MEMORY = """
import resource
pages = int(open("/proc/self/statm").read().split()[0])
limit = pages * resource.getpagesize() + {mebibytes} * 2**20
resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
"""
NO_TEMPORARY = """
import tempfile
def none():
    raise FileNotFoundError(2, "No usable temporary directory found in ['/tmp']")
tempfile._get_default_tempdir = none
"""
HEAVY = (
    "pandas",
    "scipy.optimize",
    "metaopt_hpo.scaling.build",
    "metaopt_hpo.cli.inspect",
    "metaopt_hpo.trials.table",
)


def ended(before: str, *arguments: object, cwd: Path, modules: tuple[str, ...] = HEAVY) -> int:
    code = COMMAND.format(modules=modules, before=before)
    done = subprocess.run(
        [sys.executable, "-c", code, *map(str, arguments)],
        capture_output=True, text=True, check=False, cwd=cwd, timeout=500,
    )  # fmt: skip
    assert "Traceback" not in done.stderr, done.stderr[-2000:]
    if done.returncode:
        assert done.returncode in (1, 3), (done.returncode, done.stderr[-500:])
        assert done.stderr.strip().splitlines()[-1].startswith("error: ")
    else:
        assert "nan" not in done.stdout.lower().split()
    return done.returncode


def table(rows: int, path: Path) -> Path:
    rng = np.random.default_rng(0)
    size = rng.choice([1e6, 4e6, 16e6, 64e6], rows)
    u = rng.normal(0, 1, rows)
    columns = {"size": size, "tokens": 20 * size, "batch": 65536.0, "lr": 0.8 * size**-0.3 * np.exp(u)}
    frame = pd.DataFrame({**columns, "loss": 1.7 + 300 * size**-0.35 + 0.03 * u * u})
    frame.to_csv(path, index=False)
    return path


def test_a_large_table_in_little_memory_is_one_sentence(tmp_path: Path) -> None:
    file = table(100_000, tmp_path / "big.csv")
    assert ended(LITTLE_MEMORY.format(mebibytes=16), "fit", file, cwd=tmp_path)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["big.csv"]


@pytest.mark.sweep
def test_a_million_rows_in_any_memory(tmp_path: Path) -> None:
    file = table(1_000_000, tmp_path / "big.csv")
    codes = [
        ended(LITTLE_MEMORY.format(mebibytes=m), *command, file, cwd=tmp_path)
        for m in (32, 128, 384, 4096)
        for command in (["inspect"], ["fit", "--out", "law.json"])
    ]
    assert codes[:2] == [1, 1]
    assert codes[-2:] == [0, 0]


JOB = """
BATCH = 100
def sizes():
    return {4: 1e4, 8: 4e4, 16: 1.6e5}
def train(config):
    yield config.steps, 2.0
"""


@pytest.mark.parametrize("command", ["fit", "plan"])
def test_no_temporary_folder_is_one_sentence_or_no_matter(command: str, tmp_path: Path) -> None:
    file = table(200, tmp_path / "t.csv")
    (tmp_path / "job.py").write_text(JOB)
    arguments = {
        "fit": [file, "--out", "law.json"],
        "plan": [
            "--target",
            "1.6e5",
            "--tokens",
            "1e5",
            "--workload",
            "job.py",
            "--budget",
            "100 % of the target",
        ],
    }[command]
    code = ended(NO_TEMPORARY, command, *arguments, cwd=tmp_path, modules=())
    assert code == int(command == "plan")
