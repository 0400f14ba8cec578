"""Every form (Slack: modal) that the bot opens, and what it shows in place of one. Pure, like `bot.slack.messages`.

A form is known by its `callback_id`; what it is about stands in `private_metadata`, which Slack gives back with what
was filled in. https://docs.slack.dev/surfaces/modals
"""

import json
from collections.abc import Callable, Iterable, Sequence
from datetime import timedelta
from typing import Any, Final

from bot.choosing import Choice, Form
from bot.domain.answer import ExchangeHealth
from bot.domain.approval import MAX_REASON_CHARS
from bot.domain.cancel_request import CancelRequest, DecisionKind, Verdict
from bot.domain.order import Order
from bot.home import Health, HomeView, Listed
from bot.slack import messages
from bot.slack.messages import literal, mention, when

View = dict[str, Any]

# Slack's limits: https://docs.slack.dev/reference/views/modal-views
TITLE_CHARS: Final = 24
LABEL_CHARS: Final = 2000
PRIVATE_METADATA_CHARS: Final = 3000
ERROR_CHARS: Final = 2000  # ours: Slack names no limit


DENY_REASON: Final = "deny_reason"
"""The callback_id of the form that asks why somebody denies."""

REASON_INPUT: Final = "reason"
"""The block_id, and the action_id in it, of what was filled in as the reason."""


def deny_form(request: CancelRequest) -> View:
    """Asks why somebody denies, and denies when it is submitted."""
    return {
        "type": "modal",
        "callback_id": DENY_REASON,
        "private_metadata": str(request.id),
        "title": _plain(messages.cut(f"Deny request #{request.id}", TITLE_CHARS)),
        "submit": _plain("Deny"),
        "close": _plain("Go back"),
        "blocks": [
            _section(messages.denying(request)),
            {
                "type": "input",
                "block_id": REASON_INPUT,
                "label": _plain("Why?"),
                "hint": _plain("Everyone in the channel reads it on the card and in its thread; the audit keeps it."),
                "element": {
                    "type": "plain_text_input",
                    "action_id": REASON_INPUT,
                    "multiline": True,
                    "max_length": MAX_REASON_CHARS,
                },
            },
        ],
    }


def told(sentence: str, *, title: str = "Nothing was done") -> View:
    """A view that tells and asks nothing; it takes the place of a form that has no use any more."""
    return {
        "type": "modal",
        "title": _plain(title),
        "close": _plain("Close"),
        "blocks": [_section(sentence)],
    }


def _section(text: str) -> dict[str, Any]:
    words = messages.cut(text, messages.SECTION_CHARS)
    return {"type": "section", "text": {"type": "mrkdwn", "text": words, "verbatim": True}}


def _plain(text: str) -> dict[str, Any]:
    return {"type": "plain_text", "text": text, "emoji": False}


# --- Choosing an order ----------------------------------------------------------------------------------------------

CHOOSE_ORDER: Final = "choose_order"
ORDER_BLOCK: Final = "order"
UUID_BLOCK: Final = "order_uuid"
REASON_BLOCK: Final = "reason"

# Slack's limits: https://docs.slack.dev/reference/block-kit/composition-objects/option-object
OPTION_CHARS: Final = 75
OPTIONS_IN_A_GROUP: Final = 100
OPTION_GROUPS: Final = 100
UUID_SHOWN_CHARS: Final = 8
UUID_INPUT_CHARS: Final = 100  # ours: a uuid, with what people paste around it


def loading(form: Form) -> View:
    """What the person sees until the open orders are there."""
    return _choosing(form, [_section(messages.form_is_loading())])


def choice(form: Form, offered: Choice) -> View:
    """The form, filled: the open orders to choose from, or an input for the uuid where they are not known."""
    if offered.trouble == "key_lacks_view":
        return _choosing(form, [_section(messages.orders_not_listed(offered.trouble))])
    if offered.trouble is not None:
        asked = _text_input(UUID_BLOCK, "Uuid of the order", max_length=UUID_INPUT_CHARS)
        return _choosing(form, [_section(messages.orders_not_listed(offered.trouble)), asked, _reason()], submits=True)
    groups = _by_market(offered.orders)
    if not groups:
        return _choosing(form, [_section(messages.no_open_orders())])
    shown = sum(len(group["options"]) for group in groups)
    select = {
        "type": "static_select",
        "action_id": ORDER_BLOCK,
        "placeholder": _plain("Type to search, for example KRW-BTC"),
        "option_groups": groups,
    }
    blocks = [
        {"type": "input", "block_id": ORDER_BLOCK, "label": _plain("Order to be canceled"), "element": select},
        _reason(),
    ]
    if offered.has_more or shown < len(offered.orders):
        blocks.append(_section(messages.more_open_orders(shown)))
    return _choosing(form, blocks, submits=True)


