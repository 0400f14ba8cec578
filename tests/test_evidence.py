"""Evidence packs: what is in them, that each change of them is found, and when there is none."""

import hashlib
import json
import re
import tracemalloc
import zipfile
from collections.abc import Callable, Iterator
from datetime import timedelta
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest
from builders import REQUESTER, START, STRANGER, create, execute
from click.testing import CliRunner, Result
from desk import GROUP, Desk
from sqlalchemy import insert

from bot.__main__ import main
from bot.audit.evidence import MAX_SHOWN, pack_evidence, verifier
from bot.audit.evidence_page import Facts, render
from bot.audit.signing import Signer
from bot.audit.verify_evidence import LIMITS, verify
from bot.database.audit_log import AuditLog
from bot.database.chain import Chain
from bot.database.checkpoints import Checkpoints
from bot.database.engine import Database
from bot.database.schema import audit_events, audit_head, checkpoints
from bot.database.verification import verify as verify_chain
from bot.domain.audit import GENESIS_HASH, Action, Actor, AuditEvent, Json, canonical, chain_hash, columns, timestamp
from bot.domain.cancel_request import TRANSITIONS, State
from bot.domain.checkpoint import Checkpoint, parse_checkpoint
from bot.domain.event_filter import Filter
from bot.settings import Settings

PRIVATE_KEY = "11" * 32
SIGNER = Signer(PRIVATE_KEY)
OTHER = Signer("22" * 32)
UNSET: dict[str, str | None] = {
    f"{name.upper()}{ending}": None for name in Settings.model_fields for ending in ("", "_FILE")
}
Pack = dict[str, bytes]


@pytest.fixture
def desk(database_url: str) -> Iterator[Desk]:
    made = Desk(database_url)
    yield made
    made.database.close()


@pytest.fixture
def sqlite_desk(tmp_path: Path) -> Iterator[Desk]:
    made = Desk(f"sqlite:///{tmp_path / 'cancels.db'}")
    yield made
    made.database.close()


def bot(desk: Desk, *arguments: str, **environ: str) -> Result:
    settings = {"DATABASE_URL": desk.database.url.render_as_string(hide_password=False), "CHECKPOINT_KEY": PRIVATE_KEY}
    return CliRunner().invoke(main, arguments, env={**UNSET, **settings, **environ}, prog_name="bot")


def pack(desk: Desk, request_id: int, folder: Path) -> Pack:
    """What the command packs."""
    out = folder / f"{request_id}.zip"
    made = bot(desk, "audit", "evidence", str(request_id), "--out", str(out), "--force")
    assert made.exit_code == 0, made.output
    with zipfile.ZipFile(out) as opened:
        return {name: opened.read(name) for name in opened.namelist()}


def write(folder: Path, files: Pack) -> Path:
    extracted = folder / "extracted"
    extracted.mkdir(exist_ok=True)
    for path in extracted.iterdir():
        path.unlink()
    for name, text in files.items():
        (extracted / name).write_bytes(text)
    return extracted


def faults(folder: Path, files: Pack) -> list[str]:
    """The names of the checks that find something."""
    return [text.partition(":")[0] for good, text in verify(write(folder, files)) if not good]


def objects(text: bytes) -> list[dict[str, Any]]:
    return [json.loads(line) for line in text.splitlines()]


def page(files: Pack) -> str:
    return files["index.html"].decode()


# What is in a pack


