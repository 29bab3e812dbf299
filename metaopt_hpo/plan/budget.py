"""Budgets as people write them: "2 % of the target", "50 GPU-hours", "1e21 FLOPs", "3 MWh", "2000 USD"."""

from __future__ import annotations

import math
import re

from metaopt_hpo.plan.costs import Budget, BudgetKind, Hardware, PlanError
from metaopt_hpo.plan.currencies import code_of

SCALE = {
    "": 1.0,
    "k": 1e3,
    "m": 1e6,
    "g": 1e9,
    "b": 1e9,
    "t": 1e12,
    "p": 1e15,
    "e": 1e18,
    "z": 1e21,
    "y": 1e24,
}
PREFIXES = {
    "kilo": "k",
    "mega": "m",
    "giga": "g",
    "tera": "t",
    "peta": "p",
    "exa": "e",
    "zetta": "z",
    "yotta": "y",
}
DAY = 86400.0
EXAMPLES = "'2 % of the target', '50 GPU-hours', '1e21 FLOPs', '3 MWh', '2000 USD' or '1e9 tokens'"

_FORM = re.compile(
    r"(?P<sign>[$€£])?\s*(?P<number>[+-]?(?:\d[\d_,]*\.?\d*|\.\d+)(?:e[+-]?\d+)?)\s*(?P<unit>.*)",
    re.IGNORECASE,
)


def parse_budget(text: str | float | Budget, hardware: Hardware) -> Budget:
    """A budget from text; a plain number is FLOPs.

    Args:
        text: as people write it; see `EXAMPLES`. "3 days" and "10 hours" are time on all devices of the hardware.
        hardware: whose currency money must be in.

    Raises:
        PlanError: not understood, an unknown unit or currency, or no positive amount.
    """
    if isinstance(text, Budget):
        _check(text, hardware)
        return text
    if isinstance(text, int | float) and not isinstance(text, bool):
        text = f"{text!r} FLOPs"
    match = _FORM.fullmatch(str(text).strip())
    if match is None:
        raise PlanError(f"budget {text!r} is not understood: write it as {EXAMPLES}")
    amount = float(match["number"].replace(",", "").replace("_", ""))
    if not (math.isfinite(amount) and amount > 0):
        raise PlanError(f"budget {text!r} must be a positive amount, such as {EXAMPLES}")
    unit = match["unit"].strip()
    if match["sign"]:
        unit = f"{unit} {match['sign']}".strip()
    kind, factor, currency = _unit(unit, str(text), hardware)
    budget = Budget(kind=kind, amount=amount * factor, currency=currency, text=str(text).strip())
    _check(budget, hardware)
    return budget


def _unit(unit: str, text: str, hardware: Hardware) -> tuple[BudgetKind, float, str]:
    """Kind, factor and currency of a unit."""
    words = re.sub(r"\s+", " ", unit).lower().strip()
    share = re.sub(r"(of|of the|of target|of the target|the target)( run)?$", "", words).strip()
    if share in ("%", "percent", "per cent", "pct"):
        return "share", 0.01, ""
    if share == "" and words:
        return "share", 1.0, ""
    if share in ("x", "×", "times") and words != share:
        return "share", 1.0, ""
    plain = words.replace("-", " ").replace("·", " ").strip()
    if found := re.fullmatch(
        r"(?:gpu|device|card|accelerator|core|h100|a100|[a-z]+\d+) ?(h|hrs?|hours?|d|days?)", plain
    ):
        return "gpu_hours", 24.0 if found[1].startswith("d") else 1.0, ""
    if found := re.fullmatch(r"(h|hrs?|hours?|min|minutes?|d|days?|weeks?)", plain):
        hours = {"h": 1.0, "m": 1 / 60, "d": 24.0, "w": 168.0}[found[1][0]]
        return "gpu_hours", hours * hardware.devices, ""
    if found := re.fullmatch(
        r"(kilo|mega|giga|tera|peta|exa|zetta|yotta|[kmgtpezy]?) ?flops? ?(days?|s|seconds?)?", plain
    ):
        scale = SCALE[PREFIXES.get(found[1], found[1])]
        return "flops", scale * (DAY if (found[2] or "").startswith("d") else 1.0), ""
    if found := re.fullmatch(r"([kmgtb]?|thousand|million|billion|trillion) ?(?:tokens?|toks?)", plain):
        words_scale = {"thousand": 1e3, "million": 1e6, "billion": 1e9, "trillion": 1e12}
        return "tokens", words_scale.get(found[1]) or SCALE[found[1]], ""
    if found := re.fullmatch(r"([kmgt]?|kilo|mega|giga|tera) ?(wh|watt ?hours?|j|joules?)", plain):
        return (
            "joules",
            SCALE[PREFIXES.get(found[1], found[1])] * (3600.0 if found[2].startswith("w") else 1.0),
            "",
        )
    return _money(unit, text)


def _money(unit: str, text: str) -> tuple[BudgetKind, float, str]:
    found = re.fullmatch(r"([kKmMbB]|thousand|million|billion)?\s*([A-Za-z]{3,7}|[$€£])", unit.strip())
    if found:
        name = found[2]
        code = code_of(name)
        if code:
            scale = {"thousand": 1e3, "million": 1e6, "billion": 1e9}
            return "money", scale.get(found[1] or "") or SCALE[(found[1] or "").lower()], code
        if name.isupper() and len(name) == 3:
            raise PlanError(
                f"budget {text!r} is in an unknown currency, {name}: use a code such as USD or EUR"
            )
    said = f"unit {unit!r}" if unit else "no unit"
    raise PlanError(f"budget {text!r} has {'an unknown ' if unit else ''}{said}: write it as {EXAMPLES}")


def _check(budget: Budget, hardware: Hardware) -> None:
    if complaint := hardware.unmeasured(budget):
        raise PlanError(complaint)
