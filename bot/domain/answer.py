"""What a call to the exchange came to.

    Answer
    ├── Found        the order as it is now                          (GET)
    ├── FoundOrders  those of the orders that were found             (GET of several)
    ├── Accepted     the cancel was accepted; it is not canceled yet (DELETE)
    ├── Refused      an error by name; `proves_nothing_happened` tells what can be concluded
    ├── Unknown      anything else: it may have happened
    └── NotSent      not a byte of the request left

Only `Unknown`, and a refusal that proves nothing, ask for a look at the order before anything else is done.
"""

from dataclasses import dataclass, field

from bot.domain.order import Order


@dataclass(frozen=True, kw_only=True, slots=True)
class Call:
    """The facts of one call, for the audit: no token, no key."""

    method: str  #: GET or DELETE
    path: str  #: /v1/order, /v1/orders/uuids, /v1/orders/open, /v1/orders/closed
    nonce: str  #: the uuid4 in the token
    query_hash: str  #: SHA-512 hex of the query
    status: int | None = None  #: HTTP status, None where no answer came
    error_name: str | None = None  #: Upbit's name for the error
    body: str | None = None  #: what was answered, cut to 2,000 characters
    remaining_req: str | None = None  #: Upbit's header `Remaining-Req`
    elapsed_ms: int = 0  #: from the first attempt to connect to the end of the answer


@dataclass(frozen=True, kw_only=True, slots=True)
class Found:
    order: Order
    call: Call


@dataclass(frozen=True, kw_only=True, slots=True)
class FoundOrders:
    """Nothing can be concluded about an order that was asked for and is not here."""

    orders: tuple[Order, ...]  #: of those that were asked for, each once, in no order
    call: Call
    listed: int = 0  #: entries of the list, those that are no order included; a full page has others after it


@dataclass(frozen=True, kw_only=True, slots=True)
class Accepted:
    order: Order  #: as it was when the cancel was accepted: still `wait` or `watch`
    call: Call


@dataclass(frozen=True, kw_only=True, slots=True)
class Refused:
    name: str  #: Upbit's error name, or `too_many_requests` (429), `banned` (418), which Upbit does not name
    proves_nothing_happened: bool  #: False for `order_not_found`, `nonce_used` and names we do not know
    call: Call
    message: str = ""  #: Upbit's sentence; may be Korean; for the audit and, escaped, for people
    retry_after_s: float | None = None  #: only where the same request may be sent again, after so long


@dataclass(frozen=True, kw_only=True, slots=True)
class Unknown:
    cause: str  #: machine word: timeout, connection_lost, http_500, redirect, not_json, wrong_order, too_large …
    call: Call


@dataclass(frozen=True, kw_only=True, slots=True)
class NotSent:
    cause: str  #: machine word: connect_failed, connect_timeout, dns, tls_handshake, rate_limited, banned
    call: Call
    retry_after_s: float = field(default=1.0)


@dataclass(frozen=True, kw_only=True, slots=True)
class ExchangeHealth:
    """How the calls of this process have fared lately; times as the seconds that have passed since."""

    answered_ago_s: float | None = None  #: the latest answer; None where there was none yet
    failed_ago_s: float | None = None  #: the latest call without a usable answer, if it came after that
    cause: str | None = None  #: machine word for that, or Upbit's name for what is wrong with the key
    held_for_s: float = 0.0  #: calls are held back for so long still
    is_banned: bool = False  #: not by a rate limit but by a ban


CancelAnswer = Accepted | Refused | Unknown | NotSent
LookAnswer = Found | Refused | Unknown | NotSent
OrdersAnswer = FoundOrders | Refused | Unknown | NotSent
