"""Replicas: two, then four of the real bot on one PostgreSQL, where all is delivered again and everybody acts at once.

A load balancer spreads the deliveries at random, and Slack brings each of them one to three times more within ten
seconds. Four people decide each request at the same instant, some for and some against; now and then two people ask for
the same order at the same instant. A third of the requests need two approvals: there one person approves, and then two
others do so at the same instant on different replicas, now and then with a fourth who denies, or with the first once
more. Under this load one replica is stopped with SIGTERM and started again, and others
stand still for longer than a lease lasts and then go on where they were.

One decision a request, of as many different people as it needs, and at most one open request an order; every DELETE is
announced; a delivery that comes again gets the answer it got; who clicked too late is told privately who was first, and
who asked second which request it is.
"""

import heapq
import json
import random
import re
import signal
import threading
import time
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from http.client import HTTPConnection, HTTPException
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from statistics import median
from typing import Any, Final, Self, TypeVar
from urllib.parse import parse_qs, urlsplit

from sqlalchemy import select

from bot.database.audit_log import AuditLog
from bot.database.schema import cancel_requests, decisions
from bot.database.store import LEASE
from bot.domain.audit import Action
from bot.domain.cancel_request import DecisionKind, State
from bot.domain.errors import NothingDone
from bot.domain.event_filter import Filter
from bot.playground.demo import DESK
from bot.playground.slack_records import Person
from bot.slack import messages
from faults.figures import Figures, Ground
from faults.judge import MAX_EVENTS, judge
from faults.stand import APPROVERS, REQUESTERS, Asked, Stand, stand
from faults.tcp_proxy import Address

T = TypeVar("T")

REQUESTS: Final = 250
"""At scale 1, in each of the two plays."""
AT_A_TIME: Final = 6
"""Requests that people are busy with at once."""
SAME_ORDER_SHARE: Final = 0.2
TWO_APPROVALS_EACH: Final = 3
"""Of so many requests one needs two approvals."""
ONE_MARKET, TWO_MARKET = "KRW-BTC", "KRW-ETH"
SETTINGS: Final = {"APPROVAL_TIERS": f"{TWO_MARKET}=2"}
DENIED_SHARE: Final = 0.25
AGAIN_SHARE: Final = 0.25
"""Of the requests that need two approvals: where somebody denies, and where the first one approves again meanwhile."""
MORE_DELIVERIES: Final = (1, 1, 1, 2, 3)
REPEATS_WITHIN_S: Final = 10.0
TRIES: Final = 60
TRY_AGAIN_AFTER_S: Final = 0.5
WITHIN_S: Final = 120.0
STANDS_STILL_S: Final = LEASE.total_seconds() + 2
HICCUP_S: Final = 2.0
"""How long a replica stands still in a small experiment."""
BALANCER_NOTICES_AFTER_S: Final = 2.0
TOLD_WITHIN_S: Final = LEASE.total_seconds() + 30
"""Whoever was to tell it may stand still for a lease, and then there is much to tell."""

NOTHING_DONE: Final = frozenset({messages.nothing_was_done(), messages.in_doubt(), messages.starting()})
RECORDED: Final = re.compile(r"Request #(\d+) is recorded")
STILL_OPEN: Final = re.compile(r"has already asked .*request #(\d+).* is still open")
TOO_LATE: Final = re.compile(r"Request #(\d+) was already (?:approved|denied) (.*?)\. Your click changed nothing")
COUNTED_ALREADY: Final = re.compile(r"You (?:have|had) already approved request #(\d+), and one person counts once")
BY: Final = re.compile(r"by @(\w+)")
CLICK_ENDS: Final = frozenset(
    {Action.REQUEST_APPROVED, Action.REQUEST_DENIED, Action.APPROVAL_RECORDED, Action.APPROVAL_REFUSED}
)


def run(ground: Ground) -> Figures:
    """Both plays, with half of the requests each."""
    figures = Figures(experiment="replicas", database=ground.kind)
    figures.note = "; ".join(_play(ground, figures, replicas=replicas) for replicas in (2, 4))
    return figures


