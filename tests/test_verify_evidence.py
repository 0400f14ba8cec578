"""The verifier that goes along with an evidence pack: its Ed25519, and that nothing mutilated gets past it."""

import ast
import io
import os
import random
import shutil
import stat
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat
from desk import Desk

from bot.audit import verify_evidence
from bot.audit.evidence import pack_evidence
from bot.audit.signing import Signer
from bot.audit.verify_evidence import LIMITS, ORDER, Bad, P, decode, is_signature, strict, verify
from bot.domain.audit import Actor

SIGNER = Signer("11" * 32)
SOURCE = Path(verify_evidence.__file__)

RFC_8032 = [  # section 7.1: public key, message, signature
    (
        "d75a980182b10ab7d54bfed3c964073a0ee172f3daa62325af021a68f707511a",
        "",
        (
            "e5564300c360ac729086e2cc806e828a84877f1eb8e5d974d873e065224901555fb8821590a33bacc61e39701cf9b46bd25bf5f0595bbe24"
            "655141438e7a100b"
        ),
    ),
    (
        "3d4017c3e843895a92b70aa74d1b7ebc9c982ccf2ec4968cc0cd55f12af4660c",
        "72",
        (
            "92a009a9f0d4cab8720e820b5f642540a2b27b5416503f8fb3762223ebdb69da085ac1e43e15996e458f3613d0f11d8c387b2eaeb4302aee"
            "b00d291612bb0c00"
        ),
    ),
    (
        "fc51cd8e6218a1a38da47ed00230f0580816ed13ba3303ac5deb911548908025",
        "af82",
        (
            "6291d657deec24024827e69c3abe01a30ce548a284743a445e3680d7db5ac3ac18ff9b538d16f290ae67f760984dc6594a7c15e9716ed28d"
            "c027beceea1ec40a"
        ),
    ),
]


# Its own Ed25519


@pytest.mark.parametrize(("key", "message", "signature"), RFC_8032)
def test_it_takes_the_signatures_of_the_rfc(key: str, message: str, signature: str) -> None:
    """Written by hand, it is held against the standard's own examples."""
    text, signed, public = bytes.fromhex(message), bytes.fromhex(signature), bytes.fromhex(key)
    assert is_signature(signed, text, key=public)
    assert not is_signature(signed, text + b"\0", key=public)


def test_it_agrees_with_the_library_on_random_messages() -> None:
    """And on as many with one bit turned somewhere: in the key, the message or the signature."""
    dice = random.Random(8032)
    for _ in range(200):
        private = Ed25519PrivateKey.from_private_bytes(dice.randbytes(32))
        public = private.public_key().public_bytes(Encoding.Raw, PublicFormat.Raw)
        message = dice.randbytes(dice.randrange(1, 200))
        parts = [public, message, private.sign(message)]
        assert is_signature(parts[2], parts[1], key=parts[0])
        which = dice.randrange(3)
        bit = dice.randrange(len(parts[which]) * 8)
        turned = int.from_bytes(parts[which], "little") ^ 1 << bit
        parts[which] = turned.to_bytes(len(parts[which]), "little")
        assert is_signature(parts[2], parts[1], key=parts[0]) == _library_takes(*parts)


def _library_takes(key: bytes, message: bytes, signature: bytes) -> bool:
    try:
        Ed25519PublicKey.from_public_bytes(key).verify(signature, message)
    except (InvalidSignature, ValueError):
        return False
    return True


def test_a_signature_can_be_written_in_one_way_only() -> None:
    """S and S + L satisfy the same equation; who accepts both accepts a signature that nobody made."""
    key, message, signature = (bytes.fromhex(part) for part in RFC_8032[1])
    s = int.from_bytes(signature[32:], "little") + ORDER
    assert not is_signature(signature[:32] + s.to_bytes(32, "little"), message, key=key)
    assert not is_signature(signature + b"\0", message, key=key)
    assert not is_signature(signature[:63], message, key=key)
    assert not is_signature(b"", message, key=b"")


@pytest.mark.parametrize(
    "written",
    [
        b"",
        b"\x01" * 31,
        b"\x00" * 33,
        (2).to_bytes(32, "little"),  # no x fits
        (P + 1).to_bytes(32, "little"),  # 1, written with P too much
        (1 | 1 << 255).to_bytes(32, "little"),  # x = 0 has no sign
    ],
    ids=["empty", "short", "long", "off the curve", "not reduced", "minus zero"],
)
def test_what_is_no_point_is_refused(written: bytes) -> None:
    """Section 5.1.3 of the RFC: decoding fails, and with it the signature."""
    with pytest.raises(Bad):
        decode(written)
    assert not is_signature(bytes(64), b"", key=written)


# What it is made of


def test_it_needs_nothing_but_an_old_python() -> None:
    """An auditor's machine has what it has; and what is short can be read before it is run."""
    source = SOURCE.read_text(encoding="utf-8")
    tree = ast.parse(source, feature_version=(3, 9))
    named = {
        name.split(".")[0]
        for node in ast.walk(tree)
        for name in (
            [alias.name for alias in node.names]
            if isinstance(node, ast.Import)
            else [node.module or ""]
            if isinstance(node, ast.ImportFrom)
            else []
        )
    }
    assert named <= sys.stdlib_module_names
    assert not {"socket", "urllib", "http", "ssl", "subprocess"} & named
    assert sum(bool(line.strip()) for line in source.splitlines()) <= 250


