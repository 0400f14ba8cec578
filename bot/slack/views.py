"""Every form (Slack: modal) that the bot opens, and what it shows in place of one. Pure, like `bot.slack.messages`.

A form is known by its `callback_id`; what it is about stands in `private_metadata`, which Slack gives back with what
was filled in. https://docs.slack.dev/surfaces/modals
"""

import json
from collections.abc import Sequence
from typing import Any, Final

from bot.choosing import Choice, Form
from bot.domain.approval import MAX_REASON_CHARS
from bot.domain.cancel_request import CancelRequest
from bot.domain.order import Order
from bot.slack import messages

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
