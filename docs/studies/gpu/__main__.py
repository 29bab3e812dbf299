"""``make gpu``: run the parts on a GPU and write results and a page; without one, say what would be done.

    python -m studies.gpu [checks] [speed] [race] [page] [--out docs/results] [--minutes 8]

Needs torch ≥ 2.6 with Triton, and numpy; pyarrow only to write Parquet and pandas only to write the page (without them
results stay JSON lines, of which ``page`` on another machine makes both). Each part ends within ``--minutes``.
"""

from __future__ import annotations

import argparse
import sys
import time
from pathlib import Path
from typing import Any

import torch

from studies.gpu.kept import keep

PARTS = {
    "checks": "every rule, dtype and block kind against plain operations; no wait for the device; a captured step; "
    "nothing compiled anew for decay, shapes or the number of tensors",
    "speed": "time, launches and memory of a step beside torch's fused AdamW: 15 M and 1 B parameters, 1,000 small "
    "tensors, with and without clipping, bfloat16, and the first step",
    "race": "a byte-level transformer of 10–30 M parameters: one run of ours beside AdamW at five learning rates",
    "page": "gpu.md from what the other parts have written",
}


def main() -> int:
    parser = argparse.ArgumentParser(
        prog="studies.gpu", description=__doc__.split("\n")[0] if __doc__ else ""
    )
    parser.add_argument("parts", nargs="*", help=f"of {', '.join(PARTS)}; all of them where none is given")
    parser.add_argument("--out", type=Path, default=Path("docs/results"))
    parser.add_argument("--minutes", type=float, default=8.0)
    given = parser.parse_args()
    unknown = [part for part in given.parts if part not in PARTS]
    if unknown:
        parser.error(f"part {unknown[0]!r} is not known: use {', '.join(PARTS)}")
    parts = given.parts or list(PARTS)
    missing = _missing()
    if missing and parts != ["page"]:
        print(f"{missing}; nothing is measured. On a machine with one, this would run:")
        for part in parts:
            print(f"  {part:7} {PARTS[part]} (at most {given.minutes:g} minutes)")
        print(f"and write {given.out}/gpu_<part>.parquet and {given.out}/gpu.md")
        return 0
    given.out.mkdir(parents=True, exist_ok=True)
    failed = 0
    for part in parts:
        print(f"== {part}: {PARTS[part]}", flush=True)
        if part == "page":
            from studies.gpu.page import write

            try:
                write(given.out)
            except ImportError as missing:
                print(
                    f"{missing.name} is not installed: the results are kept, `page` makes gpu.md of them elsewhere"
                )
            continue
        rows = _run(part, given.minutes * 60)
        keep(rows, given.out / f"gpu_{part}")
        failed += sum(row.get("ok") is False for row in rows)
    return 1 if failed else 0


def _missing() -> str:
    if not torch.cuda.is_available():
        return "There is no GPU here (torch.cuda.is_available() is False)"
    try:
        import triton  # noqa: F401
    except ImportError:
        return "Triton is not installed"
    return ""


def _run(part: str, seconds: float) -> list[dict[str, Any]]:
    from studies.gpu import checks, race, speed

    start = time.monotonic()
    about = {
        "card": torch.cuda.get_device_name(),
        "torch": torch.__version__,
        "python": sys.version.split()[0],
    }
    rows = []
    for row in {"checks": checks, "speed": speed, "race": race}[part].rows(start + 0.9 * seconds):
        rows.append(about | row)
        print("  " + ", ".join(f"{name} {value}" for name, value in row.items()), flush=True)
    return rows


if __name__ == "__main__":
    sys.exit(main())
