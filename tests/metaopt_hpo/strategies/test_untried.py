"""A base rule on which nothing was compared with tuned runs is said, once."""

import warnings
from typing import Any

import pytest
import torch
from torch import nn

from metaopt_hpo.errors import MetaOptWarning
from metaopt_hpo.strategies import make, untried
from metaopt_hpo.strategies.untried import UntriedBase
from metaopt_hpo.strategies.wrap import wrap


@pytest.fixture(autouse=True)
def new_process(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(untried, "_said", set())


def wrapped(kind: Any, **options: Any) -> Any:
    return lambda: wrap(kind(nn.Linear(2, 2).parameters(), lr=0.1, **options), 10)


def built(**options: Any) -> Any:
    return lambda: make("metaoptimize", **options).build(nn.Linear(2, 2), 10)


@pytest.mark.parametrize(
    ("build", "name"),
    [
        (built(base="sgd"), "SGD"),
        (wrapped(torch.optim.SGD, momentum=0.9, nesterov=True), "TorchMomentum"),
        (wrapped(torch.optim.AdamW, amsgrad=True), "AMSGrad"),
    ],
)
def test_an_untested_base_is_said_once_in_one_sentence(build: Any, name: str) -> None:
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        build()
        build()
    said = [w for w in caught if issubclass(w.category, MetaOptWarning)]
    assert [w.category for w in said] == [UntriedBase]
    text = str(said[0].message)
    assert f"over {name} " in text
    assert ". " not in text


@pytest.mark.parametrize(
    "build",
    [
        built(),
        built(base="rmsprop"),
        built(base="lion"),
        built(base="sgdm"),
        built(base="muon"),
        built(base="sgd", meta_lr=0.0),
        wrapped(torch.optim.Adam),
        wrapped(torch.optim.RMSprop),
        wrapped(torch.optim.SGD, momentum=0.9),
    ],
)
def test_a_tested_base_and_a_plain_schedule_are_not(build: Any) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        build()