def _play(ground: Ground, figures: Figures, *, replicas: int) -> str:
    rng = random.Random(f"{ground.seed} {replicas}")
    with stand(ground, replicas=replicas, settings=SETTINGS) as here, _repeated_by_slack(here, rng) as post:
        people = _People(here, figures, rng, requests=ground.some(REQUESTS, at_least=10))
        post.first_goes_to = people.replica_of
        stands_still_s = STANDS_STILL_S if ground.scale >= 1 else HICCUP_S
        with ThreadPoolExecutor(1) as fate:
            struck = fate.submit(_strike, people, stands_still_s=stands_still_s)
            people.work()
            struck.result()
        figures.expect(here.until(post.is_done, timeout_s=WITHIN_S), "the repeated deliveries never came to an end")
        figures.faults["repeated delivery"] += post.repeats
        at_rest = people.decide_the_rest() and here.drain(timeout_s=WITHIN_S)
        figures.expect(at_rest, f"{replicas} replicas never came to rest: {here.states()}\n{here.log_tail()}")
        _forgive_what_people_were_told(here)
        judge(here, figures)
        _expect_one_open_request_an_order(here, figures)
        _expect_same_answers(post, figures)
        waits_s = _expect_late_clicks_answered(people, figures)
        by_two = _expect_two_different_approvers(here, figures)
        tracebacks = [line for line in here.complaints() if "Traceback" in line]
        figures.expect(not tracebacks, f"the bots complain: {tracebacks[:3]}")
    return (
        f"{replicas} replicas: {by_two:,} approved by two, {len(waits_s):,} late clicks answered within "
        f"{median(waits_s or [0]):.1f} s, at most {max(waits_s, default=0):.0f} s"
    )


# --- What Slack does ------------------------------------------------------------------------------------------------


class _Post:
    """Stands between Slack and the load balancer, and brings each delivery again, byte for byte."""

    def __init__(self, target_url: str, rng: random.Random) -> None:
        target = urlsplit(target_url)
        self._host, self._port, self._path = target.hostname or "", target.port, target.path
        self._rng = rng
        self._changed = threading.Condition()
        self._due: list[tuple[float, int, dict[str, str], bytes]] = []
        self._under_way = 0
        self.repeats = 0
        self.closing = False
        self.first_goes_to: Callable[[bytes], Address | None] = lambda _body: None
        """Which replica the first delivery of this body is for; None leaves it to the load balancer."""
        self.answers: dict[bytes, list[str]] = defaultdict(list)
        """What each delivery was answered with 200, in order of arrival, by its body."""

    def bring(self, headers: dict[str, str], body: bytes) -> tuple[int, str, bytes] | None:
        """Status, content type and body of the answer; None where there was none. It is brought again later."""
        answer = self._deliver(headers, body, self.first_goes_to(body))
        with self._changed:
            for _ in range(self._rng.choice(MORE_DELIVERIES)):
                self.repeats += 1
                at = time.monotonic() + self._rng.choice((0.0, self._rng.uniform(0, REPEATS_WITHIN_S)))
                heapq.heappush(self._due, (at, self.repeats, headers, body))
            self._changed.notify()
        return answer

    def is_done(self) -> bool:
        with self._changed:
            return not self._due and not self._under_way

    def repeat(self) -> None:
        """Bring again what is due, until this closes. Run it in several threads."""
        while True:
            with self._changed:
                while not self.closing and not (self._due and self._due[0][0] <= time.monotonic()):
                    self._changed.wait(self._due[0][0] - time.monotonic() if self._due else None)
                if self.closing:
                    return
                _, _, headers, body = heapq.heappop(self._due)
                self._under_way += 1
            self._deliver(headers, body)
            with self._changed:
                self._under_way -= 1

    def close(self) -> None:
        with self._changed:
            self.closing = True
            self._changed.notify_all()

    def _deliver(
        self, headers: dict[str, str], body: bytes, replica: Address | None = None
    ) -> tuple[int, str, bytes] | None:
        host, port = replica or (self._host, self._port)
        connection = HTTPConnection(host, port, timeout=4)
        try:
            connection.request("POST", self._path, body=body, headers=headers)
            response = connection.getresponse()
            answer = response.status, response.headers.get("Content-Type", ""), response.read()
        except ConnectionRefusedError:
            return None if replica is None else self._deliver(headers, body)
        except (OSError, HTTPException):
            return None
        finally:
            connection.close()
        if answer[0] == 200:
            with self._changed:
                self.answers[body].append(answer[2].decode())
        return answer


