"""plan.toml: a plan as a file that people read and edit; a wrong edit is one sentence naming line and field."""

from __future__ import annotations

import difflib
import math
import os
import re
import tomllib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import fields, is_dataclass
from decimal import Decimal
from pathlib import Path
from types import UnionType
from typing import Any, TypeVar, Union, get_args, get_origin, get_type_hints

import tomlkit
from pydantic import ConfigDict, TypeAdapter, ValidationError, with_config
from tomlkit.items import AoT, Float, InlineTable, Table, Trivia

from metaopt_hpo.atomic import write_text
from metaopt_hpo.plan import costs, model, recipe
from metaopt_hpo.plan.costs import PlanError
from metaopt_hpo.plan.model import VERSION

T = TypeVar("T")

UNITS = {
    "size": "parameters",
    "sizes": "parameters",
    "tokens": "training tokens",
    "batch": "tokens per step",
    "batches": "tokens per step",
    "flops_per_token": "training FLOPs a token",
    "tokens_per_parameter": "tokens a parameter",
    "peak_flops": "FLOP/s of one device",
    "utilisation": "share of the peak",
    "watts": "W of one device",
    "price": "of one device for an hour",
    "measured_flops": "FLOP/s of all devices",
    "cost": "FLOPs, tokens, device-hours, joules, money",
    "expected": "sd of ln value at the target, once done",
    "before": "sd of ln value at the target",
    "amount": "in the unit of kind; a share is a fraction",
}
"""Said behind a field the first time it appears."""

HEAD = "metaopt-hpo plan; edit it and run: metaopt-hpo run {name}"

for _module in (costs, model, recipe):
    for _data in list(vars(_module).values()):
        if is_dataclass(_data) and isinstance(_data, type):
            with_config(ConfigDict(extra="forbid"))(_data)  # an unknown field is an error, not ignored


def to_toml(data: object, *, head: str = "") -> str:
    """A dataclass as TOML, its units as comments; None is left out."""
    document = tomlkit.document()
    if head:
        document.add(tomlkit.comment(head))
    said: set[str] = set()
    plain: list[tuple[str, Any]] = []
    tables: list[tuple[str, Any]] = []
    for key, value in plain_values(data).items():
        (tables if isinstance(value, dict) or _is_rows(value) else plain).append((key, value))
    for key, value in plain:
        _add(document, key, value, said)
    for key, value in tables:
        if isinstance(value, dict):
            document.add(key, _table(value, said))
        else:
            rows = AoT([])
            for row in value:
                rows.append(_table(row, said))
            document.add(key, rows)
    return tomlkit.dumps(document)


def from_toml(kind: type[T], text: str, *, source: str = "plan.toml") -> T:
    """Read a dataclass.

    Raises:
        PlanError: the text is no TOML or does not describe one; the message names the line and the field.
    """
    try:
        data = tomllib.loads(text)
    except RecursionError:
        raise PlanError(f"{source} is nested too deeply for a plan; put that right") from None
    except ValueError as error:
        raise PlanError(
            f"{source} is no TOML: {str(error)[:1].lower()}{str(error)[1:]}; correct it"
        ) from None
    version = data.get("version", VERSION)
    if isinstance(version, int) and version > VERSION:
        raise PlanError(
            f"{source} was written by a later metaopt-hpo (format {version}); upgrade it to read the plan"
        )
    if (place := _switch(kind, data)) is not None:
        said = f"{_field(place)} must be a number, and true and false are none"
        raise PlanError(_at(source, line_of(text, place), said))
    try:
        return TypeAdapter(kind).validate_python(data)
    except ValidationError as error:
        raise PlanError(_sentence(kind, error, text, source)) from None


def write(data: object, path: str | os.PathLike[str]) -> Path:
    """Write a dataclass as TOML, whole or not at all.

    Raises:
        WriteError: the file cannot be written; one that was there is unchanged.
    """
    to = Path(path)
    write_text(to, to_toml(data, head=HEAD.format(name=to.name)))
    return to


def read(kind: type[T], path: str | os.PathLike[str]) -> T:
    """Read a dataclass from a TOML file.

    Raises:
        PlanError: there is no such file, or it does not describe one.
    """
    try:
        text = Path(path).read_text(encoding="utf-8-sig")
    except FileNotFoundError:
        raise PlanError(
            f"there is no plan {os.fspath(path)}; make one with: metaopt-hpo plan --out {path}"
        ) from None
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "it is no UTF-8 text"
        raise PlanError(f"{os.fspath(path)} cannot be read: {reason}") from None
    return from_toml(kind, text, source=os.fspath(path))


def plain_values(data: object) -> dict[str, Any]:
    """A dataclass as dictionaries and lists, without its Nones."""
    if not is_dataclass(data):
        raise TypeError(f"expected a dataclass, got {type(data).__name__}")
    found = {f.name: _plain(getattr(data, f.name)) for f in fields(data) if not f.name.startswith("_")}
    return {k: v for k, v in found.items() if v is not None}


