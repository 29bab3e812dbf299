"""What a strategy raises; a leaf of this room."""

from __future__ import annotations

from metaopt_hpo.errors import MetaOptError, MetaOptWarning


class StrategyError(MetaOptError):
    """A strategy was asked for something it cannot do.

    Examples:
        >>> from metaopt_hpo.strategies import StrategyError, UnknownStrategy
        >>> issubclass(UnknownStrategy, StrategyError)
        True
    """


class WrapError(StrategyError, ValueError):
    """An optimizer that cannot be wrapped; the message says why and what can be."""


class RunWarning(MetaOptWarning):
    """A run goes past its horizon, ends before it, or cannot be saved by a smaller step size."""
