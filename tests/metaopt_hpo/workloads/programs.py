"""Small training programs, as command lines."""

from __future__ import annotations

import sys

from metaopt_hpo.comparison.objective import Configuration

LINE = (
    f"{sys.executable} train.py --width {{width}} --lr {{lr}} --steps {{steps}} --seed {{seed}} --out {{out}}"
)
HEAD = """
import argparse, json, math, os, pathlib, sys, time
p = argparse.ArgumentParser()
for name, kind in (("width", int), ("lr", float), ("steps", int), ("seed", int), ("out", str), ("note", str)):
    p.add_argument("--" + name, type=kind)
a = p.parse_args()
out = pathlib.Path(a.out)
def loss(step):
    return 2 + 3 / (1 + step) + 0.1 * math.log(a.lr / 0.01) ** 2
points = range(0, a.steps + 1, max(1, a.steps // 10))
"""
SIZES = {8: 100.0, 16: 400.0}


def configuration(**changes: object) -> Configuration:
    return Configuration(**{"size": 100.0, "tokens": 640.0, "batch": 16.0, "lr": 0.01, "seed": 3, **changes})  # type: ignore[arg-type]
