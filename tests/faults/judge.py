"""Judges what real processes left behind: the rows, the audit, the exchange's book and what people read in Slack.

The truth about an order is the exchange's book. What the bot says is its row, its audit, the card and the thread; all
four must agree, and none may say more than the book. What people were acknowledged must have come of it.
"""

from collections import Counter, defaultdict
from typing import Any, Final

from sqlalchemy import select

from bot.database.audit_log import AuditLog
from bot.database.schema import cancel_requests, decisions
from bot.database.verification import verify
from bot.domain.audit import Action
from bot.domain.cancel_request import ENDED_STATES, TRANSITIONS, VERDICT_STATES, DecisionKind, State
from bot.domain.event_filter import Filter
from bot.playground.demo import DESK
from bot.playground.exchange import Delete
from bot.playground.slack_records import Message
from faults.figures import Figures
from faults.stand import APPROVERS, Stand

MAX_EVENTS: Final = 1_000_000

SAYS: Final = {
    State.CANCELED: "Canceled",
    State.FILLED: "Filled before",
    State.REJECTED: "Refused by Upbit",
    State.FAILED: "Not canceled",
    State.UNRESOLVED: "Not known yet",
    State.LAPSED: "Not sent in time",
    State.DENIED: "Denied",
    State.WITHDRAWN: "Withdrawn",
    State.SUPERSEDED: "Superseded",
    State.EXPIRED: "Expired",
    State.SETTLED: "Settled by hand",
}
"""How the thread's message about a state begins."""
REMINDS: Final = "still needs"
"""How a reminder in the thread goes on after the request's number."""

NOT_SENT: Final = frozenset({State.REFUSED, State.DENIED, State.WITHDRAWN, State.SUPERSEDED, State.EXPIRED})
CALLS: Final = {
    ("GET", "/v1/order"),
    ("GET", "/v1/orders/uuids"),
    ("GET", "/v1/orders/open"),
    ("DELETE", "/v1/order"),
    ("GET", "/v1/orderbook"),
}
"""All that the bot ever asks of the exchange."""
ANSWERS: Final = {"approve": "request.approved", "deny": "request.denied", "withdraw": "request.withdrawn"}
"""What a button does, where it ends the wait for a decision."""
APPROVALS: Final = {Action.REQUEST_APPROVED.value, Action.APPROVAL_RECORDED.value}
"""Where somebody's approval is written down: the last one that was needed, or one of those before it."""


def judge(here: Stand, figures: Figures, *, may_wait: frozenset[State] = frozenset()) -> None:
    """Compare, once all is at rest; requests in `may_wait` need not have ended. Adds to the figures."""
    _Judgement(here, figures, may_wait).pass_()


