"""Hostile input: what anybody can send to the bot, what Slack would never send, what Upbit would never answer.

1. Not signed, or signed too long ago, or altered on the way: into the door that the bot builds, and through raw
   sockets, malformed HTTP among it, to a `bot run` process. Nothing of it may do or write down anything.
2. Well signed commands, clicks, forms and events with fields that are absent, of another kind, or forged. A request may
   come only of a command by a person of the workspace, a decision only of the click of somebody who may on a card that
   waits, or of the form that an approver fills in for it; all are worked out here a second time, in a simpler way.
   Whoever is told something is the one who clicked.
3. Answers of the exchange, altered, badly framed, cut or slow. No call may raise or outlast its deadline, find another
   order or a value that was not told, or say that nothing was sent or done where that is not sure.

Through all of it: no status 5xx, no traceback, no error in the log, no line that a stranger has put into it, little
memory, no ping in a message; and at the end the bot does its work and the audit proves itself.
"""

import json
import logging
import os
import re
import socket
import threading
import time
import traceback
from collections import Counter
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, field
from decimal import Decimal, InvalidOperation
from http import HTTPStatus
from pathlib import Path
from random import Random
from typing import Any, Final, Self
from urllib.parse import parse_qsl
from uuid import UUID

from databases import migrated
from journey import Journey, started
from sqlalchemy import text

from bot.app import Bot, build_neighbours, is_fit_to_print
from bot.database.engine import Database
from bot.database.verification import verify
from bot.domain.answer import Accepted, CancelAnswer, Found, LookAnswer, NotSent, Refused, Unknown
from bot.domain.order import Order
from bot.playground.demo import APPROVERS, BEN, CARA, DANA, DESK, EMIL, playground_settings
from bot.playground.exchange import Exchange, Key
from bot.playground.slack import SlackWorkspace
from bot.playground.slack_records import Person
from bot.settings import load_settings
from bot.slack.messages import nothing_was_done
from bot.upbit.client import CERTAIN_NAMES, Doubt, Refusal, UpbitClient, decipher
from faults import mutations
from faults.figures import Figures, Ground
from faults.mutations import EVENTS, FORM, JSON, PINGS, Hostile, Raw, Reply, Unsigned

UNSIGNED: Final = 100_000
UNSIGNED_OVER_SOCKETS: Final = 2_000
SIGNED: Final = 20_000
ANSWERS: Final = 50_000
ANSWERS_OVER_SOCKETS: Final = 3_000

WITHOUT_DATABASE: Final = 0.1
"""The share of what does not depend on the kind of database that is played where it is not SQLite."""
MAX_GROWTH_MIB: Final = 50
WARM_UP: Final = 0.1
MAX_TOLD: Final = 3
"""Sentences of one kind about one part; what comes after them is counted only."""
MAX_SHOWN_CHARS: Final = 600


def run(ground: Ground) -> Figures:
    figures = Figures(experiment="hostile input", database=ground.kind)
    dice = Random(ground.seed)
    share = 1.0 if ground.kind == "sqlite" else WITHOUT_DATABASE
    notes: list[str] = []
    with _heard(figures):
        for part in (_knock, _forge, _mislead):
            findings = _Findings(figures)
            notes.append(part(ground, share, dice, findings))
            findings.close()
    findings = _Findings(figures)
    notes.append(_knock_at_the_process(ground, dice, findings))
    findings.close()
    figures.note = "; ".join(notes)
    return figures


class _Findings:
    """Counts what is sent, and writes down what is wrong with it, each kind of input a few times only."""

    def __init__(self, figures: Figures) -> None:
        self._figures = figures
        self._began_at = time.monotonic()
        self._told: Counter[str] = Counter()
        self._sent = 0
        self._lock = threading.Lock()

    def sent(self, family: str) -> None:
        with self._lock:
            self._sent += 1
            self._figures.requests += 1
            self._figures.faults[family] += 1

    def expect(self, truth: object, otherwise: str, *shown: object) -> None:
        if truth:
            return
        kind = re.sub(r"[0-9]+", "#", otherwise)
        with self._lock:
            self._told[kind] += 1
            if self._told[kind] <= MAX_TOLD:
                self._figures.faulty.append(" ".join([otherwise, *(repr(each)[:MAX_SHOWN_CHARS] for each in shown)]))

    def close(self) -> None:
        for kind, times in self._told.items():
            if times > MAX_TOLD:
                self._figures.faulty.append(f"{times - MAX_TOLD} more times: {kind}")

    def note(self, memory: "_Memory", what: str) -> str:
        """The figures of this part; too much memory is wrong."""
        grown = memory.grown_mib()
        self.expect(grown <= MAX_GROWTH_MIB, f"{what}: memory grew by {grown:.0f} MiB")
        return f"{what} {grown:+.0f} MiB, {self._sent / (time.monotonic() - self._began_at):,.0f}/s"


class _Memory:
    """The resident memory of a process, with its children where it is another one, from `start` on."""

    def __init__(self, pid: int | None = None) -> None:
        self._pid = pid or os.getpid()
        self._before = self._mib()

    def start(self) -> None:
        self._before = self._mib()

    def grown_mib(self) -> float:
        return self._mib() - self._before

    def _mib(self) -> float:
        children = Path(f"/proc/{self._pid}/task/{self._pid}/children").read_text(encoding="ascii").split()
        pids = [str(self._pid), *(children if self._pid != os.getpid() else [])]
        pages = sum(int(Path(f"/proc/{pid}/statm").read_text(encoding="ascii").split()[1]) for pid in pids)
        return pages * os.sysconf("SC_PAGE_SIZE") / 2**20