def read_form(private_metadata: str, form_id: str = "") -> Form | None:
    """The form that was opened with this metadata; None where it is not ours."""
    try:
        kept = json.loads(private_metadata)
        trigger_id, channel_id, in_private = kept["trigger"], kept["channel"], kept["private"]
    except (ValueError, LookupError, TypeError, RecursionError):
        return None
    if not (isinstance(trigger_id, str) and isinstance(channel_id, str) and trigger_id and channel_id):
        return None
    return Form(id=form_id, trigger_id=trigger_id, channel_id=channel_id, in_private=in_private is not False)


def _choosing(form: Form, blocks: list[dict[str, Any]], *, submits: bool = False) -> View:
    kept = {"trigger": form.trigger_id, "channel": form.channel_id, "private": form.in_private}
    view = {
        "type": "modal",
        "callback_id": CHOOSE_ORDER,
        "external_id": form.id,
        "private_metadata": json.dumps(kept),
        "title": _plain("Cancel an order"),
        "close": _plain("Close"),
        "blocks": blocks,
    }
    return {**view, "submit": _plain("Ask for approval")} if submits else view


def _by_market(orders: Sequence[Order]) -> list[dict[str, Any]]:
    """Groups of options, market by market, as many as Slack takes."""
    markets: dict[str, list[Order]] = {}
    for order in orders:
        markets.setdefault(order.market, []).append(order)
    groups: list[dict[str, Any]] = []
    for market, listed in sorted(markets.items()):
        label = _plain(messages.cut(messages.escape(market), OPTION_CHARS))
        for first in range(0, len(listed), OPTIONS_IN_A_GROUP):
            options = [_option(order) for order in listed[first : first + OPTIONS_IN_A_GROUP]]
            groups.append({"label": label, "options": options})
    return groups[:OPTION_GROUPS]


def _option(order: Order) -> dict[str, Any]:
    end = f" · {order.uuid[:UUID_SHOWN_CHARS]}"
    words = messages.cut(messages.order_in_a_line(order), OPTION_CHARS - len(end))
    return {"text": _plain(f"{words}{end}"), "value": order.uuid}


def _reason() -> dict[str, Any]:
    return _text_input(REASON_BLOCK, "Reason", max_length=messages.REASON_CHARS, optional=True, multiline=True)


def _text_input(
    name: str, label: str, *, max_length: int, optional: bool = False, multiline: bool = False
) -> dict[str, Any]:
    element = {"type": "plain_text_input", "action_id": name, "max_length": max_length, "multiline": multiline}
    return {"type": "input", "block_id": name, "label": _plain(label), "element": element, "optional": optional}


# --- What a submitted form is answered: https://docs.slack.dev/surfaces/modals#updating_response ----------------------


def close() -> dict[str, Any]:
    """The form closes."""
    return {}


def replace_with(view: View) -> dict[str, Any]:
    return {"response_action": "update", "view": view}


def keep_open(block_id: str, error: str) -> dict[str, Any]:
    """The form stays as it was filled in, with a line of plain text under this input."""
    return {"response_action": "errors", "errors": {block_id: messages.cut(error, ERROR_CHARS)}}


# --- The Home tab ---------------------------------------------------------------------------------------------------

HOME_REASON_CHARS: Final = 150
WORTH_TELLING_S: Final = 5.0
"""A rate limit is over within a second as a rule: before anybody reads of it."""


def home(view: HomeView, *, workspace_url: str | None) -> View:
    """One person's Home: what waits for them, what they asked for, what came of it, and whether all is well."""
    return {
        "type": "home",
        "blocks": [
            {"type": "header", "text": _plain("Cancel requests")},
            _context(
                f"As of {when(view.drawn_at)}. This page is drawn anew when you open it, and for a week after that "
                "whenever something on it changes."
            ),
            _section("*Waiting for your approval*"),
            *_rows(view.waiting, _waiting, workspace_url, nothing="Nothing waits for your approval."),
            {"type": "divider"},
            _section("*What you asked for*"),
            *_rows(
                view.asked,
                _asked,
                workspace_url,
                nothing="You have no open requests. To ask for one, type `/cancel &lt;uuid&gt; [reason]` in a channel.",
            ),
            {"type": "divider"},
            _section("*Last outcomes* of what you asked for or decided"),
            *_rows(Listed(shown=view.outcomes), _outcome, workspace_url, nothing="There are none yet."),
            {"type": "divider"},
            _section("\n".join(["*Is all well?*", *_health(view)])),
        ],
    }


