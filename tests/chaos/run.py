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
    print(
        "\n| command | kills | inside a write, commit or fit | finished trials lost | final tables equal | hangs "
        "| tracebacks |"
    )
    print("|---|---|---|---|---|---|---|")
    every = Tally()
    for name, t in tallies.items():
        every.add(t)
        print(row(name, t))
    print(row("all", every))
    print("\n| damaged | tried | wrong | one sentence, or right |\n|---|---|---|---|")
    wrong = 0
    for what in (checkpoints, laws, tables, arguments, trials, plans, predictions, losses):
        counted: Counted = what(options.seed)
        wrong += counted.wrong
        print(
            f"| {counted.name} | {counted.tried} | {counted.wrong} | {1 - counted.wrong / counted.tried:.1%} |"
        )
        for note in counted.notes[:20]:
            print(f"  {note}", file=sys.stderr)
    sys.exit(
        int(
            every.lost + every.hangs + every.tracebacks + every.orphans + wrong > 0
            or every.equal < every.compared
        )
    )


def row(name: str, t: Tally) -> str:
    """A line of the table."""
    return (
        f"| {name} | {t.kills} | {t.trapped} | {t.lost} of {t.finished} | {t.equal} of {t.compared} | {t.hangs} | "
        f"{t.tracebacks} |"
    )


if __name__ == "__main__":
    main()
