"""The search methods that are compared, by name: what each one proposes, whatever engine runs it."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

Kind = Literal["external", "self-tuning", "law"]
"""AlgoPerf's terms (arXiv 2306.07179): an external tuner pays for many trials, a self-tuning method for one."""


@dataclass(frozen=True)
class Method:
    """One way to spend a budget.

    `external` methods search the lr of the task's schedule; `self-tuning` ones run an adaptive strategy,
    each further trial from another start; `law` ones propose from a law fitted to smaller sizes.
    """

    name: str
    title: str
    kind: Kind
    strategy: str | None = None
    """The strategy a self-tuning method runs; the others use the task's."""


_METHODS = {
    m.name: m
    for m in (
        Method("grid", "Grid search", "external"),
        Method("random", "Random search", "external"),
        Method("tpe", "Bayesian search (TPE)", "external"),
        Method("gp", "Bayesian search (GP)", "external"),
        Method("cmaes", "CMA-ES", "external"),
        Method("median", "TPE + median pruning", "external"),
        Method("hyperband", "TPE + Hyperband", "external"),
        Method("asha", "Random + ASHA", "external"),
        Method("hyperband-sync", "Random + HyperBand (synchronous)", "external"),
        Method("pbt", "Population based training", "external"),
        Method("pb2", "PB2 (population based bandits)", "external"),
        Method("metaoptimize", "MetaOptimize", "self-tuning", strategy="metaoptimize"),
        Method("law", "Law from smaller models", "law"),
        Method("law-no-pruner", "Law, nothing stopped", "law"),
        Method("law+scheduler", "Law and its scheduler", "law"),
        Method("tpe-few", "TPE after four random trials", "external"),
        Method("tpe+asha", "TPE + ASHA", "external"),
    )
}


def method(name: str) -> Method:
    """The method of that name.

    Raises:
        ValueError: unknown; the message lists those there are.
    """
    try:
        return _METHODS[name]
    except KeyError:
        raise ValueError(f"unknown method {name!r}; available: {', '.join(_METHODS)}") from None


def available_methods() -> tuple[str, ...]:
    """Names of all methods; an engine may implement fewer."""
    return tuple(_METHODS)


def grid_points(low: float, high: float, count: int) -> list[float]:
    """`count` log-spaced learning rates from `low` to `high`, ends included; the geometric mean for one.

    They come in an order in which every prefix covers the range: ends and middle first, then the gaps.
    """
    if count < 1:
        raise ValueError(f"a grid needs at least one point, got {count}")
    if count == 1:
        return [math.sqrt(low * high)]
    ratio = math.log(high / low) / (count - 1)
    points = [low * math.exp(ratio * i) for i in range(count)]
    return [points[i] for i in coarse_to_fine(count)]


def coarse_to_fine(count: int) -> Iterator[int]:
    """Indices 0 … count−1, the middle first, then the ends, then whichever is farthest from those given."""
    given: list[int] = []
    for first in dict.fromkeys((count // 2, 0, count - 1)):
        given.append(first)
        yield first
    while len(given) < count:
        rest = (i for i in range(count) if i not in given)
        farthest = max(rest, key=lambda i: (min(abs(i - g) for g in given), -i))
        given.append(farthest)
        yield farthest


def starts(default: float) -> Iterator[float]:
    """Starts of a self-tuning method's trials: its default, then a factor of √10 and more to either side.

    Low starts come before high ones: they cost less when wrong.
    """
    yield default
    k = 1
    while True:
        yield default * 10 ** (-0.5 * k)
        yield default * 10 ** (0.5 * k)
        k += 1