def _rows(
    listed: Listed, row: Callable[[CancelRequest], list[str]], workspace_url: str | None, *, nothing: str
) -> Iterable[dict[str, Any]]:
    for request in listed.shown:
        yield _section("\n".join(filter(None, [_title(request, workspace_url), *row(request)])))
    if not listed.shown:
        yield _context(nothing)
    elif listed.more or listed.is_cut:
        least = "at least " if listed.is_cut else ""
        yield _context(f"and {least}{listed.more} more, which find room here when those above have ended.")


def _title(request: CancelRequest, workspace_url: str | None) -> str:
    return f"*#{request.id}* {messages.what_in_short(request)}{_card(request, workspace_url)}"


def _card(request: CancelRequest, workspace_url: str | None) -> str:
    link = messages.card_link(request, workspace_url)
    return f" · {messages.linked(link, 'Open the card')}" if link else ""


def _waiting(request: CancelRequest) -> list[str]:
    asked = f"Asked by {mention(request.requester.id)} {when(request.created_at)}"
    expires = f"; expires {when(request.expires_at)}" if request.expires_at else ""
    return [f"{asked}; {_approvals(request)}{expires}", _why(request)]


def _asked(request: CancelRequest) -> list[str]:
    state = messages.state_in_words(request)
    expires = ""
    if request.approved_at is None and request.expires_at:
        expires = f", {_approvals(request)}; expires {when(request.expires_at)}"
    return [f"{state[0].upper()}{state[1:]}{expires}; asked {when(request.created_at)}", _why(request)]


def _outcome(request: CancelRequest) -> list[str]:
    state = messages.state_in_words(request)
    at = f" {when(request.ended_at)}" if request.ended_at else ""
    order = request.order_now
    if request.settled_verdict is not None:
        state += f" ({_VERDICTS[request.settled_verdict]})"
    elif order is not None and order.executed_volume:
        state += f" ({messages.amount(order.executed_volume, order.base_currency)} had been filled)"
    people = [f"asked by {mention(request.requester.id)}"]
    for kind, decided in _DECIDED.items():
        by = [mention(each.actor.id) for each in request.decided(kind)]
        people += [f"{decided} by {', '.join(by[: messages.NAMES_SHOWN])}"] if by else []
    return [f"{state[0].upper()}{state[1:]}{at}; {'; '.join(people)}"]


_VERDICTS: Final = {
    Verdict.CANCELED: "it is canceled",
    Verdict.FILLED: "it was filled",
    Verdict.OPEN: "it is still open",
}
_DECIDED: Final = {DecisionKind.APPROVE: "approved", DecisionKind.DENY: "denied"}


def _approvals(request: CancelRequest) -> str:
    return f"{len(request.counted())} of {request.approvals_required} approvals"


def _why(request: CancelRequest) -> str:
    return f"Reason: {literal(request.reason, HOME_REASON_CHARS)}" if request.reason.strip() else ""


def _health(view: HomeView) -> list[str]:
    """What is known at the moment of drawing, and no more; each with its time."""
    return [
        f"• The bot: {_bot(view.health)}",
        f"• Upbit: {_upbit(view.health.exchange, view)}",
        f"• The database: answered {when(view.drawn_at)}.",
    ]


def _bot(health: Health) -> str:
    if health.is_worker_alive:
        return "at work."
    return "a part of it stands still, so requests may not move. Tell whoever runs this bot."


def _upbit(exchange: ExchangeHealth, view: HomeView) -> str:
    def ago(seconds: float) -> str:
        return when(view.drawn_at - timedelta(seconds=seconds))

    if exchange.is_banned:
        until = when(view.drawn_at + timedelta(seconds=exchange.held_for_s))
        return (
            f"has shut out the bot until {until}, after too many requests. Approved cancels wait; what cannot wait, "
            "cancel at Upbit by hand."
        )
    if exchange.held_for_s >= WORTH_TELLING_S:
        until = when(view.drawn_at + timedelta(seconds=exchange.held_for_s))
        return f"holds the bot back until {until}, after too many requests. Cancels are sent after that."
    answered = f"the last answer was {ago(exchange.answered_ago_s)}" if exchange.answered_ago_s is not None else ""
    if exchange.failed_ago_s is not None:
        since = f"; {answered}" if answered else ""
        return f"gave no usable answer {ago(exchange.failed_ago_s)} ({literal(exchange.cause or '')}){since}."
    if not answered:
        return "has not been asked since the bot started."
    return f"answered {ago(exchange.answered_ago_s or 0.0)}."


def _context(text: str) -> dict[str, Any]:
    return {"type": "context", "elements": [{"type": "mrkdwn", "text": text, "verbatim": True}]}