class _Ears(logging.Handler):
    """Notes what the bot logs as an error, every traceback, and what breaks out of its line."""

    def __init__(self, figures: Figures) -> None:
        super().__init__()
        self._findings = _Findings(figures)
        self.addFilter(is_fit_to_print)

    def emit(self, record: logging.LogRecord) -> None:
        message = record.getMessage()
        is_error = record.levelno >= logging.ERROR and record.name.startswith("bot")
        self._findings.expect(not is_error, f"logged as an error by {record.name}:", message)
        if record.exc_info:
            where = traceback.extract_tb(record.exc_info[2])[-1]
            self._findings.expect(None, f"a traceback by {record.name} out of {where.name}:", message)
        if record.name.startswith("bot"):
            self._findings.expect("\n" not in message, "two lines logged as one:", message)

    def close(self) -> None:
        self._findings.close()
        super().close()


@contextmanager
def _heard(figures: Figures) -> Iterator[None]:
    ours, ears = logging.getLogger("bot"), _Ears(figures)
    level = ours.level
    ours.setLevel(logging.INFO)
    logging.getLogger().addHandler(ears)
    try:
        yield
    finally:
        logging.getLogger().removeHandler(ears)
        ears.close()
        ours.setLevel(level)


# --- The bot in this process ----------------------------------------------------------------------------------------


class _BotAtRest(Bot):
    """The bot as it is wired, whose worker does nothing: what is due is done by hand."""

    def nudge(self, request_id: int | None = None, *, is_new: bool = False) -> None:
        pass


@dataclass(frozen=True, kw_only=True, slots=True)
class _Seen:
    """How far each table reaches: the last id, and the end of the audit."""

    requests: int
    decisions: int
    notices: int
    events: int


class _Neighbourhood:
    """A bot at rest on the ground's database, between a Slack workspace and an exchange."""

    def __init__(self, *, bot: _BotAtRest, slack: SlackWorkspace, exchange: Exchange, database: Database) -> None:
        self.bot = bot
        self.slack = slack
        self.exchange = exchange
        self.database = database
        self.secret = slack.installation.signing_secret

    def deliver(self, hostile: Hostile) -> tuple[int, str]:
        """The status and the body of the answer."""
        statuses: list[str] = []
        body = b"".join(self.bot.wsgi(hostile.environ(), lambda status, *_: statuses.append(status)))  # type: ignore[arg-type]
        return int(statuses[-1][:3]), body.decode()

    def seen(self) -> _Seen:
        row = self.rows(
            "SELECT (SELECT max(id) FROM cancel_requests) AS requests, (SELECT max(id) FROM decisions) AS decisions,"
            " (SELECT max(id) FROM notices) AS notices, (SELECT seq FROM audit_head) AS events"
        )[0]
        return _Seen(**{name: value or 0 for name, value in row.items()})

    def rows(self, query: str, **values: object) -> list[dict[str, Any]]:
        with self.database.read() as connection:
            return [dict(row) for row in connection.execute(text(query), values).mappings()]

    def close(self) -> None:
        self.bot._upbit.close()
        self.bot._database.close()
        self.database.close()


@contextmanager
def _neighbourhood(ground: Ground) -> Iterator[_Neighbourhood]:
    url, key = ground.new_database(), Key()
    database = Database(url)
    migrated(database)
    with (
        SlackWorkspace(people=(DANA, BEN, CARA, EMIL), post_burst=10**6, posts_per_s=10**6) as slack,
        Exchange(keys=(key,), requests_per_s=10**6) as exchange,
    ):
        told = playground_settings(slack, exchange, key=key, socket_mode=False)
        settings = load_settings({**told, "DATABASE_URL": url, "MAX_OPEN_REQUESTS_PER_PERSON": str(MAX_OPEN)}, None)
        bot = _BotAtRest(settings, build_neighbours(settings))
        bot._learn_identity()
        place = _Neighbourhood(bot=bot, slack=slack, exchange=exchange, database=database)
        try:
            yield place
        finally:
            place.close()


def _bodies(slack: SlackWorkspace) -> list[bytes]:
    """Commands and clicks that would do something, were they signed."""
    payloads, channel = slack._payloads, slack._board.channels[DESK]
    command = payloads.command(DANA, channel, "/cancel", f"{UUID(int=1)} stolen", None)
    button = {"type": "button", "action_id": "approve", "block_id": "b", "value": "1"}
    click = payloads._interaction("block_actions", BEN) | {"actions": [button]}
    dice = Random(0)
    return [mutations.form_body(dice, command), mutations.form_body(dice, {"payload": json.dumps(click)})]


# --- 1. Not signed --------------------------------------------------------------------------------------------------


def _knock(ground: Ground, share: float, dice: Random, findings: _Findings) -> str:
    """Straight into the door."""
    with _neighbourhood(ground) as place:
        strangers = Unsigned(dice, secret=place.secret, now=time.time, bodies=_bodies(place.slack))
        memory, whole = _Memory(), ground.some(round(UNSIGNED * share))
        for number in range(whole):
            if number == round(whole * WARM_UP):
                memory.start()
            hostile = strangers.next()
            status, _ = place.deliver(hostile)
            findings.sent(f"unsigned: {hostile.family}")
            # Within the door, Bolt says 404 to what it does not know.
            is_refused = 400 <= status < 500 and (status != HTTPStatus.NOT_FOUND or hostile.path != EVENTS)
            findings.expect(is_refused, f"status {status} for an unsigned request:", hostile)
        findings.expect(
            place.seen() == _Seen(requests=0, decisions=0, notices=0, events=0), "unsigned, and written down"
        )
        findings.expect(not place.slack.calls("chat.postMessage"), "unsigned, and Slack was told")
        findings.expect(not place.exchange.requests, "unsigned, and the exchange was asked")
        return findings.note(memory, "unsigned")


