"""What of a signed delivery reaches Bolt: the fields that the listeners read, each of the kind that it should be.

Bolt looks into fields that nobody here uses, and breaks on those that are of another kind. So a delivery is read here
and written anew with nothing else in it. https://docs.slack.dev/interactivity/implementing-slash-commands and
https://docs.slack.dev/reference/interaction-payloads/block_actions-payload
"""

import json
import re
from typing import Annotated, Any, Final, Literal
from urllib.parse import parse_qsl, urlencode

from pydantic import BaseModel, ConfigDict, Field

FORM: Final = "application/x-www-form-urlencoded"
JSON: Final = "application/json"
MAX_FIELDS: Final = 100

_KIND: Final = re.compile(r"[a-z_]{1,40}")

Needed = Annotated[str, Field(pattern=r"[^\s\p{C}]")]
"""Text with something in it that can be seen."""


class UnreadableError(Exception):
    """The delivery is not what Slack sends."""


class NothingForUsError(Exception):
    """Something that Slack may send and that nobody here listens to; says what kind it is."""


class _Part(BaseModel):
    model_config = ConfigDict(strict=True, extra="ignore")


class _Command(_Part):
    command: Needed
    text: str = ""
    trigger_id: Needed
    user_id: Needed
    user_name: str = ""
    team_id: Needed
    channel_id: Needed
    channel_name: str = ""
    response_url: str = ""


class _Named(_Part):
    id: str


class _User(_Part):
    id: Needed
    username: str = ""
    name: str = ""
    team_id: str = ""


class _Container(_Part):
    channel_id: str | None = None
    message_ts: str | None = None


class _Option(_Part):
    value: str


class _Action(_Part):
    action_id: str
    block_id: str = ""
    value: str | None = None
    selected_option: _Option | None = None


class _Input(_Part):
    """What a person filled into one field of a view."""

    type: str
    value: str | None = None
    selected_option: _Option | None = None


class _State(_Part):
    values: dict[str, dict[str, _Input]] = {}


class _View(_Part):
    id: Needed
    type: str
    callback_id: str = ""
    private_metadata: str = ""
    hash: str = ""
    state: _State = _State()


class _BlockActions(_Part):
    type: Literal["block_actions"]
    team: _Named | None = None
    user: _User
    channel: _Named | None = None
    container: _Container | None = None
    actions: Annotated[list[_Action], Field(min_length=1)]
    view: _View | None = None
    response_url: str | None = None
    trigger_id: str | None = None


class _ViewSubmission(_Part):
    """https://docs.slack.dev/reference/interaction-payloads/view-interactions-payload."""

    type: Literal["view_submission"]
    team: _Named | None = None
    user: _User
    view: _View
    trigger_id: str | None = None


class _HomeOpened(_Part):
    """https://docs.slack.dev/reference/events/app_home_opened."""

    type: Literal["app_home_opened"]
    user: Needed
    tab: str = ""


class _EventCallback(_Part):
    type: Literal["event_callback"]
    team_id: Needed
    event: _HomeOpened


class _UrlVerification(_Part):
    """https://docs.slack.dev/reference/events/url_verification."""

    type: Literal["url_verification"]
    challenge: str


_KINDS: Final[dict[str, type[_Part]]] = {
    "app_home_opened": _EventCallback,
    "block_actions": _BlockActions,
    "url_verification": _UrlVerification,
    "view_submission": _ViewSubmission,
}
"""By the type of the payload, or of the event in it."""


def rewritten(body: bytes, content_type: str) -> bytes:
    """The body anew, of the same content type. Raises UnreadableError, NothingForUsError.

    What is written holds the word "payload" only where there is such a field: Bolt takes any form in which it stands
    for one, so that `/cancel … wrong payload` would reach it empty.
    """
    try:
        text = body.decode()
        # Bolt takes what begins with `{` for JSON, too.
        if content_type == JSON or text.startswith("{"):
            return _written(json.loads(text)).encode()
        fields = parse_qsl(text, keep_blank_values=True, max_num_fields=MAX_FIELDS)
        form = dict(fields)
        if len(form) != len(fields):
            raise UnreadableError("a field stands twice")
        if "ssl_check" in form:
            return b"ssl_check=1"
        if "payload" in form:
            return urlencode({"payload": _written(json.loads(form["payload"]))}).encode()
        command = _Command.model_validate(form)
        return urlencode(command.model_dump()).encode().replace(b"payload", b"%70ayload")
    except (ValueError, RecursionError):
        # pydantic's and json's errors are ValueErrors that quote what they refuse.
        raise UnreadableError("the body cannot be read") from None


def _written(payload: Any) -> str:
    kind = _kind(payload)
    if kind == "event_callback":
        kind = _kind(payload.get("event"))
    if kind not in _KINDS:
        raise NothingForUsError(kind)
    return _KINDS[kind].model_validate(payload).model_dump_json(exclude_none=True)


def _kind(part: Any) -> str:
    kind = part.get("type") if isinstance(part, dict) else None
    if not isinstance(kind, str) or not _KIND.fullmatch(kind):
        raise UnreadableError("the body cannot be read")
    return kind
