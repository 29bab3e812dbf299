"""A setting that the trials did not have, such as another schedule: answered by what is published, and said so."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from statistics import NormalDist
from typing import Any

import numpy as np

from metaopt_hpo.scaling.estimates import Caution
from metaopt_hpo.scaling.forms.axes import Array, Axes
from metaopt_hpo.scaling.forms.offsets import LEVEL_SPREAD, lr_offset, published


@dataclass(frozen=True)
class OtherSetting:
    """By how much ln lr* moves from that of the trials' own setting, how surely, and what to say.

    Attributes:
        name, value: the setting, and what was asked for.
        offset, spread: mean and standard deviation of what is added to ln lr*.
        level: standard deviation of what it may add to ln loss.
    """

    name: str
    value: str
    offset: float
    spread: float
    level: float
    cautions: tuple[Caution, ...]


def other_setting(name: str, asked: dict[str, Any], axes: Axes) -> OtherSetting | None:
    """Takes a value that the trials did not have out of `asked`; None where they had it, or none is asked for.

    Raises:
        ValueError: the trials do not say which value they had, so that nothing can be said of another.
    """
    value, levels = asked.get(name), axes.levels.get(name)
    if value is None:
        return None
    if levels is None:
        raise ValueError(
            f"the trials behind this law do not say their {name}, so that nothing is known of {value!r}: give the "
            f"table a column {name!r} and fit again"
        )
    if value in levels:
        if name not in axes.defaults:
            del asked[name]
        return None
    del asked[name]
    reference = str(axes.defaults.get(name, levels[0]))
    mean, spread = lr_offset(name, value, reference)
    rests = (
        "published factors"
        if published(name, value, reference)
        else "no measurement: only the interval tells"
    )
    message = (
        f"no trial had {name} {value!r}; its optimal lr is taken from that of {reference!r} by {rests} (factor "
        f"{np.exp(mean):.2g}), and the loss is that of {reference!r}: run pilots with {value!r}"
    )
    return OtherSetting(name, value, mean, spread, LEVEL_SPREAD, (Caution(f"{name}-not-run", message),))


@cache
def quantiles(count: int) -> Array:
    """Standard normal quantiles in an order that goes with no draw: added to draws they widen them."""
    normal = NormalDist()
    values = np.array([normal.inv_cdf((i + 0.5) / count) for i in range(count)])
    return np.asarray(values[np.random.default_rng(1).permutation(count)])
