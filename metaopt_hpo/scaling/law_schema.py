"""What a law's JSON must look like: parts that fit together, checked before a law is made of it."""

from __future__ import annotations

from typing import Annotated, Any, Literal, Self

from pydantic import Field, ValidationError, model_validator

from metaopt_hpo.scaling.law_parts import (
    AlternativesPart,
    AxesPart,
    CautionPart,
    CellsPart,
    DecayPart,
    DomainPart,
    DrawsPart,
    EdgePart,
    EstimatePart,
    FallPart,
    FloorPart,
    Part,
    Row,
    ScatterPart,
    SettingsPart,
    SurfacePart,
    TrustPart,
    WidenPart,
    same,
)


class LawPart(Part):
    """A whole law; its parts as in `scaling.law.Law`."""

    axes: AxesPart
    surface: SurfacePart
    floor: FloorPart
    draws: DrawsPart
    domain: DomainPart
    noise: Annotated[float, Field(gt=0, le=1e6)]
    cells: CellsPart
    trials: Annotated[int, Field(ge=0)]
    level: Annotated[float, Field(gt=0, lt=1)]
    widen: WidenPart
    scatter: ScatterPart
    trust: dict[Literal["size", "tokens"], TrustPart]
    curvature: dict[str, EstimatePart]
    warnings: list[CautionPart]
    origin: str = ""
    """In files of earlier versions; nothing reads it."""
    open_valley: bool
    settings: SettingsPart
    path: Annotated[Row, Field(min_length=2, max_length=2)] | None
    fall: FallPart | None
    alternatives: AlternativesPart | None = None
    edge: EdgePart | None = None
    decay: DecayPart | None = None
    """All absent in laws written before they were kept."""

    @model_validator(mode="after")
    def _fits(self) -> Self:
        width = 1 + len(self.axes.names)
        same("axes", width, **{"surface.a": self.surface.a, "surface.b": self.surface.b})
        terms = 2 + 2 * len(self.floor.names) + len(self.floor.further) + len(self.floor.shift)
        unknown = {n for f in self.floor.features for n in f.split("*")} - set(self.axes.names)
        if unknown:
            raise ValueError(f"floor.features names {min(unknown)!r}, which is no axis")
        for i, (a, b, f) in enumerate(zip(self.draws.a, self.draws.b, self.draws.floor, strict=True)):
            same("axes", width, **{f"draws.a[{i}]": a, f"draws.b[{i}]": b})
            same("floor", terms, **{f"draws.floor[{i}]": f})
        if self.decay is not None:
            scales = sum(n in ("size", "tokens") for n in self.axes.names)
            same("axes of scale", 1 + scales, **{"decay.c": self.decay.c})
        if self.edge is not None:
            scales = sum(n in ("size", "tokens") for n in self.axes.names)
            same("axes of scale", 4 + scales, **{"edge.mean": self.edge.mean})
        if self.alternatives is not None:
            if any(s.axis >= width for s in self.alternatives.shapes):
                raise ValueError("alternatives.shapes names an axis that the law does not have")
            wide = width + len(self.alternatives.shapes)
            for i, (x, y) in enumerate(zip(self.alternatives.lr, self.alternatives.batch, strict=True)):
                same(
                    "axes and shapes",
                    wide,
                    **{f"alternatives.lr[{i}]": x, f"alternatives.batch[{i}]": y},
                )
        return self


def check(data: Any) -> LawPart:
    """The parts of a law, or ValueError with the first thing that is wrong and how many more there are."""
    try:
        return LawPart.model_validate(data)
    except ValidationError as error:
        first, *others = error.errors(include_url=False, include_input=False)
        where = ".".join(str(part) for part in first["loc"]) or "its parts"
        message = first["msg"].removeprefix("Value error, ")
        more = f", and {len(others)} more" if others else ""
        raise ValueError(f"{where}: {message[:1].lower()}{message[1:]}{more}") from None