@pytest.mark.parametrize(
    "text",
    ['{"a":1,"a":2}', '{"a":1.0}', '{"a":NaN}', '{"a":1e9}', '{"a":' + "9" * 21 + "}", "[]", "1"],
)
def test_json_that_two_readers_could_read_in_two_ways_is_refused(text: str) -> None:
    """One of them would be the person, and the other the verifier."""
    with pytest.raises(Bad):
        strict(text)


# Mutilated packs


@pytest.fixture(scope="module")
def pack(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    """A sound pack of a canceled request."""
    folder = tmp_path_factory.mktemp("packed")
    desk = Desk(f"sqlite:///{folder / 'cancels.db'}")
    request_id, out = desk.canceled(), folder / "evidence.zip"
    actor = Actor(id="cli:ops")
    pack_evidence(desk.database, request_id, out=out, force=False, signer=SIGNER, actor=actor, version="1")
    desk.database.close()
    assert is_sound(out)
    return out.read_bytes()


def is_sound(path: Path) -> bool:
    return all(good for good, _ in verify(path))


def content(pack: bytes) -> dict[str, bytes]:
    with zipfile.ZipFile(io.BytesIO(pack)) as opened:
        return {name: opened.read(name) for name in opened.namelist()}


def zipped(files: list[tuple[str, bytes]]) -> bytes:
    packed = io.BytesIO()
    with zipfile.ZipFile(packed, "w", zipfile.ZIP_DEFLATED) as opened:
        for name, text in files:
            opened.writestr(name, text)
    return packed.getvalue()


def test_no_turned_byte_gets_past_it(pack: bytes, tmp_path: Path) -> None:
    """Where it says that a pack is sound, the pack holds what it held: zip files have bytes that mean nothing."""
    dice, path, whole = random.Random(300), tmp_path / "turned.zip", content(pack)
    ignored = 0
    for _ in range(300):
        turned = bytearray(pack)
        turned[dice.randrange(len(turned))] ^= dice.randrange(1, 256)
        path.write_bytes(turned)
        if is_sound(path):
            assert content(bytes(turned)) == whole
            ignored += 1
    assert ignored < 100


def test_no_turned_byte_of_a_file_gets_past_it(pack: bytes, tmp_path: Path) -> None:
    """In the extracted folder no byte means nothing, and each is found."""
    dice, whole = random.Random(301), content(pack)
    for name, text in whole.items():
        (tmp_path / name).write_bytes(text)
    assert is_sound(tmp_path)
    for _ in range(300):
        name = dice.choice(sorted(whole))
        turned = bytearray(whole[name])
        turned[dice.randrange(len(turned))] ^= 1 << dice.randrange(8)
        (tmp_path / name).write_bytes(turned)
        assert not is_sound(tmp_path), name
        (tmp_path / name).write_bytes(whole[name])
    assert is_sound(tmp_path)


def test_no_change_of_structure_gets_past_it(pack: bytes, tmp_path: Path) -> None:
    """Cut, doubled, emptied, renamed, added: the pack is these eight files and nothing else."""
    dice, path, whole = random.Random(302), tmp_path / "changed.zip", content(pack)
    files = list(whole.items())
    assert len(files) == len(LIMITS)
    changed: list[bytes] = [b"", b"PK", pack[1:], pack[:-1], pack + b"\0", pack * 2, zipped([]), bytes(1000)]
    changed += [pack[: dice.randrange(len(pack))] for _ in range(40)]
    for place, (name, text) in enumerate(files):
        others = files[:place] + files[place + 1 :]
        lines = text.splitlines(keepends=True)
        changed += [
            zipped(others),
            zipped([*others, (name, b"")]),
            zipped([*others, (name, text + b"\n")]),
            zipped([*others, (name, text[:-1])]),
            zipped([*others, (f"x/{name}", text)]),
            zipped([*others, (f"../{name}", text)]),
            zipped([*others, (name.upper(), text)]),
            zipped([*files, (f"{name}.bak", text)]),
            zipped([*others, (name, b"".join(lines[1:]))]),
            zipped([*others, (name, b"".join(reversed(lines)) + b" ")]),
            zipped([*others, (name, text + lines[-1])]),
            zipped([*others, (name, b"[" * 200_000)]),
            zipped([*others, (name, b"\xff\xfe" + text)]),
            zipped([*others, (name, bytes(10_000))]),
            zipped([*others, (name, b'{"a":' + b"9" * 10_000 + b"}")]),
            zipped([*others, (name, b"{}\n")]),
            zipped([*others, (name, b'{"checkpoint":1,"files":1,"public_key":1,"request":1,"seq":1}\n')]),
        ]
    with pytest.warns(UserWarning, match="Duplicate"):
        changed += [zipped([*files, (name, b"another")]) for name, _ in files]
    for number, each in enumerate(changed):
        path.write_bytes(each)
        assert not is_sound(path), number
    path.write_bytes(zipped(files))
    assert is_sound(path), "packed by another program, it is the same pack"


def test_a_bomb_ends_at_its_limit(pack: bytes, tmp_path: Path) -> None:
    """Who checks a pack from somebody that they do not trust must not lose their machine to it."""
    whole, path = content(pack), tmp_path / "bomb.zip"
    for name, text in (
        ("index.html", bytes(LIMITS["index.html"] + 1)),
        ("chain.jsonl", bytes(80 * 1024 * 1024)),
        ("manifest.json", bytes(LIMITS["manifest.json"] + 1)),
    ):
        path.write_bytes(zipped([*(item for item in whole.items() if item[0] != name), (name, text)]))
        assert path.stat().st_size < 1_000_000
        assert not is_sound(path)
    crowd = zipped([(f"{number}", b"") for number in range(5000)])
    path.write_bytes(crowd)
    ((good, said), *_) = verify(path)
    assert (good, "a few files" in said) == (False, True)


def test_what_is_no_plain_file_is_not_read(pack: bytes, tmp_path: Path) -> None:
    """A link could lead anywhere, and a pipe never ends."""
    for name, text in content(pack).items():
        (tmp_path / name).write_bytes(text)
    html = tmp_path / "index.html"
    elsewhere = tmp_path.parent / "elsewhere.html"
    html.rename(elsewhere)
    html.symlink_to(elsewhere)
    assert not is_sound(tmp_path)
    html.unlink()
    os.mkfifo(html)
    assert stat.S_ISFIFO(html.stat().st_mode)
    assert not is_sound(tmp_path)
    html.unlink()
    html.mkdir()
    assert not is_sound(tmp_path)
    html.rmdir()
    shutil.move(elsewhere, html)
    assert is_sound(tmp_path)
    (tmp_path / "__pycache__").mkdir()
    assert not is_sound(tmp_path)


# As a program


def run(*arguments: str, cwd: Path, script: Path) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-I", "-S", str(script), *arguments]
    return subprocess.run(command, cwd=cwd, env={}, capture_output=True, text=True, check=False, timeout=30)


def test_it_runs_alone_in_an_empty_folder(pack: bytes, tmp_path: Path) -> None:
    """Without this project, without any package, without an environment."""
    empty, extracted = tmp_path / "empty", tmp_path / "extracted"
    empty.mkdir()
    extracted.mkdir()
    (tmp_path / "evidence.zip").write_bytes(pack)
    for name, text in content(pack).items():
        (extracted / name).write_bytes(text)
    trusted = tmp_path / "trusted.py"
    shutil.copy(SOURCE, trusted)
    assert trusted.read_bytes() == content(pack)["verify.py"]
    key = SIGNER.public_key
    for done in (
        run("../evidence.zip", "--key", key, cwd=empty, script=trusted),
        run("../extracted", "--key", key.upper(), cwd=empty, script=trusted),
        run("--key", key, cwd=empty, script=extracted / "verify.py"),
    ):
        assert (done.returncode, done.stderr) == (0, "")
        assert [line[:4] for line in done.stdout.splitlines()] == ["ok  "] * 7 + ["The "]
        assert done.stdout.endswith("The pack is sound.\n")
    assert list(empty.iterdir()) == []


def test_it_says_whose_key_it_was_given_and_when_it_was_given_none(pack: bytes, tmp_path: Path) -> None:
    """Anybody can make a pack that is sound but for the key: only the comparison says whose it is."""
    path = tmp_path / "evidence.zip"
    path.write_bytes(pack)
    without = run(str(path), cwd=tmp_path, script=SOURCE)
    assert without.returncode == 0
    assert "--  key: anybody can sign with a key of their own" in without.stdout
    assert without.stdout.endswith("by whom was NOT compared.\n")
    for wrong in (Signer("22" * 32).public_key, "no key", ""):
        other = run(str(path), "--key", wrong, cwd=tmp_path, script=SOURCE)
        assert other.returncode == 1, wrong
        assert "BAD key: it is NOT the one" in other.stdout
        assert other.stdout.endswith("NOT TO BE TRUSTED.\n")


@pytest.mark.parametrize("arguments", [["nowhere.zip"], ["--key", "11", "nowhere"], ["."]])
def test_what_is_not_there_exits_1_without_a_traceback(arguments: list[str], tmp_path: Path) -> None:
    """A script that checks packs goes by the status."""
    done = run(*arguments, cwd=tmp_path, script=SOURCE)
    assert (done.returncode, done.stderr) == (1, "")
    assert done.stdout.endswith("NOT TO BE TRUSTED.\n")


def test_what_a_forger_chose_does_not_reach_the_terminal(pack: bytes, tmp_path: Path) -> None:
    """A name could move the cursor and write "sound" over what was found."""
    path = tmp_path / "forged.zip"
    path.write_bytes(zipped([*content(pack).items(), ("\x1b[2J\u202e.txt", b"")]))
    done = run(str(path), cwd=tmp_path, script=SOURCE)
    assert done.returncode == 1
    assert done.stdout.isascii()
    assert "\x1b" not in done.stdout