@contextmanager
def _repeated_by_slack(here: Stand, rng: random.Random) -> Iterator[_Post]:
    assert here.slack.events_url is not None
    post = _Post(here.slack.events_url, rng)

    class Window(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers["Content-Length"]))
            answer = post.bring({name: value for name, value in self.headers.items() if name != "Host"}, body)
            if answer is None:
                return
            status, content_type, said = answer
            with suppress(OSError):  # Slack has stopped waiting
                self.send_response(status)
                self.send_header("Content-Type", content_type)
                self.send_header("Content-Length", str(len(said)))
                self.end_headers()
                self.wfile.write(said)

        def log_message(self, *_: Any) -> None:
            pass

    class Office(ThreadingHTTPServer):
        daemon_threads = True
        request_queue_size = 256

    with Office(("127.0.0.1", 0), Window) as office, ThreadPoolExecutor(8) as postmen:
        threading.Thread(target=office.serve_forever, name="post-office", daemon=True).start()
        for _ in range(8):
            postmen.submit(post.repeat)
        here.slack.events_url = f"http://127.0.0.1:{office.server_port}{urlsplit(here.slack.events_url).path}"
        try:
            yield post
        finally:
            post.close()
            office.shutdown()


# --- What people do -------------------------------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True, slots=True)
class _Click:
    """A click that Slack saw acknowledged, and when it was made by Slack's clock."""

    request_id: int
    person: Person
    at: float


@dataclass(frozen=True, kw_only=True, slots=True)
class _Plan:
    """How one order is asked for and decided: who presses what at the same instant, once `first` have approved."""

    asked_by: tuple[Person, ...]
    market: str
    first: tuple[Person, ...]
    then: tuple[tuple[Person, str], ...]

    @classmethod
    def by_one(cls, rng: random.Random) -> Self:
        return cls(
            asked_by=_askers(rng),
            market=ONE_MARKET,
            first=(),
            then=tuple((person, rng.choice(("approve", "deny"))) for person in APPROVERS),
        )

    @classmethod
    def by_two(cls, rng: random.Random, *, replicas: int) -> Self:
        first, second, *others = rng.sample(APPROVERS, len(APPROVERS))
        elsewhere = [person for person in others if _replica(person, replicas) != _replica(second, replicas)]
        third = rng.choice(elsewhere)
        (fourth,) = (person for person in others if person is not third)
        more = [(fourth, "deny")] if rng.random() < DENIED_SHARE else []
        more += [(first, "approve")] if rng.random() < AGAIN_SHARE else []
        then = ((second, "approve"), (third, "approve"), *more)
        return cls(asked_by=_askers(rng), market=TWO_MARKET, first=(first,), then=then)


def _askers(rng: random.Random) -> tuple[Person, ...]:
    return REQUESTERS if rng.random() < SAME_ORDER_SHARE else REQUESTERS[:1]


def _replica(person: Person, replicas: int) -> int:
    """Where the load balancer brings this person's click, where two must meet on different replicas."""
    return APPROVERS.index(person) % replicas


