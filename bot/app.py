"""The composition root: from settings to everything wired, started and stopped in order."""

import logging
import math
import os
import socket
import sys
import threading
import time
import uuid
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from importlib.metadata import version
from typing import Any, Final
from wsgiref.types import WSGIApplication

import structlog
from slack_bolt.adapter.socket_mode import SocketModeHandler
from slack_bolt.adapter.wsgi import SlackRequestHandler
from slack_sdk import WebClient

from bot.audit.signing import Signer, is_signed
from bot.audit.slack_export import SqlExportFiles
from bot.baton import Baton
from bot.checkpointing import Checkpointing
from bot.choosing import Choosing
from bot.database.checkpoints import SqlDailyCheckpoints
from bot.database.engine import Database, RunLock, sqlite_path
from bot.database.exports import SqlExports
from bot.database.homes import SqlHomes
from bot.database.migration import check_revision, migrate
from bot.database.starts import record_start
from bot.database.store import SqlStore
from bot.domain.approval import ApprovalPolicy
from bot.domain.errors import MessengerError, NothingDone, StoreError, TryLater
from bot.exporting import Exporting
from bot.home import Health, Homes
from bot.inquiry import Inquiry
from bot.settings import Settings, configuration
from bot.slack.groups import GroupReader
from bot.slack.listeners import Listeners
from bot.slack.notifier import TIMEOUT_S, Identity, Notifier
from bot.upbit.client import UpbitClient
from bot.upbit.quotation import QuotationClient
from bot.web.door import SLACK_PATH, Door, Readiness
from bot.web.server import serve
from bot.worker import Attention, Crew, Job, Worker
from bot.workflow import CancelWorkflow, NoGroups

log = logging.getLogger(__name__)

EXCHANGE_THREADS: Final = 8
SLACK_THREADS: Final = 4
FORM_THREADS: Final = 2
STOP_S: Final = 6.5
"""A call to Upbit ends within 5 s; gunicorn kills 10 s after SIGTERM, of which answering requests may take 2."""

MAX_TELLING: Final = 8
"""Threads that tell people what could not be written down, while the database is away."""

READ_GROUPS_AGAIN_S: Final = 5.0
LEAST_WAIT_S: Final = 0.5

RETRY_SLACK_S: Final = (1.0, 2.0, 5.0, 10.0, 30.0)

EXCHANGE_LANE: Final = "exchange"
READING_LANE: Final = "reading"  # of the order of a new request
SLACK_LANE: Final = "slack"
NOTICE_LANE: Final = "notice"
REFRESH_LANE: Final = "refresh"
HOME_LANE: Final = "home"
FORM_LANE: Final = "form"
CHECKPOINT_LANE: Final = "checkpoint"
EXPORT_LANE: Final = "export"

REFRESH_FAILED_REST_S: Final = 1.0

