"""Names that tools and people give the quantities of a trial."""

from __future__ import annotations

import math

import numpy as np
import pytest

from metaopt_hpo.trials import quantities


@pytest.mark.parametrize(
    ("names", "quantity", "found"),
    [
        (["lr", "other"], "lr", "lr"),
        (["Learning Rate"], "lr", "Learning Rate"),
        (["config.optimizer.lr"], "lr", "config.optimizer.lr"),
        (["params_lr", "user_attrs_size"], "lr", "params_lr"),
        (["params_lr", "user_attrs_size"], "size", "user_attrs_size"),
        (
            ["lr", "config/lr"],
            "lr",
            "config/lr",
        ),  # a reported lr is a scheduler's, the config's is the trial's
        (["lr", "config/train_loop_config/lr"], "lr", "config/train_loop_config/lr"),
        (["loss", "val_loss"], "loss", None),  # most often the loss on the training data
        (["loss", "eval/loss"], "loss", None),
        (["loss", "loss/val"], "loss", None),
        (["loss", "test_loss"], "loss", None),
        (["summary.loss", "summary.val_loss"], "loss", None),
        (["loss", "curve_loss", "initial_loss", "train_loss"], "loss", "loss"),
        (["loss", "val_loss_std", "config/val_loss_weight"], "loss", "loss"),
        (["eval/loss", "train/loss"], "loss", "eval/loss"),
        (["summary.tokens", "config.tokens"], "tokens", "config.tokens"),
        (["val_loss", "eval_loss"], "loss", None),  # two equal claims: asked for, not guessed
        (["batch_size"], "batch", None),  # sequences, most often
        (["data_size"], "size", None),
        (["N", "D"], "size", None),
        (["anything"], "tokens", None),
    ],
)
def test_a_name_is_taken_only_where_it_can_mean_nothing_else(
    names: list[str], quantity: str, found: str | None
) -> None:
    assert quantities.find(names, quantity) == found


def test_weak_names_and_spelling_are_suggested() -> None:
    assert quantities.did_you_mean("batch", ["bsz", "x"], "batch") == ["bsz"]
    assert quantities.did_you_mean("leraning_rate", ["learning_rate", "x"]) == ["learning_rate"]
    assert quantities.did_you_mean("size", ["N", "depth"], "size") == ["N"]
    assert quantities.did_you_mean("size", ["N (M)", "depth"], "size") == ["N (M)"]
    assert quantities.unit_hint("N (M)") == "millions"
    assert quantities.did_you_mean("batch", ["BS (tok)", "x"], "batch") == ["BS (tok)"]
    assert quantities.unit_hint("BS (tok)") is None
    assert quantities.did_you_mean("loss", ["loss", "c4/val/loss"], "loss") == ["c4/val/loss", "loss"]


def test_look_up_reads_nested_mappings_and_other_names() -> None:
    config = {"optimizer": {"lr": 0.1}, "num_params": np.int64(5), "model": {"tokens": 7.0}}
    assert quantities.look_up(config, "lr") == 0.1
    assert quantities.look_up(config, "size", "size") == 5
    assert quantities.look_up(config, "tokens", "model/tokens") == 7.0
    assert quantities.look_up(config, "tokens", "model.tokens") == 7.0
    assert quantities.look_up(config, "batch", "gbs") is None


def test_positive_takes_numpy_and_nothing_else() -> None:
    assert quantities.positive(np.float32(2.0)) == 2.0
    assert quantities.positive(np.array(3)) == 3.0
    for wrong in (True, "3", None, math.nan, math.inf, 0, -1, [1, 2]):
        assert quantities.positive(wrong) is None