def test_a_pack_tells_the_whole_story_and_its_verifier_takes_it(desk: Desk, tmp_path: Path) -> None:
    """Two of three approved, two clicks did not count, part of the order was filled: all of it is on one page."""
    desk.denied()
    request_id = desk.canceled()
    desk.withdrawn()
    files = pack(desk, request_id, tmp_path)

    assert sorted(files) == sorted(LIMITS)
    assert faults(tmp_path, files) == []
    wanted = Filter(request_id=request_id)
    assert objects(files["events.jsonl"]) == AuditLog(desk.database).list(wanted, limit=100, newest_first=False)
    links, signed = objects(files["chain.jsonl"]), parse_checkpoint(files["checkpoint.json"].decode())
    assert [link["seq"] for link in links] == list(range(links[0]["seq"], signed.checkpoint.seq + 1))
    assert json.loads(links[0]["entry"])["request_id"] == request_id
    assert {json.loads(link["entry"])["request_id"] for link in links} > {request_id}

    text = words(page(files))
    for part in (
        f"Evidence of cancel request #{request_id}",
        "Canceled: the exchange shows the order canceled",
        "Upbit had accepted this request's cancel.",
        "Executed volume at that look: 0.42 of 1.00; remaining 0.58.",
        "Requester (U0REQUESTER)",
        "잘못 낸 주문",
        "김민지 (U0MINJI)",
        "KRW-BTC",
        "95,000,000.0",
        "cancel (changed)",
        "Counted then: U0APPROVER, U0MINJI, of 2 needed",
        f"Relied on user group {GROUP}, read never: U0APPROVER, U0MINJI, U0SECOND",
        "nonce-0",
        '{"uuid":"x","state":"wait"}',
        "group=order; min=59; sec=4",
        "3.250 s",
        "channel C0DESK, message 2.000",
        SIGNER.public_key,
        signed.checkpoint.hash,
    ):
        assert part in text, part
    assert text.count("not_an_approver") == 4, "each refused click stands in its own table and in the timeline"


@pytest.mark.parametrize(
    ("play", "telling"),
    [
        (
            Desk.denied,
            "Denied by 김민지 (U0MINJI) | In their words: “시장가가 너무 가깝다” | No cancel was sent to Upbit.",
        ),
        (Desk.withdrawn, "Withdrawn by who asked | No cancel was sent to Upbit."),
        (
            Desk.settled,
            (
                "Settled by hand: cli:ops looked at Upbit and says that the order was canceled"
                " | The bot itself could not tell what had happened. | In their words: “saw it”"
                " | The bot set out to send a cancel to Upbit once."
            ),
        ),
        (Desk.asked, "Not over: waits for approval | No cancel was sent to Upbit."),
    ],
    ids=["denied", "withdrawn", "unresolved and settled", "not over"],
)
def test_the_verdict_stands_in_words_at_the_top(
    desk: Desk, tmp_path: Path, play: Callable[[Desk], int], telling: str
) -> None:
    """Nobody must have to read a table to know what came of it, or that nothing has come of it yet."""
    files = pack(desk, play(desk), tmp_path)
    assert faults(tmp_path, files) == []
    assert verdict(page(files)) == telling


def test_every_state_has_a_verdict(sqlite_desk: Desk) -> None:
    """Whatever a request came to, somebody may be asked to show it; and only what is over is told as over."""
    told = {}
    for action, (_, state) in TRANSITIONS.items():
        details: dict[str, Json] = {
            "state": state.value,
            "reason": "too_late_to_send",
            "verdict": "open",
            "by": "unproven",
        }
        event = columns(AuditEvent(action=action, request_id=1, details=details), seq=1, occurred_at=START)
        told[state] = verdict(render([{**event, "prev_hash": "", "hash": ""}], _facts()))
    assert set(told) == set(State)
    not_over = {state for state, said in told.items() if said.startswith("Not over: ")}
    assert not_over == {State.REQUESTED, State.PENDING, State.APPROVED, State.SENDING, State.ACCEPTED, State.UNRESOLVED}
    assert "not proven" in told[State.CANCELED]
    for state in (State.FILLED, State.REJECTED, State.FAILED, State.LAPSED):
        assert told[state].startswith("Not canceled"), state


def _facts(**changes: Any) -> Facts:
    signed = SIGNER.sign(Checkpoint(seq=1, hash="0" * 64, at=timestamp(START)))
    fields: dict[str, Any] = {
        "request_id": 1,
        "made_at": timestamp(START),
        "made_by": "cli:ops",
        "version": "1",
        "signed": signed,
        "first_seq": 1,
        "later_events": False,
        "counts": {},
    }
    return Facts(**{**fields, **changes})


def test_an_event_of_a_later_version_is_shown_as_it_is() -> None:
    """The audit outlives the bot that wrote it."""
    event = columns(AuditEvent(action=Action.REQUEST_CREATED, request_id=1), seq=1, occurred_at=START)
    later = event | {"seq": 2, "action": "request.teleported", "details": {"to": "there", "how": "fast"}}
    text = words(render([event, later], _facts(later_events=True)))
    assert "request.teleported" in text
    assert "how=fast" in text
    assert "This request has later events, which are not in this pack." in text


