"""The tables of the attribution study as Markdown, from the frames that `attribute` writes; none is typed by hand."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd

from metaopt_hpo.atomic import write_text
from metaopt_hpo.attribution.levels import IDEAL, TUNED_MOMENTA, Criterion, Setting
from metaopt_hpo.attribution.outcome import TUNED
from metaopt_hpo.markdown import markdown_table

B = 0.571
"""Batch exponent of the tables: Step Law's."""
FRAMES = ("levels", "parts", "protocol", "proxy")
"""Kinds of frames, stored as `attribution_tier<tier>_<kind>.parquet`."""
TABLES_FILE = "attribution_tables.md"
NAMES: Mapping[str, Setting] = {
    "assumptions met": Setting(),
    "linear": Setting(schedule="linear"),
    "cosine": Setting(schedule="cosine"),
    "cosine to a floor": Setting(schedule="cosine-floor"),
    "WSD": Setting(schedule="wsd"),
    "m₀ = first gradient": Setting(init="first-gradient"),
    "m₀ = 0": Setting(init="zero"),
    "noise follows the loss": Setting(noise="state-dependent"),
    "noise t(1.5)": Setting(noise="heavy"),
    "real minibatches": Setting(noise="minibatch"),
    "minibatches and cosine": Setting(noise="minibatch", schedule="cosine"),
    "warm-up 5 %": Setting(warmup="fraction"),
    "warm-up 100 steps": Setting(warmup="steps"),
    "a ∝ B": Setting(momentum="half-life"),
} | {f"a = {a:g}": Setting(a=a) for a in TUNED_MOMENTA if a != Setting().a}


_COSINE = Setting(schedule="cosine", init="zero")


@dataclass(frozen=True)
class Toy:
    """One row of the table of toy results: a world at one noise level, beside what earlier work found there."""

    world: str
    noise: str = ""
    """As the row says it; empty where the world has one row."""
    setting: Setting = IDEAL
    practice: Setting = _COSINE
    earlier: tuple[str, str, str] = ("", "", "")
    """What stands in parentheses: the earlier value, or how a cell differs from its column."""


_MINIBATCH = Setting(noise="minibatch")
TOYS = (
    Toy("quadratic", earlier=("−.195", "−.281", "−.234")),
    Toy("infinite", earlier=("−.178", "−.129", "−.111")),
    Toy("hard", earlier=("−.148", "+.148", "+.521")),
    Toy("hard-at-rest", earlier=("−.148", "+.148", "+.521")),
    Toy("logistic"),
    Toy("bigram", "Gaussian noise"),
    Toy(
        "bigram", "real minibatches", _MINIBATCH, Setting(noise="minibatch", schedule="cosine", init="zero"),
        ("unusable", "−.108 ± .004", "+.037 ± .021"),
    ),
    Toy(
        "text-lm", "real minibatches", _MINIBATCH, Setting(noise="minibatch", schedule="cosine"),
        ("", "", "m₀ = gradient"),
    ),
)  # fmt: skip
"""Earlier values are those of toy experiments with other code, cited in docs/studies/attribution/README.md."""


def read_frames(folder: Path) -> dict[str, pd.DataFrame]:
    """The stored frames of every tier in a folder, by kind; worlds of tiers 2 and 3 are named with their tier."""
    found: dict[str, pd.DataFrame] = {}
    for kind in FRAMES:
        parts = []
        for path in sorted(folder.glob(f"attribution_tier[0-3]_{kind}.parquet")):
            frame = pd.read_parquet(path)
            tier = int(path.stem.split("_")[1].removeprefix("tier"))
            parts.append(frame.assign(world=frame["world"] + f" (tier {tier})") if tier > 1 else frame)
        if parts:
            found[kind] = pd.concat(parts, ignore_index=True)
    return found


def tables(frames: Mapping[str, pd.DataFrame]) -> dict[str, str]:
    """Every table that the frames bear, by title."""
    made = {
        "Exponent of η* along B ~ D^0.571": ("levels", toy_table),
        "Parts of the gap between the bound and practice": ("parts", parts_table),
        "One level at a time": ("levels", levels_table),
        "What the protocol moves": ("protocol", protocol_table),
        "The generalised proxy": ("proxy", proxy_table),
    }
    return {title: make(frames[kind]) for title, (kind, make) in made.items() if kind in frames}


def write_tables(folder: Path) -> Path:
    """Write every table of a folder's frames into one Markdown file there."""
    path = folder / TABLES_FILE
    text = "".join(f"## {title}\n\n{table}\n\n" for title, table in tables(read_frames(folder)).items())
    write_text(path, text.rstrip() + "\n")
    return path


