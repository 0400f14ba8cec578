"""The forms that events are exported in: CSV for spreadsheets, JSON lines to keep and verify, Parquet to analyse."""

import csv
import io
import re
from collections.abc import Callable, Iterable, Sequence
from contextlib import suppress
from datetime import datetime
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Final, Protocol

from bot.audit.archive import line_of_row
from bot.audit.cells import guarded
from bot.database.audit_log import LISTED
from bot.domain.audit import timestamp

Rows = Sequence[Sequence[Any]]
"""Events as the columns of LISTED; `details` is canonical JSON, and `occurred_at` text or a time."""

_OCCURRED_AT: Final = LISTED.index("occurred_at")
_GROUP_ROWS: Final = 1000
"""Rows of a part of a Parquet file: they are in memory together."""


class MissingExtra(Exception):
    """A library that only this form needs is not installed."""


class Sink(Protocol):
    """Where a writer writes to; it is not a writer's to close."""

    def write(self, content: Any) -> int: ...


class Writer(Protocol):
    def write(self, rows: Rows) -> None: ...

    def close(self) -> None:
        """Write what is left; the file stays open."""

    def abandon(self) -> None:
        """Instead of `close`, where the file is not wanted any more."""


class CsvWriter:
    """RFC 4180 in UTF-8, with the mark by which Excel knows that it is, and no cell that would run as a formula."""

    def __init__(self, file: Sink) -> None:
        self._file = file
        self._text = io.StringIO()
        self._csv = csv.writer(self._text)
        self._csv.writerow(LISTED)
        file.write(f"\ufeff{self._taken()}".encode())

    def write(self, rows: Rows) -> None:
        self._csv.writerows([[_cell(value) for value in row] for row in rows])
        self._file.write(self._taken().encode())

    def _taken(self) -> str:
        text = self._text.getvalue()
        self._text.seek(0)
        self._text.truncate()
        return text

    def close(self) -> None:
        """Nothing is left: each part is written whole."""

    def abandon(self) -> None:
        """Nothing is held."""


def _cell(value: Any) -> Any:
    if isinstance(value, str):
        return guarded(value)
    return timestamp(value) if isinstance(value, datetime) else value


class JsonLinesWriter:
    def __init__(self, file: Sink) -> None:
        self._file = file

    def write(self, rows: Rows) -> None:
        self._file.write("".join(map(line_of_row, rows)).encode())

    def close(self) -> None:
        """Nothing is left: each part is written whole."""

    def abandon(self) -> None:
        """Nothing is held."""


class ParquetWriter:
    """Typed columns, compressed; `details` stays JSON, as each action has its own."""

    def __init__(self, file: Sink) -> None:
        import pyarrow as pa  # noqa: PLC0415 - an extra
        from pyarrow import parquet  # noqa: PLC0415

        # What was freed goes back to the system, so that a long export needs no more memory than a short one.
        self._pool = pa.system_memory_pool()
        kinds = {"seq": pa.int64(), "request_id": pa.int64(), "occurred_at": pa.timestamp("us", "UTC")}
        self._pyarrow = pa
        self._schema = pa.schema([(name, kinds.get(name, pa.string())) for name in LISTED])
        self._writer = parquet.ParquetWriter(file, self._schema, compression="zstd", memory_pool=self._pool)
        self._rows: list[Sequence[Any]] = []

    def write(self, rows: Rows) -> None:
        self._rows.extend(rows)
        if len(self._rows) >= _GROUP_ROWS:
            self._write_group()

    def close(self) -> None:
        if self._rows:
            self._write_group()
        self._writer.close()

    def abandon(self) -> None:
        # Else it writes the end of its file when it is collected, and that file is closed by then.
        with suppress(Exception):
            self._writer.close()

    def _write_group(self) -> None:
        columns: list[Iterable[Any]] = list(zip(*self._rows, strict=True))
        columns[_OCCURRED_AT] = [_moment(value) for value in columns[_OCCURRED_AT]]
        self._rows.clear()
        arrays = [
            self._pyarrow.array(column, type=field.type, memory_pool=self._pool)
            for column, field in zip(columns, self._schema, strict=True)
        ]
        self._writer.write_table(self._pyarrow.Table.from_arrays(arrays, schema=self._schema))


def _moment(value: Any) -> datetime:
    return value if isinstance(value, datetime) else datetime.fromisoformat(value)


FORMS: Final[dict[str, Callable[[Sink], Writer]]] = {
    ".csv": CsvWriter,
    ".jsonl": JsonLinesWriter,
    ".parquet": ParquetWriter,
}


def form_of(path: Path) -> str:
    """The suffix by which the form is chosen. Raises ValueError with the ones that there are."""
    if path.suffix not in FORMS:
        raise ValueError(f"{path.name} must end in .csv, .jsonl or .parquet")
    if re.search(r"[\\\r\n]", path.name):
        raise ValueError("the name must be one line without backslashes, or sha256sum would not find it")
    return path.suffix


def require_libraries(form: str) -> None:
    """Raises MissingExtra where a library is not there that this form needs."""
    if form == ".parquet" and find_spec("pyarrow") is None:
        raise MissingExtra(
            "Parquet needs pyarrow: `uv sync --extra parquet`, or `pip install 'upbit-cancel-bot[parquet]'`"
        )