WALK_REST_S: Final = 0.01
"""After every thousand events that are verified for a checkpoint."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Neighbours:
    """What the bot works with; the bot closes them when it stops."""

    database: Database
    upbit: UpbitClient
    quotations: QuotationClient
    notifier: Notifier
    groups: GroupReader | None = None  #: where the allowlists name user groups


def build_neighbours(settings: Settings) -> Neighbours:
    upbit = build_upbit_client(settings)
    return Neighbours(
        database=Database(settings.database_url.get_secret_value()),
        upbit=upbit,
        quotations=QuotationClient(server_url=settings.upbit_open_api_server_url, banned_s=upbit.banned_s),
        notifier=build_notifier(settings),
        groups=build_groups(settings),
    )


def run(settings: Settings, *, build: Callable[[Settings], Neighbours] = build_neighbours) -> None:
    """Serve until told to stop. A SQLite file is migrated first, and nobody else may be using it.

    That it starts, and with which settings, is in the audit before it serves.

    Raises DatabaseInUse, StoreError, OSError before anything is served.
    """
    url = settings.database_url.get_secret_value()
    path = sqlite_path(url)
    lock = RunLock(path) if path is not None else None
    if lock is not None:
        lock.acquire()
    database = Database(url)
    try:
        if path is not None:
            migrate(database)
        check_revision(database)
        record_start(
            database,
            version=version("upbit-cancel-bot"),
            replica=f"{socket.gethostname()}:{os.getpid()}",
            settings=configuration(settings),
        )
    finally:
        database.close()
    baton = Baton()
    serve(lambda: Bot(settings, build(settings), baton=baton), host=settings.host, port=settings.port, baton=baton)


class Bot:
    """The wired bot. Nothing runs before `start`."""

    def __init__(self, settings: Settings, neighbours: Neighbours, *, baton: Baton | None = None) -> None:
        self._settings = settings
        self._database = neighbours.database
        self._store = SqlStore(self._database, baton=baton)
        self._upbit = neighbours.upbit
        self._quotations = neighbours.quotations
        self._notifier = neighbours.notifier
        self._groups = neighbours.groups
        self._policy = build_policy(settings)
        self._could_approve = self._groups is None  # somebody, at some time since the start
        self._workflow = CancelWorkflow(
            store=self._store,
            exchange=self._upbit,
            quotations=self._quotations,
            messenger=self._notifier,
            policy=self._policy,
            groups=self._groups,
            approval_ttl=settings.approval_ttl,
            send_within=settings.send_within,
            refresh_every=settings.refresh_every,
            approvals_channel_id=settings.approvals_channel or None,
            new_nonce=lambda: str(uuid.uuid4()),
        )
        self._choosing = Choosing(exchange=self._upbit, forms=self._notifier)
        self._homes = Homes(
            store=SqlHomes(self._database),
            publisher=self._notifier,
            policy=self._policy,
            membership=(self._groups or NoGroups()).membership,
            health=self._health,
        )
        self._stopping = threading.Event()
        self._attention = Attention()
        self._checkpointing = build_checkpointing(settings, self._database, self._notifier, rest=self._rest_of_walk)
        self._exporting = Exporting(
            store=SqlExports(self._database),
            files=SqlExportFiles(self._database),
            messenger=self._notifier,
            policy=self._policy,
            membership=(self._groups or NoGroups()).membership,
            rest=self._rest_of_walk,
        )
        self._worker = Worker(
            crews=(
                # What was decided goes to the exchange at once, whoever waits for an answer.
                Crew(
                    lanes={EXCHANGE_LANE: self._workflow.advance, READING_LANE: self._workflow.advance},
                    threads=EXCHANGE_THREADS,
                    patient=frozenset({READING_LANE}),
                ),
                Crew(
                    lanes={SLACK_LANE: self._workflow.show, NOTICE_LANE: self._workflow.deliver},
                    threads=SLACK_THREADS,
                    patient=frozenset({SLACK_LANE, NOTICE_LANE}),
                ),
                # Threads of their own: many pending requests must not stand before a cancel, nor must forms that wait
                # for Upbit, nor pages that people look at now and then.
                Crew(lanes={REFRESH_LANE: self._refresh}, threads=1, patient=frozenset({REFRESH_LANE})),
                Crew(lanes={FORM_LANE: self._choosing.fill}, threads=FORM_THREADS),
                Crew(lanes={HOME_LANE: self._homes.work}, threads=1, patient=frozenset({HOME_LANE})),
                *self._checkpoint_crew(),
                Crew(lanes={EXPORT_LANE: self._exporting.work}, threads=1),
            ),
            find_due=self._find_due,
            attention=self._attention,
        )
        self._refresh_rests_until = 0.0
        self._identity: Identity | None = None
        self._telling = threading.BoundedSemaphore(MAX_TELLING)
        self._socket: SocketModeHandler | None = None
        self._connector = threading.Thread(target=self._connect, name="connect", daemon=True)
        self._reader = threading.Thread(target=self._read_groups, name="groups", daemon=True)
        self.wsgi: WSGIApplication = self._door()

    def start(self) -> None:
        """Go to work; Slack may still be away."""
        self._worker.start()
        self._connector.start()
        if self._groups is not None:
            self._reader.start()

    def stop(self) -> None:
        """End the steps under way; what is not done by then, leases give to the next process."""
        self._stopping.set()
        if self._socket is not None:
            try:
                self._socket.client.auto_reconnect_enabled = False
                self._socket.client.disconnect()
            except Exception:  # noqa: BLE001 - slack_sdk raises as it likes when the other side hangs up meanwhile
                log.info("the socket was closed from the other side")
        ended = self._worker.stop(timeout_s=STOP_S)
        log.info("stopped" if ended else "stopped with steps under way: they are taken up again after their lease")
        self._upbit.close()
        self._quotations.close()
        self._database.close()

    def nudge(self, request_id: int | None = None, *, is_new: bool = False) -> None:
        if request_id is None:
            self._worker.nudge()
        else:
            self._worker.nudge(Job(READING_LANE if is_new else EXCHANGE_LANE, request_id))

    def fill(self, number: int) -> None:
        self._worker.nudge(Job(FORM_LANE, number))

    def tell_now(self, response_url: str, text: str) -> None:
        def tell() -> None:
            try:
                self._notifier.respond(response_url, text)
            except TryLater as error:
                log.warning("a person could not be told that nothing was done: %s", error)
            finally:
                self._telling.release()

        if self._telling.acquire(blocking=False):
            threading.Thread(target=tell, name="tell", daemon=True).start()
        else:
            log.warning("too many people to tell at once that nothing was done")

    def readiness(self) -> Readiness:
        checks: dict[str, bool | str] = {
            "database": self._is_database_ready(),
            "worker": self._worker.is_alive(),
            "slack": self._identity is not None,
        }
        if self._groups is not None:
            checks["approvers"] = self._could_approve or "nobody_can_approve"
        if self._settings.socket_mode:
            checks["socket"] = self._socket is not None and bool(self._socket.client.is_connected())
        told = {} if self._checkpointing is None else {"checkpoints": self._checkpointing.state()}
        return Readiness(checks=checks, told=told)

    def _checkpoint_crew(self) -> tuple[Crew, ...]:
        """A thread of its own: verifying the chain may take a while, and so may Slack."""
        if self._checkpointing is None:
            return ()
        return (Crew(lanes={CHECKPOINT_LANE: self._checkpointing.work}, threads=1),)

    def _health(self) -> Health:
        return Health(is_worker_alive=self._worker.is_alive(), exchange=self._upbit.health())

    def _is_database_ready(self) -> bool | str:
        try:
            check_revision(self._database)
        except StoreError as error:
            return type(error).__name__
        return True

    def _find_due(self, limit: int) -> Iterable[Job]:
        due = self._store.due(limit=limit, looks=self._workflow.may_look())
        for request_id in due.exchange:
            yield Job(READING_LANE if request_id in due.unread else EXCHANGE_LANE, request_id)
        yield from (Job(SLACK_LANE, request_id) for request_id in due.slack)
        yield from (Job(NOTICE_LANE, notice_id) for notice_id in due.notices)

        if due.refresh and time.monotonic() >= self._refresh_rests_until:
            yield Job(REFRESH_LANE, 0)
        yield from (Job(HOME_LANE, job_id) for job_id in self._due_homes(limit))
        yield from (Job(CHECKPOINT_LANE, job_id) for job_id in self._due_checkpoints(limit))
        yield from (Job(EXPORT_LANE, number) for number in self._due_exports(limit))

    def _due_homes(self, limit: int) -> tuple[int, ...]:
        try:
            return self._homes.due(limit=limit)
        except StoreError as error:
            log.warning("the database cannot be asked which Homes are due: %s", error)
            return ()

    def _rest_of_walk(self) -> None:
        """Between two pieces of the chain that are verified: cancels have the processor, and a stop ends the walk."""
        if self._stopping.wait(WALK_REST_S):
            raise NothingDone("stopping")

    def _due_checkpoints(self, limit: int) -> tuple[int, ...]:
        try:
            return () if self._checkpointing is None else self._checkpointing.due(limit=limit)
        except StoreError as error:
            log.warning("the database cannot be asked which checkpoints are due: %s", error)
            return ()

    def _due_exports(self, limit: int) -> tuple[int, ...]:
        try:
            return self._exporting.due(limit=limit)
        except StoreError as error:
            log.warning("the database cannot be asked which exports are due: %s", error)
            return ()

    def _refresh(self, _job_id: int) -> float | None:
        """One refresh at a time, and rests in between, whatever the loop finds due meanwhile."""
        self._refresh_rests_until = math.inf
        rest_s: float | None = REFRESH_FAILED_REST_S
        try:
            rest_s = self._workflow.refresh()
        except StoreError as error:
            log.warning("the orders of pending requests were not refreshed: %s", error)
        finally:
            self._refresh_rests_until = time.monotonic() + (rest_s or 0.0)
        return rest_s

    def _door(self) -> Door:
        settings = self._settings
        secret = None if settings.socket_mode else settings.slack_signing_secret.get_secret_value()
        listeners = Listeners(
            workflow=self._workflow,
            inquiry=Inquiry(records=self._store, policy=self._policy),
            choosing=self._choosing,
            afterwards=self,
            forms=self._notifier,
            homes=self._homes,
            exports=self._exporting,
            identity=lambda: self._identity,
            max_open_requests=settings.max_open_requests_per_person,
            channels=settings.channels,
            approvals_channel=settings.approvals_channel,
            attention=self._attention.paid,
        )
        app = listeners.bolt_app(bot_token=settings.slack_bot_token.get_secret_value(), signing_secret=secret)
        if settings.socket_mode:
            self._socket = SocketModeHandler(
                app,
                app_token=settings.slack_app_token.get_secret_value(),
                web_client=WebClient(base_url=settings.slack_api_url, timeout=TIMEOUT_S, retry_handlers=[]),
            )
        slack = None if settings.socket_mode else SlackRequestHandler(app, path=SLACK_PATH)
        return Door(slack=slack, signing_secret=secret, ready=self.readiness)

    def _connect(self) -> None:
        """Learn who we are, then open the socket; Slack is asked again until it answers."""
        self._until_done(self._learn_identity, "asking Slack who we are")
        if self._socket is not None:
            self._until_done(self._socket.connect, "opening the socket to Slack")

    def _learn_identity(self) -> None:
        self._identity = self._notifier.who_am_i()
        log.info("connected to workspace %s", self._identity.team_id)

    def _read_groups(self) -> None:
        """Keep who is in the user groups fresh, in a thread of its own: Slack may take its time."""
        assert self._groups is not None
        can_approve = True
        while not self._stopping.is_set():
            wait_s = READ_GROUPS_AGAIN_S
            try:
                wait_s = self._groups.refresh()
                could_approve, can_approve = can_approve, self._policy.can_approve_anything(self._groups.membership())
                self._could_approve |= can_approve
                if not can_approve:
                    log.error("nobody can approve: too few people are in the user groups of APPROVERS, or none is read")
                elif not could_approve:
                    log.info("enough people can approve again")
            except Exception:
                log.exception("reading the user groups failed")
            self._stopping.wait(max(wait_s, LEAST_WAIT_S))

    def _until_done(self, step: Callable[[], None], what: str) -> None:
        attempt = 0
        while not self._stopping.is_set():
            try:
                step()
            except MessengerError as error:
                log.warning("%s failed: %s", what, error)
            except Exception as error:  # noqa: BLE001 - slack_sdk's can hold the request: its kind is enough
                log.warning("%s failed: %s", what, type(error).__name__)
            else:
                return
            self._stopping.wait(RETRY_SLACK_S[min(attempt, len(RETRY_SLACK_S) - 1)])
            attempt += 1


def build_policy(settings: Settings) -> ApprovalPolicy:
    return ApprovalPolicy(
        approvers=settings.approvers,
        requesters=settings.requesters,
        auditors=settings.auditors,
        channels=settings.channels,
        self_approval=settings.self_approval,
        approvals_required=settings.approvals_required,
        tiers=settings.approval_tiers,
        max_open_requests_per_person=settings.max_open_requests_per_person,
    )


def build_upbit_client(settings: Settings) -> UpbitClient:
    return UpbitClient(
        server_url=settings.upbit_open_api_server_url,
        access_key=settings.upbit_open_api_access_key.get_secret_value(),
        secret_key=settings.upbit_open_api_secret_key.get_secret_value(),
    )


def build_groups(settings: Settings) -> GroupReader | None:
    """None where the allowlists name people only: then Slack is not asked at all."""
    if not settings.groups:
        return None
    return GroupReader(
        token=settings.slack_bot_token.get_secret_value(),
        api_url=settings.slack_api_url,
        group_ids=settings.groups,
    )


def build_checkpointing(
    settings: Settings, database: Database, notifier: Notifier, *, rest: Callable[[], None]
) -> Checkpointing | None:
    """None where there is no key to sign with."""
    key, channel_id = settings.checkpoint_key.get_secret_value(), settings.checkpoint_channel or None
    if not key:
        return None
    signer = Signer(key)
    store = SqlDailyCheckpoints(
        database, sign=signer.sign, key=signer.public_key, is_good=is_signed, is_to_post=channel_id is not None
    )
    return Checkpointing(store=store, poster=notifier, channel_id=channel_id, rest=rest)


def build_notifier(settings: Settings) -> Notifier:
    return Notifier(
        token=settings.slack_bot_token.get_secret_value(),
        api_url=settings.slack_api_url,
        notify=settings.notify,
    )


LEAST_LEVELS: Final = {
    "slack_bolt": logging.ERROR,
    "slack_sdk": logging.WARNING,
    "urllib3": logging.ERROR,
    "requests": logging.WARNING,
    "websockets": logging.WARNING,
    "sqlalchemy": logging.WARNING,
    "alembic": logging.WARNING,
}
"""Below these the libraries print payloads with their response_urls, headers and statements.

