"""The tables of docs/open-question.md as Markdown, from the frames that `attribute` writes; none is typed by hand."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import pandas as pd

from metaopt_hpo.attribution.levels import TUNED_MOMENTA, Setting
from metaopt_hpo.attribution.outcome import ARGMIN, COARSE, TUNED

B = 0.571
"""Batch exponent of the tables: Step Law's."""
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


def parts_table(parts: pd.DataFrame) -> str:
    """One row a world, one column a part, with verdicts; the total last."""
    names = [n for n in dict.fromkeys(parts["part"]) if n != "total"]
    rows = []
    for world, mine in parts.groupby("world", sort=False):
        by = {r["part"]: r for r in mine.to_dict("records")}
        cells = [f"{_with(by[n], 'gap', 3)} *{by[n]['verdict']}*" if n in by else "–" for n in names]
        rows.append([str(world), *cells, f"**{_with(by['total'], 'gap', 3)}**"])
    return _markdown(["world", *names, "total"], rows)


def levels_table(levels: pd.DataFrame) -> str:
    """Exponent of lr along B ~ D^0.571 by final loss, one row a level, one column a world; – was not run."""
    final = levels[levels["criterion"] == "final-loss"]
    worlds = list(dict.fromkeys(final["world"]))
    practice = {w: _practice(final[final["world"] == w]) for w in worlds}
    rows = [[n, *(_level(final, w, s.label) for w in worlds)] for n, s in NAMES.items()]
    rows.append([TUNED, *(_level(final, w, TUNED) for w in worlds)])
    rows.append([ARGMIN.replace("lr", "η"), *(_argmin(final, w) for w in worlds)])
    rows.append([COARSE, *(_level(final, w, COARSE) for w in worlds)])
    rows.append(["practice", *(_level(final, w, practice[w]) for w in worlds)])
    return _markdown(["level", *worlds], rows)


def proxy_table(checks: pd.DataFrame) -> str:
    """One row a world, one column a prediction of the generalised proxy."""
    names = list(dict.fromkeys(checks["check"]))
    rows = []
    for world, mine in checks.groupby("world", sort=False):
        by = {r["check"]: r for r in mine.to_dict("records")}
        rows.append([str(world), *(_check(by[n]) if n in by else "–" for n in names)])
    return _markdown(["world", *names], rows)


def criterion_table(
    levels: pd.DataFrame, rows: Sequence[tuple[str, str, Sequence[tuple[Setting, str]]]]
) -> str:
    """Exponents along B ~ D^0.571 of chosen settings and criteria.

    Args:
        rows: (title, world, settings with their criteria).
    """
    found = []
    for title, world, columns in rows:
        mine = levels[levels["world"] == world]
        cells = [
            _level(mine[mine["criterion"] == c], world, s.label, digits=3, missing="unusable")
            for s, c in columns
        ]
        found.append([title, *cells])
    head = ["avg ‖g‖*, assumptions met", "final loss, assumptions met", "final loss, cosine, m₀ = 0"]
    return _markdown(["world", *head], found)


def _practice(mine: pd.DataFrame) -> str:
    """The setting that differs from the ideal in most levels among those of the factorial."""
    corners = [s for s in mine["setting"] if s.count("|") == 5]
    order = ("cosine|zero|minibatch|fixed|0.1|fraction", "cosine|zero|minibatch|fixed|0.1|none")
    return next((s for s in order if s in corners), "cosine|gradient|minibatch|fixed|0.1|none")


def _level(frame: pd.DataFrame, world: str, label: str, *, digits: int = 2, missing: str = "–") -> str:
    mine = frame[(frame["world"] == world) & (frame["setting"] == label)].to_dict("records")
    return _with(mine[0], f"joint_{B:g}", digits, ends=f"joint_{B:g}_") if mine else missing


def _argmin(frame: pd.DataFrame, world: str) -> str:
    mine = frame[(frame["world"] == world) & (frame["setting"] == ARGMIN)].to_dict("records")
    return f"{_sign(mine[0]['x'], 2)} (B ~ D^{mine[0]['y']:.2f})".replace("^-", "^−") if mine else "–"


def _check(row: Mapping[Any, Any]) -> str:
    against = f" against {_sign(float(str(row['predicted'])), 3)}"
    return f"{_with(row, 'measured', 3)}{against}: {'holds' if row['holds'] else '**refuted**'}"


def _with(row: Mapping[Any, Any], name: str, digits: int, *, ends: str = "") -> str:
    value, low, high = (_sign(float(str(row[k])), digits) for k in (name, f"{ends}low", f"{ends}high"))
    return f"{value} [{low}, {high}]"


def _sign(x: float, digits: int) -> str:
    # + 0 turns −0 into 0.
    return f"{x + 0:+.{digits}f}".replace("-", "−")


def _markdown(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)
