"""Workloads by name: each a family whose members differ in width."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import fields
from importlib import import_module
from typing import Any, cast

from metaopt_hpo.workloads.base import Workload, WorkloadError

FAMILIES = {
    "text-lm": ("text_lm", "TextLM", "a byte-level transformer on real English text"),
    "cifar10": ("cifar10", "Cifar10", "residual networks on CIFAR-10"),
    "continual": (
        "continual",
        "Continual",
        "a stream of tasks whose labels are permuted, on CIFAR-10 or CIFAR-100",
    ),
    "imagenet": ("imagenet", "ImageNet", "ResNet-18 on ImageNet's folders"),
    "tinystories": ("tinystories", "TinyStories", "a Llama-style byte-level transformer on TinyStories"),
    "tabular": ("tabular", "Tabular", "classification of table rows"),
    "regression": ("tabular", "Regression", "regression on table rows"),
}
"""Name → module, class, and what it is in a few words."""


def available_workloads() -> dict[str, str]:
    """Every workload's name and what it is."""
    return {name: summary for name, (_, _, summary) in FAMILIES.items()}


def workload_class(name: str) -> Any:
    """The class behind a name; its `default_widths` are the usual members.

    Raises:
        WorkloadError: unknown; the message lists those there are.
    """
    if name not in FAMILIES:
        raise WorkloadError(f"unknown workload {name!r}; available: {', '.join(FAMILIES)}")
    module, attribute, _ = FAMILIES[name]
    return getattr(import_module(f"metaopt_hpo.workloads.{module}"), attribute)


def members(name: str, widths: Sequence[int] | None = None, **options: Any) -> list[Workload]:
    """The members of a family, by width.

    Args:
        name: of the workload.
        widths: ascending and distinct; None for the family's usual ones.
        options: further fields of the workload (data, device, …).

    Raises:
        WorkloadError: unknown name, or data that cannot be found.
        ValueError: widths that are empty or not ascending, or an unknown or bad option.
    """
    cls = workload_class(name)
    chosen = list(cls.default_widths if widths is None else widths)
    if not chosen or sorted(set(chosen)) != chosen:
        raise ValueError(f"widths must be ascending and distinct, got {chosen}")
    known = {f.name for f in fields(cls)}
    for option in options:
        if option not in known:
            raise ValueError(f"workload {name!r} has no option {option!r}; it has {', '.join(sorted(known))}")
    return [cast(Workload, cls(width=width, **options)) for width in chosen]