Asked of each record, not set on the loggers: Bolt sets the levels of its own.
"""


def is_fit_to_print(record: logging.LogRecord) -> bool:
    return record.levelno >= LEAST_LEVELS.get(record.name.partition(".")[0], logging.NOTSET)


def configure_logging(level: str) -> None:
    """One JSON object a line on standard error, for our own lines and the libraries'. Tracebacks without variables."""
    shared: list[Any] = [
        structlog.stdlib.add_log_level,
        structlog.stdlib.add_logger_name,
        structlog.processors.TimeStamper(fmt="iso", utc=True),
        structlog.stdlib.ExtraAdder(),
        structlog.processors.format_exc_info,
    ]
    handler = logging.StreamHandler(sys.stderr)
    handler.addFilter(is_fit_to_print)
    handler.setFormatter(
        structlog.stdlib.ProcessorFormatter(
            foreign_pre_chain=shared,
            processors=[
                structlog.stdlib.ProcessorFormatter.remove_processors_meta,
                structlog.processors.EventRenamer("message"),
                structlog.processors.JSONRenderer(ensure_ascii=False),
            ],
        )
    )
    root = logging.getLogger()
    root.handlers = [handler]
    root.setLevel(level)
    # A level as well, where it is cheap: records that are dropped anyway need not be made.
    logging.getLogger("sqlalchemy").setLevel(logging.WARNING)
