"""The command line: metaopt-hpo compare | fit | predict | report. Each command is thin; rooms do the work.

Nothing heavy is imported before a command runs, so that `--help` answers at once.
"""

from __future__ import annotations

import shlex
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from metaopt_hpo.errors import MetaOptError

if TYPE_CHECKING:
    from metaopt_hpo.comparison.objective import TrainObjective
    from metaopt_hpo.scaling import Law
    from metaopt_hpo.trials.table import TrialTable

app = typer.Typer(
    name="metaopt-hpo",
    help="Find a large model's learning rate without paying for a search at the large size.",
    epilog="Start with: metaopt-hpo compare text-lm",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    add_completion=False,
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
        from metaopt_hpo import __version__

        typer.echo(__version__)
        raise typer.Exit


@app.command()
def compare(
    workload: Annotated[
        str,
        typer.Argument(
            help="What to train. There is: text-lm (a byte-level transformer on real English text)."
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
        str,
        typer.Option(
            help="Model widths, ascending; the last is the target, the others are pilots for the law."
        ),
    ] = "16,24,32,64",
    steps: Annotated[
        int, typer.Option(help="Optimizer steps of every run, 1,024 tokens each.", min=16)
    ] = 512,
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
    engine: Annotated[str, typer.Option(help="Who schedules the trials.")] = "optuna",
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
    from metaopt_hpo.comparison.protocol import Plan
    from metaopt_hpo.comparison.protocol import compare as run_comparison
    from metaopt_hpo.console import ComparisonProgress

    objective, sizes, batch = _workload(workload, _numbers("--widths", widths, int), device)
    low, high = _range("--lr", lr)
    names = tuple(m.strip() for m in methods.split(",") if m.strip())
    plan = Plan(
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
def report(folder: Annotated[Path, typer.Argument(help="Results folder of a comparison.")]) -> None:
    """Write report.html anew from the saved trials of a comparison."""
    _write_report(folder)


@app.command()
def fit(
    table: Annotated[Path, typer.Argument(help="Trials as CSV or Parquet.")],
    columns: Annotated[
        list[str] | None,
        typer.Option(
            "--map",
            help="OURS=THEIRS for columns of other names, e.g. --map batch=bsz; a number stands for a constant.",
        ),
    ] = None,
    units: Annotated[
        list[str] | None,
        typer.Option(
            "--unit", help="OURS=FACTOR, e.g. --unit batch=sequences (with --sequence-length) or tokens=1e9."
        ),
    ] = None,
    sequence_length: Annotated[float | None, typer.Option(help="Tokens in a sequence.")] = None,
    out: Annotated[Path | None, typer.Option(help="Write the law here, as JSON.")] = None,
    allow_weak: Annotated[
        bool, typer.Option(help="Fit although the table cannot bear it; the law then carries warnings.")
    ] = False,
    seed: Annotated[int, typer.Option(help="Of the bootstrap behind the intervals.")] = 0,
) -> None:
    """Fit a law across sizes to a table of trials.

    The table needs columns size, tokens, batch, lr and loss.

    Example: metaopt-hpo fit trials.csv --map size=params --out law.json
    """
    from metaopt_hpo.scaling import fit as fit_table

    law = fit_table(_read_table(table, columns, units, sequence_length), allow_weak=allow_weak, seed=seed)
    typer.echo(law.describe())
    if out is not None:
        law.to_json(out)
        typer.echo(f"law written to {out}")


@app.command()
def predict(
    law: Annotated[Path, typer.Argument(help="A law written by `metaopt-hpo fit --out`.")],
    size: Annotated[float, typer.Option(help="Trainable non-embedding parameters.")],
    tokens: Annotated[float, typer.Option(help="Training tokens.")],
    batch: Annotated[
        float | None, typer.Option(help="Tokens per step, if it is given; else the best one is predicted.")
    ] = None,
) -> None:
    """Predict the best learning rate, batch and loss of a model, with intervals.

    Example: metaopt-hpo predict law.json --size 7e9 --tokens 1.4e12
    """
    from metaopt_hpo.scaling import Law

    loaded: Law = Law.from_json(law)
    found = loaded.predict(size=size, tokens=tokens, batch=batch)
    for name in ("lr", "batch", "loss"):
        e = getattr(found, name)
        typer.echo(f"{name:<6} {e.value:.4g}   90 % interval {e.low:.4g} … {e.high:.4g}")
    for warning in found.warnings:
        typer.echo(f"warning [{warning.code}] {warning.message}", err=True)


def _write_report(folder: Path) -> None:
    from metaopt_hpo.report import report_from_folder

    typer.echo(f"report written to {report_from_folder(folder)}")


def _workload(name: str, widths: list[int], device: str) -> tuple[TrainObjective, list[float], int]:
    from metaopt_hpo.comparison.objective import TrainObjective
    from metaopt_hpo.workloads import TextLM

    if name != TextLM.name:
        raise MetaOptError(f"unknown workload {name!r}; available: {TextLM.name}")
    if sorted(set(widths)) != widths:
        raise MetaOptError(f"--widths must be ascending and distinct, got {widths}")
    members = [TextLM(width=w) for w in widths]
    return TrainObjective(members, device=device), [float(m.size) for m in members], members[0].batch


def _read_table(
    path: Path, columns: list[str] | None, units: list[str] | None, sequence_length: float | None
) -> TrialTable:
    from metaopt_hpo.trials.table import TrialTable

    return TrialTable.read(
        path,
        columns={k: _number_or_text(v) for k, v in _pairs("--map", columns)},
        units={k: _number_or_text(v) for k, v in _pairs("--unit", units)},
        sequence_length=sequence_length,
    )


def _pairs(option: str, values: list[str] | None) -> list[tuple[str, str]]:
    pairs = []
    for value in values or []:
        name, sign, other = value.partition("=")
        if not (name and sign and other):
            raise MetaOptError(f"{option} takes OURS=THEIRS, got {value!r}")
        pairs.append((name.strip(), other.strip()))
    return pairs


def _number_or_text(text: str) -> str | float:
    try:
        return float(text)
    except ValueError:
        return text


def _numbers(option: str, text: str, kind: type[int]) -> list[int]:
    try:
        return [kind(part) for part in text.split(",")]
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


def main() -> None:
    """Entry point: errors are one sentence on standard error (exit code 1)."""
    debug = "--debug" in sys.argv[1:]
    try:
        app()
    except (MetaOptError, ValueError, OSError) as error:
        if debug:
            raise
        typer.echo(f"error: {error}", err=True)
        sys.exit(1)


if __name__ == "__main__":
    main()
