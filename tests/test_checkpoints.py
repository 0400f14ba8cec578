"""Checkpoints: what is signed, what a signature is good for, and what is not taken for one."""

import json
from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any

import pytest
from builders import REQUESTER, START, HandClock, at_once, create, execute, present, rows, walk

from bot.audit.signing import Signer, is_signed
from bot.checkpointing import Checkpointing, DueCheckpoints, Posting
from bot.database.audit_log import AuditLog
from bot.database.chain import Chain
from bot.database.checkpoints import Checkpoints, SqlDailyCheckpoints
from bot.database.engine import Database
from bot.database.store import LEASE, SqlStore
from bot.database.stored_events import READ_ROWS
from bot.database.verification import verify
from bot.domain.audit import SYSTEM, Action, Actor, AuditEvent
from bot.domain.checkpoint import Checkpoint, SignedCheckpoint, parse_checkpoint, parse_checkpoints
from bot.domain.errors import AuditBroken, CannotPost, NothingDone, TryLater
from bot.domain.event_filter import Filter

PRIVATE_KEY = "9d61b19deffd5a60ba844af492ec2cc44449c5697b326919703bac031cae7f60"
PUBLIC_KEY = "d75a980182b10ab7d54bfed3c964073a0ee172f3daa62325af021a68f707511a"
"""Of RFC 8032, section 7.1, the first of its examples."""

DAY_S = 24 * 3600.0
CHECKPOINT = Checkpoint(seq=1234, hash="9f" * 32, at="2026-11-23T00:00:00.000000Z")


def address(database: Database) -> str:
    return database.url.render_as_string(hide_password=False)


def disarm(database: Database) -> None:
    """What the owner of a database can do: take the triggers away."""
    if database.is_sqlite:
        execute(database, *(f"DROP TRIGGER audit_events_{each}" for each in ("no_update", "no_delete", "no_replace")))
    else:
        execute(database, "ALTER TABLE audit_events DISABLE TRIGGER USER")


def append(database: Database, count: int) -> None:
    with database.write() as connection:
        chain = Chain(database, connection)
        for _ in range(count):
            chain.append(AuditEvent(action=Action.COMMAND_REFUSED, actor=REQUESTER), occurred_at=START)
        chain.write()


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


# What is signed


def test_nobody_signs_a_broken_chain(database: Database) -> None:
    """A signature says that all is well up to here."""
    made = create(SqlStore(database))
    walk(SqlStore(database), made.id, Action.REQUEST_REFUSED)
    disarm(database)
    execute(database, "UPDATE audit_events SET actor = 'U0OTHER' WHERE seq = 1")
    with pytest.raises(AuditBroken, match="event 1 was altered: column actor differs"):
        Checkpoints(database).make(Signer(PRIVATE_KEY).sign, actor=SYSTEM)
    assert rows(database, "SELECT * FROM checkpoints") == []
    assert verify(database).head_seq == 0


def test_what_came_after_the_verification_is_verified_as_well(database: Database) -> None:
    """Events go on being written while a long chain is walked; none of them is signed unseen."""
    store, kept = SqlStore(database), Checkpoints(database)
    create(store)
    disarm(database)

    def meanwhile(damage: str) -> Callable[[Any], None]:
        """Done once the walk has begun: the fixed number of rows between two calls is read by then."""

        def act(_: Any) -> None:
            create(store)
            execute(database, damage)

        return act

    append(database, READ_ROWS)
    with pytest.raises(AuditBroken, match=f"event {READ_ROWS + 2} was altered"):
        kept.make(
            Signer(PRIVATE_KEY).sign,
            actor=SYSTEM,
            progress=meanwhile(f"UPDATE audit_events SET actor = 'U' WHERE seq = {READ_ROWS + 2}"),
        )
    execute(database, f"UPDATE audit_events SET actor = '{REQUESTER.id}' WHERE seq = {READ_ROWS + 2}")
    made = kept.make(Signer(PRIVATE_KEY).sign, actor=SYSTEM, progress=meanwhile("SELECT 1"))
    assert made.checkpoint.seq == READ_ROWS + 3
    assert verify(database, checkpoints=[made.checkpoint]).checkpoints == 1


