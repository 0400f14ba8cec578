"""Finds the newest events that fit, in a few steps of the indexes, however many events there are.

Every event has a kind (`EventKind`): its action, outcome, reason and the class of its order's worth in one text. There
are few kinds, whatever the number of events. So a question is answered in three steps:

1. Times become numbers of events, since time never runs backwards along them.
2. The kinds that there are, of this actor or on this market, are read by skipping from one to the next along an index;
   those that fit are known by looking at the words.
3. The newest events of each of these are read from the same index, and merged.

Whoever asks about one order, one request, or one person on one market is answered from an index of these instead. Rows
of values and the order of all their columns are given even where one is fixed: so PostgreSQL has no other index to
choose, however its statistics look.
"""

import json
from collections.abc import Iterable, Sequence
from dataclasses import replace
from datetime import datetime
from decimal import Decimal
from heapq import nlargest
from typing import Any, Final

from sqlalchemy import (
    ARRAY,
    ColumnElement,
    Connection,
    FromClause,
    Integer,
    Select,
    Text,
    and_,
    exists,
    func,
    literal,
    literal_column,
    or_,
    select,
    text,
    true,
    tuple_,
)

from bot.database.event_words import (
    BEHIND_SEPARATOR,
    LOWEST_CLASS,
    SEPARATOR,
    UNKNOWN_CLASS,
    EventKind,
    OwnMark,
    ReasonWord,
    ValueDigits,
    ValueKrw,
    value_class,
)
from bot.database.schema import audit_events
from bot.domain.audit import SYSTEM, Action
from bot.domain.event_filter import Filter
from bot.domain.tiers import UNKNOWN_VALUE, value_text

MOST_AT_ONCE: Final = 1000
"""Events that one search finds; whoever wants more goes on behind the last."""

MOST_KINDS: Final = 20_000
"""More are not looked at; there are a few hundred."""

FIRST_LOOK: Final = 3
LOOKS_GROW: Final = 4
"""So many of each kind are read at first, then so many times more of those that may have more on the page."""

PROBES: Final = 15

_LAST: Final = 2**63 - 1
_EVENT: Final = audit_events.c
_KIND: Final = EventKind()
_MARKED: Final[ColumnElement[int]] = literal_column("1", Integer)


def narrow(query: Select[Any], wanted: Filter) -> Select[Any]:
    """The query for events that fit only; right, and not always fast."""
    return query.where(*_conditions(wanted))


def _conditions(wanted: Filter, *, by_no_index: bool = False) -> Iterable[ColumnElement[bool]]:
    """What holds of an event that fits; `by_no_index` keeps the database from finding it by these columns."""
    for name in ("order_uuid", "request_id", "actor", "market", "action", "outcome"):
        value = getattr(wanted, name)
        if value is not None:
            column: ColumnElement[Any] = _EVENT[name]
            yield (column + (0 if name == "request_id" else "") if by_no_index else column) == value
    if wanted.details_reason is not None:
        yield ReasonWord() == wanted.details_reason
    if wanted.over_krw is not None:
        yield _is_over(wanted.over_krw)
    if wanted.own:
        yield OwnMark() == _MARKED
        yield _asked_by_its_actor()
    if wanted.before_seq is not None:
        yield _EVENT.seq < wanted.before_seq
    if wanted.since is not None:
        yield _EVENT.occurred_at >= wanted.since
    if wanted.until is not None:
        yield _EVENT.occurred_at < wanted.until


def newest(connection: Connection, wanted: Filter, *, limit: int) -> list[int]:
    """The numbers of the newest events that fit, the newest first; at most MOST_AT_ONCE."""
    span = _span(connection, wanted)
    if span is None:
        return []
    wanted = replace(wanted, since=None, until=None, before_seq=None)
    search = _Search(connection, wanted, low=span[0], high=span[1], limit=min(limit, MOST_AT_ONCE))
    if wanted.request_id is not None:
        return search.among([_EVENT.request_id == wanted.request_id])
    if wanted.order_uuid is not None:
        return search.among([_EVENT.order_uuid == wanted.order_uuid])
    if wanted.own:
        return search.along([(OwnMark(), _MARKED)])
    if wanted.market is not None and wanted.actor not in {None, SYSTEM.id}:
        return search.along([(_EVENT.actor, wanted.actor), (_EVENT.market, wanted.market)])
    if wanted == Filter():
        return search.along([])
    return search.by_kind()


