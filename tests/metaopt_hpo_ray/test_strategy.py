"""strategy_space: what a config holds is what was chosen; resources follow size."""

from __future__ import annotations

from typing import Any

import pytest
from ray import cloudpickle, tune
from ray.tune.search.variant_generator import generate_variants

from metaopt_hpo.strategies.registry import UnknownStrategy
from metaopt_hpo_ray import build_strategy, resources_by_size, strategy_space


def configs(space: dict[str, Any], count: int = 40) -> list[dict[str, Any]]:
    space = cloudpickle.loads(cloudpickle.dumps(space))
    return [config for _ in range(count) for _, config in generate_variants(space)]


def test_options_are_set_only_for_the_strategy_chosen() -> None:
    space = strategy_space(
        {"metaoptimize": {}, "cosine": {"lr": (1e-4, 1e-1), "warmup": [0.0, 0.05]}, "constant": {"lr": 0.01}}
    )
    seen = set()
    for config in configs(space):
        strategy = build_strategy(config)
        seen.add(strategy.name)
        assert strategy.name == config["strategy"]
        if strategy.name == "metaoptimize":
            assert config["lr"] is None
            assert config["cosine.warmup"] is None
        elif strategy.name == "cosine":
            assert 1e-4 <= strategy.lr == config["lr"] <= 1e-1
            assert strategy.options()["warmup"] == config["cosine.warmup"]
        else:
            assert strategy.lr == 0.01
            assert config["cosine.warmup"] is None
    assert seen == {"metaoptimize", "cosine", "constant"}


def test_one_strategy_has_plain_ranges_for_any_searcher() -> None:
    space = strategy_space({"wsd": {"lr": (1e-4, 1e-1), "cooldown": 0.2}})
    assert space["strategy"] == "wsd"
    assert isinstance(space["lr"], tune.search.sample.Float)
    assert build_strategy({**space, "lr": 1e-3}).options()["cooldown"] == 0.2


@pytest.mark.parametrize(
    ("space", "message"),
    [
        ({}, "is empty"),
        ({"cosine": {}}, "needs a learning rate"),
        ({"cosine": {"lr": (1e-1, 1e-4)}}, "0 < low < high"),
        ({"cosine": {"lr": (1e-4, 1e-1), "warm": 0.1}}, "no option 'warm'"),
        ({"cosine": {"lr": []}}, "choices of 'lr'"),
        ({"cosine": {"lr": {"grid": 1}}}, "a range"),
    ],
)
def test_a_wrong_space_is_refused_at_once(space: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        strategy_space(space)


def test_unknown_strategies_and_configs_without_one_are_named() -> None:
    with pytest.raises(UnknownStrategy, match="cosin"):
        strategy_space({"cosin": {"lr": 1e-3}})
    with pytest.raises(ValueError, match="strategy_space"):
        build_strategy({"lr": 1e-3})


@pytest.mark.parametrize(
    ("size", "gpus"), [(1e6, 0.125), (1.3e8, 0.25), (5e8, 0.5), (1e9, 1.0), (2.5e9, 3.0)]
)
def test_a_model_gets_its_share_of_a_gpu(size: float, gpus: float) -> None:
    resources = resources_by_size(gpu_size=1e9)({"size": size})
    assert resources.required_resources == {"CPU": 1.0, "GPU": gpus}


def test_resources_say_what_they_lack() -> None:
    assert resources_by_size(cpus=2)({}).required_resources == {"CPU": 2.0}
    with pytest.raises(ValueError, match="config's 'size'"):
        resources_by_size(gpu_size=1e9)({})
    with pytest.raises(ValueError, match="cpus"):
        resources_by_size(cpus=0)
