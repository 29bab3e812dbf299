"""The plan of the house, from its import graph: no circle of files, few rooms and floors, arrows that point down."""

from __future__ import annotations

from collections import defaultdict
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import grimp
import pytest

ROOT = Path(__file__).resolve().parents[1]
PACKAGES = ("metaopt_hpo", "metaopt_hpo_optuna", "metaopt_hpo_ray", "studies")

Graph = dict[str, set[str]]


@pytest.fixture(scope="module")
def files() -> Graph:
    """What every file imports of ours, inside functions and for type checkers too."""
    graph = grimp.build_graph(*PACKAGES, cache_dir=None)
    return {module: set(graph.find_modules_directly_imported_by(module)) for module in graph.modules}


@pytest.fixture(scope="module")
def rooms(files: Graph) -> Graph:
    """Folders of `metaopt_hpo` and what they import of each other; single files are the ground they stand on."""
    names = {path.parent.name for path in (ROOT / "metaopt_hpo").glob("*/__init__.py")}
    arrows: Graph = {name: set() for name in names}
    for module, imported in files.items():
        here = _room(module)
        if here in names:
            arrows[here] |= {there for there in map(_room, imported) if there in names - {here}}
    return arrows


def _room(module: str) -> str:
    return module.split(".")[1] if module.startswith("metaopt_hpo.") else ""


def _floors(graph: Graph) -> int:
    height: dict[str, int] = {}
    for name in TopologicalSorter(graph).static_order():
        height[name] = 1 + max((height[below] for below in graph[name]), default=0)
    return max(height.values())


def test_no_file_imports_itself_through_others(files: Graph) -> None:
    try:
        TopologicalSorter(files).prepare()
    except CycleError as circle:
        pytest.fail(f"these files import each other in a circle: {' -> '.join(reversed(circle.args[1]))}")


def test_a_circle_through_a_deferred_import_is_seen(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    package = tmp_path / "circled"
    package.mkdir()
    (package / "__init__.py").touch()
    (package / "a.py").write_text("from circled.b import g\n")
    (package / "b.py").write_text("def g():\n    from circled.a import g\n    return g\n")
    monkeypatch.syspath_prepend(tmp_path)
    graph = grimp.build_graph("circled", cache_dir=None)
    arrows = {module: graph.find_modules_directly_imported_by(module) for module in graph.modules}
    with pytest.raises(CycleError):
        TopologicalSorter(arrows).prepare()


def test_the_house_is_small_enough_to_draw(rooms: Graph, capsys: pytest.CaptureFixture[str]) -> None:
    arrows = sum(map(len, rooms.values()))
    lines: dict[str, int] = defaultdict(int)
    for path in (ROOT / "metaopt_hpo").rglob("*.py"):
        lines[path.relative_to(ROOT / "metaopt_hpo").parts[0]] += path.read_text(encoding="utf-8").count("\n")
    largest = max(lines, key=lambda name: lines[name])
    share = lines[largest] / sum(lines.values())
    with capsys.disabled():
        print(
            f" [{len(rooms)} rooms, {_floors(rooms)} floors, {arrows} arrows, {largest} is {share:.0%} of the lines]"
        )
    assert len(rooms) <= 12
    assert _floors(rooms) <= 8
    assert arrows <= 40
    assert share <= 0.25
