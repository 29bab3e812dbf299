"""What stood in a file of losses before a run that writes to it: other runs' losses are not this one's."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class Earlier:
    """A file as it was.

    Attributes:
        size: bytes.
        digest: of them.
        modified: when, in nanoseconds.
    """

    size: int
    digest: str
    modified: int

    @classmethod
    def of(cls, path: Path) -> Earlier | None:
        """The file now; None where there is none."""
        try:
            data, modified = path.read_bytes(), path.stat().st_mtime_ns
        except OSError:
            return None
        return cls(len(data), _digest(data), modified)

    def since(self, path: Path, data: bytes, *, header: bool = False) -> bytes:
        """What was added to the file, or all of it where it was written anew.

        Args:
            path: the file.
            data: its content now.
            header: its first line names the columns, and stays.
        """
        if _digest(data[: self.size]) != self.digest:
            return data
        if len(data) == self.size and path.stat().st_mtime_ns != self.modified:
            return data  # written anew, word for word
        return (data[: data.find(b"\n") + 1] if header else b"") + data[self.size :]


def _digest(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()