STATUS: Final = re.compile(rb"\A(?:HTTP/1\.1 100 Continue\r\n\r\n)?HTTP/1\.[01] ([0-9]{3}) ")
OF_THE_SERVER: Final = {HTTPStatus.NOT_IMPLEMENTED, HTTPStatus.HTTP_VERSION_NOT_SUPPORTED}
"""What gunicorn answers of its own to what it does not speak."""
ANSWERED_WITHIN_S: Final = 10.0
HELD: Final = 8
"""Connections that stay half a request all the while."""
MAX_UNANSWERED: Final = 0.05


def _knock_at_the_process(ground: Ground, dice: Random, findings: _Findings) -> str:
    folder = ground.folder / "process"
    folder.mkdir(parents=True)
    try:
        with started(folder, database_url=ground.new_database(), settings={"LOG_LEVEL": "INFO"}) as journey:
            return _besiege(journey, ground, dice, findings)
    except (AssertionError, TimeoutError, OSError) as error:
        findings.expect(None, "the process under fire:", error)
        return "the process did not survive"


def _besiege(journey: Journey, ground: Ground, dice: Random, findings: _Findings) -> str:
    process = journey.bot._process
    assert process is not None
    strangers = Unsigned(
        dice,
        secret=journey.slack.installation.signing_secret,
        now=time.time,
        bodies=_bodies(journey.slack),
    )
    before = len(journey.events())
    memory, whole = _Memory(process.pid), ground.some(UNSIGNED_OVER_SOCKETS)
    unanswered = 0
    with ExitStack() as held:
        for _ in range(HELD):
            half = held.enter_context(socket.create_connection(("127.0.0.1", journey.bot.port)))
            half.sendall(b"POST /slack/events HTTP/1.1\r\nHost: bot.test\r\nX-A: ")
        for number in range(whole):
            if number == round(whole * WARM_UP):
                memory.start()
            hostile = strangers.next()
            knock = Raw(family=hostile.family, pieces=(hostile.wire(),))
            if number % 2:
                knock = mutations.raw(dice, hostile.wire())
            findings.sent(f"socket: {knock.family}")
            status = _status(journey.bot.port, knock, findings)
            unanswered += status is None and number % 2 == 0
    # Where the bot closes without reading to the end, the network may take its answer away again.
    findings.expect(unanswered <= whole * MAX_UNANSWERED + 1, f"{unanswered} well-formed requests were not answered")
    note = findings.note(memory, "process")
    findings.expect(len(journey.events()) == before, "unsigned through a socket, and written down")
    findings.expect(not journey.exchange.requests, "unsigned through a socket, and the exchange was asked")
    findings.expect(journey.bot.is_running() and journey.bot.get("/healthz") == (200, "ok\n"), "not healthy afterwards")
    asked = journey.ask(reason="after all that")
    journey.press(BEN, asked, "approve")
    journey.shows(asked, "canceled")
    findings.expect(len(journey.exchange.deletes()) == 1, "not one DELETE for one approval")
    findings.expect(journey.audit_fault() is None, "the audit does not verify:", journey.audit_fault())
    complaints = journey.complaints()
    findings.expect(not complaints, f"{len(complaints)} complaints in the log, such as", *complaints[:1])
    for line in journey.bot.log().splitlines():
        findings.expect(_is_object(line), "a line of the log that is no JSON object:", line)
    return note


def _status(port: int, knock: Raw, findings: _Findings) -> int | None:
    """What it is answered, None where the connection is just closed."""
    try:
        answered = _exchange_bytes(port, knock)
    except TimeoutError:
        findings.expect(None, "neither answered nor closed:", knock)
        return None
    found = STATUS.match(answered)
    findings.expect(found or not answered, "what came back is no HTTP:", knock, answered)
    if found is None:
        return None
    status, sent = int(found[1]), b"".join(knock.pieces)
    is_healthy = status == HTTPStatus.OK and (b"/healthz" in sent or b"/readyz" in sent)
    findings.expect(is_healthy or status in OF_THE_SERVER or 400 <= status < 500, f"status {status} for", knock)
    return status


def _exchange_bytes(port: int, knock: Raw) -> bytes:
    """Send it and read what comes; a connection that the bot ends is an answer, too. Raises TimeoutError."""
    answered = b""
    with suppress(ConnectionError), socket.create_connection(("127.0.0.1", port), timeout=ANSWERED_WITHIN_S) as wire:
        with suppress(OSError):
            for piece in knock.pieces:
                wire.sendall(piece)
            if knock.end == "close":
                return b""
            wire.shutdown(socket.SHUT_WR)
        while chunk := wire.recv(65_536):
            answered += chunk
    return answered


def _is_object(line: str) -> bool:
    try:
        return isinstance(json.loads(line), dict)
    except ValueError:
        return False


# --- 2. Signed ------------------------------------------------------------------------------------------------------

HOME: Final = "T0PLAY"
BARE: Final = "`'\"‘’“”*_~<>"  # noqa: RUF001 - what people's programs put around what they paste
TYPED: Final = re.compile(
    rf"\s*[{BARE}]*([0-9a-fA-F]{{8}}(?:-[0-9a-fA-F]{{4}}){{3}}-[0-9a-fA-F]{{12}})[{BARE}]*(?:\s+(\S+).*)?\s*", re.DOTALL
)
CROWD: Final = tuple(Person(f"U0ASKER{number}", f"asker-{number}") for number in range(30))
MAX_OPEN: Final = 1000
"""Open requests of one person."""
TARGETS: Final = 4
"""Cards that wait for approval at any time."""
SHOWN: Final = 200
"""So many cards and private lines are really made and sent, and looked at."""
LOOK_AFTER: Final = 500
"""Deliveries between two looks at what the bot has called."""