class _People:
    """They ask, wait for the card and decide, many at a time; where they are told that nothing was done, again."""

    def __init__(self, here: Stand, figures: Figures, rng: random.Random, *, requests: int) -> None:
        self.here = here
        self.figures = figures
        self.clicks: list[_Click] = []
        self.begun = threading.Semaphore(0)
        self.requests = requests
        self._need_two: set[int] = set()
        self._plans = [
            _Plan.by_one(rng) if number % TWO_APPROVALS_EACH else _Plan.by_two(rng, replicas=len(here.bots))
            for number in range(requests)
        ]

    def replica_of(self, body: bytes) -> Address | None:
        """Where the first delivery of a click goes that one of several people makes at once."""
        if not body.startswith(b"payload="):
            return None
        click = json.loads(parse_qs(body.decode())["payload"][0])
        if int(click["actions"][0]["value"]) not in self._need_two:
            return None
        person = next(person for person in APPROVERS if person.id == click["user"]["id"])
        return self.here.front.upstreams[_replica(person, len(self.here.bots))]

    def work(self) -> None:
        with ThreadPoolExecutor(AT_A_TIME) as desks:
            for each in [desks.submit(self._one, plan) for plan in self._plans]:
                each.result()

    def decide_the_rest(self) -> bool:
        """Decide what is recorded late: a command that its replica had not answered in time, but goes on with."""
        came_to_rest = self.here.drain(timeout_s=WITHIN_S, may_wait=frozenset({State.PENDING}))
        for request_id in self.here.ids_in(State.PENDING):
            self._decide(request_id, [(person, "deny") for person in APPROVERS])
        return came_to_rest

    def _one(self, plan: _Plan) -> None:
        self.begun.release()
        uuid = self.here.exchange.place(market=plan.market)
        told = _at_once([(self._ask, (uuid, person)) for person in plan.asked_by])
        ids = {request_id for request_id, _ in told if request_id is not None}
        if len(ids) != 1 or None in {request_id for request_id, _ in told}:
            self.figures.faulty.append(f"{len(plan.asked_by)} people asked for order {uuid} and were told {told}")
        if sum(bool(RECORDED.match(text)) for _, text in told) > 1:
            self.figures.double.append(f"two people were told that their request for order {uuid} is recorded: {told}")
        for request_id in ids:
            if plan.first:
                self._need_two.add(request_id)
                self.figures.faults["two last approvals at once"] += 1
            for person in plan.first:
                self._approve_first(request_id, person)
            self._decide(request_id, plan.then)

    def _ask(self, uuid: str, who: Person) -> tuple[int | None, str]:
        """The request that the person is told of, and in which words."""
        text = ""
        for _ in range(TRIES):
            answer = self.here.slack.command(who.id, DESK, uuid)
            text = answer.text
            if recorded := RECORDED.match(text):
                request_id = int(recorded[1])
                self.here.asked[request_id] = Asked(id=request_id, uuid=uuid, requester=who)
                return request_id, text
            if still_open := STILL_OPEN.search(text):
                return int(still_open[1]), text
            if answer.ok and text not in NOTHING_DONE:
                break
            threading.Event().wait(TRY_AGAIN_AFTER_S)
        return None, text

    def _approve_first(self, request_id: int, who: Person) -> None:
        """Approve until it is written down."""
        for _ in range(TRIES):
            if self._has_card(request_id):
                self._press(request_id, who, "approve")
            if _patiently(self._approvers_of, request_id):
                return
            threading.Event().wait(TRY_AGAIN_AFTER_S)
        self.figures.lost.append(f"{who.name} approved request {request_id} again and again, and nothing is kept")

    def _approvers_of(self, request_id: int) -> list[str]:
        with self.here.database.read() as connection:
            query = select(decisions.c.actor_id).where(decisions.c.request_id == request_id)
            return list(connection.execute(query).scalars())

    def _decide(self, request_id: int, presses: Sequence[tuple[Person, str]]) -> None:
        """All press at once; again, where after that nobody has decided."""
        for _ in range(TRIES):
            if not self._has_card(request_id):
                self.figures.lost.append(f"request {request_id} was acknowledged and never got a card")
                return
            _at_once([(self._press, (request_id, *press)) for press in presses])
            if request_id not in _patiently(self.here.ids_in, State.PENDING):
                return
            threading.Event().wait(TRY_AGAIN_AFTER_S)

    def _has_card(self, request_id: int) -> bool:
        return self.here.until(lambda: _patiently(self.here.card_of, request_id), timeout_s=WITHIN_S)

    def _press(self, request_id: int, who: Person, action_id: str) -> None:
        at = time.time()
        if _patiently(self.here.press, request_id, who, action_id):
            self.clicks.append(_Click(request_id=request_id, person=who, at=at))


def _patiently(look: Callable[..., T], *arguments: Any) -> T:
    """What `look` returns; asked again where the database has no connection to spare for an onlooker."""
    for _ in range(TRIES):
        with suppress(NothingDone):
            return look(*arguments)
        threading.Event().wait(TRY_AGAIN_AFTER_S)
    return look(*arguments)