# Times as numbers


def _span(connection: Connection, wanted: Filter) -> tuple[int, int] | None:
    """The first and the last number of the events that may fit by time and page; None where there are none."""
    # Two questions: SQLite answers both at once by reading all.
    ends = (select(end(_EVENT.seq)).scalar_subquery() for end in (func.min, func.max))
    low, high = connection.execute(select(*ends)).one()
    if low is None:
        return None
    if wanted.before_seq is not None:
        high = min(high, wanted.before_seq - 1)
    if wanted.until is not None:
        high = _first_at(connection, wanted.until, low, high + 1) - 1
    if wanted.since is not None:
        low = _first_at(connection, wanted.since, low, high + 1)
    return (low, high) if low <= high else None


def _first_at(connection: Connection, moment: datetime, low: int, end: int) -> int:
    """The number of the first event at or after the moment, of those from `low` to before `end`; else `end`."""
    table = select(_EVENT.seq, _EVENT.occurred_at)
    while low < end:
        step = (end - low) / (PROBES + 1)
        probes = sorted({low + int(step * place) for place in range(1, PROBES + 1)})
        seen = connection.execute(table.where(_EVENT.seq.in_(probes)).order_by(_EVENT.seq)).all()
        if not seen:  # somebody removed them
            seen = connection.execute(table.where(_EVENT.seq.between(low, end - 1)).order_by(_EVENT.seq).limit(1)).all()
        if not seen:
            return end
        earlier = [row.seq for row in seen if row.occurred_at < moment]
        later = [row.seq for row in seen if row.occurred_at >= moment]
        low = earlier[-1] + 1 if earlier else low
        end = later[0] if later else end
        if not earlier and len(later) == len(seen) and later[0] == low:
            return low
    return end


# The search