def _plain(value: Any) -> Any:
    if is_dataclass(value):
        return plain_values(value)
    if isinstance(value, Mapping):
        return {str(k): _plain(v) for k, v in value.items()}
    if isinstance(value, Sequence) and not isinstance(value, str):
        return [_plain(v) for v in value]
    return value


def _is_rows(value: Any) -> bool:
    return isinstance(value, list) and bool(value) and all(isinstance(v, dict) for v in value)


def _table(values: Mapping[str, Any], said: set[str]) -> Table:
    table = tomlkit.table()
    for key, value in values.items():
        _add(table, key, value, said)
    return table


def _add(to: Any, key: str, value: Any, said: set[str]) -> None:
    item: Any = value
    if isinstance(value, dict):
        inline: InlineTable = tomlkit.inline_table()
        inline.update({k: _number(v) for k, v in value.items()})
        item = inline
    else:
        item = [_number(v) for v in value] if isinstance(value, list) else _number(value)
    to.add(key, item)
    if key in UNITS and key not in said:
        said.add(key)
        to[key].comment(UNITS[key])


def _number(value: Any) -> Any:
    """Large and small floats in powers of ten, which read back as the same number."""
    if not isinstance(value, float) or 1e-3 <= abs(value) < 1e5 or value == 0 or not math.isfinite(value):
        return value
    mantissa, exponent = f"{Decimal(repr(value)):e}".lower().split("e")
    digits = mantissa.rstrip("0").rstrip(".") if "." in mantissa else mantissa
    return Float(value, Trivia(), f"{digits}e{int(exponent)}")


def _sentence(kind: type, error: ValidationError, text: str, source: str) -> str:
    first = error.errors(include_url=False)[0]
    where = [
        p for p in first["loc"] if not (isinstance(p, str) and ("[" in p or p in ("float", "int", "str")))
    ]
    message = str(first["msg"]).removeprefix("Value error, ")
    if first["type"] == "value_error":  # our own checks: their first word is the field
        where.append(message.split()[0])
        said = message
    elif first["type"] == "missing":
        said = f"{_field(where)} is missing; add it, or make the plan again"
        where = where[:-1]
    elif first["type"] == "unexpected_keyword_argument":
        near = difflib.get_close_matches(str(where[-1]), _known(kind, where[:-1]), n=1)
        said = f"there is no field {_field(where)}" + (f"; {near[0]!r} is meant?" if near else "")
    else:
        said = f"{_field(where)}: {message[:1].lower()}{message[1:]}, got {str(first['input'])[:60]!r}"
    return _at(source, line_of(text, where), said)


def _at(source: str, line: int | None, said: str) -> str:
    return f"{source}, line {line}: {said}" if line else f"{source}: {said}"


def _switch(kind: Any, given: Any) -> list[str | int] | None:
    """Place of a true or false where a number is asked for, which pydantic would read as 1 or 0; None without one."""
    kinds = get_args(kind) if get_origin(kind) in (Union, UnionType) else (kind,)
    if isinstance(given, bool):
        return [] if bool not in kinds and not {int, float}.isdisjoint(kinds) else None
    inside: Iterable[tuple[str | int, Any, Any]] = ()
    for one in kinds:
        if isinstance(given, dict) and is_dataclass(one):
            hints = get_type_hints(one)
            inside = ((name, hints.get(name), value) for name, value in given.items())
        elif isinstance(given, dict) and len(get_args(one)) == 2:
            inside = ((name, get_args(one)[1], value) for name, value in given.items())
        elif isinstance(given, list) and (of := get_args(one)):
            inside = ((i, of[0 if ... in of else min(i, len(of) - 1)], v) for i, v in enumerate(given))
    for name, wanted, value in inside:
        if (rest := _switch(wanted, value)) is not None:
            return [name, *rest]
    return None


def _field(where: Sequence[str | int]) -> str:
    out = ""
    for part in where:
        out += f"[{part + 1}]" if isinstance(part, int) else f".{part}" if out else part
    return out


def _known(kind: type, where: Sequence[str | int]) -> list[str]:
    """Names of the fields of the dataclass that a place lies in."""
    current: Any = kind
    for part in where:
        if isinstance(part, str):
            current = get_type_hints(current).get(part, current)
        else:
            current = get_args(current)[0]
    return [f.name for f in fields(current)] if is_dataclass(current) else []


def line_of(text: str, where: Sequence[str | int]) -> int | None:
    """Line, from 1, on which the field at a place stands: the last part of it that is written out."""
    row = next((p for p in where if isinstance(p, int)), None)
    names = [p for p in where if isinstance(p, str)]
    table, best = "", None
    seen: dict[str, int] = {}
    for number, line in enumerate(text.splitlines(), 1):
        if match := re.match(r"\s*\[{1,2}\s*([\w.\-]+)\s*\]{1,2}", line):
            table = match[1]
            seen[table] = seen.get(table, -1) + 1
            if names and table == names[0] and (row is None or seen[table] == row):
                best = number
            continue
        key = re.match(r"\s*([\w\-]+)\s*=", line)
        if key is None:
            continue
        if not table and names and key[1] == names[0]:
            return number
        inside = len(names) > 1 and table == names[0] and (row is None or seen[table] == row)
        if inside and key[1] == names[1]:
            return number
    return best