# Once a day


class Days:
    """The daily checkpoints of one replica, on a clock that is set by hand."""

    def __init__(self, url: str, clock: HandClock, *, is_to_post: bool = True) -> None:
        self.database = Database(url, clock=clock)
        self.clock = clock
        signer = Signer(PRIVATE_KEY)
        self.store = SqlDailyCheckpoints(
            self.database, sign=signer.sign, key=signer.public_key, is_good=is_signed, is_to_post=is_to_post
        )

    def make(self) -> SignedCheckpoint | None:
        return self.store.make_daily(rest=lambda: None)


@pytest.fixture
def days(database: Database) -> Iterator[Days]:
    opened = Days(address(database), HandClock())
    yield opened
    opened.database.close()


def test_one_checkpoint_a_day_whoever_tries(days: Days) -> None:
    """By the database's clock; two replicas that find it due together make one."""
    clock = days.clock
    assert days.store.due(limit=9) == DueCheckpoints(is_day_over=True, unposted=(), is_any_unposted=False)
    other = Days(address(days.database), clock)
    made = at_once(*[days.make, other.make] * 2)
    assert sorted(each is None for each in made) == [False, True, True, True], made
    other.database.close()
    clock.advance(DAY_S - 1)
    assert not days.store.due(limit=9).is_day_over
    assert days.make() is None
    clock.advance(1)
    assert days.store.due(limit=9).is_day_over
    second = present(days.make())
    assert (second.checkpoint.seq, second.checkpoint.at) == (1, "2026-11-24T09:00:00.000000Z")
    assert rows(days.database, "SELECT count(*) FROM checkpoints") == [(2,)]


def test_a_clock_that_was_set_back_does_not_end_the_days(days: Days) -> None:
    """A database that was in 2030 for a minute must not be without checkpoints until then, nor make one a second."""
    days.clock.advance(1000 * DAY_S)
    days.make()
    days.clock.advance(-1000 * DAY_S)
    assert days.store.due(limit=9).is_day_over
    assert present(days.make()).checkpoint.at == "2029-08-19T09:00:00.000000Z"  # time never runs backwards in the audit
    assert not days.store.due(limit=9).is_day_over


def test_the_daily_one_starts_from_the_newest_that_it_can_trust(days: Days) -> None:
    """Walking a year every day would be waste; trusting a row that anybody may have written would be worse."""
    first = present(days.make())
    create(SqlStore(days.database))
    disarm(days.database)
    execute(days.database, "UPDATE audit_events SET actor = 'U0OTHER' WHERE seq = 1")
    days.clock.advance(DAY_S)
    assert first.checkpoint.seq == 0
    with pytest.raises(AuditBroken, match="event 1"):
        days.make()
    execute(days.database, "UPDATE audit_events SET actor = 'system' WHERE seq = 1")
    present(days.make())
    days.clock.advance(DAY_S)
    execute(days.database, "UPDATE audit_events SET actor = 'U0OTHER' WHERE seq = 1")
    present(days.make())
    days.clock.advance(DAY_S)
    execute(days.database, f"UPDATE checkpoints SET signature = '{'00' * 64}'")
    with pytest.raises(AuditBroken, match="event 1"):
        days.make()


def test_a_walk_that_is_ended_signs_nothing(days: Days) -> None:
    """The bot stops within seconds, also while it walks a long chain for the first time."""
    append(days.database, READ_ROWS)

    def stopping() -> None:
        raise NothingDone("stopping")

    with pytest.raises(NothingDone, match="stopping"):
        days.store.make_daily(rest=stopping)
    assert days.store.due(limit=9).is_day_over


def test_one_that_nobody_meant_to_post_does_not_stand_for_the_days(days: Days) -> None:
    """Else who has the database could keep the channel silent, with a checkpoint of their own every day."""
    Checkpoints(days.database).make(Signer(PRIVATE_KEY).sign, actor=SYSTEM)
    assert days.store.due(limit=9).is_day_over
    assert days.make() is not None
    assert not days.store.due(limit=9).is_day_over
    quiet = Days(address(days.database), days.clock, is_to_post=False)
    assert not quiet.store.due(limit=9).is_day_over
    quiet.database.close()


