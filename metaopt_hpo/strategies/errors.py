"""What a strategy raises; a leaf of this room."""

from __future__ import annotations

from metaopt_hpo.errors import MetaOptError


class StrategyError(MetaOptError):
    """A strategy was asked for something it cannot do."""
