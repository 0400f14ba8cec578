"""The token that Upbit wants with every request. Pure: no I/O, no clock, no environment.

https://global-docs.upbit.com/reference/auth
"""

import hashlib
import json
import re
from collections.abc import Sequence
from datetime import datetime, timedelta
from typing import Final, Never

from jwt.algorithms import HMACAlgorithm
from jwt.api_jws import PyJWS

from bot.domain.order import UUID_PATTERN

LONGEST_WINDOW: Final = timedelta(days=7)
"""Between `start_time` and `end_time` of a list of closed orders: https://global-docs.upbit.com/reference/closed-order"""


def order_query(uuid: str) -> str:
    """The query that names one order: the same text on the wire and under the hash.

    The hash does not bind the structure of a query: a value with `&` in it would hash like two fields. Therefore
    nothing but a uuid gets here. Raises ValueError.
    """
    if not UUID_PATTERN.fullmatch(uuid):
        raise ValueError("an order's uuid is 32 lower-case hexadecimal digits in five groups")
    return f"uuid={uuid}"


def orders_query(uuids: Sequence[str]) -> str:
    """The query that names several orders, each once; `[` and `]` stand bare on the wire, too. Raises ValueError."""
    if not uuids or len(set(uuids)) != len(uuids):
        raise ValueError("at least one order's uuid is needed, and each once")
    return "&".join(f"uuids[]={order_query(uuid).removeprefix('uuid=')}" for uuid in uuids)


def open_orders_query(*, page: int, limit: int) -> str:
    """The query for a page of the open orders, the newest first; without its states Upbit leaves stop orders out."""
    return f"states[]=wait&states[]=watch&page={page:d}&limit={limit:d}&order_by=desc"


def canceled_orders_query(*, created_from: datetime, created_to: datetime, limit: int) -> str:
    """The query for the orders that were created in the span and are canceled, the oldest first.

    The times are milliseconds: of ISO 8601, whose `+` and `:` do not survive every encoding, Upbit itself says that the
    token may then not fit. https://docs.upbit.com/kr/changelog/closed_order_support_timestamp

    Raises ValueError for a time without an offset, and for a span that Upbit does not answer.
    """
    if created_from.tzinfo is None or created_to.tzinfo is None:
        raise ValueError("a time needs its offset")
    if not timedelta(0) <= created_to - created_from <= LONGEST_WINDOW:
        raise ValueError("Upbit lists closed orders of 7 days at most")
    start_ms, end_ms = (int(moment.timestamp() * 1000) for moment in (created_from, created_to))
    return f"states[]=cancel&start_time={start_ms:d}&end_time={end_ms:d}&limit={limit:d}&order_by=asc"


def query_hash(query: str) -> str:
    """SHA-512 of the query as sent and not URL-encoded: 128 lower-case hexadecimal digits."""
    return hashlib.sha512(query.encode()).hexdigest()


class _UpbitHmac(HMACAlgorithm):
    """HS512 with the secret that Upbit hands out.

    It has 40 bytes, RFC 7518 recommends 64 for HS512, and PyJWT says so at every signature. Nobody can choose a longer
    one, so that advice is declined here, for this algorithm object only; no filter for warnings is touched.
    """

    def check_key_length(self, key: bytes) -> str | None:  # noqa: ARG002 - the signature is PyJWT's
        return None


_JWS: Final = PyJWS(algorithms=[])
_JWS.register_algorithm("HS512", _UpbitHmac(HMACAlgorithm.SHA512))

_TOKEN_PATTERN: Final = re.compile(r"eyJ[\w-]+\.[\w-]+\.[\w-]*")


class Signer:
    """Holds the two keys, and lets out nothing but tokens.

    The keys are no arguments and no local variables of any frame that can raise: a traceback that shows the values of
    variables shows a Signer, and that shows stars. Raises ValueError for keys that cannot sign.
    """

    __slots__ = ("_access_key", "_secret_key")

    def __init__(self, *, access_key: str, secret_key: str) -> None:
        self._access_key = access_key
        self._secret_key = secret_key
        del access_key, secret_key
        if not self._can_sign():
            raise ValueError("these keys cannot sign: empty, or not an access key and a secret key of Upbit")

    def __repr__(self) -> str:
        return "Signer(access_key=***, secret_key=***)"

    def __reduce__(self) -> Never:
        raise TypeError("a Signer stays in its process")

    def token(self, *, query_hash: str, nonce: str) -> str:
        """The JWT for one request; Upbit takes a nonce once."""
        return _JWS.encode(
            json.dumps(
                {
                    "access_key": self._access_key,
                    "nonce": nonce,
                    "query_hash": query_hash,
                    "query_hash_alg": "SHA512",
                },
                separators=(",", ":"),
            ).encode(),
            self._secret_key,
            algorithm="HS512",
        )

    def scrub(self, text: str) -> str:
        """The text without keys and tokens, for an answer that echoes what was sent."""
        for key in (self._access_key, self._secret_key):
            text = text.replace(key, "***")
        return _TOKEN_PATTERN.sub("***", text)

    def _can_sign(self) -> bool:
        """Whether the keys work. What is wrong stays here: PyJWT's exception holds the key in its frames."""
        if not self._access_key:
            return False
        try:
            self.token(query_hash="", nonce="")
        except Exception:  # noqa: BLE001 - whatever it is, these keys are of no use
            return False
        return True
