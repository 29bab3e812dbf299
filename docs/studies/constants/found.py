"""The constants of `metaopt_hpo.scaling`, found in its source; and the room imported anew with one of them scaled.

A constant is what a module assigns to a name in capitals: a number, or tuples, mappings and arrays of numbers.
"""

from __future__ import annotations

import ast
import importlib
import importlib.abc
import importlib.machinery
import importlib.util
import itertools
import pkgutil
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import CodeType, ModuleType
from typing import Any

import numpy as np

ROOM = "metaopt_hpo.scaling"


@dataclass(frozen=True)
class Constant:
    """A number of the room.

    Attributes:
        module: that assigns it.
        name: in capitals.
        value: as text.
        source: the text beneath it in the code.
    """

    module: str
    name: str
    value: str
    source: str

    @property
    def label(self) -> str:
        return f"{self.module.removeprefix(ROOM + '.')}.{self.name}"


def modules() -> Iterator[ModuleType]:
    """Every module of the room, by name."""
    package = importlib.import_module(ROOM)
    for info in pkgutil.walk_packages(package.__path__, f"{ROOM}."):
        yield importlib.import_module(info.name)


def constants() -> list[Constant]:
    """All of them, by module."""
    return [
        Constant(m.__name__, name, shown(getattr(m, name)), source)
        for m in modules()
        for name, source in _assigned(_body(m))
        if numeric(getattr(m, name))
    ]


def _body(module: ModuleType) -> list[ast.stmt]:
    assert module.__file__ is not None
    return ast.parse(Path(module.__file__).read_text(encoding="utf-8")).body


def _assigned(body: Sequence[ast.stmt]) -> Iterator[tuple[str, str]]:
    """(name, text beneath) of what is assigned in capitals."""
    for node, below in itertools.pairwise([*body, None]):
        name = None if node is None else _name(node)
        if name is not None:
            text = ast.get_docstring(ast.Module([below], [])) if isinstance(below, ast.Expr) else None
            yield name, " ".join((text or "").split())


def _name(node: ast.stmt) -> str | None:
    """The name in capitals that a statement assigns; None for any other statement."""
    if isinstance(node, ast.AnnAssign):
        target: ast.expr = node.target
    elif isinstance(node, ast.Assign) and len(node.targets) == 1:
        target = node.targets[0]
    else:
        return None
    return target.id if isinstance(target, ast.Name) and target.id.isupper() else None


def numeric(value: Any) -> bool:
    """Whether it consists of numbers."""
    if isinstance(value, Mapping):
        return bool(value) and all(map(numeric, value.values()))
    if isinstance(value, tuple):
        return bool(value) and all(map(numeric, value))
    return isinstance(value, (int, float, np.ndarray)) and not isinstance(value, bool)


def shown(value: Any) -> str:
    """A constant as text."""
    if isinstance(value, Mapping):
        return ", ".join(f"{k} {shown(v)}" for k, v in value.items())
    if isinstance(value, np.ndarray):
        return f"{shown(float(value[0]))} to {shown(float(value[-1]))} in {value.size}"
    if isinstance(value, tuple):
        return " ".join(map(shown, value))
    return f"{value:.4g}"


def scaled(value: Any, factor: float) -> Any:
    """A constant times a factor; whole numbers stay whole and at least 1, mappings and tuples go member by member."""
    if isinstance(value, Mapping):
        return {k: scaled(v, factor) for k, v in value.items()}
    if isinstance(value, tuple):
        return tuple(scaled(v, factor) for v in value)
    return max(1, round(value * factor)) if isinstance(value, int) else value * factor


def import_scaled(module: str, name: str, factor: float) -> None:
    """From now on this process imports the room, and all that stands on it, with one constant scaled.

    It is scaled where it is assigned, so that defaults of arguments and other constants follow. What has been imported
    of the package and its studies is forgotten: what is still held of it must not be used.
    """
    for loaded in [m for m in sys.modules if m.partition(".")[0] in ("metaopt_hpo", "studies")]:
        if loaded != __name__:
            del sys.modules[loaded]
    sys.meta_path.insert(0, _Finder(module, name, factor))


class _Finder(importlib.abc.MetaPathFinder):
    def __init__(self, module: str, name: str, factor: float) -> None:
        self.module, self.name, self.factor = module, name, factor

    def find_spec(self, fullname: str, path: Any, target: Any = None) -> Any:
        if fullname != self.module:
            return None
        spec = importlib.machinery.PathFinder.find_spec(fullname, path)
        assert spec is not None
        assert spec.origin is not None
        spec.loader = _Loader(fullname, spec.origin, self.name, self.factor)
        return spec


class _Loader(importlib.machinery.SourceFileLoader):
    def __init__(self, fullname: str, path: str, name: str, factor: float) -> None:
        super().__init__(fullname, path)
        self.constant, self.factor = name, factor

    def get_code(self, fullname: str) -> CodeType:
        """The module's code with one statement more; never from a cache."""
        tree = ast.parse(self.get_data(self.path))
        place = 1 + next(i for i, node in enumerate(tree.body) if _name(node) == self.constant)
        then = f"{self.constant} = __import__({__name__!r}, fromlist=['scaled']).scaled({self.constant}, {self.factor})"
        tree.body[place:place] = ast.parse(then).body
        return compile(tree, self.path, "exec")