@dataclass(kw_only=True, slots=True)
class _Request:
    uuid: str
    requester: str
    is_pending: bool = False


@dataclass(frozen=True, kw_only=True, slots=True)
class _Form:
    """The form that asks why somebody denies: how it is known, and its one input."""

    callback_id: str
    block_id: str
    action_id: str


FORM_BEFORE_IT_IS_KNOWN: Final = _Form(callback_id="deny_reason", block_id="reason", action_id="reason")
REASONS: Final = ("too early", *PINGS, "\u202ereversed", "not now\nask the desk", "x" * 900)
"""What Slack lets through and the form takes."""


@dataclass(kw_only=True, slots=True)
class _Ledger:
    """What must have come of everything so far."""

    form: _Form | None = None  #: as the bot opened it
    requests: dict[int, _Request] = field(default_factory=dict)
    triggers: set[str] = field(default_factory=set)
    approved: set[int] = field(default_factory=set)
    open_uuids: set[str] = field(default_factory=set)
    open_of: Counter[str] = field(default_factory=Counter)

    def add(self, request_id: int, request: _Request) -> None:
        self.requests[request_id] = request
        self.open_uuids.add(request.uuid)
        self.open_of[request.requester] += 1

    def decide(self, request_id: int, kind: str) -> None:
        request = self.requests[request_id]
        request.is_pending = False
        if kind == "approve":
            self.approved.add(request_id)
        else:
            self.open_uuids.discard(request.uuid)
            self.open_of[request.requester] -= 1

    def asks(self, fields: Mapping[str, Any]) -> _Request | None:
        """The request that these fields, all of a delivery, ask for well and with every right."""
        named = _named(_plain(fields, "text"))
        is_one = fields.get("command") == "/cancel" and _plain(fields, "team_id") == HOME and named is not None
        who, trigger = _plain(fields, "user_id"), _plain(fields, "trigger_id")
        if not is_one or not who or not trigger or self.open_of[who] >= MAX_OPEN:
            return None
        assert named is not None
        return None if named in self.open_uuids else _Request(uuid=named, requester=who)

    def decides(self, fields: Mapping[str, Any]) -> tuple[int, str, str] | None:
        """The request, the kind and the person of the decision that these fields make with every right."""
        view, user = fields.get("view"), fields.get("user")
        if fields.get("type") == "view_submission" and isinstance(view, dict):
            is_ours = self.form is not None and view.get("callback_id") == self.form.callback_id
            return self._may(user, "deny", view.get("private_metadata")) if is_ours else None
        actions = fields.get("actions")
        action = actions[0] if isinstance(actions, list) and actions else None
        if fields.get("type") != "block_actions" or not isinstance(action, dict):
            return None
        return self._may(user, action.get("action_id"), action.get("value"))

    def _may(self, user: Any, kind: Any, value: Any) -> tuple[int, str, str] | None:
        is_readable = isinstance(user, dict) and isinstance(kind, str) and isinstance(value, str)
        if not is_readable or not re.fullmatch(r"[1-9][0-9]{0,9}", value):
            return None
        request, who = self.requests.get(int(value)), _plain(user, "id")
        if request is None or not request.is_pending or _plain(user, "team_id") != HOME:
            return None
        is_own, is_approver = who == request.requester, who in {person.id for person in APPROVERS}
        may = {"approve": is_approver and not is_own, "deny": is_approver, "withdraw": is_own}.get(kind, False)
        return (int(value), kind, who) if may else None


def _named(typed: str) -> str | None:
    found = TYPED.fullmatch(typed)
    if found is None or (found[2] and TYPED.fullmatch(found[2])):
        return None
    return found[1].lower()


def _plain(fields: Mapping[str, Any], name: str) -> str:
    """The text of a field as a database can keep it."""
    value = fields.get(name)
    if not isinstance(value, str):
        return ""
    return re.sub(r"[\ud800-\udfff]", "\ufffd", re.sub(r"[\x00-\x1f\x7f-\x9f]", " ", value)).strip()


def _forge(ground: Ground, _share: float, dice: Random, findings: _Findings) -> str:
    with _neighbourhood(ground) as place:
        forger = _Forger(place, dice, findings)
        memory, whole = _Memory(), ground.some(SIGNED)
        for number in range(whole):
            if number == round(whole * WARM_UP):
                memory.start()
            forger.send_one()
        note = findings.note(memory, "signed" if forger.knows_forms else "signed, no form known")
        forger.let_it_work()
        fault = verify(place.database).fault
        findings.expect(fault is None, "the audit does not verify:", fault)
        return note


