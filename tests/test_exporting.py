"""Exports that are asked for in Slack: for auditors only, written down first, and seen through whatever breaks."""

import hashlib
import json
from collections.abc import Iterator
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
from builders import START, HandClock, create, rows
from fill import fill
from journey import started
from postgresql import Postgresql

from bot.audit.slack_export import SqlExportFiles
from bot.database.audit_log import AuditLog
from bot.database.engine import Database
from bot.database.exports import LEASE, SqlExports
from bot.database.migration import migrate
from bot.database.store import SqlStore
from bot.database.verification import verify
from bot.domain.approval import ApprovalPolicy
from bot.domain.audit import Actor, Json, Reason
from bot.domain.errors import NothingDone
from bot.domain.event_filter import Filter
from bot.domain.membership import UNREAD, Group, Membership
from bot.exporting import LOOK_EVERY_S, Export, ExportCommand, Exporting, WantedExport
from bot.playground.demo import BEN, CARA, DANA, DESK
from bot.playground.slack import SCOPES, SlackWorkspace
from bot.playground.slack_records import SharedFile
from bot.slack import messages
from bot.slack.notifier import Notifier

HOME = "T0PLAY"
AUDITOR = Actor(id="U0CARA", name="cara", team_id=HOME)
POLICY = ApprovalPolicy(approvers=frozenset({"U0BEN"}), auditors=frozenset({AUDITOR.id, "S0AUDIT"}))
ALL = WantedExport()


class Desk:
    """Exports as they are wired in the bot, on a hand clock, with a Slack at the wire."""

    def __init__(self, database: Database, clock: HandClock, slack: SlackWorkspace) -> None:
        self.database = database
        self.clock = clock
        self.slack = slack
        self.store = SqlExports(database)
        self.notifier = Notifier(token="xoxb-playground", api_url=slack.api_url, notify=())
        self.membership: Membership = UNREAD
        self.rests = 0
        self.waited_s = 0.0
        self.exporting = self.wired()

    def wired(self, policy: ApprovalPolicy = POLICY, *, max_events: int = 1000, max_bytes: int = 100_000) -> Exporting:
        return Exporting(
            store=self.store,
            files=SqlExportFiles(self.database, max_events=max_events, max_bytes=max_bytes),
            messenger=self.notifier,
            policy=policy,
            membership=lambda: self.membership,
            rest=self.rest,
            monotonic=lambda: self.waited_s,
        )

    def rest(self) -> None:
        self.rests += 1

    def ask(self, *, wanted: WantedExport | None = ALL, person: Actor = AUDITOR, trigger: str = "t1") -> Reason | None:
        command = ExportCommand(
            trigger_id=trigger, person=person, team_id=HOME, channel_id="C0DESK", text="export", wanted=wanted
        )
        return self.exporting.ask(command, home_team=HOME)

    def work(self) -> None:
        """Whatever is due now."""
        self.waited_s += LOOK_EVERY_S
        for number in self.exporting.due(limit=10):
            self.exporting.work(number)

    def work_off(self) -> None:
        """Until nothing waits any more."""
        for _ in range(60):
            self.work()
            if self.is_over():
                return
            self.clock.advance(LEASE.total_seconds() + 1)
        raise AssertionError("it never ends")

    def is_over(self) -> bool:
        return rows(self.database, "SELECT count(*) FROM exports WHERE next_attempt_at IS NOT NULL") == [(0,)]

    def files(self) -> list[SharedFile]:
        return [file for message in self.slack.dms(AUDITOR.id) for file in message.files]

    def told(self) -> list[str]:
        return [message.text for message in self.slack.dms(AUDITOR.id)]

    def events(self) -> list[dict[str, Any]]:
        return AuditLog(self.database).list(Filter(), limit=3000, newest_first=False)

    def story(self) -> list[tuple[Json, Json]]:
        """Of the exports: actions and outcomes."""
        told = {"export.begun", "audit.exported", "export.delivered", "command.refused"}
        return [(event["action"], event["outcome"]) for event in self.events() if event["action"] in told]


