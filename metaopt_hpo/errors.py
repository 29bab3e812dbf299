"""The roots of every error and warning this project raises; a leaf that every room may import."""

from __future__ import annotations


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
