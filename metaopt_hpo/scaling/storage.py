"""A law as plain JSON values and back: no pickle, and nothing in a file can run."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from pydantic_core import from_json

from metaopt_hpo.atomic import write_text
from metaopt_hpo.errors import MetaOptError
from metaopt_hpo.scaling.domain import Domain
from metaopt_hpo.scaling.draws import Draws
from metaopt_hpo.scaling.estimates import Caution, Estimate
from metaopt_hpo.scaling.fitting.alternatives import Alternatives, Shape
from metaopt_hpo.scaling.fitting.ordered import OrderedValidation
from metaopt_hpo.scaling.fitting.running import RemainingFall
from metaopt_hpo.scaling.forms.axes import Axes
from metaopt_hpo.scaling.forms.decay import Decay
from metaopt_hpo.scaling.forms.edge import Edge
from metaopt_hpo.scaling.forms.floor import Floor
from metaopt_hpo.scaling.forms.surface import Array, Surface
from metaopt_hpo.scaling.law_schema import check

if TYPE_CHECKING:
    from _typeshed import DataclassInstance

FORMAT = "metaopt-hpo law"
VERSION = 2
"""Of the file's fields: a law's file of another version is refused."""

MAX_BYTES = 256 * 2**20
"""Largest file that is read as a law: a law of a thousand cells with 10,000 draws has a tenth of it."""

CHECKSUM = "checksum"


class NotALaw(MetaOptError):
    """What was to be read as a law is something else, such as a table of runs; a damaged law is not meant.

    Args:
        reason: what it is, or is not.
        path: of the file; "" where text was given.
    """

    def __init__(self, reason: str, path: str = "") -> None:
        super().__init__(f"{path!r} is not a law: {reason}" if path else f"not a law: {reason}")
        self.reason = reason


def write(law: DataclassInstance, path: str | os.PathLike[str] | None = None) -> str:
    """The law as JSON text, with a checksum; also written to `path` where one is given.

    Raises:
        WriteError: the file cannot be written; one that was there is unchanged.
        MetaOptError: the law holds a number that is not finite.
    """
    data = {"format": FORMAT, "version": VERSION, **encode(law)}
    try:
        text = json.dumps({**data, CHECKSUM: _checksum(data)}, allow_nan=False)
    except ValueError as error:
        raise MetaOptError(f"the law cannot be written: {error}") from error
    if path is not None:
        write_text(path, text)
    return text


def read(source: str | os.PathLike[str]) -> dict[str, Any]:
    """The fields of a law from JSON text or a file's path; see `Law.from_json`."""
    text = str(source)
    if not text.lstrip().startswith("{"):
        text = _file_text(source)
    try:
        data = from_json(text, allow_inf_nan=False)
    except ValueError as error:
        raise NotALaw(f"the text is no JSON ({error})") from error
    if not isinstance(data, dict) or data.get("format") != FORMAT:
        raise NotALaw(f"the JSON has no format {FORMAT!r}")
    if data.get("version") != VERSION:
        raise MetaOptError(
            f"this law has version {data.get('version')!r:.20}, this release reads {VERSION}: fit it again"
        )
    said = data.pop(CHECKSUM, None)
    try:
        if said is not None and said != _checksum(data):
            raise ValueError("its content does not match its checksum; write it again with fit")
        return decode(data)
    except (KeyError, TypeError, ValueError, OverflowError) as e:
        raise MetaOptError(f"not a law: a part is missing or malformed ({e})") from e


def _file_text(source: str | os.PathLike[str]) -> str:
    try:
        path = Path(source)
        if path.is_dir():
            raise MetaOptError(f"cannot read a law from {str(source)!r}: it is a folder")
        with path.open("rb") as file:
            raw = file.read(MAX_BYTES + 1)
    except OSError as e:
        raise MetaOptError(f"cannot read a law from {str(source)[:200]!r}: {e.strerror}") from e
    except ValueError as e:  # a null character
        raise MetaOptError(f"cannot read a law from {str(source)[:200]!r}: {e}") from e
    if len(raw) > MAX_BYTES:
        raise NotALaw(f"it is larger than {MAX_BYTES >> 20} MiB", str(source))
    try:
        return raw.decode("utf-8")
    except UnicodeDecodeError:
        raise NotALaw("it is no UTF-8 text (compressed? unpack it first)", str(source)) from None