class _Search:
    """One question, in one read transaction, among the events from `low` to `high`."""

    def __init__(self, connection: Connection, wanted: Filter, *, low: int, high: int, limit: int) -> None:
        self._connection = connection
        self._wanted = wanted
        self._low = low
        self._high = high
        self._limit = limit
        self._is_sqlite = connection.dialect.name == "sqlite"

    def among(self, conditions: Sequence[ColumnElement[bool]]) -> list[int]:
        """Of few events, found by an index: sorted once they are found."""
        # Not the number itself: by its index nothing is found quickly.
        seq = _EVENT.seq + 0
        fits = _conditions(self._wanted, by_no_index=True)
        query = select(_EVENT.seq).where(*conditions, seq.between(self._low, self._high), *fits)
        return self._numbers(query.order_by(seq.desc()).limit(self._limit))

    def along(self, fixed: Sequence[tuple[ColumnElement[Any], Any]]) -> list[int]:
        """Down an index that begins with these columns and goes on with the number."""
        query = select(_EVENT.seq).where(*_conditions(self._wanted, by_no_index=True))
        return self._numbers(self._downward(query, fixed, low=self._low).limit(self._limit))

    def by_kind(self) -> list[int]:
        """Down the lists of the newest of each kind."""
        sure, unsure = self._kinds()
        found: dict[str, list[int]] = {}
        numbers: list[int] = []
        pending, look = sure, FIRST_LOOK
        while pending:
            look = min(look, self._limit)
            found |= self._of_kinds(pending, low=self._floor(numbers), limit=look)
            numbers = self._merged(found.values())
            floor = self._floor(numbers)
            pending = [kind for kind in pending if len(found[kind]) == look < self._limit and found[kind][-1] > floor]
            look *= LOOKS_GROW
        if unsure:
            # Only now, since it has to read events: not those that are older than enough others.
            assert self._wanted.over_krw is not None
            is_over = _is_over_in_class(self._wanted.over_krw)
            numbers = self._merged(
                [numbers, *self._of_kinds(unsure, is_over, low=self._floor(numbers), limit=self._limit).values()]
            )
        return numbers

    def _floor(self, numbers: list[int]) -> int:
        """The lowest number that may still belong to the page, when these are found."""
        return numbers[-1] if len(numbers) == self._limit else self._low

    def _merged(self, lists: Iterable[Iterable[int]]) -> list[int]:
        return nlargest(self._limit, (seq for some in lists for seq in some))

    def _numbers(self, query: Select[Any]) -> list[int]:
        return list(self._connection.execute(query).scalars())

    # Kinds

    def _kinds(self) -> tuple[list[str], list[str]]:
        """The kinds whose events all fit, and those of which some may, as only their exact worth can tell."""
        wanted = self._wanted
        over = None if wanted.over_krw is None else value_class(wanted.over_krw)
        sure: list[str] = []
        unsure: list[str] = []
        for kind in self._there_may_be():
            action, outcome, *reason, worth = kind.split(SEPARATOR)
            fits = all(
                each in {None, word}
                for each, word in (
                    (wanted.action, action),
                    (wanted.outcome, outcome),
                    (wanted.details_reason, SEPARATOR.join(reason)),
                )
            )
            if not fits:
                continue
            if over is None or worth > over:
                sure.append(kind)
            elif worth == over:
                unsure.append(kind)
        return sure, unsure

    def _there_may_be(self) -> list[str]:
        kinds = self._there_are(self._fixed())
        if self._wanted.market is None or self._wanted.actor is None:
            return kinds
        # Where only others do something, every event of it would be read in vain.
        of_actor = set(self._there_are([(_EVENT.actor, self._wanted.actor)]))
        return [kind for kind in kinds if kind in of_actor]

    def _there_are(self, fixed: Sequence[tuple[ColumnElement[Any], Any]]) -> list[str]:
        """The kinds that occur, where these columns have these values; at most of this action."""
        first, end = "", UNKNOWN_CLASS * 2
        if self._wanted.action is not None:
            first, end = self._wanted.action + SEPARATOR, self._wanted.action + BEHIND_SEPARATOR
        kinds = select(self._next_kind(fixed, literal(first, Text), end).label("kind")).cte("kinds", recursive=True)
        following = select(self._next_kind(fixed, kinds.c.kind, end, kinds)).select_from(kinds)
        following = following.where(kinds.c.kind.is_not(None))
        kinds = kinds.union_all(following)
        found = self._connection.execute(select(kinds.c.kind).where(kinds.c.kind.is_not(None)).limit(MOST_KINDS))
        return list(found.scalars())

    def _fixed(self) -> list[tuple[ColumnElement[Any], Any]]:
        if self._wanted.market is not None:
            return [(_EVENT.market, self._wanted.market)]
        return [] if self._wanted.actor is None else [(_EVENT.actor, self._wanted.actor)]

    def _next_kind(
        self,
        fixed: Sequence[tuple[ColumnElement[Any], Any]],
        after: ColumnElement[str],
        end: str,
        *known: FromClause,
    ) -> ColumnElement[Any]:
        columns, values = [column for column, _ in fixed], [value for _, value in fixed]
        if self._is_sqlite:
            within = and_(*(column == value for column, value in fixed), after < _KIND, end > _KIND)
        else:
            place = tuple_(*columns, _KIND)
            within = and_(place > tuple_(*values, after), place < tuple_(*values, end), *_is_in_index(columns))
        order = [_KIND] if self._is_sqlite else [*columns, _KIND]
        return (
            select(_KIND)
            .select_from(audit_events)
            .where(within)
            .order_by(*order)
            .limit(1)
            .correlate(*known)
            .scalar_subquery()
        )

    def _of_kinds(
        self, kinds: Sequence[str], *conditions: ColumnElement[bool], low: int, limit: int
    ) -> dict[str, list[int]]:
        """The newest numbers from `low` on of each kind, `limit` of each at most."""
        if not kinds:
            return {}
        if self._wanted.market is not None and self._wanted.actor is not None:
            conditions = (*conditions, _EVENT.actor == self._wanted.actor)
        if self._is_sqlite:
            return self._of_kinds_sqlite(kinds, conditions, low=low, limit=limit)
        return self._of_kinds_postgresql(kinds, conditions, low=low, limit=limit)

    def _of_kinds_sqlite(
        self, kinds: Sequence[str], conditions: Sequence[ColumnElement[bool]], *, low: int, limit: int
    ) -> dict[str, list[int]]:
        each = func.json_each(json.dumps(list(kinds))).table_valued("value")
        numbers = self._downward(select(_EVENT.seq), [*self._fixed(), (_KIND, each.c.value)], low=low)
        some = numbers.where(*conditions).limit(limit).correlate(each).subquery()
        listed = select(func.json_group_array(some.c.seq)).correlate(each).scalar_subquery()
        return {kind: json.loads(text) for kind, text in self._connection.execute(select(each.c.value, listed))}

    def _of_kinds_postgresql(
        self, kinds: Sequence[str], conditions: Sequence[ColumnElement[bool]], *, low: int, limit: int
    ) -> dict[str, list[int]]:
        each = func.unnest(literal(list(kinds), ARRAY(Text))).table_valued("kind").render_derived()
        numbers = self._downward(select(_EVENT.seq), [*self._fixed(), (_KIND, each.c.kind)], low=low)
        some = numbers.where(*conditions).limit(limit).lateral()
        found: dict[str, list[int]] = {kind: [] for kind in kinds}
        for kind, seq in self._connection.execute(select(each.c.kind, some.c.seq).select_from(each.join(some, true()))):
            found[kind].append(seq)
        return found

    def _downward(
        self, query: Select[Any], fixed: Sequence[tuple[ColumnElement[Any], Any]], *, low: int
    ) -> Select[Any]:
        columns, values = [column for column, _ in fixed], [value for _, value in fixed]
        if self._is_sqlite or not fixed:
            query = query.where(*(column == value for column, value in fixed), _EVENT.seq.between(low, self._high))
            return query.where(*_is_in_index(columns)).order_by(_EVENT.seq.desc())
        place = tuple_(*columns, _EVENT.seq)
        query = query.where(place >= tuple_(*values, low), place <= tuple_(*values, self._high), *_is_in_index(columns))
        return query.order_by(*(column.desc() for column in columns), _EVENT.seq.desc())


