"""Checkpoints: what is signed, what a signature is good for, and what is not taken for one."""

import json
from dataclasses import replace

import pytest
from builders import create

from bot.audit.signing import Signer, is_signed
from bot.database.audit_log import AuditLog, Filter
from bot.database.checkpoints import Checkpoints
from bot.database.engine import Database
from bot.database.store import SqlStore
from bot.database.verification import verify
from bot.domain.audit import SYSTEM, Actor
from bot.domain.checkpoint import Checkpoint, parse_checkpoint

PRIVATE_KEY = "9d61b19deffd5a60ba844af492ec2cc44449c5697b326919703bac031cae7f60"
PUBLIC_KEY = "d75a980182b10ab7d54bfed3c964073a0ee172f3daa62325af021a68f707511a"
"""Of RFC 8032, section 7.1, the first of its examples."""

CHECKPOINT = Checkpoint(seq=1234, hash="9f" * 32, at="2026-11-23T00:00:00.000000Z")


def test_a_checkpoint_survives_as_a_line_of_json() -> None:
    """It travels through Slack, mails and files, and must be read back as it was signed."""
    signed = Signer(PRIVATE_KEY).sign(CHECKPOINT)
    assert signed.key == PUBLIC_KEY
    assert parse_checkpoint(str(signed)) == signed
    assert parse_checkpoint(json.dumps(json.loads(str(signed)), indent=1)) == signed
    assert is_signed(signed)


@pytest.mark.parametrize(
    "changed",
    [{"seq": 1233}, {"hash": "8f" * 32}, {"at": "2026-11-24T00:00:00.000000Z"}],
    ids=["seq", "hash", "at"],
)
def test_nothing_of_a_checkpoint_can_be_changed(changed: dict[str, int | str]) -> None:
    """Each part is covered by the signature, or the part would prove nothing."""
    signed = Signer(PRIVATE_KEY).sign(CHECKPOINT)
    assert not is_signed(replace(signed, checkpoint=replace(CHECKPOINT, **changed)))  # type: ignore[arg-type]
    assert not is_signed(replace(signed, key=Signer("11" * 32).public_key))
    assert not is_signed(replace(signed, key="ff" * 32))


@pytest.mark.parametrize(
    ("line", "fault"),
    [
        ("", "not a checkpoint"),
        ("[]", "not a checkpoint"),
        ("[" * 999, "not a checkpoint"),
        ("x" * 1001, "too long"),
        ('{"checkpoint":{"at":"","hash":"","seq":true},"key":"","signature":""}', "seq"),
        ('{"checkpoint":{"at":"","hash":"","seq":-1},"key":"","signature":""}', "seq"),
        ('{"checkpoint":{"at":"","hash":"","seq":1},"key":"","signature":""}', "hash"),
        ('{"checkpoint":{"at":1,"hash":"' + "0" * 64 + '","seq":1},"key":"","signature":""}', "at"),
    ],
)
def test_what_is_no_checkpoint_is_told_apart(line: str, fault: str) -> None:
    """An auditor pastes what they have; what is wrong with it is said, and nothing crashes."""
    with pytest.raises(ValueError, match=fault):
        parse_checkpoint(line)


@pytest.mark.parametrize("key", ["", "11" * 31, "zz" * 32, "\uff11" * 64])
def test_what_is_no_key_is_refused_and_never_shown(key: str) -> None:
    """Also a key with a slip is a secret."""
    with pytest.raises(ValueError, match="64 hex digits") as caught:
        Signer(key)
    assert not key or key not in str(caught.value)


def test_a_signer_shows_its_public_key_only() -> None:
    """It ends up in logs and tracebacks."""
    shown = repr(Signer(PRIVATE_KEY))
    assert PUBLIC_KEY in shown
    assert PRIVATE_KEY not in shown


def test_a_checkpoint_is_kept_covers_what_was_there_and_is_in_the_audit(database: Database) -> None:
    """Exports and packs find the first one that covers them, and the audit says who made it."""
    create(SqlStore(database))
    signer, kept = Signer(PRIVATE_KEY), Checkpoints(database)
    before = verify(database)
    assert kept.covering(1) is None
    first = kept.make(signer.sign, actor=Actor(id="cli:ops"))
    assert (first.checkpoint.seq, first.checkpoint.hash) == (before.head_seq, before.head_hash)
    assert is_signed(first)
    second = kept.make(signer.sign, actor=SYSTEM)
    assert kept.covering(1) == kept.covering(before.head_seq) == first
    assert kept.covering(before.head_seq + 1) == second
    assert kept.covering(before.head_seq + 2) is None
    event, *_ = AuditLog(database).list(Filter(action="audit.checkpointed"), limit=1, newest_first=False)
    assert (event["actor"], event["details"]) == ("cli:ops", json.loads(str(first)))
    assert verify(database).fault is None


def test_a_checkpoint_of_an_empty_audit_says_so(database: Database) -> None:
    """The first day has one as well."""
    made = Checkpoints(database).make(Signer(PRIVATE_KEY).sign, actor=SYSTEM).checkpoint
    assert (made.seq, made.hash) == (0, "0" * 64)
