"""The roots of every error and warning this project raises; a leaf that every room may import."""

from __future__ import annotations

import sys
import warnings


class MetaOptError(Exception):
    """Base of all errors raised by metaopt-hpo on its own account.

    Examples:
        >>> from metaopt_hpo import MetaOptError
        >>> from metaopt_hpo.scaling import library
        >>> try:
        ...     library.load("no-such-law")
        ... except MetaOptError as error:
        ...     print("refused")
        ...
        refused
    """


class MetaOptWarning(UserWarning):
    """Base of all warnings issued by metaopt-hpo; filter on it, or on a subclass.

    Examples:
        >>> import warnings
        >>> from metaopt_hpo import MetaOptWarning
        >>> with warnings.catch_warnings():
        ...     warnings.simplefilter("ignore", MetaOptWarning)
        ...
    """


def warn(message: str, category: type[MetaOptWarning]) -> None:
    """Issue a warning at the line of the user's code that led here: the nearest one outside this package and torch."""
    level, frame = 2, sys._getframe(1)
    while frame.f_back is not None:
        if str(frame.f_globals.get("__name__", "")).partition(".")[0] not in ("metaopt_hpo", "torch"):
            break
        level, frame = level + 1, frame.f_back
    warnings.warn(message, category, stacklevel=level)