@pytest.fixture
def desk(database_url: str) -> Iterator[Desk]:
    clock = HandClock()
    database = Database(database_url, clock=clock)
    migrate(database)
    store = SqlStore(database)
    create(store, reason="=HYPERLINK(0)")
    create(store, reason="잘못 냄")
    with SlackWorkspace() as slack:
        yield Desk(database, clock, slack)
    database.close()


# What comes


def test_the_file_holds_the_audit_up_to_the_command(desk: Desk) -> None:
    """And the audit holds who asked for it before it was acknowledged, and the hash before it left."""
    assert desk.ask(wanted=WantedExport(form="jsonl")) is None
    expected = desk.events()
    assert [event["action"] for event in expected] == ["request.created", "request.created", "export.begun"]
    desk.work()
    (file,) = desk.files()
    assert [json.loads(line) for line in file.content.decode().splitlines()] == expected
    sha256 = hashlib.sha256(file.content).hexdigest()
    assert f"`{sha256}`" in desk.told()[0]
    groups: dict[str, Json] = {"membership": {"S0AUDIT": {"read_at": None}}}
    asked: dict[str, Json] = {"to": "slack", "format": "jsonl", "filter": {}}
    named = asked | {"file": file.name}
    begun, exported, delivered = desk.events()[2:]
    assert (begun["actor"], begun["channel_id"], begun["trigger_id"], begun["details"]) == (
        AUDITOR.id,
        "C0DESK",
        "t1",
        asked | groups,
    )
    assert (exported["actor"], exported["action"]) == (AUDITOR.id, "audit.exported")
    assert exported["details"] == named | {"events": 3, "first_seq": 1, "last_seq": 3, "sha256": sha256}
    assert (delivered["action"], delivered["outcome"], delivered["details"]) == ("export.delivered", "ok", named)
    assert desk.is_over()
    assert verify(desk.database).fault is None


def test_the_file_is_narrowed_and_runs_no_formula(desk: Desk) -> None:
    """The selection is kept in the database as it was typed, times included."""
    selection = Filter(
        action="request.created", request_id=1, since=START - timedelta(days=1), until=START + timedelta(days=1)
    )
    assert desk.ask(wanted=WantedExport(selection=selection)) is None
    desk.work()
    (file,) = desk.files()
    text = file.content.decode("utf-8-sig")
    assert file.name == "audit-export-1.csv"
    assert text.count("\r\n") == 2
    assert ",'=HYPERLINK(0)," in text


def test_a_command_that_is_delivered_twice_is_one_export(desk: Desk) -> None:
    """Slack may deliver again what it got no answer for."""
    assert desk.ask() is None
    desk.work()
    assert desk.ask() is None
    desk.work_off()
    assert len(desk.files()) == 1
    assert desk.story().count(("export.begun", "ok")) == 1


def test_one_export_at_a_time_for_each_person(desk: Desk) -> None:
    """The next one may be asked for when the last one is there, or known not to come."""
    assert desk.ask() is None
    assert desk.ask(trigger="t2") is Reason.EXPORT_WAITING
    desk.work()
    assert desk.ask(trigger="t2") is Reason.EXPORT_WAITING  # the same delivery gets the same answer
    assert desk.ask(trigger="t3") is None


def test_cancels_go_first_while_a_file_is_written(sqlite: Database) -> None:
    """A thousand events at a time; and a stop ends the writing, which is taken up again after its lease."""
    fill(sqlite.url.render_as_string(hide_password=False), 2500)
    with SlackWorkspace() as slack:
        desk = Desk(sqlite, HandClock(), slack)

        def stop() -> None:
            raise NothingDone("stopping")

        desk.ask()
        number = rows(sqlite, "SELECT id FROM exports")[0][0]
        wanted = Export(
            number=number,
            person=AUDITOR,
            team_id=HOME,
            wanted=ALL,
            up_to_seq=2501,
            asked_at=START,
            leased_at=START,
            attempts=0,
            fence=1,
        )
        files = SqlExportFiles(sqlite)
        assert files.make(wanted, rest=desk.rest).events == 2501
        assert desk.rests == 3
        with pytest.raises(NothingDone, match="stopping"):
            files.make(wanted, rest=stop)


