"""From the click on Approve to the DELETE at the exchange, and from the decision to the verdict in the thread."""

import time
from collections.abc import Iterator
from functools import partial
from statistics import median

import jwt
import requests
from stage import REQUESTERS, Kind, Stage
from table import NotDoneError, Row, at_most, ms, percentile

from bot.playground.demo import BEN, DESK
from bot.playground.exchange import Exchange, Request
from bot.playground.slack import SlackWorkspace
from bot.playground.slack_records import Message
from bot.upbit.auth import order_query, query_hash

WITHIN_S = 20.0
IDLE_S = 0.05
"""Between two clicks: the bot has nothing else to do."""


class _Arrivals:
    """When the DELETE of an order came to the exchange."""

    def __init__(self, exchange: Exchange) -> None:
        self._at: dict[str, float] = {}
        exchange.on_request = self._note

    def _note(self, request: Request) -> None:
        if request.method == "DELETE":
            self._at.setdefault(request.uuids[0], time.perf_counter())

    def of(self, uuid: str) -> float:
        """Raises NotDoneError."""
        if uuid not in self._at:
            raise NotDoneError(f"no DELETE of {uuid} came")
        return self._at[uuid]


def rows(here: Stage) -> Iterator[Row]:
    arrivals = _Arrivals(here.exchange)
    try:
        for kind in here.sizes.kinds:
            yield from _of(kind, here, arrivals)
    finally:
        here.exchange.on_request = None


def _of(kind: Kind, here: Stage, arrivals: _Arrivals) -> Iterator[Row]:
    url = here.new_database(kind)
    direct, sent, told = list[float](), list[float](), list[float]()
    before = len(here.exchange.deletes())
    with here.bot(url) as bot, requests.Session() as session:
        here.slack.events_url = bot.events_url
        clicks = here.sizes.some(40, quick=5)
        for number in range(clicks + 3):
            uuid = here.exchange.place()
            began_at = time.perf_counter()
            _delete(session, here, uuid)
            took_s = arrivals.of(uuid) - began_at
            if number >= 3:
                direct.append(took_s)
            uuid = here.exchange.place()
            here.slack.command(REQUESTERS[number % len(REQUESTERS)].id, DESK, f"{uuid} wrong price")
            card = here.slack.wait_for(partial(_card_of, uuid=uuid), timeout_s=WITHIN_S)
            assert card is not None
            here.rest(url)
            time.sleep(IDLE_S)
            clicked_at = time.perf_counter()
            if not here.slack.click(BEN.id, card, "approve").ok:
                raise NotDoneError("a click was not acknowledged")
            decided_at = time.perf_counter()
            here.slack.wait_for(partial(_thread_of, card=card), timeout_s=WITHIN_S)
            verdict_at = time.perf_counter()
            if number >= 3:
                sent.append(arrivals.of(uuid) - clicked_at)
                told.append(verdict_at - decided_at)
            if here.exchange.order(uuid)["state"] != "cancel":
                raise NotDoneError(f"{uuid} is not canceled")
        here.rest(url)
    if not all(each.verified and each.effective for each in here.exchange.deletes()[before:]):
        raise NotDoneError("a DELETE was not verified, or did nothing")
    here.check_chain(url)
    p50, p99 = (percentile(sent, percent) - median(direct) for percent in (50, 99))
    met = at_most(p50, must=0.015, aim=0.006)
    yield Row(
        name=f"click → DELETE at the exchange, {kind}, p50 / p99 above the baseline",
        baseline=ms(median(direct)),
        figure=f"{ms(percentile(sent, 50))} / {ms(percentile(sent, 99))}",
        ratio=f"+ {ms(p50)} / + {ms(p99)}",
        must="≤ + 15 ms / + 50 ms",
        aim="≤ + 6 ms",
        met=met if at_most(p99, must=0.05) == "met" else "missed",
    )
    yield Row(
        name=f"decision → verdict in the thread, {kind}, p50",
        figure=ms(median(told)),
        must="< 500 ms",
        aim="< 200 ms",
        met=at_most(median(told), must=0.5, aim=0.2),
    )


def _card_of(slack: SlackWorkspace, *, uuid: str) -> Message | None:
    shown = (card for card in reversed(slack.messages(DESK)) if card.buttons)
    return next((card for card in shown if uuid in str(card.blocks)), None)


def _thread_of(slack: SlackWorkspace, *, card: Message) -> list[Message]:
    return slack.thread(DESK, card.ts)


def _delete(session: requests.Session, here: Stage, uuid: str) -> None:
    """What a program would do that cancels and nothing else."""
    query = order_query(uuid)
    claims = {
        "access_key": here.key.access_key,
        "nonce": f"direct.{uuid}",
        "query_hash": query_hash(query),
        "query_hash_alg": "SHA512",
    }
    token = jwt.encode(claims, here.key.secret_key, algorithm="HS256")
    answer = session.delete(
        f"{here.exchange.url}/v1/order?{query}", headers={"Authorization": f"Bearer {token}"}, timeout=WITHIN_S
    )
    answer.raise_for_status()
