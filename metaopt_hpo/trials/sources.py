"""Under which names a framework's trials keep size, tokens, batch and lr."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from metaopt_hpo.trials.quantities import positive


@dataclass(frozen=True, slots=True)
class Sources:
    """Which entry of a trial holds each quantity; a number stands for every trial.

    Args:
        size: trainable non-embedding parameters.
        tokens: planned training tokens.
        batch: tokens per optimizer step.
        lr: the knob; always the name of an entry.

    Raises:
        ValueError: neither a name nor a finite number above zero.
    """

    size: str | float = "size"
    tokens: str | float = "tokens"
    batch: str | float = "batch"
    lr: str = "lr"

    kind: ClassVar[str] = "an entry"
    """What an entry is called in the framework's language."""

    fixed: ClassVar[tuple[str, ...]] = ("size", "tokens", "batch")
    """Quantities for which a number may stand."""

    def __post_init__(self) -> None:
        for name in (*self.fixed, "lr"):
            source = getattr(self, name)
            if isinstance(source, str) and source:
                continue
            if name == "lr" or positive(source) is None:
                number = "" if name == "lr" else " or a positive number"
                raise ValueError(f"{name} must be the name of {self.kind}{number}, got {source!r}")

    def names(self) -> frozenset[str]:
        """The names in use."""
        return frozenset(s for s in (self.size, self.tokens, self.batch, self.lr) if isinstance(s, str))