def test_the_database_is_asked_seldom_where_nobody_exports(desk: Desk) -> None:
    """The loop comes round at every click; who has just asked is found at once all the same."""
    assert desk.exporting.due(limit=1) == ()
    with desk.database.write() as connection:
        connection.exec_driver_sql("DROP TABLE exports")
    assert desk.exporting.due(limit=1) == ()
    desk.waited_s += LOOK_EVERY_S
    with pytest.raises(NothingDone):
        desk.exporting.due(limit=1)


# Who may not


@pytest.mark.parametrize(
    ("person", "groups", "refusal"),
    [
        (Actor(id="U0DANA", team_id=HOME), Group(members=frozenset()), Reason.NOT_AN_AUDITOR),
        (Actor(id="U0BEN", team_id=HOME), Group(members=frozenset({"U0DANA"})), Reason.NOT_AN_AUDITOR),
        (Actor(id="U0DANA", team_id=HOME), Group(error="fatal_error"), Reason.MEMBERSHIP_UNKNOWN),
        (Actor(id=AUDITOR.id, team_id="T0OTHER"), Group(members=frozenset()), Reason.OTHER_WORKSPACE),
    ],
)
def test_nobody_else_gets_the_audit(desk: Desk, person: Actor, groups: Group, refusal: Reason) -> None:
    """It holds what was said in private channels. Who tried stands in the audit, approvers included."""
    desk.membership = Membership(groups={"S0AUDIT": groups})
    assert desk.ask(person=person) is refusal
    assert desk.ask(person=person) is refusal  # delivered again
    desk.work()
    assert desk.slack.calls() == []
    *_, event = desk.events()
    assert desk.story() == [("command.refused", "refused")]
    assert (event["actor"], event["reason"], event["trigger_id"]) == (person.id, "export", "t1")
    assert event["details"]["reason"] == refusal.value
    assert "S0AUDIT" in event["details"]["membership"]


def test_a_member_of_the_auditors_group_gets_it(desk: Desk) -> None:
    """A group is a list that somebody else keeps; who was in it stands in the event."""
    desk.membership = Membership(groups={"S0AUDIT": Group(members=frozenset({"U0DANA"}))})
    assert desk.ask(person=Actor(id="U0DANA", team_id=HOME)) is None
    desk.work()
    assert len(desk.slack.dms("U0DANA")) == 1
    assert desk.events()[2]["details"]["membership"]["S0AUDIT"]["members"] == ["U0DANA"]


def test_without_auditors_it_is_nobody(desk: Desk) -> None:
    """An empty list is nobody, never everybody."""
    desk.exporting = desk.wired(ApprovalPolicy(approvers=frozenset({AUDITOR.id})))
    assert desk.ask() is Reason.NOT_AN_AUDITOR


def test_what_is_not_understood_is_refused_and_written_down(desk: Desk) -> None:
    """For auditors; who is none hears only that."""
    desk.membership = Membership(groups={"S0AUDIT": Group(members=frozenset())})
    assert desk.ask(wanted=None) is Reason.NOT_A_QUESTION
    assert desk.ask(wanted=None, person=Actor(id="U0DANA", team_id=HOME), trigger="t2") is Reason.NOT_AN_AUDITOR
    assert desk.story() == [("command.refused", "refused")] * 2


def test_who_is_no_auditor_any_more_gets_no_file(desk: Desk) -> None:
    """The list of the moment in which it would be sent counts, too."""
    assert desk.ask() is None
    desk.exporting = desk.wired(ApprovalPolicy(approvers=frozenset({"U0BEN"}), auditors=frozenset({"U0DANA"})))
    desk.work_off()
    assert desk.files() == []
    assert desk.told() == [messages.no_export("not_an_auditor")]
    assert desk.story()[-1] == ("export.delivered", "failed")
    assert desk.events()[-1]["details"]["reason"] == "not_an_auditor"