# The page


class _Page(HTMLParser):
    """What is wrong with a page that must stand alone, and its text."""

    VOID = frozenset({"meta", "br", "hr"})

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.text: list[str] = []
        self.faults: list[str] = []
        self.tags: set[str] = set()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.add(tag)
        if tag not in self.VOID:
            self.open.append(tag)
        names = {name for name, _ in attrs}
        if tag in {"script", "link", "img", "iframe", "object", "form", "base", "a"} or names & {
            "src",
            "href",
            "style",
        }:
            self.faults.append(f"{tag} {sorted(names)}")
        self.faults += [name for name in names if name.startswith("on")]

    def handle_endtag(self, tag: str) -> None:
        if not self.open or self.open.pop() != tag:
            self.faults.append(f"</{tag}> closes nothing")

    def handle_data(self, data: str) -> None:
        if not self.open or self.open[-1] != "style":
            self.text.append(data)


def parsed(html: str) -> _Page:
    read = _Page()
    read.feed(html)
    read.close()
    assert read.open == []
    assert read.faults == []
    return read


def words(html: str) -> str:
    return re.sub(r"\s+", " ", "".join(parsed(html).text))


def verdict(html: str) -> str:
    found = re.search(r'id="verdict">(.*?)</div>', html, re.DOTALL)
    assert found
    lines = "".join(parsed(found[1]).text).splitlines()
    return " | ".join(filter(None, map(str.strip, lines)))


def test_the_page_stands_alone(sqlite_desk: Desk, tmp_path: Path) -> None:
    """It is read in ten years on a machine without a network, on a dark screen or on paper, and runs nothing."""
    html = page(pack(sqlite_desk, sqlite_desk.canceled(), tmp_path))
    assert html.startswith("<!doctype html>")
    assert {"style", "table", "article"} <= parsed(html).tags
    assert "default-src 'none'" in html
    told = re.findall(r"<code>(https://playground[.]slack[.]com/archives/C0DESK/p[0-9]+)</code>", html)
    assert [address[-5:] for address in told] == ["p1000", "p2000"]
    assert len(re.findall(r"https?:", html)) == len(re.findall("https://playground", html))
    assert not re.search(r"url\(|@import", html)
    assert "prefers-color-scheme: dark" in html
    assert "@media print" in html


HOSTILE = (
    "</td><script>alert(1)</script><img src=x onerror=alert(1)>",
    "{{ 7*7 }} {% raise %} &lt;b&gt; ' \" `",
    "\u202egnp.exe\u2066 \u200b\ufeff",
    "\x07\x1b]0;owned\x07\x7f\x85\u2028",
)


def test_hostile_words_are_shown_and_never_obeyed(sqlite_desk: Desk, tmp_path: Path) -> None:
    """Whoever asks or decides writes into a document that others believe."""
    named = Actor(id=REQUESTER.id, name="<b onclick=x>\u202eDana", team_id=REQUESTER.team_id)
    request_id = sqlite_desk.canceled(requester=named, reason=" ".join(HOSTILE))
    files = pack(sqlite_desk, request_id, tmp_path)
    text = words(page(files))
    assert "</td><script>alert(1)</script><img src=x onerror=alert(1)>" in text
    assert "{{ 7*7 }} {% raise %} &lt;b&gt; ' \" `" in text
    assert r"\u202egnp.exe\u2066 \u200b\ufeff" in text
    assert r"\u0007\u001b]0;owned\u0007\u007f\u0085\u2028" in text
    assert r"<b onclick=x>\u202eDana (U0REQUESTER)" in text
    for name in ("index.html", "events.jsonl", "chain.jsonl"):
        assert not re.search(
            "[\x00-\x09\x0b-\x1f\x7f-\x9f\u200b-\u200f\u2028-\u202e\u2066-\u2069\ufeff]", files[name].decode()
        )
    assert objects(files["events.jsonl"])[0]["reason"] == " ".join(HOSTILE)


