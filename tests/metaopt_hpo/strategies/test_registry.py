"""Names lead to strategies, other packages' included, and unknown ones to a list."""

import re
from dataclasses import dataclass, fields
from importlib.metadata import EntryPoint
from typing import Any

import pytest

from metaopt_hpo.strategies import (
    LRStrategy,
    StrategyError,
    UnknownStrategy,
    available,
    get,
    make,
    register,
    registry,
)
from metaopt_hpo.strategies.metaoptimize import MetaOptimizeStrategy
from metaopt_hpo.strategies.schedules import Constant


@pytest.fixture(autouse=True)
def _own_registry(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in registry.BUILT_IN:
        get(name)  # a module registers once a process: what it does in a copy would be lost
    monkeypatch.setattr(registry, "_registered", dict(registry._registered))


def test_every_built_in_can_be_made_and_knows_its_name() -> None:
    for name in ("constant", "cosine", "linear", "wsd", "metaoptimize"):
        assert make(name).name == name
        assert name in available()
    assert get("metaoptimize").tunes_lr
    assert not get("cosine").tunes_lr


def test_unknown_names_what_there_is() -> None:
    with pytest.raises(UnknownStrategy, match=r"'cosin'.*cosine"):
        get("cosin")


def test_a_users_strategy_registers_and_a_taken_name_does_not() -> None:
    @register("mine")
    @dataclass(frozen=True, kw_only=True)
    class Mine(Constant):
        pass

    assert get("mine") is Mine
    with pytest.raises(ValueError, match="'mine' is already taken"):
        register("mine")(Constant)


def offer(monkeypatch: pytest.MonkeyPatch, value: str) -> None:
    point = EntryPoint(name="theirs", value=value, group=registry.ENTRY_POINT_GROUP)
    monkeypatch.setattr(
        registry, "entry_points", lambda **k: [point] if k.get("name", "theirs") == "theirs" else []
    )


def test_another_packages_strategy_is_found_by_entry_point(monkeypatch: pytest.MonkeyPatch) -> None:
    offer(monkeypatch, "metaopt_hpo.strategies.schedules:Linear")
    assert issubclass(get("theirs"), LRStrategy)
    assert "theirs" in available()


def test_an_entry_point_that_is_no_strategy_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    offer(monkeypatch, "math:sqrt")
    with pytest.raises(StrategyError, match="math:sqrt"):
        get("theirs")


@pytest.mark.parametrize(
    ("name", "options", "says"),
    [
        ("metaoptimize", {"base": "adam"}, "did you mean 'adamw'"),
        ("cosine", {"base": "adamW"}, "did you mean 'adamw'"),
        ("prodigy", {"base": "sgd"}, "must be 'adamw'"),
        ("metaoptimize", {"weightdecay": 0.1}, "did you mean 'weight_decay'"),
        ("metaoptimise", {}, "did you mean 'metaoptimize'"),
    ],
)
def test_a_near_miss_is_refused_at_once_with_what_was_meant(name: str, options: dict, says: str) -> None:
    assert MetaOptimizeStrategy.name == "metaoptimize"
    with pytest.raises(ValueError, match=says):
        make(name, **options)


def test_weight_decay_suits_the_base_unless_it_is_given() -> None:
    assert make("cosine").weight_decay == 0.1
    assert make("wsd", base="sgd").weight_decay < 1e-3
    assert make("metaoptimize", base="sgdm").weight_decay < 1e-3
    assert make("metaoptimize", base="sgdm", weight_decay=0.1).weight_decay == 0.1
    assert make("cosine", weight_decay=None).options()["weight_decay"] == 0.1


@pytest.mark.parametrize("switch", [True, False])
@pytest.mark.parametrize("name", registry.BUILT_IN)
def test_true_and_false_are_no_numbers(name: str, switch: bool) -> None:
    strategy = get(name)
    asked = [f for f in fields(strategy) if not isinstance(f.default, bool) and "bool" not in str(f.type)]
    numbers = [f.name for f in asked if {"int", "float"} & set(re.findall(r"\w+", str(f.type)))]
    assert {"lr", "weight_decay", "max_grad_norm", "betas"} <= set(numbers)
    for field in numbers:
        with pytest.raises(ValueError, match=rf"{field} must be a number, got"):
            make(name, **{field: (0.9, switch) if field.endswith("betas") else switch})


def test_a_field_of_a_users_own_may_be_a_switch() -> None:
    @register("mine")
    @dataclass(frozen=True, kw_only=True)
    class Mine(Constant):
        nesterov: bool = False
        either: Any = 1.0

    assert make("mine", nesterov=True, either=False).options()["nesterov"] is True