# What may break


def test_a_file_that_was_recorded_and_not_sent_is_made_again_as_it_was(desk: Desk) -> None:
    """A kill between the event and Slack: whatever was written meanwhile, the hash in the audit is that of the file."""
    assert desk.ask() is None
    (number,) = desk.exporting.due(limit=1)
    export = desk.store.lease(number)
    assert export is not None
    desk.store.exported(export, SqlExportFiles(desk.database).make(export, rest=desk.rest))
    create(SqlStore(desk.database))
    desk.work()
    assert desk.files() == []  # somebody may be at it still
    desk.clock.advance(LEASE.total_seconds())
    desk.work()
    (file,) = desk.files()
    exported = [event for event in desk.events() if event["action"] == "audit.exported"]
    assert [event["details"]["sha256"] for event in exported] == [hashlib.sha256(file.content).hexdigest()]
    with pytest.raises(NothingDone, match="lease_lost"):
        desk.store.delivered(export)
    assert desk.story().count(("export.delivered", "ok")) == 1


@pytest.mark.parametrize(
    ("mood", "method"),
    [
        ("away", "conversations.open"),
        ("http_500", "files.getUploadURLExternal"),
        ("http_500", "upload_url"),
        ("away", "upload_url"),
        ("ratelimited", "files.completeUploadExternal"),
        ("error:internal_error", "files.completeUploadExternal"),
    ],
)
def test_slack_being_away_delays_the_file(desk: Desk, mood: str, method: str) -> None:
    """Each of the steps can fail; the file comes once, when Slack is back."""
    desk.slack.set_mood(mood, method=method, times=2, retry_after_s=7)
    assert desk.ask() is None
    desk.work()
    assert desk.files() == []
    assert not desk.is_over()
    desk.work_off()
    assert len(desk.files()) == 1
    assert [each for each in desk.story() if each[0] != "export.begun"] == [
        ("audit.exported", "ok"),
        ("export.delivered", "ok"),
    ]


def test_a_lost_answer_may_bring_the_file_twice_and_never_another_one(desk: Desk) -> None:
    """Slack has no way to send a file at most once."""
    desk.slack.set_mood("drop_answer_after_doing", method="files.completeUploadExternal", times=1)
    assert desk.ask() is None
    desk.work_off()
    first, second = desk.files()
    assert first.content == second.content


def test_after_an_hour_it_is_given_up_and_told(desk: Desk) -> None:
    """Somebody who waits for a file must not wait forever."""
    desk.slack.set_mood("error:internal_error", method="files.completeUploadExternal")
    assert desk.ask() is None
    desk.work_off()
    assert desk.told() == [messages.no_export("internal_error")]
    assert desk.story()[-1] == ("export.delivered", "failed")


def test_an_app_without_the_scopes_says_which(desk: Desk) -> None:
    """Whoever installed the app before there were exports has to install it again."""
    desk.slack.set_scopes(SCOPES - {"files:write"})
    assert desk.ask() is None
    desk.work_off()
    assert desk.told() == [messages.no_export("missing_scope")]
    desk.slack.set_scopes(SCOPES)
    assert desk.ask(trigger="t2") is None
    desk.work_off()
    assert len(desk.files()) == 1


@pytest.mark.parametrize(
    ("max_events", "max_bytes", "selection", "fault"),
    [
        (2, 100_000, Filter(), "too_large"),
        (1000, 900, Filter(), "too_large"),
        (1000, 100_000, Filter(market="KRW-NONE"), "no_event"),
    ],
)
def test_what_makes_no_file_is_told(desk: Desk, max_events: int, max_bytes: int, selection: Filter, fault: str) -> None:
    """A file is in memory until Slack has it, so it has a bound; and what is too large is not cut off silently."""
    desk.exporting = desk.wired(max_events=max_events, max_bytes=max_bytes)
    assert desk.ask(wanted=WantedExport(selection=selection)) is None
    desk.work_off()
    assert desk.told() == [messages.no_export(fault)]
    assert [each[0] for each in desk.story()] == ["export.begun", "export.delivered"]
    assert desk.events()[-1]["details"]["reason"] == fault


