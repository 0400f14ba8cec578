"""Files for people: whole or not there, readable by their owner alone, and never over another one by accident."""

import hashlib
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from tempfile import NamedTemporaryFile


class Unwritable(Exception):
    """No file can or may be written there; the text says why and what to do."""


def refuse_unwritable(path: Path, *, force: bool) -> None:
    """Raises Unwritable. `force` allows another file to be there."""
    if path.is_dir():
        raise Unwritable(f"{path} is a folder: name a file")
    if not path.parent.is_dir():
        raise Unwritable(f"there is no folder {path.parent}")
    if path.exists() and not force:
        raise Unwritable(f"{path} is there already: name another file, or add --force")


@contextmanager
def beside(path: Path) -> Iterator[Path]:
    """A file beside, which only its owner may read, and which is gone afterwards unless it was renamed."""
    with NamedTemporaryFile(dir=path.absolute().parent, prefix=f".{path.name}.", delete=False) as file:
        part = Path(file.name)
    try:
        yield part
    finally:
        part.unlink(missing_ok=True)


def write_whole(
    path: Path, content: bytes, *, force: bool, before_naming: Callable[[str], None] = lambda _sha256: None
) -> str:
    """Write beside, tell `before_naming` the SHA-256, then give the file its name; returns the SHA-256, in hex.

    What `before_naming` raises leaves no file. Raises Unwritable, OSError.
    """
    digest = hashlib.sha256(content).hexdigest()
    with beside(path) as part:
        with part.open("wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        before_naming(digest)
        refuse_unwritable(path, force=force)
        part.replace(path)
    return digest
