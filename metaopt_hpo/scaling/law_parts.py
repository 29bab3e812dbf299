"""The parts of a law's JSON: types, ranges, and shapes that fit together within each part."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, Any, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, model_validator

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


class Part(BaseModel):
    model_config = ConfigDict(strict=True, allow_inf_nan=False, extra="ignore")


def same(what: str, expected: int, **given: Sequence[Any]) -> None:
    for name, values in given.items():
        if len(values) != expected:
            raise ValueError(f"{name} has {len(values)} entries and {what} asks for {expected}")


def _ascending(name: str, pair: Pair) -> None:
    if pair[0] > pair[1]:
        raise ValueError(f"{name} runs from {pair[0]:g} down to {pair[1]:g}")


class AxesPart(Part):
    names: list[str]
    centre: list[Log]
    defaults: dict[str, float | str]
    levels: dict[str, Annotated[list[str], Field(min_length=1)]] = {}
    """Absent in laws written before settings could be words."""

    @model_validator(mode="after")
    def _fits(self) -> Self:
        if len(set(self.names)) != len(self.names):
            raise ValueError("names repeat")
        same("names", len(self.names), centre=self.centre)
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


class SurfacePart(Part):
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
        same(f"form {self.form!r}", max(len(names) - 4, 0), further=self.further)
        return self


class FloorPart(Part):
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
        same(
            "names", len(self.names), centre=self.centre, coefficient=self.coefficient, exponent=self.exponent
        )
        same("features", len(self.features), shift=self.shift)
        try:
            names = floor_of(self.form).further
        except MetaOptError as error:
            raise ValueError(str(error)) from None
        same(f"form {self.form!r}", len(names), further=self.further)
        return self


class DrawsPart(Part):
    a: Annotated[list[Row], Field(min_length=1)]
    b: list[Row]
    slope: Row
    floor: list[Row]

    @model_validator(mode="after")
    def _fits(self) -> Self:
        same("the number of draws", len(self.a), b=self.b, slope=self.slope, floor=self.floor)
        return self


class DomainPart(Part):
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


class CellsPart(Part):
    size: Annotated[list[Positive], Field(min_length=1)]
    tokens: list[Positive]
    log_loss: list[Log]
    trials: list[NotNegative]

    @model_validator(mode="after")
    def _fits(self) -> Self:
        same("size", len(self.size), tokens=self.tokens, log_loss=self.log_loss, trials=self.trials)
        return self


class WidenPart(Part):
    lr: Factor
    batch: Factor
    loss: Factor


class ScatterPart(Part):
    lr: Factor
    batch: Factor
    lr_given_batch: Factor


class TrustPart(Part):
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


class EstimatePart(Part):
    value: float
    low: float
    high: float


class CautionPart(Part):
    code: str
    message: str


class FallPart(Part):
    left: Annotated[Row, Field(min_length=2)]
    mean: list[Three]
    spread: list[Factor]
    runs: Annotated[int, Field(ge=1)]

    @model_validator(mode="after")
    def _fits(self) -> Self:
        same("left", len(self.left), mean=self.mean, spread=self.spread)
        if any(b <= a for a, b in zip(self.left, self.left[1:], strict=False)):
            raise ValueError("left must ascend")
        return self


class BasePart(Part):
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


class ShapePart(Part):
    kind: Literal["bend", "kink", "step"]
    axis: Annotated[int, Field(ge=1)]
    place: Log = 0.0


class AlternativesPart(Part):
    """Draws of what else explains the cells (`scaling.fitting.alternatives`)."""

    shapes: list[ShapePart]
    lr: Annotated[list[list[Curving]], Field(min_length=1)]
    batch: list[list[Curving]]

    @model_validator(mode="after")
    def _fits(self) -> Self:
        same("the number of draws", len(self.lr), batch=self.batch)
        return self


class EdgePart(Part):
    """A fitted edge of stability (`scaling.forms.edge`)."""

    mean: list[Log]
    covariance: list[list[Curving]]
    runs: Annotated[int, Field(ge=1)]
    diverged: Annotated[int, Field(ge=0)]

    @model_validator(mode="after")
    def _fits(self) -> Self:
        same("mean", len(self.mean), covariance=self.covariance)
        for i, row in enumerate(self.covariance):
            same("mean", len(self.mean), **{f"covariance[{i}]": row})
        return self


class DecayPart(Part):
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
            same("c", len(self.c), **{f"draws[{i}]": row})
        return self


class SettingsPart(Part):
    allow_weak: bool = False
    base: BasePart | None = None
    seed: int = 0
    trials: Annotated[int, Field(ge=0)] = 0
    use: Literal["fixed", "plateau", "all"] | None = None
    strategy: str | None = None
    extra: list[str] | None = None
    size: str | None = None
