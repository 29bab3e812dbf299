"""The study of one run against a grid: which runs there are, and why. Runs nothing; see `study_runner`.

A fractional design. Every case gets tuned schedules and single runs of every self-tuning method on the same seeds
(common random numbers: equal seeds start from equal weights and see equal batches); what is expensive or varies little
is asked on some cases only. Widths and seeds differ from those the defaults were chosen on (widths 24, 48 and 96, a
network of width 48 on `digits`, a small ResNet on CIFAR-10; seeds from 100).
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from metaopt_hpo.errors import MetaOptError

if TYPE_CHECKING:
    from metaopt_hpo.workloads.base import Workload

ONE_RUN = "metaoptimize"
TUNED = ("wsd", "cosine")
"""Schedules a grid is searched with."""

SCHEDULES = (*TUNED, "constant")
RIVALS = (
    "prodigy",
    "prodigy-schedule-free",
    "d-adaptation",
    "dog",
    "ldog",
    "schedule-free",
    "mechanic",
    "momo",
    "gdtuo",
    "hypergradient",
    "adamg",
    "adopt",
)
"""Every rival the papers name, at its authors' defaults."""

STARTS = tuple(10 ** (-6 + 5 * i / 11) for i in range(12))
"""Twelve starts from 1e-6 to 1e-1."""

REPORTS = 4
"""Points of a run's curve: each is an evaluation, and the study reads the last."""

WATCHED = 100
"""Points of a run whose step size is followed from its first steps on."""

Options = Mapping[str, float | int | str | bool]


class StudyError(MetaOptError):
    """The study cannot be run, resumed or read."""


def octaves(low: float, count: int = 7) -> tuple[float, ...]:
    """`count` learning rates, each twice the one before."""
    return tuple(low * 2**k for k in range(count))


@dataclass(frozen=True, kw_only=True)
class Case:
    """One training job.

    Args:
        name: in tables.
        workload, width, settings: what is trained; `settings` are further fields of the workload.
        steps: optimizer steps.
        grid: learning rates at which schedules are tuned.
        seed_factor: how many times the study's seeds it gets: more where seeds differ much and a run is cheap.
        note: what a reader should know.
    """

    name: str
    workload: str
    width: int
    steps: int
    grid: tuple[float, ...]
    settings: Mapping[str, Any] = field(default_factory=dict)
    seed_factor: int = 1
    note: str = ""

    def job(self) -> Workload:
        """The workload.

        Raises:
            WorkloadError: its data are not here.
        """
        from metaopt_hpo.workloads import members

        return members(self.workload, [self.width], **self.settings)[0]


TEXT = tuple(
    Case(name=f"text-lm {w}", workload="text-lm", width=w, steps=512, grid=octaves(1e-3))
    for w in (16, 32, 64, 128)
)
DIGITS = Case(
    name="digits",
    workload="tabular",
    width=64,
    steps=135,
    grid=octaves(5e-4),
    seed_factor=4,
    note="three passes over the rows",
)
REGRESSION = Case(
    name="regression",
    workload="regression",
    width=64,
    steps=55,
    grid=octaves(5e-4),
    seed_factor=4,
    note="five passes over the rows",
)
CIFAR = Case(
    name="cifar10",
    workload="cifar10",
    width=16,
    steps=200,
    grid=octaves(1e-3),
    settings={"examples": 64, "held_out": 2000},
    note="a ResNet of three stages; images decoded from JPEG copies",
)
STREAM = Case(
    name="continual",
    workload="continual",
    width=8,
    steps=600,
    grid=octaves(2.5e-4),
    settings={"tasks": 10, "task_steps": 60},
    note="ten tasks of permuted labels; the loss is that of every prediction made before its batch is learned",
)
RESNET18 = Case(
    name="cifar10 ResNet-18",
    workload="cifar10",
    width=64,
    steps=78,
    grid=(2e-3,),
    settings={"network": "resnet18", "examples": 128, "held_out": 2000},
    note="one pass over the images",
)
CASES = (*TEXT, DIGITS, REGRESSION, CIFAR, STREAM, RESNET18)
MAIN = (*TEXT, DIGITS, REGRESSION, CIFAR)
"""Cases of the main comparison."""

