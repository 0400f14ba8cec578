"""A file that appears under its name once it is whole, and is hashed while it is written."""

import hashlib
import io
import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from bot.audit.whole_file import beside


class Draft(io.RawIOBase):
    """Is written to `part`, until `place` gives it its name."""

    def __init__(self, part: Path, path: Path) -> None:
        """Raises OSError."""
        super().__init__()
        self._part = part
        self._path = path
        self._file = part.open("wb", buffering=1 << 20)
        self._hash = hashlib.sha256()
        self.size_bytes = 0

    @property
    def sha256(self) -> str:
        """64 hex digits, over what has been written so far."""
        return self._hash.hexdigest()

    def writable(self) -> bool:
        return True

    def write(self, content: Any) -> int:
        self._hash.update(content)
        written = self._file.write(content)
        self.size_bytes += written
        return written

    def tell(self) -> int:
        return self.size_bytes

    def finish(self) -> None:
        """Bring all of it to the disk, still under the temporary name."""
        self._file.flush()
        os.fsync(self._file.fileno())
        self._file.close()

    def place(self) -> None:
        """Give it its name, in place of whatever has that name."""
        self._part.replace(self._path)
        folder = os.open(self._path.parent, os.O_RDONLY)
        try:
            os.fsync(folder)
        finally:
            os.close(folder)

    def abandon(self) -> None:
        """Nothing more is written, whatever is left to write; nothing happens to what is finished."""
        with suppress(OSError):
            self._file.close()


@contextmanager
def draft(path: Path) -> Iterator[Draft]:
    """A file for `path` that only its owner may read; nothing is left of it unless it was placed."""
    with beside(path) as part:
        made = Draft(part, path)
        try:
            yield made
        finally:
            made.abandon()
