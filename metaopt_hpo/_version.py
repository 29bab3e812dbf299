"""The version that is installed; the public face and the reports read it here."""

from __future__ import annotations

from importlib.metadata import PackageNotFoundError, version

try:
    __version__ = version("metaopt-hpo")
except PackageNotFoundError:  # a source tree that was never installed
    __version__ = "0+unknown"
