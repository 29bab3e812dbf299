"""Currencies that prices and budgets may be in. No rates of exchange are known here."""

from __future__ import annotations

import re

CURRENCIES = frozenset(
    re.findall(
        "...",
        "USDEURGBPJPYCNYCHFCADAUDNZDSEKNOKDKKISKPLNCZKHUFRONBGNTRYINRKRWSGDHKDTWDTHBMYRIDRPHPVNDBRLMXNARSCLPCOPPEN"
        "ZARNGNKESEGPILSAEDSARQARKWDPKRBDTUAHKZT",
    )
)
"""Codes of ISO 4217 that are taken; prices in one are compared with prices in the same one only."""

SIGNS = {"$": "USD", "€": "EUR", "£": "GBP", "dollar": "USD", "dollars": "USD", "euro": "EUR", "euros": "EUR"}


def code_of(name: str) -> str | None:
    """The code of a currency by code, sign or name; None for one that is not known."""
    text = name.strip()
    return SIGNS.get(text.lower()) or (text.upper() if text.upper() in CURRENCIES else None)