def test_a_checkpoint_waits_in_its_row_until_it_is_posted(days: Days) -> None:
    """A crash between the commit and the message is made up for; two replicas do not post it together."""
    days.make()
    assert days.store.due(limit=9).unposted == (1,)
    taken = present(days.store.lease(1))
    assert (taken.attempts, days.store.lease(1), days.store.due(limit=9).unposted) == (0, None, ())
    days.clock.advance(LEASE.total_seconds())
    again = present(days.store.lease(1))
    assert (again.attempts, again.signed) == (1, taken.signed)
    days.store.posted(taken, channel_id="C0OLD", ts="1.000001")  # its lease was lost
    assert days.store.due(limit=9).is_any_unposted
    days.store.post_later(again, due_in_s=60)
    assert days.store.due(limit=9) == DueCheckpoints(is_day_over=False, unposted=(), is_any_unposted=True)
    days.clock.advance(60)
    days.store.posted(present(days.store.lease(1)), channel_id="C0AUDIT", ts="2.000001")
    assert days.store.due(limit=9) == DueCheckpoints(is_day_over=False, unposted=(), is_any_unposted=False)
    assert rows(days.database, "SELECT channel_id, message_ts FROM checkpoints") == [("C0AUDIT", "2.000001")]
    days.store.note_broken("event 1 was altered")
    event = AuditLog(days.database).list(Filter(), limit=1)[0]
    assert (event["outcome"], event["details"]) == ("failed", {"fault": "event 1 was altered"})


# Making and posting


class Book:
    """A CheckpointStore and CheckpointPoster that note what was asked of them."""

    def __init__(self) -> None:
        self.due_now = DueCheckpoints(is_day_over=True, unposted=(), is_any_unposted=False)
        self.broken: str | None = None
        self.errors: list[CannotPost | TryLater] = []
        self.done: list[str] = []

    def due(self, *, limit: int) -> DueCheckpoints:
        assert limit
        self.done.append("due")
        return self.due_now

    def make_daily(self, *, rest: Callable[[], None]) -> SignedCheckpoint | None:
        rest()
        if self.broken:
            raise AuditBroken(self.broken)
        self.done.append("made")
        return Signer(PRIVATE_KEY).sign(CHECKPOINT)

    def note_broken(self, fault: str) -> None:
        self.done.append(f"noted {fault}")

    def lease(self, number: int) -> Posting | None:
        signed = Signer(PRIVATE_KEY).sign(CHECKPOINT)
        return Posting(number=number, signed=signed, attempts=number - 1, fence=1) if number < 9 else None

    def posted(self, posting: Posting, *, channel_id: str, ts: str) -> None:
        self.done.append(f"posted {posting.number} {channel_id} {ts}")

    def post_later(self, posting: Posting, *, due_in_s: float) -> None:
        self.done.append(f"later {posting.number} {due_in_s:.0f}")

    def post_checkpoint(self, signed: SignedCheckpoint, *, channel_id: str) -> tuple[str, str]:
        if self.errors:
            raise self.errors.pop()
        return channel_id, str(signed.checkpoint.seq)

    def post_broken_audit(self, fault: str, *, channel_id: str) -> None:
        if self.errors:
            raise self.errors.pop()
        self.done.append(f"told {channel_id} {fault}")


class Desk:
    def __init__(self, *, channel_id: str | None = "C0AUDIT") -> None:
        self.book, self.now_s, self.rested = Book(), 1000.0, 0
        self.story = Checkpointing(
            store=self.book, poster=self.book, channel_id=channel_id, monotonic=lambda: self.now_s, rest=self.rest
        )

    def rest(self) -> None:
        self.rested += 1

    def do(self, *jobs: int) -> list[str]:
        self.book.done.clear()
        for job in jobs:
            assert self.story.work(job) is None
        return list(self.book.done)