class _Forger:
    """Sends what Slack would never send, with Slack's signature, and compares what comes of it with a ledger."""

    def __init__(self, place: _Neighbourhood, dice: Random, findings: _Findings) -> None:
        self._place = place
        self._dice = dice
        self._findings = findings
        self._ledger = _Ledger()
        self._channel = place.slack._board.channels[DESK]
        self._targets: list[int] = []
        self._before = place.seen()
        self._last: Hostile | None = None
        self._trigger = self._sent = 0
        self._ledger.form = self._opened_form()

    @property
    def knows_forms(self) -> bool:
        return self._ledger.form is not None

    def send_one(self) -> None:
        while len(self._targets) < TARGETS:
            self._add_target()
        hostile = self._hostile()
        self._findings.sent(f"signed: {hostile.family}")
        status, answered = self._place.deliver(hostile)
        self._judge(hostile, status, answered)
        self._last = hostile
        self._sent += 1
        if self._sent % LOOK_AFTER == 0:
            self._look_at_calls()

    def let_it_work(self) -> None:
        """What was approved is sent, and nothing else; cards and lines go out without what was smuggled into them."""
        place, ledger = self._place, self._ledger
        for request_id in ledger.approved:
            place.bot._workflow.advance(request_id)
        sent = sorted(delete.uuid or "" for delete in place.exchange.deletes())
        approved = sorted(ledger.requests[request_id].uuid for request_id in ledger.approved)
        self._findings.expect(sent == approved, f"{len(approved)} approved, and {len(sent)} DELETEs")
        due = place.bot._store.due(limit=SHOWN)
        for request_id in due.exchange:
            place.bot._workflow.advance(request_id)
        for request_id in place.bot._store.due(limit=SHOWN).slack:
            place.bot._workflow.show(request_id)
        for notice_id in due.notices:
            place.bot._workflow.deliver(notice_id)
        self._look_at_calls()

    def _look_at_calls(self) -> None:
        """What the bot has shown to people so far; then the workspace forgets it, or its memory counts as the bot's."""
        board = self._place.slack._board
        with board.changed:
            calls = list(board.calls)
            for kept in (board.calls, board.transcript, board._triggers, board._response_urls):
                kept.clear()
        for call in calls:
            view = call.arguments.get("view")
            # What a view carries for its bot is shown to nobody.
            seen = {**view, "private_metadata": None} if isinstance(view, dict) else view
            said = json.dumps([call.arguments.get("text"), call.arguments.get("blocks"), seen], ensure_ascii=False)
            self._findings.expect(not any(ping in said for ping in PINGS), f"{call.method} pings:", said)

    def _new_trigger(self) -> str:
        self._trigger += 1
        return f"trigger-{self._trigger}"

    def _command(self, person: Person, typed: str) -> dict[str, Any]:
        ours = self._place.slack._payloads.command(person, self._channel, "/cancel", typed, None)
        return ours | {"trigger_id": self._new_trigger()}

    def _add_target(self) -> None:
        """A request with a card that waits for approval."""
        command = self._command(self._dice.choice([DANA, EMIL]), self._place.exchange.place())
        status, answered = self._place.deliver(self._signed("target", mutations.form_body(Random(0), command), FORM))
        self._judge_well_formed(command, status, answered)

    def _opened_form(self) -> _Form | None:
        """What an approver gets to fill in; None of a bot that opens no form."""
        self._add_target()
        action = {"type": "button", "action_id": "deny_with_reason", "block_id": "b", "value": str(self._targets[0])}
        click = self._place.slack._payloads._interaction("block_actions", BEN) | {"actions": [action]}
        body = mutations.form_body(Random(0), {"payload": json.dumps(click)})
        self._place.deliver(self._signed("form", body, FORM))
        self._before = self._place.seen()
        for view in self._place.slack.views(BEN.id):
            inputs = [block for block in view.json["blocks"] if block["type"] == "input"]
            self._findings.expect(len(inputs) == 1, "another form than one with one input:", view.json)
            self._findings.expect(view.private_metadata == str(self._targets[0]), "of another request:", view.json)
            for block in inputs[:1]:
                action_id = block["element"].get("action_id", "")
                return _Form(callback_id=view.callback_id, block_id=block["block_id"], action_id=action_id)
        return None

    def _judge_well_formed(self, command: Mapping[str, Any], status: int, answered: str) -> None:
        found = re.search(r"Request #([0-9]+) is recorded", answered)
        self._findings.expect(status == HTTPStatus.OK and found, f"status {status} for a good command:", answered)
        assert found, "without a request there is nothing to forge"
        request_id = int(found[1])
        self._place.bot._workflow.advance(request_id)
        self._place.bot._workflow.show(request_id)
        self._ledger.add(request_id, _Request(uuid=command["text"], requester=command["user_id"], is_pending=True))
        self._ledger.triggers.add(command["trigger_id"])
        self._targets.append(request_id)
        self._before = self._place.seen()

    def _signed(self, family: str, body: bytes, content_type: str) -> Hostile:
        headers = mutations.signed(self._place.secret, body, int(time.time()), content_type=content_type)
        return Hostile(family=family, headers=headers, body=body)

    def _hostile(self) -> Hostile:
        dice = self._dice
        kind = dice.choice(
            ["command"] * 5 + ["click"] * 6 + ["form"] * 3 + ["home", "view", "event", "shortcut", "again"]
        )
        if kind == "again" and self._last is not None:
            return self._signed("again", self._last.body, dict(self._last.headers)["Content-Type"])
        fields: dict[str, Any] = (
            self._command(dice.choice(CROWD), self._typed()) if kind == "command" else self._interaction(kind)
        )
        how = {mutations.mutated(dice, fields) for _ in range(dice.choice([0, 1, 1, 1, 2, 3]))}
        family = f"{kind} {' and '.join(sorted(how)) or 'as it should be'}"
        if kind == "command" and dice.random() < 0.7:
            return self._signed(family, mutations.form_body(dice, fields), FORM)
        if kind not in {"event", "home"} and dice.random() < 0.8:
            return self._signed(family, mutations.form_body(dice, {"payload": json.dumps(fields)}), FORM)
        return self._signed(f"{family}, as JSON", json.dumps(fields).encode(), JSON)

    def _typed(self) -> str:
        dice, requests = self._dice, self._ledger.requests
        uuid = str(UUID(int=dice.getrandbits(128)))
        taken = dice.choice([*requests.values()]).uuid
        return dice.choice(
            [uuid, f"{uuid} {dice.choice(mutations.TEXTS)}", f"<{uuid.upper()}> x", f"{uuid} {taken}", taken]
        )

    def _interaction(self, kind: str) -> dict[str, Any]:
        dice, payloads = self._dice, self._place.slack._payloads
        person = dice.choice([BEN, EMIL, DANA, DANA, CARA, CARA])
        fields: dict[str, Any] = payloads._interaction("block_actions", person) | {"trigger_id": self._new_trigger()}
        target = dice.choice(self._targets)
        card = {"type": "message", "message_ts": dice.choice(["1.000002", "9.9"]), "channel_id": DESK}
        action = {
            "type": "button",
            "action_id": dice.choice(["approve", "deny", "approve", "withdraw", "deny_with_reason"]),
            "block_id": "b",
        }
        past = dice.choice([target, target, target, dice.choice([*self._ledger.requests]), 10**9])
        match kind:
            case "form":
                form = self._ledger.form or FORM_BEFORE_IT_IS_KNOWN
                filled = {"type": "plain_text_input", "value": dice.choice(REASONS)}
                view = {
                    "id": f"V{dice.randrange(100)}",
                    "type": "modal",
                    "callback_id": dice.choice([form.callback_id] * 4 + ["deny", "approve", "settings"]),
                    "private_metadata": str(past),
                    "hash": "1.abc",
                    "state": {"values": {form.block_id: {form.action_id: filled}}},
                }
                return fields | {"type": "view_submission", "view": view, "response_urls": []}
            case "home":
                opened: dict[str, Any] = {"type": "app_home_opened", "user": person.id, "channel": "D1", "tab": "home"}
                if dice.random() < 0.5:
                    opened |= {"tab": "messages", "view": {"id": "V2", "type": "home", "hash": "1.abc"}}
                about = {"type": "event_callback", "team_id": HOME, "event_id": "Ev1", "event_time": 1}
                return about | {"event": opened | {"event_ts": "1.0"}, "authorizations": []}
            case "view":
                view = {"id": "V1", "type": "modal", "callback_id": "approve", "private_metadata": str(target)}
                return fields | {"type": dice.choice(["view_submission", "view_closed"]), "view": view}
            case "event":
                event = {
                    "type": dice.choice(["message", "app_mention", "app_home_opened"]),
                    "user": BEN.id,
                    "text": "/cancel",
                }
                return {"type": "event_callback", "team_id": HOME, "event": event | {"channel": DESK, "ts": "1.0"}}
            case "shortcut":
                shapes = ["shortcut", "message_action", "interactive_message", "dialog_submission", "block_suggestion"]
                return fields | {"type": dice.choice(shapes), "callback_id": "approve", "value": str(target)}
            case _:
                return fields | {
                    "actions": [action | {"value": str(past)}],
                    "container": card,
                    "channel": {"id": DESK, "name": "desk"},
                    "response_url": payloads._response_url(person, self._channel, None),
                }

    def _judge(self, hostile: Hostile, status: int, answered: str) -> None:
        seen, before, expect = self._place.seen(), self._before, self._findings.expect
        self._before = seen
        fields = _fields(hostile)
        # Who is told that nothing was done has not been acknowledged.
        is_command = _is_command(hostile)
        is_taken = status == HTTPStatus.OK and nothing_was_done() not in answered
        asked = self._ledger.asks(fields) if is_command and is_taken else None
        decided = self._ledger.decides(fields) if is_taken and not is_command else None
        expect(
            status == HTTPStatus.OK or not _is_good(hostile, forms=self.knows_forms),
            f"status {status} for what Slack sends:",
            hostile.family,
            hostile.body,
        )
        expect(status < 500, f"status {status} for a signed delivery:", hostile.family, hostile.body)
        expect(not any(ping in answered for ping in PINGS), "an answer pings:", answered, hostile.body)
        if seen.events - before.events > 1:
            # A click on a card shows the bot that Slack has it.
            query = "SELECT action FROM audit_events WHERE seq > :seq AND action <> 'card.posted'"
            events = [row["action"] for row in self._place.rows(query, seq=before.events)]
            expect(len(events) <= 1, "more than one event of one delivery:", events, hostile.body)
        made = (
            self._place.rows("SELECT * FROM cancel_requests WHERE id > :id", id=before.requests)
            if seen.requests != before.requests
            else []
        )
        # Slack gives each delivery a trigger of its own; forged ones meet, and then the first answer may be repeated.
        trigger = _plain(fields, "trigger_id")
        self._judge_request(asked, made, hostile, is_sure=trigger not in self._ledger.triggers)
        if is_taken:
            self._ledger.triggers.add(trigger)
        rows = (
            self._place.rows("SELECT * FROM decisions WHERE id > :id", id=before.decisions)
            if seen.decisions != before.decisions
            else []
        )
        # What is wrong with a form that was altered, its reason perhaps, is for the bot to say.
        is_sure = fields.get("type") != "view_submission" or hostile.family == "form as it should be"
        self._judge_decision(decided, rows, hostile, is_sure=is_sure)
        if seen.notices != before.notices:
            user = fields.get("user")
            clicker = _plain(user, "id") if isinstance(user, dict) else ""
            told = {
                row["user_id"] for row in self._place.rows("SELECT * FROM notices WHERE id > :id", id=before.notices)
            }
            expect(told == {clicker}, f"{told} are told of a click by {clicker!r}:", hostile.body)

    def _judge_request(
        self, asked: _Request | None, made: list[dict[str, Any]], hostile: Hostile, *, is_sure: bool
    ) -> None:
        right = [] if asked is None else [(asked.uuid, asked.requester, HOME)]
        found = [(row["order_uuid"], row["requester_id"], row["team_id"]) for row in made]
        is_right = found == right or (not is_sure and not found)
        self._findings.expect(is_right, "not the right requests of a delivery:", found, right, hostile.body)
        for row in made:
            self._ledger.add(row["id"], _Request(uuid=row["order_uuid"], requester=row["requester_id"]))

    def _judge_decision(
        self, decided: tuple[int, str, str] | None, rows: list[dict[str, Any]], hostile: Hostile, *, is_sure: bool
    ) -> None:
        right = [] if decided is None else [decided]
        found = [(row["request_id"], row["kind"], row["actor_id"]) for row in rows]
        is_right = found == right or (not is_sure and not found)
        self._findings.expect(is_right, "not the right decisions of a delivery:", found, right, hostile.body)
        for row in rows:
            self._ledger.decide(row["request_id"], row["kind"])
            if row["request_id"] in self._targets:
                self._targets.remove(row["request_id"])


