"""The roots of every error and warning this project raises; a leaf that every room may import."""

from __future__ import annotations


class MetaOptError(Exception):
    """Base of all errors raised by metaopt-hpo on its own account."""


class MetaOptWarning(UserWarning):
    """Base of all warnings issued by metaopt-hpo; filter on it, or on a subclass."""
