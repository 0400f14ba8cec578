"""Every form (Slack: modal) that the bot opens, and what it shows in place of one. Pure, like `bot.slack.messages`.

A form is known by its `callback_id`; what it is about stands in `private_metadata`, which Slack gives back with what
was filled in. https://docs.slack.dev/surfaces/modals
"""

from typing import Any, Final

from bot.slack import messages

View = dict[str, Any]

# Slack's limits: https://docs.slack.dev/reference/views/modal-views
TITLE_CHARS: Final = 24
LABEL_CHARS: Final = 2000
PRIVATE_METADATA_CHARS: Final = 3000
ERROR_CHARS: Final = 2000  # ours: Slack names no limit


def told(sentence: str) -> View:
    """A view that tells and asks nothing; it takes the place of a form that has no use any more."""
    return {
        "type": "modal",
        "title": _plain("Nothing was done"),
        "close": _plain("Close"),
        "blocks": [_section(sentence)],
    }


def _section(text: str) -> dict[str, Any]:
    words = messages.cut(text, messages.SECTION_CHARS)
    return {"type": "section", "text": {"type": "mrkdwn", "text": words, "verbatim": True}}


def _plain(text: str) -> dict[str, Any]:
    return {"type": "plain_text", "text": text, "emoji": False}


# --- What a submitted form is answered: https://docs.slack.dev/surfaces/modals#updating_response ----------------------


def close() -> dict[str, Any]:
    """The form closes."""
    return {}


def replace_with(view: View) -> dict[str, Any]:
    return {"response_action": "update", "view": view}


def keep_open(block_id: str, error: str) -> dict[str, Any]:
    """The form stays as it was filled in, with a line of plain text under this input."""
    return {"response_action": "errors", "errors": {block_id: messages.cut(error, ERROR_CHARS)}}
