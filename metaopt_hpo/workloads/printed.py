"""What one line of a program's output says: JSON, a printed dictionary, or words before numbers."""

from __future__ import annotations

import ast
import json
import re
from typing import Any

from metaopt_hpo.trials.quantities import HELD_OUT as HELD_OUT_WORDS
from metaopt_hpo.trials.quantities import QUANTITIES, flatten, loss_unit, normalise

HELD_OUT = (*QUANTITIES["loss"].strong, "test_loss")
TRAINING = tuple(n for n in QUANTITIES["loss"].weak if "loss" in n)
LOSS_NAMES = {"loss", *HELD_OUT, *TRAINING}

BESIDE = ("final", "best", "lowest", "minimum", "min", "initial")
"""Words before a loss that say it is another moment's: `best val loss 2.3` at step 900 is not the loss of step 900."""

NUMBER = (
    r"[-+]?(?:\d{1,3}(?:[,_]\d{3})+(?:\.\d+)?(?![,_]?\d)"  # 1,000 and 1_000
    r"|\d+\.\d*(?:e[-+]?\d+)?|\d+(?:e[-+]?\d+)?(?!,\d)|\.\d+(?:e[-+]?\d+)?|nan|inf(?:inity)?)"
)
WORDS = re.compile(
    rf"(?<![A-Za-z0-9_/.])([A-Za-z][A-Za-z_/. -]{{0,30}}?)\s*[:= ]\s*({NUMBER})(?![A-Za-z0-9_])",
    re.IGNORECASE,
)
TENSOR = re.compile(rf"\btensor\(\s*({NUMBER})[^()]*(?:\([^()]*\)[^()]*)*\)", re.IGNORECASE)
"""A loss printed as it is: `tensor(2.31, device='cuda:0', grad_fn=<NllLossBackward0>)`."""

COLOURS = re.compile(r"\x1b\[[0-?]*[ -/]*[@-~]|\x1b\][^\x07\x1b]*(?:\x07|\x1b\\)?")
"""What terminals are told of colours, cursors and titles."""


def said(line: str, metric: str = "") -> dict[str, Any] | None:
    """Names and values of a line: a mapping in JSON or as Python prints it, else words before numbers.

    Args:
        line: without colours.
        metric: name of the loss that is looked for beside those that are called so.

    Returns:
        None where no loss is among them.
    """
    line = TENSOR.sub(r"\1", line)
    start = line.find("{")
    if start >= 0 and line.endswith("}"):
        row = _mapping(line[start:])
        if row is not None:
            return row
    found: dict[str, Any] = {}
    told = False
    for name, value in WORDS.findall(line):
        called = _last_words(name.strip())
        if metric and _ends_with(called, name, metric):
            called = metric
        is_loss = called == metric or "loss" in name.lower() or loss_unit(called) != ""
        if is_loss and "," in value:
            continue  # 3,211 may be a decimal comma
        told = told or is_loss
        found[called] = float(value.replace(",", ""))
    return found if told else None


def _ends_with(called: str, name: str, metric: str) -> bool:
    """Whether text before a number says the metric's name: `step 5 | val nll 2.1` does of `val nll` and of `nll`."""
    wanted = normalise(metric)
    if normalise(called) in LOSS_NAMES:  # `val loss` is no `loss`
        return normalise(called) == wanted
    return f"_{normalise(name)}".endswith(f"_{wanted}")


def _last_words(name: str) -> str:
    """`[rank0] 12:00 epoch done, val loss` is called `val loss`; words of `BESIDE` before it belong to it too."""
    words = name.split()
    keep = 1
    if len(words) > 1:
        before, last = words[-2].lower(), words[-1]
        known = normalise(f"{before}_{last}") in LOSS_NAMES
        keep = 2 if known or (loss_unit(last) and before in HELD_OUT_WORDS) else 1
    if keep < len(words) and words[-keep - 1].lower() in BESIDE:
        keep += 1
    return "_".join(words[-keep:]) if words else name


def _mapping(text: str) -> dict[str, Any] | None:
    for read in (json.loads, _literal):
        try:
            row = read(text)
        except (ValueError, SyntaxError, TypeError, MemoryError, RecursionError):
            continue
        if isinstance(row, dict):
            return flatten({str(k): v for k, v in row.items()})
    return None


def _literal(text: str) -> Any:
    return ast.literal_eval(re.sub(r"(?<=[:\s])-?(?:nan|inf)(?=[,}\s])", '"nan"', text))
