"""Where files cost no disk: forcing a commit to a disk takes longer than most of a test."""

import os
import shutil
from pathlib import Path
from typing import Final

_SHARED: Final = Path("/dev/shm")
NEEDED_BYTES: Final = 2 * 2**30
"""For three PostgreSQL servers with their logs, and the files of tests under way. Containers often have 64 MB."""


def fast_folder() -> Path | None:
    """A folder in memory, where there is one with room enough. What survives a power cut is not tested."""
    is_fit = _SHARED.is_dir() and os.access(_SHARED, os.W_OK) and shutil.disk_usage(_SHARED).free >= NEEDED_BYTES
    return _SHARED if is_fit else None
