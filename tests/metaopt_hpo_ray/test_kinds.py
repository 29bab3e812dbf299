"""Every kind of trainable and of stopping, on a real cluster, ends in the table as docs/ray-tune.md says it does."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import kinds
import pytest
from ray import tune

from metaopt_hpo_ray import trial_table, tuner_configs

pytestmark = [pytest.mark.slow, pytest.mark.filterwarnings("ignore::DeprecationWarning")]

DOCUMENT = Path(__file__).resolve().parents[2] / "docs" / "ray-tune.md"


def promised() -> dict[str, tuple[str, str]]:
    """Kind → (state, tokens) of the table in the document."""
    text = DOCUMENT.read_text(encoding="utf-8")
    rows = re.findall(r"^\| `([^`]+)`[^|]*\| ([a-z]+) \| ([^|]+) \|", text, flags=re.MULTILINE)
    return {kind: (state, tokens.strip()) for kind, state, tokens in rows}


def run(
    tmp_path: Path, trainable: Any, names: list[str], **options: Any
) -> dict[str, tuple[str, float, str]]:
    space = {
        "size": 100,
        "tokens": kinds.TOKENS,
        "batch": kinds.BATCH,
        "lr": 1e-2,
        "kind": tune.grid_search(names),
    }
    fields = {"verbose": 0, **options.pop("run_options", {})}
    configs = tuner_configs(
        param_space=space,
        name=names[0],
        storage_path=str(tmp_path),
        reuse_actors=True,
        max_failures=0,
        run_options=fields,
        **options,
    )
    tune.Tuner(trainable, **configs).fit()
    table = trial_table(tmp_path / names[0])
    return {str(r.params["kind"]): (r.state, r.tokens, r.reason) for r in table.records()}


FUNCTIONS = [
    "plain function",
    "TrialRun",
    "falls short of its tokens",
    "returns early",
    "counts no tokens",
    "another progress name",
    "diverges",
    "raises",
]


def test_all_kinds_end_as_the_document_says(cluster: str, tmp_path: Path) -> None:
    found = run(tmp_path, kinds.function, FUNCTIONS)
    found |= run(tmp_path, tune.with_parameters(kinds.function, scale=1.0), ["with_parameters"])
    stop = {"run_options": {"stop": {"training_iteration": 10}}}
    found |= run(tmp_path, kinds.Net, ["stop={…}", "says done"], checkpoint_frequency=5, **stop)
    found |= run(tmp_path, kinds.function, ["is cut off"], tune_options={"time_budget_s": 3})
    table = promised()
    assert len(table) == 12
    assert set(found) == set(table)
    for kind, (state, tokens) in table.items():
        assert found[kind][0] == state, (kind, found[kind])
        if tokens == "all":
            assert found[kind][1] == pytest.approx(kinds.TOKENS, rel=0.05), (kind, found[kind])
        else:
            assert found[kind][1] < kinds.TOKENS, (kind, found[kind])


def test_loggers_of_others_work_beside_the_keeper_and_see_what_a_trial_run_says(
    cluster: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """TensorBoard, MLflow and W&B, all offline."""
    pytest.importorskip("mlflow", reason="mlflow is not installed")
    pytest.importorskip("wandb", reason="wandb is not installed")
    import mlflow
    from ray.air.integrations.mlflow import MLflowLoggerCallback
    from ray.air.integrations.wandb import WandbLoggerCallback
    from ray.tune.logger import TBXLoggerCallback

    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setenv("WANDB_SILENT", "true")
    uri = f"sqlite:///{tmp_path}/mlflow.db"
    loggers = [
        TBXLoggerCallback(),
        MLflowLoggerCallback(tracking_uri=uri, experiment_name="e"),
        WandbLoggerCallback(project="p"),
    ]
    found = run(tmp_path, kinds.function, ["TrialRun"], run_options={"callbacks": loggers})
    assert found["TrialRun"][0] == "complete"
    assert list(tmp_path.glob("TrialRun/*/events.out.tfevents*"))
    (logged,) = mlflow.MlflowClient(uri).search_runs(
        [e.experiment_id for e in mlflow.MlflowClient(uri).search_experiments() if e.name == "e"]
    )
    assert {"loss", "step_size", "tokens_seen", "flops"} <= logged.data.metrics.keys()
