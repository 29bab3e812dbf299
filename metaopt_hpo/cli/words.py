"""Messages in the command line's own words: what the package says of arguments is said of options here."""

from __future__ import annotations

import re
import shlex

OPTIONS = {"columns": "--map", "units": "--unit", "extra": "--extra"}
"""Arguments that map names, and the options that take them as NAME=VALUE."""

_MAPPING = re.compile(r"\b(columns|units|extra)=\{('[^']*'|\"[^\"]*\"): ('[^']*'|\"[^\"]*\"|[^{}]*?)\}")

WORDS = (
    (re.compile(r"\bsequence_length=…"), "--sequence-length N"),
    (re.compile(r"\bsequence_length\b"), "--sequence-length"),
    (re.compile(r"\btake_finished=True"), "--take-finished"),
    (re.compile(r"\ballow_weak=True"), "--allow-weak"),
    (re.compile(r"\bimplausible='warn'"), "--allow-implausible"),
    (re.compile(r"\bdecimal='(\w+)'"), r"--decimal \1"),
    (re.compile(r"\buse='(\w+)'"), r"--use \1"),
    (re.compile(r"\bextra=\('([^']+)',\)"), r"--extra \1"),
    (re.compile(r"\bunits=…"), "--unit"),
    (re.compile(r"\bformat='?([\w-]+)'?"), r"--format \1"),
    (re.compile(r"\bprior=(?:…|\.\.\.)?"), "--prior LAW"),
    (re.compile(r"\bbase=(?:…|\.\.\.)?"), "--base TABLE"),
    (re.compile(r"\bengine='(\w+)' with tier=(\d)"), r"--engine \1 with --tier \2"),
    (re.compile(r"\banchor=\((\w+), (\w+), (\w+)\)"), lambda m: f"--anchor {','.join(m.groups()).upper()}"),
    (re.compile(r"\bpass (?:or pass )?(--map \S+=\S+) where"), r"pass \1 where"),
)


def command_line(message: str) -> str:
    """`message` with options instead of arguments: `--map size=params` for `columns={'size': 'params'}`."""

    def option(match: re.Match[str]) -> str:
        value = match[3].strip("'\"")
        value = "COLUMN" if value == "…" else value
        return f"{OPTIONS[match[1]]} {shlex.quote(match[2][1:-1] + '=' + value)}"

    text = _MAPPING.sub(option, message)
    for pattern, words in WORDS:
        text = pattern.sub(words, text)
    while (joined := re.sub(r"(--map [^\s,]+=[^\s,?]+), --map (?=\S)", r"\1,", text)) != text:
        text = joined
    return text
