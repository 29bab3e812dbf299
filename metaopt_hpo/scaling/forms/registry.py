"""Forms by name, as a fit or a law's file asks for them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TypeVar

from metaopt_hpo.errors import MetaOptError

Form = TypeVar("Form")


def named(forms: Mapping[str, Form], name: str, of: str) -> Form:
    """The form of this name.

    Args:
        forms: those there are; a subclass of a form registers itself.
        name: what is asked for.
        of: what the forms are of, for the message.

    Raises:
        MetaOptError: there is none, for instance because the module that defines it was not imported.
    """
    if name not in forms:
        raise MetaOptError(
            f"no form {name!r} of {of}; there are {', '.join(sorted(forms))}: import the module that defines it first"
        )
    return forms[name]
