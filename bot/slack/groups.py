"""Reads who is in the user groups of the allowlists, again and again, so that nobody who clicks waits for Slack.

https://docs.slack.dev/reference/methods/usergroups.users.list
"""

import logging
import threading
import time
from collections.abc import Callable, Collection
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any, Final

from slack_sdk import WebClient

from bot.domain.errors import CannotPost, MessengerError, TryLater
from bot.domain.membership import Group, Membership
from bot.slack.notifier import TIMEOUT_S, call

log = logging.getLogger(__name__)

LASTS_S: Final = 60.0
"""What was read longer ago is not relied on."""
READ_EVERY_S: Final = 40.0
"""With time left for a slow answer and one more try. Ten groups are 15 calls a minute; Slack allows about 20."""
RETRY_S: Final = 5.0
MAX_MEMBERS: Final = 10_000
"""Slack gives a group's members in one answer."""

GONE: Final = frozenset({"no_such_subteam", "subteam_not_found"})
"""The group was deleted, or disabled: nobody is in it."""
FAILS_AGAIN: Final = GONE | {
    "account_inactive",
    "invalid_auth",
    "missing_scope",
    "not_allowed_token_type",
    "not_authed",
    "permission_denied",
    "plan_upgrade_required",
    "token_expired",
    "token_revoked",
}
"""Asking again soon will not help."""


@dataclass(slots=True)
class _Read:
    """What was read of one group, by the monotonic clock that says how old it is."""

    group: Group
    asked_at_s: float = 0.0
    next_at_s: float = 0.0


class GroupReader:
    """The Groups of `bot.workflow`. Whoever calls `refresh` when it says so keeps the membership fresh."""

    def __init__(
        self,
        *,
        token: str,
        api_url: str,
        group_ids: Collection[str],
        now: Callable[[], datetime] = lambda: datetime.now(UTC),
        monotonic: Callable[[], float] = time.monotonic,
    ) -> None:
        self._client = WebClient(token=token, base_url=api_url, timeout=TIMEOUT_S, retry_handlers=[])
        self._now = now
        self._monotonic = monotonic
        self._lock = threading.Lock()
        self._read = {group_id: _Read(Group(), next_at_s=monotonic()) for group_id in sorted(group_ids)}

    def membership(self) -> Membership:
        """Who is in the groups; of one that was read too long ago that is not known."""
        oldest_s = self._monotonic() - LASTS_S
        with self._lock:
            return Membership(
                groups={
                    group_id: read.group if read.asked_at_s >= oldest_s else _without_members(read.group)
                    for group_id, read in self._read.items()
                }
            )

    def refresh(self) -> float:
        """Read the groups that are due, one call each; returns in how many seconds the next is."""
        for group_id, read in self._read.items():
            if read.next_at_s <= self._monotonic():
                self._refresh(group_id, read)
        return max(0.0, min(read.next_at_s for read in self._read.values()) - self._monotonic())

    def _refresh(self, group_id: str, read: _Read) -> None:
        asked_at, asked_at_s = self._now(), self._monotonic()  # what the answer says was true then at the latest
        again_in_s, word = READ_EVERY_S, ""
        group: Group | None = None
        try:
            answer = call(self._client.usergroups_users_list, permanent=FAILS_AGAIN, usergroup=group_id)
            group = Group(members=_members(answer.get("users")), read_at=asked_at)
        except MessengerError as error:
            word = error.error if isinstance(error, CannotPost) else str(error)
            if isinstance(error, TryLater):
                again_in_s = error.retry_after_s or RETRY_S
            log.warning("the members of a user group could not be read: %s", word, extra={"group": group_id})
            if word in GONE:
                group = Group(members=frozenset(), read_at=asked_at, error=word)
        with self._lock:
            read.next_at_s = self._monotonic() + again_in_s
            if group is None:
                read.group = Group(members=read.group.members, read_at=read.group.read_at, error=word)
            else:
                read.group, read.asked_at_s = group, asked_at_s


def _members(users: Any) -> frozenset[str]:
    """Raises TryLater where the answer is not what Slack documents."""
    if not isinstance(users, list) or not all(isinstance(user, str) for user in users):
        raise TryLater("malformed_answer")
    if len(users) > MAX_MEMBERS:
        raise TryLater("too_many_members", retry_after_s=READ_EVERY_S)
    return frozenset(users)


def _without_members(group: Group) -> Group:
    if group.is_awaited:
        return group
    return Group(read_at=group.read_at, error=group.error or "not_read_in_time")
