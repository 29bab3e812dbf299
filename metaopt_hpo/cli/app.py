"""The application: its options, the commands compare and report, and the registration of the others.

Nothing heavy is imported before a command runs, so that `--help` answers at once.
"""

from __future__ import annotations

import shlex
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from metaopt_hpo.cli import fitting, inspect, laws, planning, preregistration, replay, theory
from metaopt_hpo.cli import run as running
from metaopt_hpo.cli.interrupts import interruptible
from metaopt_hpo.cli.reading import read_table
from metaopt_hpo.cli.words import command_line
from metaopt_hpo.errors import MetaOptError

if TYPE_CHECKING:
    from metaopt_hpo.comparison.training_objective import TrainObjective

app = typer.Typer(
    name="metaopt-hpo",
    help="Find a large model's learning rate without paying for a search at the large size.",
    epilog="Start with: metaopt-hpo inspect YOUR_RUNS, or metaopt-hpo compare text-lm. Exit codes: 0 done; 1 an error, "
    "said in one sentence; 2 a wrong option; 3 a law or prediction refused; 130 interrupted.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    add_completion=True,
    context_settings={"help_option_names": ["-h", "--help"]},
)


@app.callback()
def _options(
    debug: Annotated[bool, typer.Option("--debug", help="Show the traceback of an error.")] = False,
    version: Annotated[
        bool, typer.Option("--version", help="Print the version and exit.", is_eager=True)
    ] = False,
) -> None:
    if version:
        from metaopt_hpo._version import __version__

        typer.echo(__version__)
        raise typer.Exit


@app.command()
def compare(
    workload: Annotated[
        str,
        typer.Argument(
            help="What to train: text-lm (real text), cifar10, continual, imagenet, tinystories, tabular, regression."
        ),
    ],
    out: Annotated[
        Path, typer.Option(help="Results folder. One that holds the same comparison is resumed.")
    ] = Path("results/compare"),
    methods: Annotated[
        str,
        typer.Option(
            help="Search methods, comma-separated: grid, random, tpe, metaoptimize, law and what else the engine has."
        ),
    ] = "grid,tpe,metaoptimize,law",
    widths: Annotated[
        str | None,
        typer.Option(
            help="Model widths, ascending, e.g. 16,24,32,64; the last is the target, the others are pilots for the "
            "law. [default: the workload's own]"
        ),
    ] = None,
    steps: Annotated[int, typer.Option(help="Optimizer steps of every run.", min=16)] = 512,
    runs: Annotated[
        int, typer.Option(help="Budget of each method and seed, in full runs at the target width.", min=1)
    ] = 5,
    pilot_runs: Annotated[int, typer.Option(help="Learning rates tried at each pilot width.", min=1)] = 4,
    seeds: Annotated[int, typer.Option(help="How many seeds each method gets.", min=1)] = 3,
    lr: Annotated[str, typer.Option(help="Range of the learning rate, LOW:HIGH.")] = "3e-3:1e-1",
    strategy: Annotated[
        str,
        typer.Option(
            help="Schedule whose peak lr the external methods search: wsd, cosine, linear, constant."
        ),
    ] = "wsd",
    engine: Annotated[str, typer.Option(help="Engine that runs the trials: optuna or ray.")] = "optuna",
    workers: Annotated[
        int | None, typer.Option(help="Searches run at once, one thread each. [default: CPUs]", min=1)
    ] = None,
    device: Annotated[str, typer.Option(help="Where to train: cpu, cuda, cuda:1 …")] = "cpu",
    report: Annotated[bool, typer.Option(help="Write report.html at the end.")] = True,
) -> None:
    """Compare search methods at equal compute, and write a report.

    Every method may spend the same FLOPs for each seed. Interrupt with Ctrl-C at any time and start the same command
    again: nothing finished is run twice.

    Example: metaopt-hpo compare text-lm --methods grid,metaoptimize --steps 512 --out results/small
    """
    from metaopt_hpo.cli.progress import ComparisonProgress
    from metaopt_hpo.comparison.design import ComparisonPlan
    from metaopt_hpo.comparison.protocol import compare as run_comparison

    objective, sizes, batch = _workload(workload, widths, device)
    low, high = _range("--lr", lr)
    names = tuple(m.strip() for m in methods.split(",") if m.strip())
    plan = ComparisonPlan(
        workload=workload,
        methods=names,
        seeds=tuple(range(seeds)),
        size=sizes[-1],
        pilot_sizes=tuple(sizes[:-1]) if "law" in names else (),
        tokens=steps * batch,
        batch=batch,
        lr_bounds=(low, high),
        runs=runs,
        pilot_runs=pilot_runs,
        strategy=strategy,
        engine=engine,
    )
    command = shlex.join(["metaopt-hpo", *sys.argv[1:]])
    try:
        with ComparisonProgress(plan, objective) as progress:
            run_comparison(objective, plan, out, workers=workers, progress=progress, command=command)
    except KeyboardInterrupt:
        typer.echo("interrupted; finished trials are kept, the same command goes on from there", err=True)
        raise typer.Exit(130) from None
    if report:
        _write_report(out)