class _Judgement:
    def __init__(self, here: Stand, figures: Figures, may_wait: frozenset[State]) -> None:
        self._here = here
        self._figures = figures
        self._may_wait = may_wait
        with here.database.read() as connection:
            self._rows = {row.id: row for row in connection.execute(select(cancel_requests))}
            approvals = select(decisions).where(decisions.c.kind == DecisionKind.APPROVE.value)
            self._approvals: dict[int, list[str]] = defaultdict(list)
            for approval in connection.execute(approvals):
                self._approvals[approval.request_id].append(approval.actor_id)
        self._story: dict[int, list[dict[str, Any]]] = defaultdict(list)
        events: list[Any] = [*AuditLog(here.database).list(Filter(), limit=MAX_EVENTS, newest_first=False)]
        for event in events:
            if event["request_id"] is not None:
                self._story[event["request_id"]].append(event)
        self._announced: dict[str, set[str]] = defaultdict(set)
        for row in self._rows.values():
            self._announced[row.order_uuid] |= self._nonces(row.id)
        self._deletes: dict[str | None, list[Delete]] = defaultdict(list)
        for each in here.exchange.deletes():
            self._deletes[each.uuid].append(each)
        self._threads: dict[str | None, list[Message]] = defaultdict(list)
        self._cards: dict[str, Message] = {}
        for message in here.slack.messages(DESK):
            if message.thread_ts is None:
                self._cards[message.ts] = message
            else:
                self._threads[message.thread_ts].append(message)

    def pass_(self) -> None:
        self._figures.requests += len(self._rows)
        for request_id in self._here.asked:
            if request_id not in self._rows:
                self._figures.lost.append(f"request {request_id} was acknowledged and is not there")
        for row in self._rows.values():
            self._judge_end(row)
            self._judge_decision(row)
            self._judge_deletes(row)
            self._judge_truth(row)
            self._judge_shown(row)
        self._judge_clicks()
        self._judge_whole()

    def _judge_end(self, row: Any) -> None:
        state: State | None = None
        for event in self._story[row.id]:
            action = Action(event["action"])
            if action in TRANSITIONS:
                sources, target = TRANSITIONS[action]
                if state not in sources and (state is not None or sources):
                    self._figures.faulty.append(f"request {row.id}: {action} from {state}")
                state = target
        if state != row.state:
            self._figures.faulty.append(f"request {row.id} is {row.state}, and its moves lead to {state}")
        if row.state not in ENDED_STATES | self._may_wait:
            self._figures.lost.append(f"request {row.id} never ended: it is {row.state}\n{self._told(row.id)}")

    def _judge_decision(self, row: Any) -> None:
        decided = [event for event in self._story[row.id] if event["action"] in ANSWERS.values()]
        approvals = self._approvals[row.id]
        if len(decided) > 1 or len(approvals) > row.approvals_required:
            self._figures.double.append(f"request {row.id} was decided {len(decided)} times\n{self._told(row.id)}")
        self._judge_approvals(row, decided, approvals)
        for event in decided:
            may = {row.requester_id} if event["action"] == ANSWERS["withdraw"] else {person.id for person in APPROVERS}
            if event["actor"] not in may:
                self._figures.faulty.append(f"request {row.id} was decided by {event['actor']}, who may not")

    def _judge_approvals(self, row: Any, decided: list[dict[str, Any]], approvals: list[str]) -> None:
        """Each person counts once, who asked never; approved means by as many as it takes, and only then."""
        voters = [event["actor"] for event in self._story[row.id] if event["action"] in APPROVALS]
        if len(set(voters)) < len(voters) or row.requester_id in voters or sorted(voters) != sorted(approvals):
            self._figures.double.append(
                f"request {row.id} was approved by {voters}, and kept are {approvals}\n{self._told(row.id)}"
            )
        counted = [event["details"]["approvals"] for event in decided if event["action"] == ANSWERS["approve"]]
        if any(len(each) != row.approvals_required or sorted(each) != sorted(voters) for each in counted):
            self._figures.double.append(
                f"request {row.id} needs {row.approvals_required} approvals, has those of {voters}, and counted "
                f"{counted}\n{self._told(row.id)}"
            )
        elif not counted and len(voters) >= row.approvals_required:
            self._figures.lost.append(f"request {row.id} was approved by {voters} in vain\n{self._told(row.id)}")

    def _judge_deletes(self, row: Any) -> None:
        announced = self._nonces(row.id)
        seen = Counter(each.nonce for each in self._deletes[row.order_uuid] if each.verified)
        for nonce, times in seen.items():
            if nonce not in self._announced[row.order_uuid]:
                self._figures.double.append(f"order {row.order_uuid}: a DELETE that no cancel.sent announced: {nonce}")
            if times > 1:
                self._figures.double.append(f"order {row.order_uuid}: {times} DELETEs with the nonce {nonce}")
        arrived = announced & set(seen)
        if arrived and row.state in NOT_SENT:
            self._figures.wrong.append(f"request {row.id} is {row.state} and sent a DELETE\n{self._told(row.id)}")
        approved = any(event["action"] == "request.approved" for event in self._story[row.id])
        if announced and not approved:
            self._figures.double.append(f"request {row.id} sent a DELETE without an approval\n{self._told(row.id)}")

    def _judge_truth(self, row: Any) -> None:
        """What the row says of the order, against the exchange's book."""
        truth = self._truth(row.order_uuid)
        effective = self._nonces(row.id) & {each.nonce for each in self._deletes[row.order_uuid] if each.effective}
        wrong = None
        match State(row.state):
            case State.CANCELED if truth != "cancel":
                wrong = "is canceled"
            case State.CANCELED if row.canceled_by == "this_request" and not effective:
                wrong = "is canceled by this request, of which no DELETE took effect"
            case State.SUPERSEDED if truth not in {"cancel", "done"}:
                wrong = "is superseded"
            case State.FILLED if truth != "done":
                wrong = "is filled"
            case State.REJECTED if effective:
                wrong = "is rejected, and a DELETE of it took effect"
            case State.FAILED if truth not in {"wait", "watch"}:
                wrong = "failed with the order still open"
        if wrong is not None:
            self._figures.wrong.append(
                f"request {row.id} {wrong}; at the exchange the order is {truth}\n{self._told(row.id)}"
            )

    def _judge_shown(self, row: Any) -> None:
        if row.card_ts is None:
            return
        card = self._cards.get(row.card_ts)
        if card is None:
            self._figures.faulty.append(f"the card of request {row.id} is not where the row says")
            return
        headline = self._here.slack.words(card)[0]
        pending = row.state == State.PENDING
        shows = f"Cancel this order? Request #{row.id}" if pending else f"Cancel request #{row.id}: "
        if not headline.startswith(shows) or bool(card.buttons) != pending:
            self._figures.faulty.append(f"request {row.id} is {row.state}, and its card says {headline!r}")
        lines = [self._here.slack.words(each)[0] for each in self._threads[row.card_ts]]
        told = [line for line in lines if not line.startswith(f"Request #{row.id} {REMINDS}")]
        announced = sum(event["action"] == Action.REMINDER_SENT for event in self._story[row.id])
        if len(lines) - len(told) > announced or announced > 1:
            self._figures.faulty.append(f"request {row.id} was reminded of {announced} times by the audit: {lines}")
        by_state = Counter(state for line in told for state, begins in SAYS.items() if line.startswith(begins))
        if by_state.total() != len(told):
            self._figures.faulty.append(f"the thread of request {row.id} says {told}")
        if State(row.state) in VERDICT_STATES and not by_state[State(row.state)]:
            self._figures.lost.append(f"nobody was told that request {row.id} is {row.state}: {told}")
        said_before = {event["details"].get("state") for event in self._story[row.id]}
        for state in by_state:
            if state.value not in said_before:
                self._figures.wrong.append(f"the thread of request {row.id} says {state}, which it never was")
        self._figures.duplicates += sum(times - 1 for times in by_state.values())

    def _judge_clicks(self) -> None:
        """An acknowledged click is a decision of that person or a refusal that is written down."""
        for pressed in self._here.pressed:
            outcomes = {ANSWERS[pressed.action_id], Action.APPROVAL_REFUSED.value}
            if pressed.action_id == "approve":
                outcomes |= APPROVALS
            if not any(
                event["actor"] == pressed.person.id and event["action"] in outcomes
                for event in self._story[pressed.request_id]
            ):
                self._figures.lost.append(
                    f"{pressed.person.name}'s acknowledged {pressed.action_id} of request {pressed.request_id} is "
                    f"nowhere\n{self._told(pressed.request_id)}"
                )

    def _judge_whole(self) -> None:
        """Cards that no row knows are copies; the chain verifies; nothing else was asked of the exchange."""
        known = {row.card_ts for row in self._rows.values()}
        self._figures.duplicates += len(set(self._cards) - known)
        fault = verify(self._here.database).fault
        if fault is not None:
            self._figures.faulty.append(f"the audit does not verify: {fault}")
        for request in self._here.exchange.requests:
            if (request.method, request.path) not in CALLS:
                self._figures.faulty.append(f"{request.method} {request.path} was sent to the exchange")

    def _nonces(self, request_id: int) -> set[str]:
        return {event["details"]["nonce"] for event in self._story[request_id] if event["action"] == "cancel.sent"}

    def _truth(self, order_uuid: str) -> str:
        try:
            state: str = self._here.exchange.order(order_uuid)["state"]
        except KeyError:
            return "unknown there"
        return state

    def _told(self, request_id: int) -> str:
        return "\n".join(
            f"  {event['occurred_at']} {event['action']} {event['actor']} {event['details'].get('reason', '')}"
            f"{event['details'].get('error', '')}"
            for event in self._story[request_id]
        )
