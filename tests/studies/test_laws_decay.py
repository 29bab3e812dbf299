"""The kept runs of the weight decay study are whole, and its table says what they say."""

from __future__ import annotations

from metaopt_hpo.trials.table import TrialTable
from studies.laws import decay


def test_the_kept_runs_are_whole() -> None:
    kept = TrialTable.read(decay.KEPT).records()
    assert len(kept) == len(decay.DECAYS) * sum(decay.STEPS.values())
    assert all(r.state == "complete" for r in kept)
    section = decay.table(kept)
    for steps, row in zip(decay.STEPS, section.rows, strict=True):
        assert row[0] == f"{steps:,}"
        best, published = float(row[3]), float(row[4])
        assert published / best > 4
        runs = [r for r in kept if r.tokens == steps * r.batch]
        assert min(runs, key=lambda r: r.loss).params[decay.NAME] < published / 2
