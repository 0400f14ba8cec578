"""A file that appears under its name once it is whole, and is hashed while it is written."""

import hashlib
import io
import os
import secrets
from pathlib import Path
from typing import Any


class Draft(io.RawIOBase):
    """Only its owner may read it. It has a temporary name beside its own until `place`; `discard` leaves nothing."""

    def __init__(self, path: Path) -> None:
        """Raises OSError."""
        super().__init__()
        self._path = path
        self._part = path.with_name(f".{path.name}.{secrets.token_hex(6)}.part")
        descriptor = os.open(self._part, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
        self._file = os.fdopen(descriptor, "wb", buffering=1 << 20)
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

    def discard(self) -> None:
        """Remove what has not got its name; nothing happens to what has."""
        self._file.close()
        self._part.unlink(missing_ok=True)


def line_draft(path: Path, line: str) -> Draft:
    """A finished draft of one line of text."""
    draft = Draft(path)
    draft.write(f"{line}\n".encode())
    draft.finish()
    return draft