GOOD: Final = {"command as it should be": "command", "click as it should be": "payload"}
"""The families that Slack could have sent, and the field that tells them."""
GOOD_FORMS: Final = {"form as it should be": "payload"}
"""The same of a bot that opens forms."""


def _is_good(hostile: Hostile, *, forms: bool) -> bool:
    """Whether Slack could have sent it: nothing mutated, in the right wrapping, no field twice."""
    names = [name for name, _ in parse_qsl(hostile.body.decode(), keep_blank_values=True)]
    good = GOOD | GOOD_FORMS if forms else GOOD
    return good.get(hostile.family) in names and len(names) == len(set(names))


def _is_command(hostile: Hostile) -> bool:
    """A slash command is the form itself; wrapped into a payload, nobody listens to it."""
    is_form = dict(hostile.headers)["Content-Type"] != JSON
    form = dict(parse_qsl(hostile.body.decode(), keep_blank_values=True)) if is_form else {}
    return "command" in form and not {"payload", "ssl_check"} & form.keys()


def _fields(hostile: Hostile) -> dict[str, Any]:
    """What was delivered, whichever way it is wrapped; empty where it is no object."""
    body = hostile.body.decode()
    if dict(hostile.headers)["Content-Type"] == JSON:
        fields = json.loads(body)
    else:
        fields = dict(parse_qsl(body, keep_blank_values=True))
        with suppress(ValueError):
            fields = json.loads(fields["payload"]) if "payload" in fields else fields
    return fields if isinstance(fields, dict) else {}