NEVER_COMMIT: Options = {"find": 1.0}
"""The paper's way on a stream: the step size adapts to the end."""

SENSITIVITY_CASE = TEXT[1]
SENSITIVITY: tuple[tuple[str, Options], ...] = (
    ("meta step ÷ 3", {"meta_lr": 20 / 512 / 3}),
    ("meta step × 3", {"meta_lr": 20 / 512 * 3}),
    ("γ = 0.999", {"gamma": 0.999}),
    ("γ = 0.99", {"gamma": 0.99}),
    ("γ = 0.9", {"gamma": 0.9}),
    ("layer blocks", {"blocks": "layer"}),
    ("tensor blocks", {"blocks": "tensor"}),
    ("trace L", {"trace": "l"}),
    ("trace 2×2", {"trace": "2x2"}),
    ("meta rule Lion", {"meta": "lion"}),
    ("meta rule RMSprop", {"meta": "rmsprop"}),
    ("base Lion", {"base": "lion"}),
    ("base Lion, meta rule Lion", {"base": "lion", "meta": "lion"}),
    ("base RMSprop", {"base": "rmsprop"}),
    ("base SGD with momentum", {"base": "sgdm"}),
    ("correction 1", {"correction": 1.0}),
    ("correction 1.4", {"correction": 1.4}),
    ("correction 2.8", {"correction": 2.8}),
    ("find 10 %", {"find": 0.1}),
    ("find 30 %", {"find": 0.3}),
    ("never commit", NEVER_COMMIT),
    ("cooldown 20 %", {"cooldown": 0.2}),
    ("cooldown 50 %", {"cooldown": 0.5}),
    ("warm-up 5 %", {"warmup": 0.05}),
    ("limit ÷ 4", {"limit": 0.0025}),
    ("limit × 4", {"limit": 0.04}),
    ("paper's meta betas", {"meta_betas_first": 0.9, "meta_betas_second": 0.999}),
    ("no guard", {"guard": False}),
)
"""What is changed, and the options; one at a time from the defaults."""


@dataclass(frozen=True, kw_only=True)
class Cell:
    """One run of the study.

    Args:
        case: what is trained.
        strategy, options: how its lr is set.
        lr: peak of a schedule or start of a method; None leaves the strategy's default.
        seed: of initialisation and data.
        reports: points of its curve at most.
    """

    case: Case
    strategy: str
    seed: int
    lr: float | None = None
    options: Options = field(default_factory=dict)
    reports: int = REPORTS

    @property
    def key(self) -> str:
        """What identifies the run: the same in every process and session."""
        rate = "default" if self.lr is None else f"{self.lr:.4g}"
        extra = json.dumps(dict(self.options), sort_keys=True) if self.options else ""
        watched = "" if self.reports == REPORTS else f"/{self.reports} reports"
        return f"{self.case.name}/{self.case.steps}/{self.strategy}/{rate}/{extra}/seed{self.seed}{watched}"

    def strategy_options(self) -> dict[str, Any]:
        """Options for the strategy, lr included; a pair is stored as two numbers in a trial's parameters."""
        options: dict[str, Any] = dict(self.options)
        if "meta_betas_first" in options:
            options["meta_betas"] = (options.pop("meta_betas_first"), options.pop("meta_betas_second"))
        if self.lr is not None:
            options["lr"] = self.lr
        return options


def tuned(case: Case, seed: int, schedules: tuple[str, ...] = SCHEDULES) -> Iterator[Cell]:
    """Schedules at every learning rate of the case's grid."""
    for schedule in schedules:
        for lr in case.grid:
            yield Cell(case=case, strategy=schedule, lr=lr, seed=seed)