def parts_table(parts: pd.DataFrame) -> str:
    """One row a world, one column a part, with verdicts; the total last."""
    names = [n for n in dict.fromkeys(parts["part"]) if n != "total"]
    rows = []
    for world, mine in parts.groupby("world", sort=False):
        by = {r["part"]: r for r in mine.to_dict("records")}
        cells = [f"{_with(by[n], 'gap', 3)} *{by[n]['verdict']}*" if n in by else "–" for n in names]
        rows.append([str(world), *cells, f"**{_with(by['total'], 'gap', 3)}**"])
    return markdown_table(["world", *names, "total"], rows)


def levels_table(levels: pd.DataFrame) -> str:
    """Exponent of lr along B ~ D^0.571 by final loss, one row a level, one column a world; – was not run."""
    final = levels[levels["criterion"] == "final-loss"]
    worlds = list(dict.fromkeys(final["world"]))
    practice = {w: _practice(final[final["world"] == w]) for w in worlds}
    rows = [[n, *(_level(final, w, s.label) for w in worlds)] for n, s in NAMES.items()]
    rows.append([TUNED, *(_level(final, w, TUNED) for w in worlds)])
    rows.append(["practice", *(_level(final, w, practice[w]) for w in worlds)])
    return markdown_table(["level", *worlds], rows)


def proxy_table(checks: pd.DataFrame) -> str:
    """One row a world, one column a prediction of the generalised proxy."""
    names = list(dict.fromkeys(checks["check"]))
    rows = []
    for world, mine in checks.groupby("world", sort=False):
        by = {r["check"]: r for r in mine.to_dict("records")}
        rows.append([str(world), *(_check(by[n]) if n in by else "–" for n in names)])
    return markdown_table(["world", *names], rows)


def toy_table(levels: pd.DataFrame) -> str:
    """Exponents along B ~ D^0.571 of the worlds that toy experiments had, their values in parentheses."""
    known = set(levels["world"])
    rows = []
    for toy in TOYS:
        if toy.world not in known:
            continue
        columns = ((toy.setting, "avg-grad"), (toy.setting, "final-loss"), (toy.practice, "final-loss"))
        cells = [
            _toy_cell(levels, toy.world, s, c, e) for (s, c), e in zip(columns, toy.earlier, strict=True)
        ]
        rows.append([", ".join(filter(None, (toy.world, toy.noise))), *cells])
    head = ["avg ‖g‖*, assumptions met", "final loss, assumptions met", "final loss, cosine, m₀ = 0"]
    return markdown_table(["world", *head], rows)


def protocol_table(levels: pd.DataFrame) -> str:
    """Effect of each protocol level on practice's exponent, one row a level, one column a world."""
    worlds = list(dict.fromkeys(levels["world"]))
    rows = []
    for name, mine in levels.groupby("level", sort=False):
        by = {r["world"]: r for r in mine.to_dict("records")}
        rows.append([str(name).replace("lr", "η"), *(_effect(by[w]) if w in by else "–" for w in worlds)])
    return markdown_table(["protocol", *worlds], rows)


def _practice(mine: pd.DataFrame) -> str:
    """The setting that differs from the ideal in most levels among those of the factorial."""
    corners = [s for s in mine["setting"] if s.count("|") == 5]
    order = ("cosine|zero|minibatch|fixed|0.1|fraction", "cosine|zero|minibatch|fixed|0.1|none")
    return next((s for s in order if s in corners), "cosine|gradient|minibatch|fixed|0.1|none")


def _level(frame: pd.DataFrame, world: str, label: str, *, digits: int = 2, missing: str = "–") -> str:
    mine = frame[(frame["world"] == world) & (frame["setting"] == label)].to_dict("records")
    return _with(mine[0], f"joint_{B:g}", digits, ends=f"joint_{B:g}_") if mine else missing


def _toy_cell(
    levels: pd.DataFrame, world: str, setting: Setting, criterion: Criterion | str, earlier: str
) -> str:
    mine = levels[levels["criterion"] == criterion]
    found = _level(mine, world, setting.label, digits=3, missing="unusable")
    return f"{found} ({earlier})" if earlier else found


def _effect(row: Mapping[Any, Any]) -> str:
    text = _with(row, "effect", 2, ends="effect_")
    if pd.notna(row["batch"]):
        return f"{text} (B ~ D^{_sign(float(row['batch']), 2).lstrip('+')})"
    return f"{text}, {row['censored']:.0%} beyond" if row["censored"] > 0 else text


def _check(row: Mapping[Any, Any]) -> str:
    against = f" against {_sign(float(str(row['predicted'])), 3)}"
    return f"{_with(row, 'measured', 3)}{against}: {'holds' if row['holds'] else '**refuted**'}"


def _with(row: Mapping[Any, Any], name: str, digits: int, *, ends: str = "") -> str:
    value, low, high = (_sign(float(str(row[k])), digits) for k in (name, f"{ends}low", f"{ends}high"))
    return f"{value} [{low}, {high}]"


def _sign(x: float, digits: int) -> str:
    # + 0 turns −0 into 0.
    return f"{x + 0:+.{digits}f}".replace("-", "−")
