"""Checks an evidence pack: that it is whole and signed, and that it tells what the bot's audit holds.

    python3 verify.py [--key HEX] [PACK]

PACK is the zip file, or the folder that it was extracted to; without it, the folder in which this file lies. `--key` is
the public key that you were given by another way than the pack. Needs Python 3.9 or newer and nothing else. Prints a
line for each check; exits with 0 where all are good, 1 where one is not, 2 where it was called wrongly. Take this file
from a place that you trust: a forged pack may come with a forged verifier.
"""

from __future__ import annotations

import argparse
import hashlib
import io
import json
import stat
import sys
import zipfile
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

if TYPE_CHECKING:
    from collections.abc import Iterator

MIB = 1024 * 1024
SMALL = ("README.txt", "checkpoint.json", "manifest.json", "manifest.sig", "verify.py")
LIMITS = dict.fromkeys(SMALL, MIB) | {"index.html": 64 * MIB, "events.jsonl": 4096 * MIB, "chain.jsonl": 4096 * MIB}
"""The files of a pack, and how many bytes each may have."""
HASHED = sorted(LIMITS.keys() - {"manifest.json", "manifest.sig"})
LONGEST_LINE = 4 * MIB
LONGEST_DIRECTORY = 4096  # of a zip file, in bytes
LONGEST_NUMBER = 20


class Bad(Exception):
    """What is wrong with the pack, for people to read."""


# Ed25519, as section 5.1 of RFC 8032 has it. A point is (X, Y, Z, T) with x = X/Z, y = Y/Z and x*y = T/Z.

