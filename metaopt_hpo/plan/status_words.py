"""What terminal and page both say of a plan's status."""

from __future__ import annotations

import math
from collections.abc import Iterator

from metaopt_hpo.plan.status import Status
from metaopt_hpo.plan.words import device_time
from metaopt_hpo.report.words import count


def cost_words(now: Status) -> str:
    """What was spent: of what was planned, of the budget, and in time and money as measured."""
    spent, planned = now.spent, now.planned
    share = f" ({spent.flops / planned.flops:.0%} of what is planned)" if planned.flops > 0 else ""
    parts = [f"spent {spent.flops:.3g} FLOPs{share}, {now.share:.0%} of the budget"]
    if spent.gpu_hours > 0:
        parts.append(device_time(spent.gpu_hours))
    if now.plan.hardware.price > 0:
        parts.append(f"{spent.money:.3g} {now.plan.hardware.currency}")
    return ", ".join(parts)


def pilot_rows(now: Status) -> Iterator[tuple[str, ...]]:
    """One row a pilot: name, size, tokens, strategy, lr, state, loss, cost."""
    by_name = {r.study: r for r in now.folder.records}
    running = {r.name: r for r in now.running}
    ended = any(d.what == "skip" for d in now.folder.decisions)
    for p in now.plan.pilots:
        record = by_name.get(p.name)
        if record is not None:
            lr = record.found_lr if record.self_tuning else record.lr
            state, loss = str(record.state), f"{record.loss:.4f}"
        else:
            lr = float(p.lr) if isinstance(p.lr, float) else math.nan
            state, loss = ("running" if p.name in running else "not needed" if ended else "waiting"), "–"
        share = p.cost.flops / now.plan.target_cost.flops
        shown = f"{lr:.3g}" if math.isfinite(lr) else "–"
        yield p.name, count(p.size), count(p.tokens), p.strategy, shown, state, loss, f"{share:.1%}"
