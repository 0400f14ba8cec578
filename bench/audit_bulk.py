"""Fill, verify and export a large audit on both databases, and say how fast that was and how much memory it took.

    python bench/audit_bulk.py 1000000

Each step is a process of its own, the same command that people type, measured from its start to its end. What it did
is checked before its figures count. PostgreSQL is the tests' own server, which forces nothing to the disk.
"""

import csv
import hashlib
import json
import os
import re
import sqlite3
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Final, NamedTuple

ROOT: Final = Path(__file__).parent.parent
BENCH: Final = Path(__file__).parent
LONGEST_CELL: Final = 10_000_000


class Goal(NamedTuple):
    rows_per_s: int
    peak_mib: int


GOALS: Final = {"verify": Goal(60_000, 150), "export jsonl": Goal(50_000, 150)}
"""The other steps have none."""


class Step(NamedTuple):
    name: str
    rows: int
    seconds: float
    cpu_s: float
    peak_mib: float

    @property
    def rows_per_s(self) -> float:
        return self.rows / self.seconds

    def judged(self) -> str:
        goal = GOALS.get(self.name)
        if goal is None:
            return ""
        is_met = self.rows_per_s >= goal.rows_per_s and self.peak_mib < goal.peak_mib
        return f"{'met' if is_met else 'MISSED'}: {goal.rows_per_s:,} rows/s, under {goal.peak_mib} MiB"


class NotDone(Exception):
    """A step did not do what it was measured for."""


class Ran(NamedTuple):
    told: str
    seconds: float
    cpu_s: float  #: on a busy machine much less than `seconds`; what a server does is not in it
    peak_mib: float


