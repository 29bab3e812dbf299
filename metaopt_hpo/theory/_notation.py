"""One plain notation for what people type and paste: unicode signs, superscripts, fractions and simple LaTeX."""

from __future__ import annotations

import re
import unicodedata

_SIGNS = str.maketrans(
    {c: plain for plain, signs in {
        "-": "−–‒﹣－", "*": "×⋅·∗∙⋆", "/": "÷∕⁄／", "~": "∼～", "(": "{[", ")": "}]",
    }.items() for c in signs}
)  # fmt: skip
_COMMANDS = {
    "propto": "∝", "sim": "~", "cdot": "*", "times": "*", "sqrt": "√", "eta": "η", "left": "", "right": "",
    "sigma": "σ", "Delta": "Δ",
}  # fmt: skip
_RAISED = {"⁻": "-", "⁺": "+", "ᐟ": "/", "⁄": "/", "·": ".", "˙": ".", "⁽": "(", "⁾": ")"} | {
    c: str(i) for i, c in enumerate("⁰¹²³⁴⁵⁶⁷⁸⁹")
}
_SUPERSCRIPT = re.compile(r"[⁻⁺⁽]*[⁰¹²³⁴⁵⁶⁷⁸⁹](?:[ᐟ⁄·˙]?[⁰¹²³⁴⁵⁶⁷⁸⁹⁾])*")


def plain(text: str) -> str:
    """The same rule with the signs - * / ~ ∝ ^ ( ) √ and plain numbers only; what is not known is left as it is."""
    text = re.sub(r"\\d?frac\s*\{([^{}]*)\}\s*\{([^{}]*)\}", r"((\1)/(\2))", text.replace("$", ""))
    text = re.sub(r"\\([A-Za-z]+)", lambda m: _COMMANDS.get(m[1], m[0]), text)
    text = re.sub(r"\\[,;:! ]", " ", text)
    text = _SUPERSCRIPT.sub(lambda m: "^(" + "".join(_RAISED[c] for c in m[0]) + ")", text)
    return "".join(_fraction(c) for c in text).translate(_SIGNS)


def _fraction(character: str) -> str:
    """½ as (1/2)."""
    if unicodedata.decomposition(character).startswith("<fraction>"):
        return f"({unicodedata.normalize('NFKC', character)})"
    return character