def test_a_flood_of_clicks_makes_no_endless_page(sqlite_desk: Desk, tmp_path: Path) -> None:
    """Anybody in the channel can press a thousand times; the events have it all, the page the first and the rest."""
    request_id = sqlite_desk.asked()
    with sqlite_desk.database.write() as connection:
        chain = Chain(sqlite_desk.database, connection)
        click = AuditEvent(action=Action.APPROVAL_REFUSED, actor=STRANGER, request_id=request_id)
        for _ in range(MAX_SHOWN + 50):
            chain.append(click, occurred_at=START + timedelta(minutes=1))
        chain.write()
    files = pack(sqlite_desk, request_id, tmp_path)
    assert len(objects(files["events.jsonl"])) == MAX_SHOWN + 53
    assert "50 events are left out here" in words(page(files))
    assert page(files).count("<code>approval.refused</code>") == MAX_SHOWN
    assert faults(tmp_path, files) == []


# Every change is found

REQUESTED_AT = timestamp(START)
CHANGES: dict[str, tuple[str, bytes, bytes, list[str]]] = {
    "a name on the page": ("index.html", "김민지".encode(), "박서준".encode(), ["hashes"]),
    "a time on the page": ("index.html", b"09:00:09.750", b"09:00:08.750", ["hashes"]),
    "the verdict on the page": ("index.html", b"Canceled: the", b"Not canceled: the", ["hashes"]),
    "a name in the events": ("events.jsonl", "김민지".encode(), "박서준".encode(), ["hashes", "events"]),
    "a time in the events": (
        "events.jsonl",
        REQUESTED_AT.encode(),
        b"2026-11-23T08:00:00.000000Z",
        ["hashes", "events"],
    ),
    "an outcome in the events": ("events.jsonl", b'"refused"', b'"ok"', ["hashes", "events"]),
    "the chain": ("chain.jsonl", b"U0MINJI", b"U0OTHER", ["hashes", "chain", "events"]),
    "the checkpoint": ("checkpoint.json", b'"seq":', b'"seq":1', ["hashes", "checkpoint", "chain"]),
    "who packed it": ("manifest.json", b'"made_by": "', b'"made_by": "x', ["manifest"]),
    "when it was packed": ("manifest.json", b'"made_at": "20', b'"made_at": "19', ["manifest"]),
    "the request's number": ("manifest.json", b'"request": 1', b'"request": 2', ["manifest", "events"]),
    "the verifier": ("verify.py", b"return 0 if is_sound else 1", b"return 0", ["hashes"]),
    "what the README says": ("README.txt", b"does not prove", b"proves, too", ["hashes"]),
}


@pytest.fixture(scope="module")
def genuine(tmp_path_factory: pytest.TempPathFactory) -> Pack:
    """The files of a sound pack: between the request's events lie those of another."""
    folder = tmp_path_factory.mktemp("genuine")
    made = Desk(f"sqlite:///{folder / 'cancels.db'}")
    request_id = made.canceled()
    create(made.store)
    files = pack(made, request_id, folder)
    made.database.close()
    return files


@pytest.mark.parametrize("change", CHANGES)
def test_a_change_by_who_has_not_the_key_is_found(genuine: Pack, tmp_path: Path, change: str) -> None:
    """A name, a time, a verdict: the pack is worth what the smallest of them is worth."""
    name, right, wrong, expected = CHANGES[change]
    assert right in genuine[name]
    changed = {**genuine, name: genuine[name].replace(right, wrong)}
    assert faults(tmp_path, changed) == expected
    # Whoever also writes the list of hashes anew changes what is signed.
    assert "manifest" in faults(tmp_path, rehashed(changed))


def test_a_changed_signature_is_found(genuine: Pack, tmp_path: Path) -> None:
    """Also where it is only written in another way."""
    sig = genuine["manifest.sig"]
    for wrong in (sig.upper(), sig.strip(), sig + b"\n", b" " + sig, sig[64:] + sig[:64], b"\n"):
        assert faults(tmp_path, {**genuine, "manifest.sig": wrong}) == ["manifest"]


