"""What a recipe's exporter is, and what all of them write alike."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

from metaopt_hpo.plan.recipe import Recipe


@dataclass(frozen=True, kw_only=True)
class Setup:
    """What a configuration needs beside a recipe.

    Attributes:
        sequence_length: tokens of a sequence.
        devices: that train together.
        per_device: sequences that a device takes at once.
    """

    sequence_length: int = 2048
    devices: int = 1
    per_device: int = 8

    def __post_init__(self) -> None:
        for name in ("sequence_length", "devices", "per_device"):
            value = getattr(self, name)
            if isinstance(value, bool) or not isinstance(value, int) or value < 1:
                raise ValueError(f"{name} must be a whole number >= 1, got {value!r}")

    def sequences(self, recipe: Recipe) -> int:
        """Of a batch, at least one."""
        return max(1, round(recipe.batch.value / self.sequence_length))

    def split(self, recipe: Recipe) -> tuple[int, int]:
        """Sequences a device takes at once, and how often it does before a step; their product is nearest the batch."""
        each = max(1, round(self.sequences(recipe) / self.devices))
        at_once = min(self.per_device, each)
        return at_once, max(1, round(each / at_once))

    def real_batch(self, recipe: Recipe) -> int:
        """Tokens a step as they really become."""
        at_once, times = self.split(recipe)
        return at_once * times * self.devices * self.sequence_length

    def steps(self, recipe: Recipe, tokens: float) -> int:
        """Steps for so many tokens at the real batch."""
        return max(0, round(tokens / self.real_batch(recipe)))


@dataclass(frozen=True)
class Exporter:
    """One tool that people train with.

    Attributes:
        name: as `Recipe.export(to=…)` takes it.
        writes: what the text is, for people.
        export: the text; a target that the tool cannot express is said in a remark, not left out.
    """

    name: str
    writes: str
    export: Callable[[Recipe, Setup], str]


def remarks(recipe: Recipe, setup: Setup) -> list[str]:
    """What every file says at its head: units, intervals, and what was rounded."""
    r = recipe
    out = [
        f"metaopt-hpo: {r.target.size:.4g} parameters, {r.target.tokens:.4g} tokens, schedule {r.target.schedule}",
        f"peak lr {r.lr} (no unit), batch {r.batch} tokens per step, weight decay {r.weight_decay} (times lr, a step)",
        f"{'' if r.loss.at_most else 'expected '}loss at the end {r.loss} nats per token; intervals at {r.level:.0%}",
        f"batch as written here: {setup.real_batch(r)} tokens per step ({setup.devices} devices, sequences of "
        f"{setup.sequence_length} tokens)",
    ]
    if r.ramp:
        ramp = ", ".join(f"{b:.3g} tokens per step from {t:.3g} tokens on" for t, b in r.ramp)
        out.append(f"batch ramp, not part of this file: {ramp}")
    out.append(
        f"strategy metaoptimize: expected={r.lr.value:.4g}, within={r.within:.3g} keeps lr near while it trains"
    )
    return out + [f"warning: {w}" for w in r.warnings]


def commented(recipe: Recipe, setup: Setup) -> str:
    """`remarks` behind hash signs."""
    return "".join(f"# {line}\n" for line in remarks(recipe, setup))


def number(value: float) -> float:
    """Four digits: more say nothing."""
    return float(f"{value:.4g}")


def as_yaml(values: Mapping[str, object]) -> str:
    """YAML text, keys in their order, numbers as every YAML reader takes them."""
    import yaml

    return str(yaml.safe_dump(dict(values), sort_keys=False, allow_unicode=True))