P = 2**255 - 19
ORDER = 2**252 + 27742317777372353535851937790883648493
D = -121665 * pow(121666, P - 2, P) % P
ROOT_OF_MINUS_1 = pow(2, (P - 1) // 4, P)
Point = tuple[int, int, int, int]


def add(one: Point, other: Point) -> Point:
    a = (one[1] - one[0]) * (other[1] - other[0]) % P
    b = (one[1] + one[0]) * (other[1] + other[0]) % P
    c = 2 * one[3] * other[3] * D % P
    d = 2 * one[2] * other[2] % P
    e, f, g, h = b - a, d - c, d + c, b + a
    return (e * f % P, g * h % P, f * g % P, e * h % P)


def times(scalar: int, point: Point) -> Point:
    total = (0, 1, 1, 0)
    while scalar:
        if scalar & 1:
            total = add(total, point)
        point = add(point, point)
        scalar >>= 1
    return total


def decode(text: bytes) -> Point:
    """Raises Bad where these bytes are no point, or not the one way to write it."""
    number = int.from_bytes(text, "little")
    y, is_odd = number & (2**255 - 1), number >> 255
    square = (y * y - 1) * pow(D * y * y + 1, P - 2, P) % P
    x = pow(square, (P + 3) // 8, P)
    if (x * x - square) % P:
        x = x * ROOT_OF_MINUS_1 % P
    if len(text) != 32 or y >= P or (x * x - square) % P or (x == 0 and is_odd):  # noqa: PLR2004
        raise Bad("not a public key")
    x = P - x if x & 1 != is_odd else x
    return (x, y, 1, x * y % P)


def encode(point: Point) -> bytes:
    inverse = pow(point[2], P - 2, P)
    x, y = point[0] * inverse % P, point[1] * inverse % P
    return (y | (x & 1) << 255).to_bytes(32, "little")


BASE = decode((4 * pow(5, P - 2, P) % P).to_bytes(32, "little"))


def is_signature(signature: bytes, text: bytes, *, key: bytes) -> bool:
    """Whether R is [S]B - [k]A, compared as it is written, so that only one way of writing it counts."""
    try:
        x, y, z, t = decode(key)
    except Bad:
        return False
    written_r, s = signature[:32], int.from_bytes(signature[32:], "little")
    if len(signature) != 64 or s >= ORDER:  # noqa: PLR2004
        return False
    k = int.from_bytes(hashlib.sha512(written_r + key + text).digest(), "little") % ORDER
    return encode(add(times(s, BASE), times(k, (P - x, y, z, P - t)))) == written_r


# What is in the pack


def once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    if len(dict(pairs)) != len(pairs):
        raise Bad("a name stands twice in one object")
    return dict(pairs)


def whole(number: str) -> int:
    if len(number) > LONGEST_NUMBER or not number.lstrip("-").isdecimal():
        raise Bad(f"{number[:LONGEST_NUMBER]} is no number that the bot writes")
    return int(number)


def strict(text: bytes | str) -> dict[str, Any]:
    """One JSON object as the bot writes them: no name twice, and no numbers but whole ones of 20 digits at most."""
    value = json.loads(text, object_pairs_hook=once, parse_int=whole, parse_float=whole, parse_constant=whole)
    if not isinstance(value, dict):
        raise Bad("there is no JSON object where one must be")
    return value


def from_hex(text: str) -> bytes:
    if bytes.fromhex(text).hex() != text:
        raise Bad("hex digits are not as the bot writes them")
    return bytes.fromhex(text)


def canonical(value: object) -> str:
    return json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False, allow_nan=False)


class Pack:
    """The files of a zip file or of a folder, read within their limits."""

    def __init__(self, path: Path) -> None:
        self._folder, self._zip = path, None
        if not path.is_dir():
            with path.open("rb") as file:
                start_of_end = max(0, path.stat().st_size - 22)
                file.seek(start_of_end)
                end = file.read(22)  # of a zip file without a comment; its directory is read into memory as a whole
            size, start = int.from_bytes(end[12:16], "little"), int.from_bytes(end[16:20], "little")
            if end[:4] != b"PK\5\6" or size > LONGEST_DIRECTORY or start + size != start_of_end:
                raise Bad("neither a folder nor a zip file of a few files and nothing else")
            self._zip = zipfile.ZipFile(path)

    def names(self) -> list[str]:
        return self._zip.namelist() if self._zip else [path.name for path in islice(self._folder.iterdir(), 100)]

    def open(self, name: str) -> io.BufferedReader:
        path = self._folder / name
        if self._zip:
            size = self._zip.getinfo(name).file_size
        else:
            size = path.stat().st_size if stat.S_ISREG(path.lstat().st_mode) else LIMITS[name] + 1
        if size > LIMITS[name]:
            raise Bad(f"{name} is no file of at most {LIMITS[name]} bytes")
        file = self._zip.open(name) if self._zip else path.open("rb", buffering=0)
        return io.BufferedReader(cast("io.RawIOBase", file), MIB)

    def read(self, name: str) -> bytes:
        with self.open(name) as file:
            return file.read(LIMITS[name])

    def sha256(self, name: str) -> str:
        digest = hashlib.sha256()
        with self.open(name) as file:
            for part in iter(lambda: file.read(MIB), b""):
                digest.update(part)
        return digest.hexdigest()

    def manifest(self) -> dict[str, Any]:
        return strict(self.read("manifest.json"))

    def lines(self, name: str) -> Iterator[dict[str, Any]]:
        with self.open(name) as file:
            for line in iter(lambda: file.readline(LONGEST_LINE), b""):
                if not line.endswith(b"\n"):
                    raise Bad(f"{name} has a line that is too long or has no end")
                yield strict(line)


# The checks: each gives a sentence, or raises what is wrong


def check_files(pack: Pack) -> str:
    names = pack.names()
    odd = [name for name in names if name not in LIMITS or names.count(name) > 1]
    missing = sorted(LIMITS.keys() - names)
    if odd or missing:
        raise Bad(f"missing: {missing}; more than there may be: {odd[:10]!a}")
    return f"all {len(LIMITS)} files of a pack are there, and no other"


def check_manifest(pack: Pack) -> str:
    text, (signature, end) = pack.read("manifest.json"), pack.read("manifest.sig").decode("ascii").split("\n")
    key = strict(text)["public_key"]
    if end or not is_signature(from_hex(signature), text, key=from_hex(key)):
        raise Bad("manifest.json was changed, or the signature is not by the key that it names")
    return f"manifest.json is signed by the key {key}"


def check_hashes(pack: Pack) -> str:
    hashes = pack.manifest()["files"]
    changed = [name for name in HASHED if hashes.get(name) != pack.sha256(name)]
    if changed or sorted(hashes) != HASHED:
        raise Bad(f"changed since they were packed: {', '.join(changed) or 'the list of files'}")
    return "every file is as it was packed"


def check_checkpoint(pack: Pack) -> str:
    signed = strict(pack.read("checkpoint.json"))
    made, key, signature = signed["checkpoint"], signed["key"], from_hex(signed["signature"])
    if key != pack.manifest()["public_key"]:
        raise Bad("the checkpoint is by another key than the manifest")
    if not is_signature(signature, canonical(made).encode(), key=from_hex(key)):
        raise Bad("the checkpoint was changed, or not signed by its key")
    return f"signed by the same key: event {made['seq']!a} was the last one at {made['at']!a}"


def check_chain(pack: Pack) -> str:
    first = seq = previous = None
    for link in pack.lines("chain.jsonl"):
        if seq is None:
            first, seq, previous = link["seq"], link["seq"] - 1, link["prev_hash"]
        seq += 1
        text = f"{previous}\n{link['entry']}".encode()
        if link["seq"] != seq or link["prev_hash"] != previous or link["hash"] != hashlib.sha256(text).hexdigest():
            raise Bad(f"broken at event {seq}: altered, removed, inserted or moved")
        previous = link["hash"]
    made = strict(pack.read("checkpoint.json"))["checkpoint"]
    if seq is None or (made["seq"], made["hash"]) != (seq, previous):
        raise Bad(f"it ends at event {seq}, and not as the checkpoint says")
    return f"unbroken from event {first} to {seq}, where it is the one that the checkpoint saw"


def check_events(pack: Pack) -> str:
    request, count = pack.manifest()["request"], 0
    listed = pack.lines("events.jsonl")
    for place, link in enumerate(pack.lines("chain.jsonl")):
        entry = strict(link["entry"])
        if entry["seq"] != link["seq"] or type(request) is not int:
            raise Bad(f"event {link['seq']!a} is not the one that its text is about")
        if place == 0 and (entry["request_id"], entry["action"]) != (request, "request.created"):
            raise Bad("the chain does not begin where the request does")
        if entry["request_id"] != request:
            continue
        event, expected = next(listed, {}), {**entry, "prev_hash": link["prev_hash"], "hash": link["hash"]}
        if canonical(event) != canonical(expected):
            wrong = [name for name in expected if canonical(event.get(name)) != canonical(expected[name])]
            raise Bad(f"event {link['seq']!a} is missing or changed in: {wrong or 'what it has besides'!a}")
        count += 1
    if next(listed, None) is not None:
        raise Bad("there is an event more than the chain has of this request")
    return f"all {count} events of request #{request} are there, each as the chain has it"


CHECKS = (check_files, check_manifest, check_hashes, check_checkpoint, check_chain, check_events)


def verify(path: Path) -> list[tuple[bool, str]]:
    """Whether each check is good, and what it found; nothing that is in a pack makes it raise."""
    findings, pack = [], None
    for check in CHECKS:
        try:
            pack = pack or Pack(path)
            good, text = True, check(pack)
        except Bad as error:
            good, text = False, str(error)
        except Exception as error:  # noqa: BLE001 - whatever a mutilated pack leads to
            good, text = False, f"cannot be read ({type(error).__name__})"
        findings.append((good, f"{check.__name__[len('check_') :]}: {text}"))
    return findings


def compare(path: Path, given_key: str | None) -> tuple[bool, str]:
    """Whether a key was given, and is the one that the pack names."""
    if given_key is None:
        return False, "anybody can sign with a key of their own: give --key the one that you were told another way"
    try:
        is_same = Pack(path).manifest()["public_key"] == given_key.strip().lower()
    except Exception:  # noqa: BLE001 - the checks have said what is wrong
        is_same = False
    return is_same, "it is the one that you gave" if is_same else "it is NOT the one that you gave"


def main() -> int:
    parser = argparse.ArgumentParser(description="Checks an evidence pack of the cancel bot's audit, offline.")
    parser.add_argument("pack", nargs="?", type=Path, default=Path(__file__).resolve().parent, metavar="PACK")
    parser.add_argument("--key", metavar="HEX", help="the public key that you were given by another way")
    given = parser.parse_args()
    findings = verify(given.pack)
    is_same, about_key = compare(given.pack, given.key)
    is_sound = all(good for good, _ in findings) and (is_same or given.key is None)
    for good, text in findings:
        sys.stdout.write(f"{'ok ' if good else 'BAD'} {text}\n")
    sys.stdout.write(f"{'ok ' if is_same else '-- ' if given.key is None else 'BAD'} key: {about_key}\n")
    whose = "" if is_same else ", but by whom was NOT compared"
    sys.stdout.write(f"The pack is sound{whose}.\n" if is_sound else "THE PACK IS NOT TO BE TRUSTED.\n")
    return 0 if is_sound else 1


if __name__ == "__main__":
    sys.exit(main())
