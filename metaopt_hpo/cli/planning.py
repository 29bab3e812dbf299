"""The commands plan and recipe of the command line; `metaopt_hpo.cli.app` registers them."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from metaopt_hpo.cli.reading import amount
from metaopt_hpo.errors import MetaOptError


def plan(
    target: Annotated[
        str,
        typer.Option(
            metavar="N", help="Parameters of the large run, e.g. 7B; width=256 of a built-in workload."
        ),
    ],
    tokens: Annotated[str, typer.Option(metavar="N", help="Its training tokens, e.g. 1.4T.")],
    budget: Annotated[
        str,
        typer.Option(
            help="What the small runs may cost together: '2 % of the target', '50 GPU-hours', '1e21 FLOPs', '3 MWh', "
            "'2000 USD', '1e9 tokens'."
        ),
    ] = "5 % of the target",
    hardware: Annotated[
        str, typer.Option(help="What they run on, with a number of devices: h100x8, a100, rtx4090x2, cpu …")
    ] = "h100",
    workload: Annotated[
        str,
        typer.Option(
            help="A built-in workload, a Python file, or a command line with placeholders, in quotes."
        ),
    ] = "",
    setting: Annotated[
        list[str] | None,
        typer.Option(
            "--set",
            help="NAME=VALUE of a training program: sizes=128:4e5,256:1.6e6 (width:parameters), batch=65536, "
            "losses=out.jsonl, metric, timeout …, or a placeholder of your own.",
        ),
    ] = None,
    schedule: Annotated[
        str, typer.Option(help="Schedule of the target: wsd, linear, cosine, constant.")
    ] = "wsd",
    batch: Annotated[
        float | None,
        typer.Option(
            parser=amount, metavar="N", help="Tokens per step, if given; else it is one of the things found."
        ),
    ] = None,
    sizes: Annotated[
        str | None,
        typer.Option(help="Parameters that pilots may have, e.g. 10M,20M,40M. [default: below the target]"),
    ] = None,
    widths: Annotated[
        str | None, typer.Option(help="Widths of those sizes, or of the workload's members.")
    ] = None,
    tokens_per_parameter: Annotated[
        str | None, typer.Option(help="Lengths of pilots, e.g. 10,20,40. [default: about the target's own]")
    ] = None,
    batches: Annotated[
        str | None, typer.Option(help="Tokens per step that pilots may have, e.g. 64k,128k.")
    ] = None,
    lr: Annotated[str, typer.Option(help="Range of learning rates, LOW:HIGH.")] = "1e-5:1e-1",
    seeds: Annotated[int, typer.Option(help="Runs of each pilot.", min=1)] = 1,
    base: Annotated[
        list[str] | None,
        typer.Option(
            help="Runs of like models to borrow strength from: a table, a law's JSON file, a law of the library; "
            "several times, or 'none'. [default: fitted-step-law for targets above 10M]"
        ),
    ] = None,
    price: Annotated[float | None, typer.Option(help="Price of one device for an hour.")] = None,
    currency: Annotated[
        str | None, typer.Option(help="Currency of the price, e.g. EUR. [default: USD]")
    ] = None,
    utilisation: Annotated[
        float | None, typer.Option(help="Share of the peak FLOP/s that training reaches, e.g. 0.4.")
    ] = None,
    know_lr: Annotated[
        float | None,
        typer.Option(
            help="Instead of a budget: how well lr is to be known, e.g. 0.2 for ±20 %; the least budget."
        ),
    ] = None,
    out: Annotated[Path, typer.Option(help="Where the plan is written.")] = Path("plan.toml"),
) -> None:
    """Plan the small runs worth making before a large one: which, in which order, for how much.

    Example: metaopt-hpo plan --target 7B --tokens 1.4T --budget "2 % of the target" --hardware h100x8
    """
    from metaopt_hpo.plan.api import plan as make
    from metaopt_hpo.plan.words import numbers

    low, high = _range(lr)
    options: dict[str, Any] = {
        "sizes": None if sizes is None else numbers(sizes, "sizes"),
        "widths": None if widths is None else [round(w) for w in numbers(widths, "widths")],
        "tokens_per_parameter": None
        if tokens_per_parameter is None
        else numbers(tokens_per_parameter, "tokens-per-parameter"),
        "batches": None if batches is None else numbers(batches, "batches"),
    }
    made = make(
        target=target,
        tokens=tokens,
        budget=budget if know_lr is None else "100 % of the target",
        hardware=hardware,
        workload=workload,
        workload_options=_settings(setting),
        schedule=schedule,
        batch=batch,
        lr=(low, high),
        seeds=seeds,
        base=[b for b in base if b != "none"] if base is not None else None,
        price=price,
        currency=currency,
        utilisation=utilisation,
        **options,
    )
    if know_lr is not None:
        made = made.budget_for(lr=know_lr)
    made.write(out)
    typer.echo(made)
    typer.echo(f"plan written to {out}; edit it where you like, then: metaopt-hpo run {out}")


def _settings(texts: list[str] | None) -> dict[str, str]:
    """NAME=VALUE, several."""
    out = {}
    for text in texts or ():
        name, mark, value = text.partition("=")
        if not (mark and name.strip() and value.strip()):
            raise MetaOptError(f"--set takes NAME=VALUE, e.g. batch=65536, got {text!r}")
        if name.strip() in out:
            raise MetaOptError(f"--set gives {name.strip()} twice; give it once")
        out[name.strip()] = _as_number(name.strip(), value.strip())
    return out


def _as_number(name: str, value: str) -> str:
    """A training program's counts, 64k and 128:400k, in digits; what is no count stays for the program's own check."""
    if name not in ("batch", "sequence_length", "sizes"):
        return value
    parts = []
    for part in value.split(","):
        knob, colon, count = part.rpartition(":")
        try:
            parts.append(f"{knob}{colon}{amount(count):.15g}")
        except typer.BadParameter:
            return value
    return ",".join(parts)


def _range(text: str) -> tuple[float, float]:
    try:
        low, high = (float(part) for part in text.split(":"))
    except ValueError:
        raise MetaOptError(f"--lr takes LOW:HIGH, e.g. 1e-4:1e-1, got {text!r}") from None
    return low, high


def recipe(
    plan: Annotated[Path, typer.Argument(help="plan.toml, as `metaopt-hpo plan` made it.")],
    to: Annotated[
        str | None,
        typer.Option(
            help="Write the configuration of a tool, such as transformers, torchtitan or yaml, or card, a model card's "
            "section; another name shows all. [default: the recipe in words]"
        ),
    ] = None,
    trials: Annotated[
        Path | None,
        typer.Option(
            help="The pilots: folder of `metaopt-hpo run`, or a table. [default: the plan's own folder]"
        ),
    ] = None,
    sequence_length: Annotated[
        float, typer.Option(parser=amount, metavar="N", help="Tokens of a sequence, e.g. 4096 or 4k.")
    ] = 2048,
    devices: Annotated[
        int | None, typer.Option(help="Devices that train together. [default: the plan's]", min=1)
    ] = None,
    per_device: Annotated[int, typer.Option(help="Sequences that a device takes at once.", min=1)] = 8,
    out: Annotated[
        Path | None,
        typer.Option(help="Write it to this file instead of showing it; recipe.toml without --to."),
    ] = None,
) -> None:
    """Say how to train a plan's target, from the pilots that have run; or write it as a tool's configuration.

    Example: metaopt-hpo recipe plan.toml --to transformers --sequence-length 4096 --out train.yaml
    """
    from metaopt_hpo.atomic import write_text
    from metaopt_hpo.plan.api import Plan

    read = Plan.read(plan)
    found = read.recipe(_pilots(plan, trials))
    if to is None:
        if out is not None:
            found.write(out)
        typer.echo(found if out is None else f"recipe written to {out}")
        return
    text = found.export(
        to,
        sequence_length=round(sequence_length),
        devices=devices or read.hardware.devices,
        per_device=per_device,
    )
    if out is None:
        typer.echo(text, nl=False)
    else:
        write_text(out, text)
        typer.echo(f"recipe written to {out}, for {to}")


def _pilots(plan: Path, trials: Path | None) -> Path:
    """Where the pilots are."""
    from metaopt_hpo.plan.store import folder_of

    folder = trials or folder_of(plan)
    if not folder.exists():
        raise MetaOptError(
            f"there are no pilots in {folder}; run them first: metaopt-hpo run {plan}, or name them with --trials"
        )
    return folder