# --- 3. The exchange's answers --------------------------------------------------------------------------------------

DEADLINE_S: Final = 2.0
LATEST_S: Final = DEADLINE_S * 1.1
CLIENTS: Final = 8
DRIP_EVERY_S: Final = 0.05
MAX_DRIPS: Final = 200
BAN_S: Final = 100_000.0


def _mislead(ground: Ground, share: float, dice: Random, findings: _Findings) -> str:
    over_sockets = ground.some(round(ANSWERS_OVER_SOCKETS * share))
    memory, whole = _Memory(), ground.some(round(ANSWERS * share)) - over_sockets
    for number in range(max(whole, 1)):
        if number == round(whole * WARM_UP):
            memory.start()
        uuid, other = (str(UUID(int=dice.getrandbits(128))) for _ in range(2))
        said = mutations.answer(dice, uuid, other)
        findings.sent(f"answer: {said.family}")
        outcome = decipher(said.status, dict(said.headers), said.body, uuid=uuid)
        _judge_outcome(outcome, said.status, said.body, uuid, findings)
    with _Liar() as liar, ThreadPoolExecutor(CLIENTS) as threads:
        seeds = [dice.getrandbits(64) for _ in range(CLIENTS)]
        each = over_sockets // CLIENTS + 1
        for done in [threads.submit(_ask_a_liar, liar, Random(seed), each, findings) for seed in seeds]:
            done.result()
    return findings.note(memory, "answers")


def _judge_outcome(
    outcome: Order | Refusal | Refused | Doubt | Unknown,
    status: int,
    body: bytes | None,
    uuid: str,
    findings: _Findings,
) -> None:
    """Whether what was made of the answer is in it; `body` None stands for an answer that did not come whole."""
    match outcome:
        case Order():
            is_told = status == HTTPStatus.OK and body is not None and _tells(body, outcome, uuid)
            findings.expect(is_told, f"{outcome} out of status {status},", body)
        case Refusal(name=name, proves_nothing_happened=True) | Refused(name=name, proves_nothing_happened=True):
            is_by_status = (status, name) in {(429, "too_many_requests"), (418, "banned")}
            is_by_name = 400 <= status < 500 and name in CERTAIN_NAMES and _names(body, name)
            findings.expect(is_by_status or is_by_name, f"{name} taken for certain out of status {status},", body)
        case Refusal(name=name) | Refused(name=name):
            findings.expect(400 <= status < 500 and _names(body, name), f"{name} out of status {status},", body)
        case _:
            pass


def _names(body: bytes | None, name: str) -> bool:
    fields = _strict(body)
    error = fields.get("error") if isinstance(fields, dict) else None
    return isinstance(error, dict) and error.get("name") == name


