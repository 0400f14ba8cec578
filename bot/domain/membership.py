"""Who is in the user groups that the allowlists name, as far as that is known at one moment."""

import hashlib
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from datetime import datetime
from typing import Final

from bot.domain.audit import Json, timestamp

MAX_IDS_IN_AN_EVENT: Final = 200
"""Of a longer list of people an event holds so many, the number of all, and the hash of the whole list."""


def is_group(entry: str) -> bool:
    """Whether an entry of an allowlist is a user group's id, and not a person's."""
    return entry.startswith("S")


@dataclass(frozen=True, kw_only=True, slots=True)
class Group:
    """A user group as it was last read.

    `members` is None where it is not known who they are. Then `error` says why, and is None where nobody has asked yet.
    """

    members: frozenset[str] | None = None
    read_at: datetime | None = None
    error: str | None = None

    @property
    def is_awaited(self) -> bool:
        return self.members is None and self.error is None


@dataclass(frozen=True, kw_only=True, slots=True)
class Membership:
    """A snapshot of the groups. One that is not in it is as one that nobody has asked about yet."""

    groups: Mapping[str, Group] = field(default_factory=dict)

    def people(self, entries: Collection[str]) -> frozenset[str]:
        """The people on an allowlist: those named, and the members of the groups that are known."""
        named = frozenset(entry for entry in entries if not is_group(entry))
        return named.union(*(self._group(entry).members or () for entry in entries if is_group(entry)))

    def is_unknown(self, entries: Collection[str]) -> bool:
        """Whether more people may be on the list than `people` tells, since a group of it could not be read."""
        return any(self._group(entry).members is None for entry in entries if is_group(entry))

    def is_awaited(self, entries: Collection[str]) -> bool:
        """Whether a group of the list is still to be read for the first time."""
        return any(self._group(entry).is_awaited for entry in entries if is_group(entry))

    def to_json(self, entries: Collection[str]) -> dict[str, Json]:
        """The groups of an allowlist as an event holds them; empty where it names none."""
        groups = sorted(entry for entry in entries if is_group(entry))
        return {"membership": {entry: _group_json(self._group(entry)) for entry in groups}} if groups else {}

    def _group(self, entry: str) -> Group:
        return self.groups.get(entry, Group())


UNREAD: Final = Membership()
"""Before any group was read; all there is to know where the allowlists name none."""


def ids_json(name: str, ids: Collection[str]) -> dict[str, Json]:
    """A list of people, sorted, as an event holds it: cut where it is long, with what proves the rest."""
    whole = sorted(ids)
    shown: dict[str, Json] = {name: [*whole[:MAX_IDS_IN_AN_EVENT]]}
    if len(whole) > MAX_IDS_IN_AN_EVENT:
        shown[f"{name}_count"] = len(whole)
        shown[f"{name}_sha256"] = hashlib.sha256(",".join(whole).encode()).hexdigest()
    return shown


def _group_json(group: Group) -> Json:
    facts: dict[str, Json] = {"read_at": timestamp(group.read_at) if group.read_at else None}
    if group.members is not None:
        facts |= ids_json("members", group.members)
    if group.error is not None:
        facts["error"] = group.error
    return facts
