"""The long form, `make chaos`: kill, damage, count, and print the tables of docs/reliability.md."""

from __future__ import annotations

import argparse
import itertools
import json
import sys
import tempfile
from dataclasses import asdict
from pathlib import Path

from damage import Counted, arguments, checkpoints, laws, tables, trials
from damage_plans import losses, plans, predictions
from drivers import COMMANDS
from kills import Tally, disturbed, undisturbed

from metaopt_hpo.markdown import markdown_table


def main() -> None:
    """Kill, damage, count."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--kills", type=int, default=200)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--only", default=",".join(COMMANDS), help="commands, comma-separated")
    parser.add_argument("--kept", type=Path, help="file of what was counted before, and is not run again")
    options = parser.parse_args()
    # in memory where there is such a place: a process is killed, not a disk
    place = "/dev/shm" if Path("/dev/shm").is_dir() else None
    tallies = {name: Tally() for name in options.only.split(",")}
    kept = (
        [json.loads(line) for line in options.kept.open()] if options.kept and options.kept.exists() else []
    )
    for name, found in kept:
        tallies.setdefault(name, Tally()).add(Tally(**found))
    with tempfile.TemporaryDirectory(prefix="chaos-", dir=place) as folder:
        wholes = {}
        for name in tallies:
            (Path(folder) / name).mkdir()
            wholes[name] = undisturbed(name, Path(folder) / name)
            print(f"{name}: {wholes[name][1]:.1f} s undisturbed", flush=True)
        seeds = itertools.count(options.seed + len(kept))
        while options.kills > 0 and sum(t.kills for t in tallies.values()) < options.kills:
            name = min(tallies, key=lambda n: tallies[n].kills)  # as many of each
            found = disturbed(name, Path(folder) / name, *wholes[name], kills=6, seed=next(seeds))
            tallies[name].add(found)
            if options.kept:
                with options.kept.open("a") as file:
                    file.write(json.dumps([name, asdict(found)]) + "\n")
            print(f"{name}: {found}", flush=True)
    every = Tally()
    for t in tallies.values():
        every.add(t)
    head = [
        "command", "kills", "inside a write, commit or fit", "finished trials lost", "final tables equal", "hangs",
        "tracebacks",
    ]  # fmt: skip
    print("\n" + markdown_table(head, [row(name, t) for name, t in [*tallies.items(), ("all", every)]]))
    wrong, damaged = 0, []
    for what in (checkpoints, laws, tables, arguments, trials, plans, predictions, losses):
        counted: Counted = what(options.seed)
        wrong += counted.wrong
        right = f"{1 - counted.wrong / counted.tried:.1%}"
        damaged.append((counted.name, counted.tried, counted.wrong, right))
        print(f"{counted.name}: {right} right", file=sys.stderr, flush=True)
        for note in counted.notes[:20]:
            print(f"  {note}", file=sys.stderr)
    print("\n" + markdown_table(["damaged", "tried", "wrong", "one sentence, or right"], damaged))
    sys.exit(
        int(
            every.lost + every.hangs + every.tracebacks + every.orphans + wrong > 0
            or every.equal < every.compared
        )
    )


def row(name: str, t: Tally) -> tuple[object, ...]:
    """A line of the table."""
    lost, equal = f"{t.lost} of {t.finished}", f"{t.equal} of {t.compared}"
    return name, t.kills, t.trapped, lost, equal, t.hangs, t.tracebacks


if __name__ == "__main__":
    main()