def run(arguments: list[str], database_url: str, folder: Path) -> Ran:
    """One command in a process of its own. Raises NotDone unless it exits with 0."""
    told = folder / "told.txt"
    environ = {name: value for name, value in os.environ.items() if not name.startswith("CHECKPOINT_")}
    environ |= {"DATABASE_URL": database_url, "PYTHONPATH": f"{ROOT}{os.pathsep}{BENCH}"}
    began = time.perf_counter()
    process = os.fork()
    if process == 0:
        os.chdir(folder)
        output = os.open(told, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
        os.dup2(output, 1)
        os.dup2(output, 2)
        os.execve(sys.executable, [sys.executable, *arguments], environ)  # noqa: S606 - our own commands
    _, status, usage = os.wait4(process, 0)
    seconds = time.perf_counter() - began
    text = told.read_text(encoding="utf-8")
    ended = os.waitstatus_to_exitcode(status)
    if ended != 0:
        raise NotDone(f"{' '.join(arguments)}: ended with {ended}, {text}")
    return Ran(text, seconds, usage.ru_utime + usage.ru_stime, usage.ru_maxrss / 1024)


Run = Callable[[list[str], str, Path], Ran]


def bulk(database_url: str, events: int, folder: Path, *, run: Run = run) -> Iterator[Step]:
    """Each step as it is done, on a database that is empty or not there yet."""
    ran = run(["-m", "bot", "migrate"], database_url, folder)
    ran = run([str(BENCH / "fill.py"), database_url, str(events)], database_url, folder)
    if not ran.told.startswith(f"{events} events in"):
        raise NotDone(f"fill: {ran.told}")
    yield Step("fill", events, ran.seconds, ran.cpu_s, ran.peak_mib)

    ran = run(["-m", "bot", "audit", "verify"], database_url, folder)
    told = re.match(r"(\d+) events verified; the chain ends at (\d+) [0-9a-f]{64}", ran.told)
    if told is None or set(told.groups()) != {str(events)}:
        raise NotDone(f"verify: {ran.told}")
    yield Step("verify", events, ran.seconds, ran.cpu_s, ran.peak_mib)

    there = events + 1  # an export holds the event that it begins with
    for form, read in READERS.items():
        path = folder / f"audit.{form}"
        ran = run(["-m", "bot", "audit", "export", str(path)], database_url, folder)
        _check_export(path, read, there, ran.told)
        yield Step(f"export {form}", there, ran.seconds, ran.cpu_s, ran.peak_mib)
        there += 2
        if form != "jsonl":
            _remove(path)
    path = folder / "audit.jsonl"
    ran = run(["-m", "bot", "audit", "verify", "--archive", str(path)], database_url, folder)
    if f"{events + 1} events verified" not in ran.told:
        raise NotDone(f"verify --archive: {ran.told}")
    yield Step("verify --archive", events + 1, ran.seconds, ran.cpu_s, ran.peak_mib)
    _remove(path)


def _remove(export: Path) -> None:
    for path in export.parent.glob(f"{export.name}*"):
        path.unlink()


def _check_export(path: Path, read: Callable[[Path], tuple[int, int]], events: int, told: str) -> None:
    """It says how many it has written, the hash beside it is its own, and all of them are in it up to the last."""
    with path.open("rb") as file:
        sha256 = hashlib.file_digest(file, "sha256").hexdigest()
    beside = path.with_name(f"{path.name}.sha256").read_text(encoding="utf-8")
    if f"{events} events exported" not in told or sha256 not in told or beside != f"{sha256}  {path.name}\n":
        raise NotDone(f"export {path.suffix}: {told}")
    if read(path) != (events, events):
        raise NotDone(f"export {path.suffix}: {read(path)} instead of {events} rows")


def _read_jsonl(path: Path) -> tuple[int, int]:
    """How many rows there are, and the last one's number."""
    rows, line = 0, b"{}"
    with path.open("rb") as file:
        for line in file:  # noqa: B007 - the last one is looked into
            rows += 1
    return rows, json.loads(line)["seq"]


def _read_csv(path: Path) -> tuple[int, int]:
    csv.field_size_limit(LONGEST_CELL)
    rows, last = 0, {"seq": "0"}
    with path.open(encoding="utf-8-sig", newline="") as file:
        for last in csv.DictReader(file):  # noqa: B007 - the last one is looked into
            rows += 1
    return rows, int(last["seq"])


def _read_parquet(path: Path) -> tuple[int, int]:
    # In a process of its own: what this one once held would count as the peak of those that it starts.
    told = run(["-c", _READ_PARQUET, str(path)], "", path.parent).told
    rows, last = told.split()
    return int(rows), int(last)


_READ_PARQUET: Final = """
import sys
from pyarrow import parquet
with parquet.ParquetFile(sys.argv[1]) as file:
    last = file.read_row_group(file.num_row_groups - 1, columns=["seq"])
    print(file.metadata.num_rows, last["seq"][-1].as_py())
"""

READERS: Final[dict[str, Callable[[Path], tuple[int, int]]]] = {
    "jsonl": _read_jsonl,
    "csv": _read_csv,
    "parquet": _read_parquet,
}


@contextmanager
def _databases(folder: Path) -> Iterator[dict[str, str]]:
    sys.path.insert(0, str(ROOT / "tests"))
    from postgresql import Postgresql  # noqa: PLC0415 - only where one is wanted

    server = Postgresql()
    try:
        yield {f"SQLite {sqlite3.sqlite_version}": f"sqlite:///{folder / 'audit.db'}", "PostgreSQL": server.create()}
    finally:
        server.stop()


def main() -> None:
    events = int(sys.argv[1])
    is_missed = False
    with tempfile.TemporaryDirectory(prefix="bench-") as name, _databases(Path(name)) as databases:
        for kind, url in databases.items():
            print(f"{kind}, {events:,} events")
            print(f"  {'step':<18}{'rows':>12}{'seconds':>10}{'CPU s':>8}{'rows/s':>12}{'peak MiB':>10}")
            for step in bulk(url, events, Path(name)):
                took = f"{step.seconds:>10.1f}{step.cpu_s:>8.1f}{step.rows_per_s:>12,.0f}{step.peak_mib:>10.0f}"
                print(f"  {step.name:<18}{step.rows:>12,}{took}  {step.judged()}".rstrip(), flush=True)
                is_missed = is_missed or "MISSED" in step.judged()
    sys.exit(is_missed)


if __name__ == "__main__":
    main()
