"""What a law's JSON must look like: types, ranges, and shapes that fit together, checked before a law is made of it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, Any, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from metaopt_hpo.errors import MetaOptError
from metaopt_hpo.scaling.fitting.ordered import COPYING
from metaopt_hpo.scaling.forms.bowl import bowl_of
from metaopt_hpo.scaling.forms.floor import floor_of

Positive = Annotated[float, Field(gt=0)]
NotNegative = Annotated[float, Field(ge=0)]
Log = Annotated[float, Field(ge=-700, le=700)]
"""A logarithm, or a power of one: beyond, its exponential is no number."""
Factor = Annotated[float, Field(ge=0, le=1e6)]
"""A spread in logarithms, or a widening of one."""
Curving = Annotated[float, Field(ge=-1e6, le=1e6)]
Pair = Annotated[list[Positive], Field(min_length=2, max_length=2)]
Row = list[float]
Three = Annotated[Row, Field(min_length=3, max_length=3)]


class _Part(BaseModel):
    model_config = ConfigDict(strict=True, allow_inf_nan=False, extra="ignore")


def _same(what: str, expected: int, **given: Sequence[Any]) -> None:
    for name, values in given.items():
        if len(values) != expected:
            raise ValueError(f"{name} has {len(values)} entries and {what} asks for {expected}")


def _ascending(name: str, pair: Pair) -> None:
    if pair[0] > pair[1]:
        raise ValueError(f"{name} runs from {pair[0]:g} down to {pair[1]:g}")


class AxesPart(_Part):
    names: list[str]
    centre: list[Log]
    defaults: dict[str, float | str]
    levels: dict[str, Annotated[list[str], Field(min_length=1)]] = {}
    """Absent in laws written before settings could be words."""

    @model_validator(mode="after")
    def _fits(self) -> Self:
        if len(set(self.names)) != len(self.names):
            raise ValueError("names repeat")
        _same("names", len(self.names), centre=self.centre)
        extras = [n for n in self.names if n not in ("size", "tokens")]
        last = extras == self.names[len(self.names) - len(extras) :]
        if not last or not {n.partition("=")[0] for n in extras} <= set(self.defaults):
            raise ValueError("defaults must name the axes other than size and tokens, which come last")
        for name, value in self.defaults.items():
            if isinstance(value, str) and value not in self.levels.get(name, ()):
                raise ValueError(f"levels of {name} lack its default {value!r}")
        for name in extras:
            key, _, level = name.partition("=")
            if level and level not in self.levels.get(key, ()):
                raise ValueError(f"levels of {key} lack {level!r}")
        return self


class SurfacePart(_Part):
    a: list[Log]
    b: list[Log]
    h: Annotated[list[Curving], Field(min_length=3, max_length=3)]
    skew: Curving
    has_batch: bool
    further: list[Curving] = []
    form: str = "cubic"
    """Both absent in laws written before there was more than one form."""

    @model_validator(mode="after")
    def _fits(self) -> Self:
        if not self.h[0] > 0:
            raise ValueError(f"h must begin with a number > 0, got {self.h[0]:g}")
        try:
            names = bowl_of(self.form).names
        except MetaOptError as error:
            raise ValueError(str(error)) from None
        _same(f"form {self.form!r}", max(len(names) - 4, 0), further=self.further)
        return self


class FloorPart(_Part):
    names: Annotated[list[Literal["size", "tokens"]], Field(min_length=1, max_length=2)]
    centre: list[Log]
    level: NotNegative
    coefficient: list[NotNegative]
    exponent: list[Log]
    scatter: Factor
    power: Annotated[float, Field(gt=0, le=700)] = 1.0
    further: list[Curving] = []
    form: str = "power"
    features: list[str] = []
    shift: list[Curving] = []
    """The last four are absent in laws written before there was more than one form."""

    @model_validator(mode="after")
    def _fits(self) -> Self:
        if len(set(self.names)) != len(self.names):
            raise ValueError("names repeat")
        _same(
            "names", len(self.names), centre=self.centre, coefficient=self.coefficient, exponent=self.exponent
        )
        _same("features", len(self.features), shift=self.shift)
        try:
            names = floor_of(self.form).further
        except MetaOptError as error:
            raise ValueError(str(error)) from None
        _same(f"form {self.form!r}", len(names), further=self.further)
        return self


class DrawsPart(_Part):
    a: Annotated[list[Row], Field(min_length=1)]
    b: list[Row]
    slope: Row
    floor: list[Row]

    @model_validator(mode="after")
    def _fits(self) -> Self:
        _same("the number of draws", len(self.a), b=self.b, slope=self.slope, floor=self.floor)
        return self


class DomainPart(_Part):
    size: Pair
    tokens: Pair
    batch: Pair
    lr: Pair
    sizes: Annotated[list[Positive], Field(min_length=1)]

    @model_validator(mode="after")
    def _fits(self) -> Self:
        for name in ("size", "tokens", "batch", "lr"):
            _ascending(name, getattr(self, name))
        return self


class CellsPart(_Part):
    size: Annotated[list[Positive], Field(min_length=1)]
    tokens: list[Positive]
    log_loss: list[Log]
    trials: list[NotNegative]

    @model_validator(mode="after")
    def _fits(self) -> Self:
        _same("size", len(self.size), tokens=self.tokens, log_loss=self.log_loss, trials=self.trials)
        return self


class WidenPart(_Part):
    lr: Factor
    batch: Factor
    loss: Factor


class ScatterPart(_Part):
    lr: Factor
    batch: Factor
    lr_given_batch: Factor


class TrustPart(_Part):
    copying: Annotated[float, Field(ge=0, le=1)]
    scores: Row
    cells: Annotated[int, Field(ge=0)]
    missed: float = 0.0
    """Absent in laws written before it was measured."""

    @model_validator(mode="after")
    def _fits(self) -> Self:
        if self.copying not in COPYING:
            raise ValueError(f"copying must be one of {COPYING}, got {self.copying:g}")
        if self.scores and COPYING.index(self.copying) >= len(self.scores):
            raise ValueError(f"scores has no entry for the share {self.copying:g} that was chosen")
        return self


class EstimatePart(_Part):
    value: float
    low: float
    high: float


class CautionPart(_Part):
    code: str
    message: str


class FallPart(_Part):
    left: Annotated[Row, Field(min_length=2)]
    mean: list[Three]
    spread: list[Factor]
    runs: Annotated[int, Field(ge=1)]

    @model_validator(mode="after")
    def _fits(self) -> Self:
        _same("left", len(self.left), mean=self.mean, spread=self.spread)
        if any(b <= a for a, b in zip(self.left, self.left[1:], strict=False)):
            raise ValueError("left must ascend")
        return self


class BasePart(_Part):
    """What a fit leaned on (`scaling.base`); None stands for what no table knew."""

    centre: Annotated[list[Log | None], Field(min_length=2, max_length=2)]
    lr: Annotated[list[Log | None], Field(min_length=3, max_length=3)]
    batch: Annotated[list[Log | None], Field(min_length=3, max_length=3)]
    curvature: Annotated[list[Curving | None], Field(min_length=4, max_length=4)]
    noise: Annotated[float, Field(gt=0, le=1e6)]
    tables: Annotated[int, Field(ge=1)]
    floors: list[Annotated[Row, Field(min_length=8, max_length=8)]]
    slopes: (
        Annotated[
            list[Annotated[list[Positive | None], Field(min_length=2, max_length=2)]],
            Field(min_length=2, max_length=2),
        ]
        | None
    ) = None

    @model_validator(mode="after")
    def _fits(self) -> Self:
        if self.lr[0] is None or self.curvature[0] is None or not self.curvature[0] > 0:
            raise ValueError("lr and curvature must begin with a number, the curvature's > 0")
        return self


class ShapePart(_Part):
    kind: Literal["bend", "kink", "step"]
    axis: Annotated[int, Field(ge=1)]
    place: Log = 0.0


class AlternativesPart(_Part):
    """Draws of what else explains the cells (`scaling.fitting.alternatives`)."""

    shapes: list[ShapePart]
    lr: Annotated[list[list[Curving]], Field(min_length=1)]
    batch: list[list[Curving]]

    @model_validator(mode="after")
    def _fits(self) -> Self:
        _same("the number of draws", len(self.lr), batch=self.batch)
        return self


class EdgePart(_Part):
    """A fitted edge of stability (`scaling.forms.edge`)."""

    mean: list[Log]
    covariance: list[list[Curving]]
    runs: Annotated[int, Field(ge=1)]
    diverged: Annotated[int, Field(ge=0)]

    @model_validator(mode="after")
    def _fits(self) -> Self:
        _same("mean", len(self.mean), covariance=self.covariance)
        for i, row in enumerate(self.covariance):
            _same("mean", len(self.mean), **{f"covariance[{i}]": row})
        return self


class DecayPart(_Part):
    """A fitted optimum of the weight decay (`scaling.forms.decay`)."""

    c: list[Log]
    h: Annotated[float, Field(gt=0, le=1e6)]
    draws: Annotated[list[Row], Field(min_length=1)]
    span: Pair
    runs: Annotated[int, Field(ge=1)]

    @model_validator(mode="after")
    def _fits(self) -> Self:
        _ascending("span", self.span)
        for i, row in enumerate(self.draws):
            _same("c", len(self.c), **{f"draws[{i}]": row})
        return self


class SettingsPart(_Part):
    allow_weak: bool = False
    base: BasePart | None = None
    seed: int = 0
    trials: Annotated[int, Field(ge=0)] = 0
    use: Literal["fixed", "plateau", "all"] | None = None
    strategy: str | None = None
    extra: list[str] | None = None
    size: str | None = None


class LawPart(_Part):
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
    origin: str
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
        _same("axes", width, **{"surface.a": self.surface.a, "surface.b": self.surface.b})
        terms = 2 + 2 * len(self.floor.names) + len(self.floor.further) + len(self.floor.shift)
        unknown = {n for f in self.floor.features for n in f.split("*")} - set(self.axes.names)
        if unknown:
            raise ValueError(f"floor.features names {min(unknown)!r}, which is no axis")
        for i, (a, b, f) in enumerate(zip(self.draws.a, self.draws.b, self.draws.floor, strict=True)):
            _same("axes", width, **{f"draws.a[{i}]": a, f"draws.b[{i}]": b})
            _same("floor", terms, **{f"draws.floor[{i}]": f})
        if self.decay is not None:
            scales = sum(n in ("size", "tokens") for n in self.axes.names)
            _same("axes of scale", 1 + scales, **{"decay.c": self.decay.c})
        if self.edge is not None:
            scales = sum(n in ("size", "tokens") for n in self.axes.names)
            _same("axes of scale", 4 + scales, **{"edge.mean": self.edge.mean})
        if self.alternatives is not None:
            if any(s.axis >= width for s in self.alternatives.shapes):
                raise ValueError("alternatives.shapes names an axis that the law does not have")
            wide = width + len(self.alternatives.shapes)
            for i, (x, y) in enumerate(zip(self.alternatives.lr, self.alternatives.batch, strict=True)):
                _same(
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
