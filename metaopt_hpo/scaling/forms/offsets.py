"""What is published of settings that come in words: by how much each moves the optimal learning rate, and how surely.

A law with such a setting as a coordinate has one offset for each of its values, in ln lr*, ln batch* and ln loss,
relative to the most frequent one; these are its priors. Where the trials have one value only, `Law.predict` answers for
another by the same numbers, with the interval that they deserve and a warning.
"""

from __future__ import annotations

import math
from collections.abc import Mapping

LR: Mapping[str, Mapping[str, tuple[float, float]]] = {
    "schedule": {
        "linear": (0.0, 0.1),
        "cosine": (-0.1, 0.15),
        "wsd": (-0.45, 0.25),
        "constant": (-1.1, 0.25),
    },
    "optimizer": {"adamw": (0.0, 0.05), "adam": (0.0, 0.2), "lion": (-1.7, 0.5)},
}
"""By setting and value: mean and standard deviation of ln lr* relative to the linear decay to zero, and to AdamW.

Constant: 0.26 to 0.43 of the optimum of decaying schedules. Cosine and WSD (a fifth of the run decays): the bound of
Schaipp et al. (arXiv 2501.18965), peak × 1/√(mean of the squared schedule) = 0.94 and 0.62. Lion: 3 to 10 times smaller
than AdamW's (Chen et al. 2023, arXiv 2302.06675)."""

UNKNOWN_LR = {"schedule": 0.7, "optimizer": 1.5}
"""Standard deviation of ln lr* of a value that nothing is published of; 1 for other settings."""

BATCH_SPREAD = 0.3
"""Standard deviation of the offset in ln batch*: nothing is published."""

LEVEL_SPREAD = 0.05
"""Standard deviation of the offset in ln loss at the optimum: schedules differ by 1 to 5 % of loss."""

NUMBER_LEVEL = (0.02, 0.01)
"""Standard deviation of what a numeric coordinate moves ln loss by: for an e-fold, and for its square."""


def lr_offset(setting: str, value: str, reference: str) -> tuple[float, float]:
    """(mean, standard deviation) of ln lr* at one value of a setting less that at another, beforehand."""
    known, unknown = LR.get(setting, {}), (0.0, UNKNOWN_LR.get(setting, 1.0))
    (a, sd_a), (b, sd_b) = known.get(value, unknown), known.get(reference, unknown)
    return a - b, math.hypot(sd_a, sd_b)


def published(setting: str, value: str, reference: str) -> bool:
    """Whether anything is published of both values."""
    known = LR.get(setting, {})
    return value in known and reference in known