def _checksum(data: Mapping[str, Any]) -> str:
    """Of the content, whatever the order of keys and white space; numbers are equal where their values are."""
    text = json.dumps(data, sort_keys=True, separators=(",", ":"), allow_nan=False)
    return hashlib.sha256(text.encode()).hexdigest()


def encode(law: DataclassInstance) -> dict[str, Any]:
    def plain(v: Any) -> Any:
        if isinstance(v, np.ndarray):
            return v.tolist()
        if dataclasses.is_dataclass(v) and not isinstance(v, type):
            return {
                f.name: plain(getattr(v, f.name)) for f in dataclasses.fields(v) if not f.name.startswith("_")
            }
        if isinstance(v, Mapping):
            return {k: plain(x) for k, x in v.items()}
        if isinstance(v, (tuple, list)):
            return [plain(x) for x in v]
        return v.item() if isinstance(v, np.generic) else v

    out = plain(law)
    assert isinstance(out, dict)
    return out


def decode(data: Mapping[str, Any]) -> dict[str, Any]:
    """The fields of the law of these JSON values, which `law_schema` checks first.

    Raises:
        ValueError: a part is missing, of a wrong type, out of range, or does not fit the others.
    """
    law = check(data)

    def arr(v: Any) -> Array:
        return np.asarray(v, dtype=float)

    def pair(v: Sequence[float]) -> tuple[float, float]:
        return float(v[0]), float(v[1])

    s, f, d, m = law.surface, law.floor, law.draws, law.domain
    return {
        "axes": Axes(
            tuple(law.axes.names),
            arr(law.axes.centre),
            dict(law.axes.defaults),
            {k: tuple(v) for k, v in law.axes.levels.items()},
        ),
        "surface": Surface(arr(s.a), arr(s.b), arr(s.h), s.skew, s.has_batch, tuple(s.further), s.form),
        "floor": Floor(
            tuple(f.names),
            arr(f.centre),
            f.level,
            arr(f.coefficient),
            arr(f.exponent),
            f.scatter,
            f.power,
            tuple(f.further),
            f.form,
            tuple(f.features),
            tuple(f.shift),
        ),
        "draws": Draws(arr(d.a), arr(d.b), arr(d.slope), arr(d.floor)),
        "domain": Domain(pair(m.size), pair(m.tokens), pair(m.batch), pair(m.lr), sizes=tuple(m.sizes)),
        "noise": law.noise,
        "cells": {k: arr(v) for k, v in law.cells.model_dump().items()},
        "trials": law.trials,
        "level": law.level,
        "widen": law.widen.model_dump(),
        "scatter": law.scatter.model_dump(),
        "trust": {
            k: OrderedValidation(v.copying, tuple(v.scores), v.cells, v.missed) for k, v in law.trust.items()
        },
        "curvature": {k: Estimate(v.value, v.low, v.high) for k, v in law.curvature.items()},
        "warnings": tuple(Caution(c.code, c.message) for c in law.warnings),
        "open_valley": law.open_valley,
        "settings": law.settings.model_dump(exclude_unset=True),
        "fall": None
        if law.fall is None
        else RemainingFall(arr(law.fall.left), arr(law.fall.mean), arr(law.fall.spread), law.fall.runs),
        "path": None if law.path is None else pair(law.path),
        "decay": None
        if (w := law.decay) is None
        else Decay(arr(w.c), w.h, arr(w.draws), pair(w.span), w.runs),
        "edge": None if (e := law.edge) is None else Edge(arr(e.mean), arr(e.covariance), e.runs, e.diverged),
        "alternatives": None
        if (other := law.alternatives) is None
        else Alternatives(
            tuple(Shape(x.kind, x.axis, x.place) for x in other.shapes), arr(other.lr), arr(other.batch)
        ),
    }
