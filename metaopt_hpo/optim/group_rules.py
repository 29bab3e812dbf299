"""Which base rule advances which parameter: groups name a rule and may change its numbers."""

from __future__ import annotations

from collections.abc import Mapping
from operator import is_
from typing import Any

from torch import Tensor

from metaopt_hpo.optim.blocks import Member
from metaopt_hpo.optim.rules import Rule, base_rule

VARIANTS = 64
"""How many rules with changed numbers are kept; a schedule of momentum makes one a step."""


class GroupRules:
    """The base rules of one optimizer by name, and those of its groups and parameters."""

    def __init__(self) -> None:
        self.by_name: dict[str, Rule] = {}
        self._variants: dict[Any, Rule] = {}
        self._cache: tuple[list[Rule], list[Rule]] | None = None

    def register(self, rule: Rule) -> str:
        """The name under which groups refer to a rule; rules that differ in more than options have different names."""
        for name, known in self.by_name.items():
            if type(known) is type(rule) and known.with_options(rule.options()) == rule:
                return name
        name = type(rule).__name__
        if name in self.by_name:
            name = f"{name} {len(self.by_name)}"
        self.by_name[name] = rule
        return name

    def prototype(self, group: dict[str, Any]) -> Rule:
        """The rule that a group names, with the options it was made with."""
        name = group["base"]
        if not isinstance(name, str) or name not in self.by_name:
            rule = base_rule(name)
            group["base"] = self.register(rule)
            for option, value in rule.options().items():
                group.setdefault(option, value)
        return self.by_name[group["base"]]

    def of(self, group: dict[str, Any]) -> Rule:
        """The base rule of a group, with the options that stand in the group now."""
        rule = self.prototype(group)
        values = rule.options()
        given = {name: group[name] for name in values if name in group}
        if given == values:
            return rule
        key = (group["base"], tuple((name, _hashable(value)) for name, value in given.items()))
        found = self._variants.get(key)
        if found is None:
            if len(self._variants) > VARIANTS:
                self._variants.clear()
            found = self._variants[key] = rule.with_options(given)
        return found

    def forget(self) -> None:
        """The groups have changed: ask every parameter anew."""
        self._cache = None

    def per_parameter(self, groups: list[dict[str, Any]], members: Mapping[Tensor, Member]) -> list[Rule]:
        """The base rule of every present parameter, in the order of the groups."""
        rules = [self.of(group) for group in groups]
        if self._cache is not None and all(map(is_, rules, self._cache[0])):
            return self._cache[1]
        out: list[Rule] = []
        alike: dict[Rule, Rule] = {}  # one object for equal rules, for parameters are put together by it
        for group, rule in zip(groups, rules, strict=True):
            for p in group["params"]:
                out.append(_same_object(rule.for_parameter(members[p].name, p), alike))
        self._cache = rules, out
        return out


def _same_object(rule: Rule, known: dict[Rule, Rule]) -> Rule:
    """The first of equal rules; one that cannot be hashed stands for itself."""
    try:
        return known.setdefault(rule, rule)
    except TypeError:
        return rule


def _hashable(value: Any) -> Any:
    return tuple(value) if isinstance(value, list) else value
