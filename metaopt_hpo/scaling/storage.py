"""A law as plain JSON values and back: no pickle, and nothing in a file can run."""

from __future__ import annotations

import dataclasses
import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from metaopt_hpo.errors import MetaOptError
from metaopt_hpo.scaling.estimates import Caution, Estimate
from metaopt_hpo.scaling.floor import Floor
from metaopt_hpo.scaling.law import Domain, Draws, Law
from metaopt_hpo.scaling.ordered import Trust
from metaopt_hpo.scaling.running import Fall
from metaopt_hpo.scaling.surface import Array, Axes, Surface

FORMAT = "metaopt-hpo law"
VERSION = 2


def write(law: Law, path: str | os.PathLike[str] | None = None) -> str:
    """The law as JSON text; also written to `path` where one is given."""
    text = json.dumps({"format": FORMAT, "version": VERSION, **encode(law)}, allow_nan=False)
    if path is not None:
        Path(path).write_text(text, encoding="utf-8")
    return text


def read(source: str | os.PathLike[str]) -> Law:
    """See `Law.from_json`."""
    text = str(source)
    if not text.lstrip().startswith("{"):
        try:
            text = Path(source).read_text(encoding="utf-8")
        except OSError as e:
            raise MetaOptError(f"cannot read a law from {str(source)!r}: {e.strerror}") from e
    try:
        data = json.loads(text)
    except json.JSONDecodeError as e:
        raise MetaOptError(f"not a law: the text is no JSON ({e.msg} at character {e.pos})") from e
    if not isinstance(data, dict) or data.get("format") != FORMAT:
        raise MetaOptError(f"not a law: the JSON has no format {FORMAT!r}")
    if data.get("version") != VERSION:
        raise MetaOptError(
            f"this law has version {data.get('version')}, this release reads {VERSION}: fit it again"
        )
    try:
        return decode(data)
    except (KeyError, TypeError, ValueError) as e:
        raise MetaOptError(f"not a law: a part is missing or malformed ({e})") from e


def encode(law: Law) -> dict[str, Any]:
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


def decode(data: dict[str, Any]) -> Law:
    def arr(v: Any) -> Array:
        return np.asarray(v, dtype=float)

    s, f, d, m = data["surface"], data["floor"], data["draws"], data["domain"]
    pairs = {k: (float(m[k][0]), float(m[k][1])) for k in ("size", "tokens", "batch", "lr")}
    return Law(
        axes=Axes(
            tuple(data["axes"]["names"]),
            arr(data["axes"]["centre"]),
            {k: float(v) for k, v in data["axes"]["defaults"].items()},
        ),
        surface=Surface(arr(s["a"]), arr(s["b"]), arr(s["h"]), float(s["skew"]), bool(s["has_batch"])),
        floor=Floor(
            tuple(f["names"]),
            arr(f["centre"]),
            float(f["level"]),
            arr(f["coefficient"]),
            arr(f["exponent"]),
            float(f["scatter"]),
            float(f["power"]),
        ),
        draws=Draws(arr(d["a"]), arr(d["b"]), arr(d["slope"]), arr(d["floor"])),
        domain=Domain(**pairs, sizes=tuple(float(v) for v in m["sizes"])),
        noise=float(data["noise"]),
        cells={k: arr(v) for k, v in data["cells"].items()},
        trials=int(data["trials"]),
        level=float(data["level"]),
        widen={k: float(v) for k, v in data["widen"].items()},
        scatter={k: float(v) for k, v in data["scatter"].items()},
        trust={
            k: Trust(
                float(v["copying"]),
                tuple(float(x) for x in v["scores"]),
                int(v["cells"]),
                float(v.get("missed", 0.0)),  # laws written before it was measured
            )
            for k, v in data["trust"].items()
        },
        curvature={
            k: Estimate(float(v["value"]), float(v["low"]), float(v["high"]))
            for k, v in data["curvature"].items()
        },
        warnings=tuple(Caution(c["code"], c["message"]) for c in data["warnings"]),
        origin=str(data["origin"]),
        open_valley=bool(data["open_valley"]),
        settings=dict(data["settings"]),
        fall=None if data["fall"] is None else _fall(data["fall"]),
        path=None if data["path"] is None else (float(data["path"][0]), float(data["path"][1])),
    )


def _fall(data: dict[str, Any]) -> Fall:
    left, mean, spread = (np.asarray(data[k], dtype=float) for k in ("left", "mean", "spread"))
    return Fall(left, mean, spread, int(data["runs"]))
