"""Of several counts of size the one that the optimum follows is chosen, named, and kept."""

from __future__ import annotations

import json
import math

import numpy as np
import pandas as pd
import pytest

from metaopt_hpo.scaling import Law, fit
from metaopt_hpo.trials.table import TrialTable


def mixtures(follows: str, seed: int = 0) -> TrialTable:
    """Models whose active and total parameters are not in proportion; lr* and loss follow one of them."""
    rng, rows = np.random.default_rng(seed), []
    for size, ratio in ((2e7, 1.0), (5e7, 6.0), (1.2e8, 2.0), (3e8, 9.0), (7e8, 3.0)):
        count = size if follows == "size" else size * ratio
        for tokens in (3e9, 1e10):
            lr0 = 3e-3 * (count / 1e8) ** -0.5
            floor = math.log(1.7 + 0.6 * (count / 1e8) ** -0.3 + 0.4 * (tokens / 1e10) ** -0.3)
            for lr in 2e-3 * np.exp(np.linspace(-2.2, 2.2, 10)):
                loss = math.exp(floor + 0.03 * math.log(lr / lr0) ** 2 + 1e-3 * rng.standard_normal())
                row = {"size": size, "tokens": tokens, "batch": 1e5, "lr": lr, "loss": loss}
                rows.append({**row, "total_params": size * ratio})
    return TrialTable.from_frame(pd.DataFrame(rows))


@pytest.mark.parametrize("follows", ["size", "total_params"])
@pytest.mark.parametrize("order", [("size", "total_params"), ("total_params", "size")])
def test_the_count_that_the_optimum_follows_is_chosen(follows: str, order: tuple[str, str]) -> None:
    table = mixtures(follows)
    law = fit(table, size=order, draws=20)
    assert law.size_counts == follows
    assert "size-counts" in {w.code for w in law.warnings}
    assert law.predict(2e9, 1e10).lr.value == pytest.approx(3e-3 * 20**-0.5, rel=0.15)
    again = Law.from_json(law.to_json())
    assert again.size_counts == follows
    assert again.refit(table).domain.size == law.domain.size
    assert ("size counts total_params" in law.describe()) == (follows != "size")


def test_one_count_is_taken_without_a_word_and_a_missing_one_is_named() -> None:
    table = mixtures("total_params")
    law = fit(table, size="total_params", draws=20)
    assert law.size_counts == "total_params"
    assert "size-counts" not in {w.code for w in law.warnings}
    with pytest.raises(ValueError, match="active_params"):
        fit(table, size=("size", "active_params"))


def test_of_counts_in_proportion_the_first_is_taken_and_said_to_be_no_better() -> None:
    table = mixtures("size")
    frame = table.frame
    half = [json.dumps({"total_params": 1.7 * n}) for n in frame["size"]]
    law = fit(TrialTable(frame.assign(params=half)), size=("size", "total_params"), draws=20)
    said = next(w.message for w in law.warnings if w.code == "size-counts")
    assert law.size_counts == "size"
    assert "as well as 'total_params'" in said


def test_where_no_next_size_can_be_predicted_the_first_count_is_taken_for_that_reason() -> None:
    few = mixtures("size").select(where=lambda f: f["size"] < 6e7)
    law = fit(few, size=("total_params", "size"), draws=20, allow_weak=True)
    said = next(w.message for w in law.warnings if w.code == "size-counts")
    assert law.size_counts == "total_params"
    assert "too few sizes" in said
    assert "inf" not in said