def test_an_audit_that_somebody_has_changed_beyond_reading_is_told(desk: Desk) -> None:
    """The file would not be what it says."""
    if not desk.database.is_sqlite:
        pytest.skip("PostgreSQL keeps its types")
    assert desk.ask() is None
    with desk.database.write() as connection:
        connection.exec_driver_sql("DROP TRIGGER audit_events_no_update")
        connection.exec_driver_sql("UPDATE audit_events SET details = x'00' WHERE seq = 1")
    desk.exporting = desk.wired()
    with desk.database.write() as connection:
        connection.exec_driver_sql("UPDATE exports SET form = 'jsonl'")
    desk.work()
    desk.work()
    assert desk.told() == [messages.no_export("audit_altered")]


def test_a_person_who_cannot_be_told_is_not_told_forever(desk: Desk) -> None:
    """Their account was deactivated meanwhile: it is written down, and over."""
    assert desk.ask() is None
    desk.slack.change_person(AUDITOR.id, is_deactivated=True)
    desk.work_off()
    assert desk.story()[-1] == ("export.delivered", "failed")
    assert desk.events()[-1]["details"]["reason"] == "user_disabled"
    assert desk.told() == []


def test_a_group_that_cannot_be_read_delays_the_file(desk: Desk) -> None:
    """Not known is neither yes nor no."""
    dana = Actor(id="U0DANA", team_id=HOME)
    desk.membership = Membership(groups={"S0AUDIT": Group(members=frozenset({dana.id}))})
    assert desk.ask(person=dana) is None
    desk.membership = UNREAD
    desk.work()
    assert desk.slack.calls() == []
    desk.membership = Membership(groups={"S0AUDIT": Group(members=frozenset({dana.id}))})
    desk.work_off()
    assert len(desk.slack.dms(dana.id)) == 1


# With the real process


@pytest.mark.parametrize(("mode", "kind"), [("http", "postgresql"), ("socket", "sqlite")])
def test_an_auditor_types_the_command_and_gets_the_file(
    tmp_path: Path, request: pytest.FixtureRequest, mode: Any, kind: str
) -> None:
    """Through Slack and back: the door, the listeners, the worker, the upload; and a kill in the middle of it."""
    postgresql: Postgresql | None = request.getfixturevalue("postgresql") if kind == "postgresql" else None
    url = postgresql.create() if postgresql else None
    with started(tmp_path, mode=mode, database_url=url, settings={"AUDITORS": CARA.id}) as journey:
        refused = journey.slack.command(BEN.id, DESK, "export")
        assert refused.text == messages.command_refused(Reason.NOT_AN_AUDITOR)
        assert "was not understood" in journey.slack.command(CARA.id, DESK, "export everything").text
        asked = journey.ask()
        journey.press(BEN, asked, "deny")
        journey.audited(asked.id, "summary.posted")
        mood = journey.slack.set_mood("slow", method="files.completeUploadExternal", delay_s=60)
        answer = journey.slack.command(CARA.id, DESK, f"export `{asked.uuid}` jsonl")
        assert answer.text == messages.export_recorded()
        assert mood.met.wait(20)
        journey.bot.kill()
        journey.slack.clear_moods()
        database = Database(journey.database_url)
        with database.write() as connection:
            connection.exec_driver_sql("UPDATE exports SET next_attempt_at = '1970-01-01T00:00:00.000000Z'")
        database.close()
        journey.bot.start()
        journey.bot.wait_until_ready()

        def found(slack: SlackWorkspace) -> list[SharedFile]:
            return [file for message in slack.dms(CARA.id) for file in message.files]

        files = journey.slack.wait_for(found, timeout_s=20)
        lines = [json.loads(line) for line in files[-1].content.decode().splitlines()]
        assert {line["order_uuid"] for line in lines} == {asked.uuid}
        assert lines[0]["actor"] == DANA.id
        assert journey.audit_fault() is None
