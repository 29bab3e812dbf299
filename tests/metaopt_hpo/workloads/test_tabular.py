"""Tables: what is held out, how they are scaled, and that scores mean what they say."""

import sys

import pytest
import torch

from metaopt_hpo.strategies import make
from metaopt_hpo.workloads import WorkloadError, scores, train
from metaopt_hpo.workloads.tabular import CLASSIFICATION, REGRESSION, Regression, Tabular, table


@pytest.mark.parametrize("dataset", [*CLASSIFICATION, *REGRESSION])
def test_parts_are_disjoint_and_scaled_by_the_training_rows(dataset: str) -> None:
    training, held_out = table(dataset)
    assert len(held_out.y) / (len(held_out.y) + len(training.y)) == pytest.approx(0.2, abs=0.01)
    assert torch.allclose(training.x.mean(0), torch.zeros(training.x.shape[1]), atol=1e-5)
    spread = training.x.std(0, correction=0)
    assert torch.all(torch.isclose(spread, torch.tensor(1.0), atol=1e-4) | (spread == 0))
    assert torch.isfinite(held_out.x).all()
    if dataset in REGRESSION:
        assert training.y.std(correction=0) == pytest.approx(1, abs=1e-4)


@pytest.mark.parametrize("dataset", CLASSIFICATION)
def test_tables_are_learned(dataset: str) -> None:
    job = Tabular(dataset=dataset, width=32)
    run = train(job, make("cosine", lr=1e-2), tokens=32 * 150, report_stride=16)
    assert scores(job, run)["accuracy"] > 0.9
    assert run.loss < 0.5 * run.initial_loss


def test_regression_explains_variance() -> None:
    job = Regression(width=16)
    run = train(job, make("cosine", lr=3e-3), tokens=32 * 100, report_stride=16)
    r2 = scores(job, run)["r2"]
    assert 0.3 < r2 < 0.7
    variance = table("diabetes")[1].y.var(correction=0).item()
    assert r2 == pytest.approx(1 - run.loss / variance, abs=1e-5)


def test_tables_of_the_other_kind_and_a_missing_package_are_named(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ValueError, match="dataset of regression must be one of diabetes, got 'wine'"):
        Regression(dataset="wine")
    with pytest.raises(ValueError, match="dataset of tabular"):
        Tabular(dataset="diabetes")
    table.cache_clear()
    monkeypatch.setitem(sys.modules, "sklearn", None)
    with pytest.raises(WorkloadError, match=r"scikit-learn.*metaopt-hpo\[workloads\]"):
        table("wine")