def rehashed(files: Pack, *, signer: Signer | None = None, **changes: Any) -> Pack:
    """The pack with its list of hashes as it would be, and signed if there is somebody to sign."""
    manifest = json.loads(files["manifest.json"]) | changes
    manifest["files"] = {name: hashlib.sha256(files[name]).hexdigest() for name in manifest["files"]}
    if signer is not None:
        manifest["public_key"] = signer.public_key
    text = f"{json.dumps(manifest, indent=1)}\n".encode()
    sig = f"{signer.signature(text)}\n".encode() if signer is not None else files["manifest.sig"]
    return {**files, "manifest.json": text, "manifest.sig": sig}


def test_another_key_is_found_by_the_checkpoint_or_by_the_comparison(genuine: Pack, tmp_path: Path) -> None:
    """Anybody can sign a story of their own; only the key that was told another way says whose it is."""
    assert faults(tmp_path, rehashed(genuine, signer=OTHER)) == ["checkpoint"]
    made = parse_checkpoint(genuine["checkpoint.json"].decode()).checkpoint
    own = {**genuine, "checkpoint.json": f"{OTHER.sign(made)}\n".encode()}
    forged = rehashed(own, signer=OTHER)
    assert faults(tmp_path, forged) == []
    assert json.loads(forged["manifest.json"])["public_key"] != SIGNER.public_key


def _without(text: bytes, place: int) -> bytes:
    lines = text.splitlines(keepends=True)
    return b"".join(lines[:place] + lines[place + 1 :])


FORGERIES: dict[str, tuple[str, Callable[[bytes], bytes], list[str]]] = {
    "an event left out": ("events.jsonl", lambda text: _without(text, 3), ["events"]),
    "the first event left out": ("events.jsonl", lambda text: _without(text, 0), ["events"]),
    "the last event left out": ("events.jsonl", lambda text: b"".join(text.splitlines(keepends=True)[:-1]), ["events"]),
    "all events left out": ("events.jsonl", lambda _text: b"", ["events"]),
    "an event doubled": ("events.jsonl", lambda text: text + text.splitlines(keepends=True)[-1], ["events"]),
    "a column more": ("events.jsonl", lambda text: text.replace(b'{"seq": 1,', b'{"seq": 1, "x": 1,', 1), ["events"]),
    "a number as a truth": ("events.jsonl", lambda text: text.replace(b'{"seq": 1,', b'{"seq": true,', 1), ["events"]),
    "a name twice": ("events.jsonl", lambda text: text.replace(b'{"seq"', b'{"actor": "x", "seq"', 1), ["events"]),
    "the chain's beginning cut": ("chain.jsonl", lambda text: _without(text, 0), ["events"]),
    "a link cut out": ("chain.jsonl", lambda text: _without(text, 4), ["chain", "events"]),
    "the chain's end cut": ("chain.jsonl", lambda text: b"".join(text.splitlines(keepends=True)[:-1]), ["chain"]),
    "no chain at all": ("chain.jsonl", lambda _text: b"", ["chain", "events"]),
    "a link's claimed number": (
        "chain.jsonl",
        lambda text: text.replace(b'"seq": 3,', b'"seq": 33,', 1),
        ["chain", "events"],
    ),
}


@pytest.mark.parametrize("forgery", FORGERIES)
def test_what_the_owner_of_the_key_leaves_out_is_found(genuine: Pack, tmp_path: Path, forgery: str) -> None:
    """Who signs packs still cannot hide an event from the chain that an earlier checkpoint has sealed."""
    name, forge, expected = FORGERIES[forgery]
    changed = {**genuine, name: forge(genuine[name])}
    assert changed[name] != genuine[name]
    assert faults(tmp_path, rehashed(changed, signer=SIGNER)) == expected


# Checkpoints, and what is recorded


def recorded(desk: Desk, action: Action) -> list[dict[str, Any]]:
    found = AuditLog(desk.database).list(Filter(action=action.value), limit=100, newest_first=False)
    return [dict(event) for event in found]


def test_the_first_checkpoint_that_covers_the_request_is_taken(desk: Desk, tmp_path: Path) -> None:
    """The sooner it was signed, the less could have been rewritten; and the fewer events of others go along."""
    request_id = desk.canceled()
    make = Checkpoints(desk.database).make
    covering = make(SIGNER.sign, actor=Actor(id="cli:ops"))
    create(desk.store)
    make(SIGNER.sign, actor=Actor(id="cli:ops"))
    files = pack(desk, request_id, tmp_path)
    assert parse_checkpoint(files["checkpoint.json"].decode()) == covering
    assert len(recorded(desk, Action.AUDIT_CHECKPOINTED)) == 2


