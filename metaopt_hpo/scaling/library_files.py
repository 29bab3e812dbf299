"""The library's data files: which laws there are, and the fitted ones as laws."""

from __future__ import annotations

import json
from importlib import resources
from typing import Any

from metaopt_hpo.errors import MetaOptError
from metaopt_hpo.scaling.law import Law


class LibraryError(MetaOptError):
    """No such law, or one that does not say what it was asked."""


def names() -> tuple[str, ...]:
    """Names of all laws in the library, sorted."""
    folder = resources.files("metaopt_hpo.scaling") / "laws"
    return tuple(sorted(p.name.removesuffix(".json") for p in folder.iterdir() if p.name.endswith(".json")))


def entry(name: str) -> dict[str, Any]:
    """A law's data file.

    Raises:
        LibraryError: there is none of this name.
    """
    if name not in names():
        raise LibraryError(f"no law {name!r} in the library; there are {', '.join(names())}")
    text = (resources.files("metaopt_hpo.scaling") / "laws" / f"{name}.json").read_text(encoding="utf-8")
    data: dict[str, Any] = json.loads(text)
    return data


def fitted(name: str) -> Law:
    """A fitted law.

    Raises:
        LibraryError: there is none, or the name is that of a published law, which carries no intervals.
    """
    data = entry(name)
    if data["kind"] != "fitted":
        usable = ", ".join(n for n in names() if entry(n)["kind"] == "fitted")
        raise LibraryError(f"{name} carries no intervals; usable as a prior: {usable}")
    return Law.from_json(json.dumps(data["law"]))