def test_what_is_due_is_looked_for_now_and_then() -> None:
    """The loop comes round every second; a day need not end on the second."""
    desk = Desk()
    desk.book.due_now = DueCheckpoints(is_day_over=True, unposted=(3,), is_any_unposted=True)
    assert desk.story.due(limit=9) == (0, 3)
    assert desk.story.due(limit=9) == ()
    desk.now_s += 2
    assert desk.story.due(limit=9) == (0, 3)
    assert desk.do(0, 3) == ["made", "posted 3 C0AUDIT 1234"]
    assert (desk.rested, desk.story.due(limit=9)) == (1, (0, 3))  # what was made is posted at once


def test_without_a_channel_nothing_is_posted() -> None:
    """The key alone is enough: checkpoints are kept, and taken out by hand."""
    desk = Desk(channel_id=None)
    desk.book.due_now = DueCheckpoints(is_day_over=False, unposted=(3,), is_any_unposted=True)
    assert desk.story.due(limit=9) == ()
    assert desk.do(3) == []


def test_what_slack_does_not_take_is_tried_again_with_growing_gaps() -> None:
    """Also what it says it will never take: somebody invites the bot a week later, and nothing is missing."""
    desk = Desk()
    desk.book.errors = [CannotPost("not_in_channel")] * 6
    gaps = ["later 1 2", "later 2 10", "later 3 60", "later 4 300", "later 5 3600", "later 6 3600"]
    assert desk.do(1, 2, 3, 4, 5, 6) == gaps
    assert desk.story.state() == "not_posted: not_in_channel"
    desk.book.errors = [TryLater("ratelimited", retry_after_s=45)]
    assert desk.do(1) == ["later 1 45"]
    assert desk.do(9) == []
    assert desk.do(1) == ["posted 1 C0AUDIT 1234"]
    assert desk.story.state() is True


def test_another_replica_that_has_posted_it_ends_the_trouble() -> None:
    """What /readyz says must not stay wrong until the restart."""
    desk = Desk()
    desk.book.errors = [CannotPost("not_in_channel")]
    desk.do(1)
    desk.story.due(limit=9)
    assert desk.story.state() is True


def test_a_broken_audit_is_told_once_and_not_signed() -> None:
    """To the log, the audit and the channel: a channel that stays silent would be noticed by nobody."""
    desk = Desk()
    desk.book.broken = "event 3 is missing"
    desk.book.errors = [TryLater("away")]
    assert desk.do(0) == ["noted event 3 is missing"]
    assert desk.story.state() == "audit_does_not_verify"
    assert desk.do(0) == []
    desk.now_s += 3600
    assert desk.do(0) == ["told C0AUDIT event 3 is missing"]
    desk.now_s += 3600
    assert desk.do(0) == []
    desk.now_s += 3600
    desk.book.broken = None
    assert desk.do(0) == ["made"]
    assert desk.story.state() is True


# Files of checkpoints


def test_a_file_of_checkpoints_is_read_as_people_copy_it() -> None:
    """With the marks of the code block, empty lines, and several days."""
    one, other = (Signer(key).sign(CHECKPOINT) for key in (PRIVATE_KEY, "11" * 32))
    assert parse_checkpoints(f"\n```{one}```\n\n```\n {other}\n```\n") == (one, other)


@pytest.mark.parametrize(
    ("text", "fault"),
    [
        ("", "there is no checkpoint in it"),
        ("```\n```", "there is no checkpoint in it"),
        (f"{Signer(PRIVATE_KEY).sign(CHECKPOINT)}\nand more", "line 2: not a checkpoint"),
        (f"{Signer(PRIVATE_KEY).sign(CHECKPOINT)}\n" * 10_001, "more than 10000"),
    ],
    ids=["empty", "marks", "words", "many"],
)
def test_a_file_that_is_half_understood_is_refused(text: str, fault: str) -> None:
    """It would prove half of what its reader believes."""
    with pytest.raises(ValueError, match=fault):
        parse_checkpoints(text)
