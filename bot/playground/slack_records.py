"""What there is in the playground's Slack, as small frozen records: people, channels, messages, views, answers.

Words and ids are Slack's (https://docs.slack.dev/reference); what the bot draws is kept as it was sent, so
that a test can look at it.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

Block = Mapping[str, Any]
ChannelKind = Literal["public", "private", "dm"]
ViewType = Literal["modal", "home"]

SLACK = "USLACKBOT"  #: the author of what Slack itself says, for example that a command timed out


@dataclass(frozen=True, slots=True)
class Person:
    """Someone who can type and click; `team_id` of another workspace makes them a Slack Connect guest."""

    id: str
    name: str
    team_id: str = ""  #: empty: of this workspace
    is_deactivated: bool = False
    is_bot: bool = False
    locale: str = "en-US"


@dataclass(frozen=True, slots=True)
class Channel:
    """A conversation; `members` None means everybody. The bot's own DMs are `dm` with `has_bot`."""

    id: str
    name: str
    kind: ChannelKind = "public"
    members: frozenset[str] | None = None
    has_bot: bool = True
    is_archived: bool = False
    is_read_only: bool = False

    def has_member(self, user: str) -> bool:
        return self.members is None or user in self.members


@dataclass(frozen=True, slots=True)
class Button:
    """A button as Slack shows it."""

    action_id: str
    block_id: str
    text: str
    value: str | None
    style: str | None
    element: Block = field(repr=False)


@dataclass(frozen=True, slots=True)
class Version:
    """What a message said before it was edited or deleted."""

    text: str
    blocks: tuple[Block, ...]
    until: float


@dataclass(frozen=True, slots=True, kw_only=True)
class SharedFile:
    """A file that the bot has sent."""

    id: str
    name: str
    title: str
    content: bytes = field(repr=False)


@dataclass(frozen=True, slots=True, kw_only=True)
class Message:
    """A message, or an ephemeral one where `visible_to` names the only person who sees it."""

    channel: str
    ts: str
    author: str
    text: str
    blocks: tuple[Block, ...] = ()
    thread_ts: str | None = None
    visible_to: str | None = None
    metadata: Mapping[str, Any] | None = None
    client_msg_id: str | None = None
    unfurl_links: bool | None = None
    files: tuple[SharedFile, ...] = ()
    versions: tuple[Version, ...] = ()  #: oldest first

    @property
    def is_ephemeral(self) -> bool:
        return self.visible_to is not None

    @property
    def buttons(self) -> tuple[Button, ...]:
        return tuple(buttons(self.blocks))


@dataclass(frozen=True, slots=True, kw_only=True)
class View:
    """A modal or a Home tab, as one person has it before them."""

    id: str
    user: str
    type: ViewType
    title: str
    blocks: tuple[Block, ...]
    callback_id: str
    private_metadata: str
    external_id: str
    hash: str
    submit: str | None
    previous_id: str | None = None
    is_open: bool = True
    errors: Mapping[str, str] = field(default_factory=dict)  #: block_id -> what the bot said is wrong with it
    json: Mapping[str, Any] = field(repr=False)  #: as the bot sent it

    @property
    def buttons(self) -> tuple[Button, ...]:
        return tuple(buttons(self.blocks))


@dataclass(frozen=True, slots=True, kw_only=True)
class Answer:
    """What the bot answered to one delivery.

    `status` is `ok`, or what Slack tells the person: `operation_timeout`, `http_client_error`, `http_service_error`,
    `dispatch_failed` (nobody there), `invalid_command_response` or `invalid_view_response`.
    """

    status: str
    http_status: int | None = None
    content_type: str = ""
    body: str = ""
    text: str = ""  #: what the person reads in it
    took_s: float = 0.0
    copies: tuple["Answer", ...] = ()  #: the answers to the further copies, where several were sent

    @property
    def ok(self) -> bool:
        return self.status == "ok"


@dataclass(frozen=True, slots=True)
class Call:
    """One call of the Web API (or of a response_url) by the bot, and how it ended: `ok`, an error, or a mood."""

    method: str
    at: float
    arguments: Mapping[str, Any]
    outcome: str


def buttons(blocks: tuple[Block, ...]) -> Iterator[Button]:
    """Every button, from the top to the bottom."""
    for block in blocks:
        for element in (*block.get("elements", ()), block.get("accessory") or {}):
            if element.get("type") == "button":
                yield Button(
                    action_id=element["action_id"],
                    block_id=block["block_id"],
                    text=element["text"]["text"],
                    value=element.get("value"),
                    style=element.get("style"),
                    element=element,
                )