def _is_in_index(columns: Sequence[ColumnElement[Any]]) -> list[ColumnElement[bool]]:
    """What a partial index asks for, told so that the database sees it."""
    conditions: list[ColumnElement[bool]] = []
    if any(column is _EVENT.market for column in columns):
        conditions.append(_EVENT.market.is_not(None))
        if any(column is _EVENT.actor for column in columns):
            # A literal, not a parameter: only then does SQLite see that the partial index fits.
            conditions.append(text(f"actor <> '{SYSTEM.id}'"))  # type: ignore[arg-type]
    return conditions


def _is_over_in_class(amount: Decimal) -> ColumnElement[bool]:
    """Of events whose value is of the same class as the amount: but for the lowest, its digits are as many."""
    return _is_over(amount) if value_class(amount) == LOWEST_CLASS else ValueKrw() > value_text(amount)


def _is_over(amount: Decimal) -> ColumnElement[bool]:
    value, whole = value_text(amount), len(format(amount, "f").partition(".")[0])
    return or_(
        ValueKrw() == UNKNOWN_VALUE,
        ValueDigits() > whole,
        and_(ValueDigits() == whole, ValueKrw() > value),
    )


def _asked_by_its_actor() -> ColumnElement[bool]:
    created = audit_events.alias("created")
    return exists().where(
        created.c.request_id == _EVENT.request_id,
        # A request's events are few, and these columns lead to many.
        created.c.action + "" == Action.REQUEST_CREATED.value,
        created.c.actor + "" == _EVENT.actor,
    )
