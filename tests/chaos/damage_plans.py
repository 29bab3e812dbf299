"""Damaged plans, plan folders, predictions and programs' losses; see `damage`."""

from __future__ import annotations

import json
import math
import random
import shutil
import sys
import tempfile
import tomllib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import tomlkit
from damage import JUNK, Counted, damaged, places, said

PROGRAM = """
import json, sys
width, lr, steps = int(sys.argv[1]), float(sys.argv[2]), int(sys.argv[3])
print(json.dumps({"step": steps, "val_loss": 2 + 1 / width + lr}))
"""


def plan_folder(folder: Path) -> Path:
    """A plan whose first pilots have run; the plan's file."""
    from metaopt_hpo import plan

    (folder / "job.py").write_text(PROGRAM)
    made = plan(
        target=2.56e6, tokens=4e7, budget="100 % of the target", hardware="cpu", base=[], batch=1e3,
        sizes=[1e4, 4e4, 1.6e5], tokens_per_parameter=[20.0], lr=(1e-4, 1e-1),
        workload=f"{sys.executable} {folder / 'job.py'} {{width}} {{lr}} {{steps}} {{strategy}}",
        workload_options={"sizes": "4:1e4,8:4e4,16:1.6e5,64:2.56e6", "batch": "1000"},
    )  # fmt: skip
    made.write(folder / "plan.toml")
    made.run(out=folder / "plan", most=2)
    return folder / "plan.toml"


def spoilt(data: bytes, draw: random.Random) -> bytes:
    """Cut short, a bit flipped, a part twice, or something else altogether."""
    how = draw.random()
    if how < 0.3:
        return data[: draw.randrange(max(1, len(data)))]
    if how < 0.7:
        out = bytearray(data or b" ")
        for _ in range(draw.choice((1, 1, 8))):
            out[draw.randrange(len(out))] ^= 1 << draw.randrange(8)
        return bytes(out)
    if how < 0.8:
        return data + data[draw.randrange(max(1, len(data))) :]
    return draw.choice((b"", b"\x00" * 4096, b"[" * 100_000, b"null", b"[]", b"{}", b"\xff\xfe", b"PAR1" * 9))


def plans(seed: int, count: int = 300) -> Counted:
    """A plan's file edited by hand, and a folder of results with any one file damaged."""
    draw, counted = random.Random(seed), Counted("plan, and its folder")
    with tempfile.TemporaryDirectory() as place:
        file = plan_folder(Path(place))
        whole = {p: p.read_bytes() for p in [file, *sorted((file.parent / "plan").iterdir())] if p.is_file()}
        shape = json.loads(json.dumps(tomllib.loads(whole[file].decode())))
        spots = list(places(shape))
        for _ in range(count):
            for path, data in whole.items():
                path.write_bytes(data)
            command = draw.choice(
                (["run", str(file), "--most", "0"], ["watch", str(file.parent / "plan"), "--once"],
                 ["watch", str(file.parent / "plan"), "--once", "--page"], ["recipe", str(file)],
                 ["recipe", str(file), "--to", draw.choice(("transformers", "torchtitan", "yaml", "card"))])
            )  # fmt: skip
            if draw.random() < 0.5:
                target = draw.choice([file, file.parent / "plan" / "plan.toml"])
                spot, junk = draw.choice(spots), draw.choice(JUNK)
                target.write_text(edited(shape, spot, junk))
                label = f"{spot} {junk!r:.30}"
            else:
                target = draw.choice([p for p in whole if p.name != "run.lock"])
                target.write_bytes(spoilt(whole[target], draw))
                label = f"{target.name}"
            counted.count(f"{command[0]} {label}", lambda command=command: said(command))  # type: ignore[misc]
    return counted


def edited(shape: Any, spot: tuple[str | int, ...], junk: Any) -> str:
    """TOML with junk in a place."""
    data = json.loads(damaged(shape, spot, junk))
    return tomlkit.dumps(without_nothing(data))