def test_a_checkpoint_of_another_key_or_without_a_good_signature_is_passed_over(desk: Desk, tmp_path: Path) -> None:
    """Who owns the database can write any row into the table."""
    request_id = desk.canceled()
    other = Checkpoints(desk.database).make(OTHER.sign, actor=Actor(id="cli:ops"))
    with desk.database.write() as connection:
        forged = {"key": SIGNER.public_key, "signature": other.signature, "at": other.checkpoint.at}
        row = {"seq": other.checkpoint.seq, "hash": other.checkpoint.hash}
        connection.execute(insert(checkpoints).values(**row, **forged, made_at=START))
    files = pack(desk, request_id, tmp_path)
    signed = parse_checkpoint(files["checkpoint.json"].decode())
    assert (signed.key, signed.checkpoint.seq) == (SIGNER.public_key, other.checkpoint.seq + 1)
    assert faults(tmp_path, files) == []


def test_every_pack_is_recorded_and_outdates_none(desk: Desk, tmp_path: Path) -> None:
    """Who took a copy of other people's events out of the database is a question, too."""
    request_id = desk.denied()
    first = pack(desk, request_id, tmp_path)
    sha256 = hashlib.sha256((tmp_path / f"{request_id}.zip").read_bytes()).hexdigest()
    second = pack(desk, request_id, tmp_path)
    assert first["checkpoint.json"] == second["checkpoint.json"]
    event, _ = recorded(desk, Action.EVIDENCE_PACKED)
    assert re.fullmatch(r"cli:\S+", event["actor"])
    assert event["details"] == {
        "request": request_id,
        "file": f"{request_id}.zip",
        "sha256": sha256,
        "first_seq": 1,
        "last_seq": objects(first["chain.jsonl"])[-1]["seq"],
        "checkpoint": json.loads(first["checkpoint.json"]),
    }
    assert verify_chain(desk.database).fault is None


# When there is none


def test_the_command_says_what_to_keep(sqlite_desk: Desk, tmp_path: Path) -> None:
    """The key and the verifier's hash are what the receiver needs by another way."""
    out = tmp_path / "evidence.zip"
    made = bot(sqlite_desk, "audit", "evidence", str(sqlite_desk.denied()), "--out", str(out))
    assert made.exit_code == 0, made.output
    for part in (
        SIGNER.public_key,
        hashlib.sha256(out.read_bytes()).hexdigest(),
        hashlib.sha256(verifier()).hexdigest(),
        "other requests included",
    ):
        assert part in made.stdout
    assert PRIVATE_KEY not in made.output
    assert out.stat().st_mode & 0o777 == 0o600
    assert {path.name for path in tmp_path.iterdir() if not path.name.startswith("cancels.db")} == {"evidence.zip"}


@pytest.mark.parametrize(
    ("number", "out", "environ", "status", "told"),
    [
        ("7", "x.zip", {}, 1, "there is no request #7"),
        ("1", "x.zip", {"CHECKPOINT_KEY": ""}, 1, "CHECKPOINT_KEY is empty"),
        ("1", "x.zip", {"CHECKPOINT_KEY": "canary" * 9}, 1, "CHECKPOINT_KEY must be 64 hex digits"),
        ("1", "there.zip", {}, 2, "is there already: name another file, or add --force"),
        ("1", "no/x.zip", {}, 2, "there is no folder"),
        ("1", ".", {}, 2, "is a folder: name a file"),
        ("0", "x.zip", {}, 2, "0 is not in the range"),
    ],
)
def test_what_cannot_be_packed_is_told_in_a_line(  # noqa: PLR0917 - a table
    sqlite_desk: Desk, tmp_path: Path, number: str, out: str, environ: dict[str, str], status: int, told: str
) -> None:
    """And nothing is recorded, nothing is written, nothing that was there is touched."""
    sqlite_desk.denied()
    (tmp_path / "there.zip").write_text("mine")
    before = sorted(path.name for path in tmp_path.iterdir())
    events = verify_chain(sqlite_desk.database).events
    tried = bot(sqlite_desk, "audit", "evidence", number, "--out", str(tmp_path / out), **environ)
    assert (tried.exit_code, told in tried.output) == (status, True), tried.output
    assert "canary" not in tried.output
    assert (tmp_path / "there.zip").read_text() == "mine"
    assert sorted(path.name for path in tmp_path.iterdir()) == before
    assert verify_chain(sqlite_desk.database).events == events