def single(
    case: Case, seed: int, strategies: tuple[str, ...], changed: Options | None = None
) -> Iterator[Cell]:
    """One run of each strategy as it comes, with what the workload recommends for it, and `changed` options."""
    from metaopt_hpo.workloads.registry import workload_class

    advice = getattr(workload_class(case.workload), "recommended", {})
    for strategy in strategies:
        yield Cell(
            case=case, strategy=strategy, seed=seed, options={**advice.get(strategy, {}), **(changed or {})}
        )


def started(case: Case, seed: int, reports: int = REPORTS) -> Iterator[Cell]:
    """One run of MetaOptimize from each of twelve starts."""
    for lr in STARTS:
        yield Cell(case=case, strategy=ONE_RUN, lr=lr, seed=seed, reports=reports)


def varied(case: Case, seed: int) -> Iterator[Cell]:
    """MetaOptimize with one option changed at a time."""
    for _, options in SENSITIVITY:
        yield Cell(case=case, strategy=ONE_RUN, seed=seed, options=options)


def cells(*, seeds: int = 5, short: bool = False) -> list[Cell]:
    """The design, most telling runs first, each once.

    Args:
        seeds: how many the claims get.
        short: two seeds of the two smallest text models and the tables, for minutes instead of hours.
    """
    if seeds < 1:
        raise ValueError(f"seeds must be at least 1, got {seeds!r}")
    small = (DIGITS, REGRESSION, TEXT[0], TEXT[1])
    out: list[Cell] = []
    if short:
        for seed in range(min(seeds, 2)):
            for case in small:
                out += [*single(case, seed, (ONE_RUN,)), *tuned(case, seed, TUNED)]
            out += [*single(DIGITS, seed, RIVALS), *started(DIGITS, seed)]
        return _once(out)
    cheap = (*small, TEXT[2])
    expensive = (CIFAR, TEXT[3])
    for some in (small, (TEXT[2],)):
        for seed in range(seeds):
            for case in some:
                out += [*single(case, seed, (ONE_RUN,)), *tuned(case, seed, TUNED)]
        if some is small:
            out += started(TEXT[1], 0, WATCHED)
            for seed in range(min(3, seeds)):
                out += [*started(DIGITS, seed), *started(TEXT[1], seed)]
        for seed in range(seeds):
            for case in some:
                out += single(case, seed, RIVALS)
    for seed in range(seeds):
        for case in expensive:
            out += [*single(case, seed, (ONE_RUN,)), *tuned(case, seed, ("wsd",))]
        out += [*single(STREAM, seed, (ONE_RUN,)), *single(STREAM, seed, (ONE_RUN,), NEVER_COMMIT)]
        out += tuned(STREAM, seed, ("constant",))
    for case in small:
        for seed in range(seeds, case.seed_factor * seeds):
            out += [*single(case, seed, (ONE_RUN,)), *tuned(case, seed, TUNED)]
    for seed in range(min(3, seeds)):
        out += [*varied(SENSITIVITY_CASE, seed), *started(TEXT[2], seed)]
    out += [*single(RESNET18, 0, (ONE_RUN,)), *tuned(RESNET18, 0, ("wsd",))]
    for seed in range(seeds):
        for case in cheap:
            out += tuned(case, seed, ("constant",))
        for case in expensive:
            out += [*tuned(case, seed, ("cosine",)), *single(case, seed, RIVALS)]
    return _once(out)


def _once(every: list[Cell]) -> list[Cell]:
    return list({cell.key: cell for cell in every}.values())


def case_named(name: str) -> Case:
    """The case of that name.

    Raises:
        StudyError: there is none.
    """
    for case in CASES:
        if case.name == name:
            return case
    raise StudyError(f"the study has no case {name!r}; it has {', '.join(c.name for c in CASES)}")
