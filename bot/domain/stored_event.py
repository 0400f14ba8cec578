"""An event of the audit as it was read back, for what only counts and lists."""

from datetime import datetime
from typing import NamedTuple


class StoredEvent(NamedTuple):
    """What the database holds: nothing in it has been checked, since the table may have been tampered with."""

    seq: int
    occurred_at: datetime  #: aware, in UTC
    action: str
    outcome: str
    actor: str
    actor_name: str
    request_id: int | None
    order_uuid: str | None
    market: str | None
    reason: str | None
    details: str  #: JSON