@pytest.mark.parametrize("is_checkpointed", [False, True])
@pytest.mark.parametrize(
    "altered",
    [
        "UPDATE audit_events SET actor = 'U0FORGED', entry = replace(entry, 'U0APPROVER', 'U0FORGED') WHERE seq = 5",
        "UPDATE audit_events SET request_id = 9 WHERE seq = 4",
        "DELETE FROM audit_events WHERE seq = 4",
        "UPDATE audit_events SET entry = 'no json' WHERE seq = 3",
    ],
    ids=["altered", "given to another request", "removed", "unreadable"],
)
def test_no_pack_is_made_of_a_broken_audit(desk: Desk, tmp_path: Path, altered: str, *, is_checkpointed: bool) -> None:
    """A pack that its own verifier does not take would tell the wrong story: that the pack was tampered with."""
    request_id = desk.canceled()
    if is_checkpointed:
        Checkpoints(desk.database).make(SIGNER.sign, actor=Actor(id="cli:ops"))
    if desk.database.is_sqlite:
        execute(
            desk.database, *(f"DROP TRIGGER audit_events_{name}" for name in ("no_update", "no_delete", "no_replace"))
        )
    else:
        execute(desk.database, "ALTER TABLE audit_events DISABLE TRIGGER USER")
    execute(desk.database, altered)
    out = tmp_path / "evidence.zip"
    tried = bot(desk, "audit", "evidence", str(request_id), "--out", str(out))
    assert tried.exit_code == 1
    assert "Traceback" not in tried.output
    assert re.search(r"bot audit verify|rewritten|does not verify", tried.output)
    assert not out.exists()
    assert recorded(desk, Action.EVIDENCE_PACKED) == []


# Size


def fill(database: Database, requests: int, events: int) -> None:
    """A first request, so many events of others, and the first one's end, chained as the bot does it."""
    rows: list[dict[str, Any]] = []
    seq, last = 0, GENESIS_HASH
    for number in range(events):
        mine = number in {0, events - 1}
        action = (
            Action.REQUEST_CREATED if number == 0 else Action.REQUEST_WITHDRAWN if mine else Action.APPROVAL_REFUSED
        )
        seq = number + 1
        event = AuditEvent(
            action=action,
            actor=REQUESTER,
            request_id=1 if mine else 2 + number % requests,
            details={"reason": "not_an_approver", "filler": f"{number:0512x}"},
        )
        made = columns(event, seq=seq, occurred_at=START)
        entry = canonical(made)
        hashed = chain_hash(last, entry)
        rows.append(
            {
                **made,
                "occurred_at": START,
                "details": canonical(made["details"]),
                "entry": entry,
                "prev_hash": last,
                "hash": hashed,
            }
        )
        last = hashed
    with database.write() as connection:
        for start in range(0, len(rows), 1000):
            connection.execute(insert(audit_events), rows[start : start + 1000])
        connection.execute(audit_head.update().values(seq=seq, hash=last, occurred_at=START))


def test_a_long_span_is_streamed(database: Database, tmp_path: Path) -> None:
    """An order may lie for a month before somebody decides; the machine that packs it is a small one."""
    fill(database, requests=50, events=6000)
    tracemalloc.start()
    out, actor = tmp_path / "long.zip", Actor(id="cli:ops")
    packed = pack_evidence(database, 1, out=out, force=False, signer=SIGNER, actor=actor, version="1")
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert (packed.events, packed.first_seq, packed.last_seq) == (2, 1, 6000)
    assert peak < 8_000_000, "the texts of the span alone are more"


# The documentation


def test_the_docs_name_the_hash_of_this_verifier() -> None:
    """It is how somebody with nothing but the pages knows that their verify.py is ours."""
    told = (Path(__file__).parents[1] / "docs/audit.md").read_text(encoding="utf-8")
    assert hashlib.sha256(verifier()).hexdigest() in told
