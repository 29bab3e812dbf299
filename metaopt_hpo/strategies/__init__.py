"""Ways to set the learning rate of a run, chosen by name."""

from metaopt_hpo.strategies.base import LRRun, LRStrategy, StrategyError
from metaopt_hpo.strategies.registry import UnknownStrategy, available, get, make, register

__all__ = ["LRRun", "LRStrategy", "StrategyError", "UnknownStrategy", "available", "get", "make", "register"]