def _at_once(acts: list[tuple[Any, tuple[Any, ...]]]) -> list[Any]:
    """What the acts return, each done in a thread of its own, all begun at the same instant."""
    start = threading.Barrier(len(acts))

    def act(what: Any, arguments: tuple[Any, ...]) -> Any:
        start.wait(WITHIN_S)
        return what(*arguments)

    with ThreadPoolExecutor(len(acts)) as threads:
        return [each.result() for each in [threads.submit(act, *each) for each in acts]]


# --- What strikes the replicas --------------------------------------------------------------------------------------


def _strike(people: _People, *, stands_still_s: float) -> None:
    """SIGTERM to the first replica when a little is done, then the last one stands still, of four the third one too."""
    here, figures = people.here, people.figures
    for _ in range(max(1, people.requests // 10)):
        people.begun.acquire(timeout=WITHIN_S)
    status = here.bots[0].stop(timeout_s=60)
    figures.faults["SIGTERM"] += 1
    figures.expect(status == 0, f"a replica that was told to stop ended with status {status}")
    here.restart(0)
    victims = range(max(1, len(here.bots) // 2), len(here.bots))
    with ThreadPoolExecutor(len(victims)) as threads:
        for each in [threads.submit(_stand_still, here, victim, lasts_s=stands_still_s) for victim in victims]:
            each.result()
    figures.faults["stood still"] += len(victims)


def _stand_still(here: Stand, replica: int, *, lasts_s: float) -> None:
    """SIGSTOP and later SIGCONT; meanwhile the load balancer notices, and sends what is for it to the first replica."""
    pause, mine, other = threading.Event(), here.bots[replica].port, here.bots[0].port
    at = next(index for index, (_, port) in enumerate(here.front.upstreams) if port == mine)
    here.bots[replica].signal(signal.SIGSTOP)
    pause.wait(min(BALANCER_NOTICES_AFTER_S, lasts_s))
    here.front.upstreams[at] = ("127.0.0.1", other)
    pause.wait(max(0.0, lasts_s - BALANCER_NOTICES_AFTER_S))
    here.bots[replica].signal(signal.SIGCONT)
    here.front.upstreams[at] = ("127.0.0.1", mine)


# --- What must hold -------------------------------------------------------------------------------------------------


def _forgive_what_people_were_told(here: Stand) -> None:
    """An acknowledged click after which the person was told that nothing was done needs no trace."""
    log = AuditLog(here.database).list(Filter(), limit=MAX_EVENTS)
    traced = {(event["request_id"], event["actor"]) for event in log if event["action"] in CLICK_ENDS}
    told = Counter(
        {person.id: sum(line in NOTHING_DONE for _, line in _private_lines(here, person)) for person in APPROVERS}
    )
    kept = []
    for pressed in here.pressed:
        if (pressed.request_id, pressed.person.id) in traced or not told[pressed.person.id]:
            kept.append(pressed)
        else:
            told[pressed.person.id] -= 1
    here.pressed[:] = kept


def _private_lines(here: Stand, person: Person) -> list[tuple[float, str]]:
    """When and what, the oldest first."""
    return [(float(each.ts), "\n".join(here.slack.words(each))) for each in here.slack.ephemerals(person.id)]


def _expect_one_open_request_an_order(here: Stand, figures: Figures) -> None:
    with here.database.read() as connection:
        rows = connection.execute(select(cancel_requests).order_by(cancel_requests.c.id)).all()
    last: dict[str, Any] = {}
    for row in rows:
        before = last.get(row.order_uuid)
        if before is not None and (before.ended_at is None or before.ended_at > row.created_at):
            figures.double.append(f"requests {before.id} and {row.id} for order {row.order_uuid} were open at once")
        last[row.order_uuid] = row


def _expect_same_answers(post: _Post, figures: Figures) -> None:
    for body, answers in post.answers.items():
        if body.startswith(b"payload="):
            continue
        told = {json.loads(each)["text"] for each in answers} - NOTHING_DONE
        kinds = {recorded[1] if (recorded := RECORDED.match(text)) else "refused" for text in told}
        figures.expect(
            len(kinds) <= 1, f"a command that was delivered {len(answers)} times was answered {sorted(told)}"
        )


def _expect_two_different_approvers(here: Stand, figures: Figures) -> int:
    """How many requests were approved by two. The judge compares each approval with what is kept of it."""
    approved: Counter[int] = Counter()
    for event in AuditLog(here.database).list(Filter(action=Action.REQUEST_APPROVED.value), limit=MAX_EVENTS):
        details, request_id = event["details"], event["request_id"]
        assert isinstance(details, dict)
        assert isinstance(request_id, int)
        counted = details["approvals"]
        assert isinstance(counted, list)
        if details["approvals_required"] == 1:
            continue
        approved[request_id] += 1
        if len(counted) != len({str(person_id) for person_id in counted}) or event["actor"] not in counted:
            figures.double.append(f"request {request_id} was approved by {event['actor']}, and {counted} counted")
    if approved and approved.most_common(1)[0][1] > 1:
        figures.double.append(f"request {approved.most_common(1)[0][0]} was approved more than once")
    figures.expect(approved, "nothing was approved by two")
    return len(approved)


def _expect_late_clicks_answered(people: _People, figures: Figures) -> list[float]:
    """In how many seconds each was. Whose click counted is told nothing more than the card shows."""
    here = people.here
    winners, counted = _winners(here)
    told: dict[tuple[str, int], list[tuple[float, frozenset[str]]]] = defaultdict(list)
    for person in APPROVERS:
        for at, line in _private_lines(here, person):
            if found := TOO_LATE.match(line):
                told[person.id, int(found[1])].append((at, frozenset(BY.findall(found[2]))))
            elif found := COUNTED_ALREADY.match(line):
                told[person.id, int(found[1])].append((at, frozenset({person.name})))
    pressed = {(each.request_id, each.person.id) for each in here.pressed}
    waits_s = []
    for (request_id, person_id), clicks in _by_person(people.clicks).items():
        # Of several clicks of one person some may have counted; which of them is not told.
        kept = counted[request_id, person_id]
        if request_id not in winners or (request_id, person_id) not in pressed or len(clicks) <= kept:
            continue
        right = {winners[request_id], *([frozenset({clicks[0].person.name})] if kept else [])}
        last_at = clicks[0 if kept else -1].at
        lines = [at for at, names in told[person_id, request_id] if names in right and at >= last_at]
        if lines:
            waits_s.append(min(lines) - last_at)
        else:
            figures.faulty.append(
                f"{clicks[0].person.name} clicked {len(clicks)} times on request {request_id}, which "
                f"{sorted(winners[request_id])} decided, and was told {told[person_id, request_id]}"
            )
    late = sum(wait_s > TOLD_WITHIN_S for wait_s in waits_s)
    figures.expect(not late, f"{late} of {len(waits_s)} late clicks were answered after {TOLD_WITHIN_S} s and more")
    return waits_s


def _by_person(clicks: Iterable[_Click]) -> dict[tuple[int, str], list[_Click]]:
    """The clicks of each person on each request, the oldest first."""
    sorted_out: dict[tuple[int, str], list[_Click]] = defaultdict(list)
    for click in sorted(clicks, key=lambda click: click.at):
        sorted_out[click.request_id, click.person.id].append(click)
    return sorted_out


def _winners(here: Stand) -> tuple[dict[int, frozenset[str]], Counter[tuple[int, str]]]:
    """By request: the names of those who decided it; and how many decisions of each person are kept."""
    with here.database.read() as connection:
        rows = connection.execute(select(cancel_requests.c.id, cancel_requests.c.state))
        states = {row.id: row.state for row in rows}
        made = connection.execute(select(decisions)).all()
    winners: dict[int, set[str]] = defaultdict(set)
    for row in made:
        if (row.kind == DecisionKind.DENY.value) == (states[row.request_id] == State.DENIED.value):
            winners[row.request_id].add(row.actor_name)
    return (
        {request_id: frozenset(names) for request_id, names in winners.items()},
        Counter((row.request_id, row.actor_id) for row in made),
    )