def _strict(body: bytes | None) -> Any:
    """JSON in which no field stands twice and no number is none; None where it is not."""

    def once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        if len({name for name, _ in pairs}) != len(pairs):
            raise ValueError
        return dict(pairs)

    def refuse(_: str) -> None:
        raise ValueError

    try:
        return json.loads((body or b"").decode(), object_pairs_hook=once, parse_float=Decimal, parse_constant=refuse)
    except (ValueError, RecursionError, InvalidOperation):
        return None


def _tells(body: bytes, order: Order, uuid: str) -> bool:
    """Whether the body is an object with this very uuid in which every value of the order stands, and no more."""
    fields = _strict(body)
    if not isinstance(fields, dict) or order.uuid != uuid or fields.get("uuid") != uuid:
        return False
    fee = fields["remaining_fee"] if "remaining_fee" in fields else fields.get("remaing_fee")
    told = {**fields, "remaining_fee": fee}
    return all(_is_same(told.get(name), getattr(order, name)) for name in order.__dataclass_fields__)


def _is_same(told: Any, read: str | int | Decimal | None) -> bool:
    if read is None or isinstance(read, str):
        return told == read or (read is None and told == "")
    return not isinstance(told, bool) and Decimal(told) == read


class _Liar:
    """An exchange on loopback that answers each order's request with what was prepared for it."""

    def __init__(self) -> None:
        self.replies: dict[str, Reply] = {}
        self.asked: Counter[str] = Counter()
        self._stopping = threading.Event()
        self._listener = socket.create_server(("127.0.0.1", 0), backlog=64)
        self.url = f"http://127.0.0.1:{self._listener.getsockname()[1]}"
        self._threads = [threading.Thread(target=self._accept, name="liar")]
        self._open: list[socket.socket] = []

    def __enter__(self) -> Self:
        self._threads[0].start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stopping.set()
        for each in (self._listener, *self._open):
            with suppress(OSError):
                each.shutdown(socket.SHUT_RDWR)
        for thread in [*self._threads]:
            thread.join()
        self._listener.close()

    def _accept(self) -> None:
        with suppress(OSError):
            while not self._stopping.is_set():
                connection, _ = self._listener.accept()
                self._open = [each for each in self._open if each.fileno() >= 0] + [connection]
                self._threads = [each for each in self._threads if each.is_alive()]
                thread = threading.Thread(target=self._converse, args=(connection,), name="liar")
                self._threads.append(thread)
                thread.start()

    def _converse(self, connection: socket.socket) -> None:
        with suppress(OSError), connection:
            connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            while reply := self._heard(connection):
                connection.sendall(reply.sent)
                if reply.then != "keep":
                    self._end(connection, reply)
                    return

    def _heard(self, connection: socket.socket) -> Reply | None:
        request = b""
        while not request.endswith(b"\r\n\r\n"):
            received = connection.recv(65_536)
            if not received:
                return None
            request += received
        uuid = request.partition(b"uuid=")[2][:36].decode()
        self.asked[uuid] += 1
        return self.replies[uuid]

    def _end(self, connection: socket.socket, reply: Reply) -> None:
        if reply.then == "silence":
            connection.recv(1)
        for _ in range(MAX_DRIPS if reply.then == "drip" else 0):
            if self._stopping.wait(DRIP_EVERY_S):
                return
            connection.sendall(b"x")


class _Skipping:
    """A clock that can leave a ban behind."""

    def __init__(self) -> None:
        self.skipped_s = 0.0

    def __call__(self) -> float:
        return time.monotonic() + self.skipped_s


def _ask_a_liar(liar: _Liar, dice: Random, times: int, findings: _Findings) -> None:
    clock = _Skipping()
    client = UpbitClient(
        server_url=liar.url,
        access_key="made-up-access-key",
        secret_key="made-up-secret-key-of-forty-characters-..",
        deadline_s=DEADLINE_S,
        monotonic=clock,
    )
    try:
        for _ in range(times):
            _ask_once(client, liar, dice, findings)
            # A tenth of the calls meet the brake of the answer before.
            clock.skipped_s += BAN_S if dice.random() < 0.9 else 0.0
    finally:
        client.close()


def _ask_once(client: UpbitClient, liar: _Liar, dice: Random, findings: _Findings) -> None:
    uuid, other = (str(UUID(int=dice.getrandbits(128))) for _ in range(2))
    reply = liar.replies[uuid] = mutations.reply(dice, mutations.answer(dice, uuid, other))
    is_delete = dice.random() < 0.5
    findings.sent(f"answer on the wire: {reply.family}")
    began_at = time.monotonic()
    answer: LookAnswer | CancelAnswer
    try:
        answer = (
            client.cancel_order(uuid, nonce=str(UUID(int=dice.getrandbits(128))))
            if is_delete
            else client.get_order(uuid)
        )
    except Exception as error:  # noqa: BLE001 - that it raises is the finding
        findings.expect(None, f"the client raised {type(error).__name__} at", reply)
        return
    took_s = time.monotonic() - began_at
    findings.expect(took_s <= LATEST_S, f"a call took {took_s:.2f} s of {DEADLINE_S} s:", reply)
    asked = liar.asked[uuid]
    findings.expect(asked <= 1, f"one call, {asked} requests:", reply)
    findings.expect(not asked or not isinstance(answer, NotSent), "not sent, and it arrived:", answer, reply)
    findings.expect(not isinstance(answer, Found if is_delete else Accepted), "the answer to another method:", answer)
    if isinstance(answer, Found | Accepted):
        _judge_outcome(answer.order, reply.answer.status, reply.body, uuid, findings)
    elif isinstance(answer, Refused):
        _judge_outcome(answer, reply.answer.status, reply.body, uuid, findings)
    del liar.replies[uuid], liar.asked[uuid]
