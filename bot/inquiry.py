"""Inquiry: what people ask about requests, without changing anything.

Who is of our workspace may ask, whatever `REQUESTERS` says. What a request says is shown to those who may see it
(`CancelRequest.may_be_seen_by`); of any other, not even that it exists. Nothing here is audited, as nothing happens.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from datetime import datetime
from typing import Final, Protocol

from bot.domain.approval import ApprovalPolicy
from bot.domain.audit import Actor, Reason
from bot.domain.cancel_request import CancelRequest

PAGE: Final = 10
"""Requests in one answer."""

LOOKED_THROUGH: Final = 200
"""Requests read for one answer, however many of them may not be shown."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Wanted:
    """Which requests somebody asks about; None stands for all. What is given holds together."""

    request_id: int | None = None
    order_uuid: str | None = None
    requester_id: str | None = None
    requester_name: str | None = None  #: as Slack gave it; the person who asked under this name last is meant
    market: str | None = None
    since: datetime | None = None
    before: int | None = None  #: only what was asked before this request: the next page
    only_open: bool = False  #: what is not over: it is open, or its outcome is not known yet


@dataclass(frozen=True, kw_only=True, slots=True)
class Status:
    """One request, None where there is none that this person may see."""

    request: CancelRequest | None
    has_others: bool = False  #: there are older ones of the same order


@dataclass(frozen=True, kw_only=True, slots=True)
class Listing:
    """Some requests, newest first, and what to ask for to see more."""

    wanted: Wanted
    requests: tuple[CancelRequest, ...]
    next_page: Wanted | None = None


class Records(Protocol):
    """What an inquiry needs of the database. Every verb raises StoreError."""

    def read(self, request_id: int) -> CancelRequest | None: ...

    def list_requests(self, wanted: Wanted, *, limit: int) -> Sequence[CancelRequest]:
        """The newest of the requests that fit. `requester_name` is passed over."""
        ...

    def requester_called(self, name: str) -> str | None:
        """The id of the person who asked under this name last."""
        ...


class Inquiry:
    """Answers what people ask about requests."""

    def __init__(self, *, records: Records, policy: ApprovalPolicy) -> None:
        self._records = records
        self._policy = policy

    def refusal(self, person: Actor, *, home_team: str) -> Reason | None:
        """Why this person may ask nothing, or None."""
        return self._policy.reading_refusal(person, home_team=home_team)

    def status(self, wanted: Wanted, *, person_id: str, channel_id: str) -> Status:
        """The request of this number, or the newest one of this order. Raises StoreError."""
        if wanted.request_id is not None:
            request = self._records.read(wanted.request_id)
            is_shown = request is not None and request.may_be_seen_by(person_id, from_channel=channel_id)
            return Status(request=request if is_shown else None)
        seen = self.listing(wanted, person_id=person_id, channel_id=channel_id).requests
        return Status(request=seen[0] if seen else None, has_others=len(seen) > 1)

    def listing(self, wanted: Wanted, *, person_id: str, channel_id: str) -> Listing:
        """A page of the requests that fit and that this person may see. Raises StoreError."""
        found = self._found(wanted, limit=LOOKED_THROUGH + 1)
        read = found[:LOOKED_THROUGH]
        seen = [each for each in read if each.may_be_seen_by(person_id, from_channel=channel_id)]
        last = None
        if len(seen) > PAGE:
            last = seen[PAGE - 1]
        elif len(found) > len(read):
            last = read[-1]
        return Listing(
            wanted=wanted,
            requests=tuple(seen[:PAGE]),
            next_page=replace(wanted, before=last.id) if last is not None else None,
        )

    def _found(self, wanted: Wanted, *, limit: int) -> Sequence[CancelRequest]:
        if wanted.requester_name is None:
            return self._records.list_requests(wanted, limit=limit)
        requester_id = self._records.requester_called(wanted.requester_name)
        if requester_id is None or wanted.requester_id not in {None, requester_id}:
            return ()
        return self._records.list_requests(replace(wanted, requester_id=requester_id), limit=limit)