def without_nothing(value: Any) -> Any:
    """TOML has no null: a field that is left out."""
    if isinstance(value, dict):
        return {k or "x": without_nothing(v) for k, v in value.items() if v is not None}
    if isinstance(value, list):
        return [without_nothing(v) for v in value if v is not None]
    if isinstance(value, int) and not isinstance(value, bool) and abs(value) > 2**62:
        return 2**62
    return value


def predictions(seed: int, count: int = 200) -> Counted:
    """A registered prediction with junk in a place, or damaged."""
    from metaopt_hpo.scaling import library, preregistration

    draw, counted = random.Random(seed), Counted("registered prediction")
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "p.json"
        preregistration.register(library.prior("fitted-step-law"), size=7e9, tokens=1.4e11, path=file)
        whole = file.read_text()
        spots = list(places(json.loads(whole)))
        for _ in range(count):
            spot, junk = draw.choice(spots), draw.choice(JUNK)
            if draw.random() < 0.6:
                file.write_text(damaged(json.loads(whole), spot, junk))
            else:
                file.write_bytes(spoilt(whole.encode(), draw))
            command = ["check", str(file), "--loss", draw.choice(("2.1", "2.1", "nan", "1e308", "-1"))]
            command += draw.choice(([], ["--page", str(Path(folder) / "p.html")]))
            counted.count(f"{spot} {junk!r:.30}", lambda command=command: said(command))  # type: ignore[misc]
    return counted


def losses(seed: int, count: int = 400) -> Counted:
    """What a program wrote, in each format: losses that are numbers, None, or one sentence."""
    from metaopt_hpo.workloads.reported import find

    draw, counted = random.Random(seed), Counted("losses that a program wrote")
    rows = [{"step": i, "tokens": 100 * i, "val_loss": 3 - i / 20, "note": {"a": [1]}} for i in range(1, 21)]
    ways: dict[str, Callable[[list[dict[str, Any]]], str]] = {
        "stdout.log": lambda rs: "\n".join(f"step {r['step']} val_loss: {r['val_loss']}" for r in rs),
        "print.log": lambda rs: "\n".join(map(repr, rs)),
        "l.jsonl": lambda rs: "\n".join(map(json.dumps, rs)),
        "l.csv": lambda rs: (
            "\n".join(["step,val_loss", *(f"{r['step']},{r['val_loss']}" for r in rs)]) + "\n"
        ),
        "trainer_state.json": lambda rs: json.dumps({"log_history": rs}),
        "events.out.tfevents.1": lambda rs: "\x18\x00\x00\x00" + json.dumps(rs),
        "run-1.wandb": lambda rs: ":W&B" + json.dumps(rs),
    }
    odd = (*JUNK, {"a": {"b": {}}}, [[[]]], "1" * 5000, "x" * 200_000)
    for i in range(count):
        with tempfile.TemporaryDirectory() as place:
            folder, name = Path(place), draw.choice(list(ways))
            mine = json.loads(json.dumps(rows))
            for _ in range(draw.randrange(3)):
                mine[draw.randrange(20)][draw.choice(("step", "tokens", "val_loss", "loss", "note"))] = (
                    draw.choice(odd)
                )
            data = ways[name](mine).encode()
            (folder / name).write_bytes(spoilt(data, draw) if draw.random() < 0.5 else data)
            if i % 20 == 0:
                (folder / "d.csv").mkdir()
                (folder / "loop").symlink_to(folder)
                (folder / "gone.json").symlink_to(folder / "nothing")

            def found(folder: Path = folder, name: str = name, how: int = i) -> bool:
                logs = [folder / name] if name.endswith(".log") else []
                named = folder / name if how % 3 == 0 else None
                metric = "val_loss" if how % 5 == 0 else ""
                out = find(logs, folder, batch=100.0, losses=named, metric=metric)
                if out is None:
                    return True
                tokens = [t for t, _ in out.points]
                return all(math.isfinite(t) for t in tokens) or all(math.isnan(t) for t in tokens)

            counted.count(f"{name}", found)
            shutil.rmtree(folder / "d.csv", ignore_errors=True)
    return counted