@app.command()
def report(
    folder: Annotated[
        Path, typer.Argument(help="Results folder of a comparison, or a folder of runs of another tool.")
    ],
) -> None:
    """Write the report of a comparison anew from its saved trials, or the page of a law fitted to a folder of runs.

    Example: metaopt-hpo report results/compare
    """
    from metaopt_hpo.comparison.results import CompareError

    try:
        _write_report(folder)
    except CompareError:
        if not inspect.is_export(folder):
            raise
        from metaopt_hpo.scaling import fit as fit_table

        trials = read_table(str(folder), None, None, None)
        law = fit_table(trials, allow_weak=True)
        page = fitting.write_page(law, trials, folder / "law.html", f"Law fitted to {folder.name}")
        typer.echo(f"page written to {page}")


for command in (
    planning.plan,
    running.run,
    running.watch,
    planning.recipe,
    inspect.inspect,
    fitting.fit,
    laws.predict,
    replay.replay,
    laws.laws,
    preregistration.register,
    preregistration.check,
    theory.verify_rule,
    theory.attribute,
):
    app.command(command.__name__.replace("_", "-"))(command)


def _write_report(folder: Path) -> None:
    from metaopt_hpo.report import report_from_folder

    typer.echo(f"report written to {report_from_folder(folder)}")


def _workload(name: str, widths: str | None, device: str) -> tuple[TrainObjective, list[float], int]:
    from metaopt_hpo.comparison.training_objective import TrainObjective
    from metaopt_hpo.workloads import members

    family = members(name, None if widths is None else _numbers("--widths", widths, int))
    return TrainObjective(family, device=device), [float(m.size) for m in family], family[0].batch


def _numbers(option: str, text: str, kind: type[int]) -> list[int]:
    try:
        numbers = [kind(part) for part in text.split(",")]
        if max(numbers) >= 2**31:
            raise ValueError
        return numbers
    except ValueError:
        raise MetaOptError(f"{option} takes whole numbers separated by commas, got {text!r}") from None


def _range(option: str, text: str) -> tuple[float, float]:
    try:
        low, high = (float(part) for part in text.split(":"))
    except ValueError:
        raise MetaOptError(f"{option} takes LOW:HIGH, e.g. 1e-4:1e-1, got {text!r}") from None
    if not 0 < low < high:
        raise MetaOptError(f"{option} needs 0 < LOW < HIGH, got {text!r}")
    return low, high


REFUSED = 3
"""Exit code where there is too little data for a law, or where one is asked too far outside its range."""


def main() -> None:
    """Entry point: errors are one sentence on standard error; `--help` lists the exit codes."""
    debug = "--debug" in sys.argv[1:]
    try:
        with interruptible():
            app()
    except (MetaOptError, ValueError, OSError) as error:
        if debug:
            raise
        remedy = "; set TMPDIR to a folder that can be written" if "temporary directory" in str(error) else ""
        typer.echo(f"error: {command_line(str(error))}{remedy}", err=True)
        sys.exit(REFUSED if _refused(error) else 1)
    except MemoryError as error:
        if debug:
            raise
        reason = f" ({error})" if str(error) else ""
        typer.echo(f"error: there is too little memory{reason}; allow more, or give fewer rows", err=True)
        sys.exit(1)


def _refused(error: Exception) -> bool:
    if isinstance(error, laws.OutOfRange):
        return True
    scaling = sys.modules.get("metaopt_hpo.scaling.estimates")  # not imported: no law was asked for
    return scaling is not None and isinstance(error, scaling.LawRefused)
