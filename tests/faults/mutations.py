"""Seeded hostile input: requests to the bot, signed and not, down to single bytes, and answers of the exchange."""

import copy
import hashlib
import hmac
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from io import BytesIO
from random import Random
from typing import Any, Final, Literal
from urllib.parse import quote_plus, urlencode

FORM: Final = "application/x-www-form-urlencoded"
JSON: Final = "application/json"
EVENTS: Final = "/slack/events"
TIMESTAMP: Final = "X-Slack-Request-Timestamp"
SIGNATURE: Final = "X-Slack-Signature"
STALE_S: Final = 301
LARGEST_BODY_BYTES: Final = 1_000_000
LARGE_ONE_IN: Final = 500

PINGS: Final = ("<!channel>", "<!here|x>", "<@U0PING>", "<https://evil.test|ok>", "<!subteam^S0EVIL>")
"""What would ping or mislead people if it came out of the bot as it went in."""

TEXTS: Final = (
    *PINGS,
    *(f"`{ping}`" for ping in PINGS),
    *("", " ", "\0", "a\0b", "\ud800", "\udfff\ud800x", "\x1b[31m", "\u202eabc", "\u200b", "😀" * 800, "x" * 5000),
    *("'; DROP TABLE cancel_requests; --", "' OR '1'='1", '=HYPERLINK("http://evil.test")', "+1+1", "@SUM(1)", "-1"),
    *("<script>alert(1)</script>", "&lt;!channel&gt;", "*_~`", "%s%n%d", "{0.__class__}", "../../etc/passwd"),
    *('x\n{"level": "error", "logger": "bot.forged"}', "x\r\nSet-Cookie: a=b", "\u0663", "\uff12", "²", "None", "true"),
    *("0", "007", "+1", "1.0", "1e3", "9223372036854775808", "9" * 400, "NaN", "T0OTHER", "U0EVIL", "U0CARA", "C0ELSE"),
)
VALUES: Final[tuple[Any, ...]] = (
    *(None, True, False, 0, -1, 1, 2**63, 2**64, 10**300, 1.5, -0.0, 1e308),
    *([], {}, [[]], [None], [{}], {"id": None}, {"id": []}, {"": ""}, "x" * 50_000),
    json.loads("[" * 60 + "]" * 60),
)

Headers = tuple[tuple[str, str], ...]


@dataclass(frozen=True, kw_only=True, slots=True)
class Hostile:
    """One request to the bot and the family of mutation that it comes from."""

    family: str
    method: str = "POST"
    path: str = EVENTS
    headers: Headers
    body: bytes

    def environ(self) -> dict[str, Any]:
        """As a WSGI server hands it over: headers of one name in one line."""
        environ: dict[str, Any] = {
            "REQUEST_METHOD": self.method,
            "PATH_INFO": self.path,
            "QUERY_STRING": "",
            "SERVER_PROTOCOL": "HTTP/1.1",
            "wsgi.input": BytesIO(self.body),
        }
        for name, value in self.headers:
            key = name.upper().replace("-", "_")
            key = key if key in {"CONTENT_TYPE", "CONTENT_LENGTH"} else f"HTTP_{key}"
            environ[key] = f"{environ[key]},{value}" if key in environ else value
        return environ

    def wire(self) -> bytes:
        """As it goes through a socket."""
        lines = [f"{self.method} {self.path} HTTP/1.1", "Host: bot.test", "Connection: close"]
        lines += [f"{name}: {value}" for name, value in self.headers]
        return "\r\n".join([*lines, "", ""]).encode("latin-1") + self.body


def sign(secret: str, body: bytes, timestamp: int | str) -> str:
    return "v0=" + hmac.new(secret.encode(), f"v0:{timestamp}:".encode() + body, hashlib.sha256).hexdigest()


def signed(secret: str, body: bytes, timestamp: int, *, content_type: str = FORM) -> Headers:
    """The headers with which Slack sends this body."""
    return (
        ("Content-Type", content_type),
        ("Content-Length", str(len(body))),
        (TIMESTAMP, str(timestamp)),
        (SIGNATURE, sign(secret, body, timestamp)),
    )


def _with(headers: Headers, name: str, *values: str) -> Headers:
    """The headers with these values in place of the one there was; with none, without it."""
    return tuple(each for each in headers if each[0] != name) + tuple((name, value) for value in values)


# --- Not signed -----------------------------------------------------------------------------------------------------


class Unsigned:
    """Requests that no bot may act on: somebody without the secret, or with an old or altered request of Slack's."""

    def __init__(self, dice: Random, *, secret: str, now: Callable[[], float], bodies: Sequence[bytes]) -> None:
        self._dice = dice
        self._secret = secret
        self._now = now
        self._bodies = bodies
        self._spoilers = {
            "signature": self._spoil_signature,
            "timestamp": self._spoil_timestamp,
            "body": self._spoil_body,
            "length": self._spoil_length,
            "content type": self._spoil_content_type,
            "method": self._spoil_method,
            "path": self._spoil_path,
        }

    def next(self) -> Hostile:
        dice = self._dice
        family = dice.choice([*self._spoilers])
        body, content_type = self._body()
        right = Hostile(
            family=family,
            headers=signed(self._secret, body, int(self._now()), content_type=content_type),
            body=body,
        )
        return self._spoilers[family](right)

    def _body(self) -> tuple[bytes, str]:
        dice = self._dice
        if dice.randrange(LARGE_ONE_IN) == 0:
            return b"a" * dice.choice([LARGEST_BODY_BYTES, LARGEST_BODY_BYTES + 1]), FORM
        form = urlencode({"command": "/cancel", "text": dice.choice(TEXTS)}, errors="surrogatepass").encode()
        return dice.choice(
            [
                (dice.choice(self._bodies), FORM),
                (form, FORM),
                (b"ssl_check=1&token=x", FORM),
                (b'{"type": "url_verification", "challenge": "x", "token": "x"}', JSON),
                (b"[" * 20_000, JSON),
                (b'{"a":' * 20_000, FORM),
                (dice.randbytes(dice.randrange(60)), dice.choice([FORM, JSON])),
                (b"text=\xff\xfe\0&payload=%00", FORM),
                (b"", FORM),
            ]
        )

    def _spoil_signature(self, right: Hostile) -> Hostile:
        dice, body = self._dice, right.body
        timestamp, good = dict(right.headers)[TIMESTAMP], dict(right.headers)[SIGNATURE]
        values: list[tuple[str, ...]] = [
            *[(), ("",), (good, good), (good, "v0=0"), (good.upper(),), (good[3:],), (good[:-1],), (good + "0",)],
            *[("v0=" + "0" * 64,), ("v1" + good[2:],), (f"v0={dice.randbytes(32).hex()}",), ("v0=" + "é" * 64,)],
            *[(sign("", body, timestamp),), (sign("other", body, timestamp),), ("0" * 7000,), (f"{good} {good}",)],
            *[(sign(self._secret, body + b" ", timestamp),), (sign(self._secret, body, int(timestamp) - 1),)],
        ]
        return Hostile(family=right.family, headers=_with(right.headers, SIGNATURE, *dice.choice(values)), body=body)

    def _spoil_timestamp(self, right: Hostile) -> Hostile:
        """Well signed, each of them: only the time is wrong."""
        dice, now = self._dice, int(self._now())
        away_s = dice.choice([STALE_S + 60, 1_000, 3_600, 86_400, dice.randrange(10**5, 10**9)])
        told = dice.choice(
            [
                *[str(now - away_s), str(now + away_s), str(-now), f"{now}.0", f"+{now}", f"{now}e0", f"0x{now:x}"],
                *["", "now", "9" * 3000, str(2**63), "¹²³", f"{now} {now}", f"{now},{now}", f"{now:_}"],
            ]
        )
        headers = _with(right.headers, SIGNATURE, sign(self._secret, right.body, told))
        values = dice.choice([(told,), (told, str(now)), ()])
        return Hostile(family=right.family, headers=_with(headers, TIMESTAMP, *values), body=right.body)

    def _spoil_body(self, right: Hostile) -> Hostile:
        body = bytearray(right.body or b"x")
        body[self._dice.randrange(len(body))] ^= 1 << self._dice.randrange(8)
        wrong = _with(right.headers, "Content-Length", str(len(body)))
        return Hostile(family=right.family, headers=wrong, body=bytes(body))

    def _spoil_length(self, right: Hostile) -> Hostile:
        length = len(right.body)
        values = self._dice.choice(
            [
                *[(), ("",), (str(length + 1),), ("-1",), (f"+{length}",), ("many",), ("9" * 30,), ("1e3",), ("²",)],
                *[(str(length), str(length)), (f"{length}, {length}",), (str(LARGEST_BODY_BYTES + 1),)],
                *([(str(length - 1),)] if length else []),
            ]
        )
        headers = _with(right.headers, "Content-Length", *values)
        if self._dice.random() < 0.2:
            headers = (*right.headers, ("Transfer-Encoding", self._dice.choice(["chunked", "gzip", "x", "chunked, x"])))
        return Hostile(family=right.family, headers=headers, body=right.body)

    def _spoil_content_type(self, right: Hostile) -> Hostile:
        value = self._dice.choice(
            [
                "",
                "text/plain",
                "multipart/form-data; boundary=x",
                "application/jsonp",
                "é",
                f"{JSON}, {FORM}",
                "x" * 3000,
            ]
        )
        return Hostile(family=right.family, headers=_with(right.headers, "Content-Type", value), body=right.body)

    def _spoil_method(self, right: Hostile) -> Hostile:
        method = self._dice.choice(["GET", "HEAD", "PUT", "PATCH", "DELETE", "OPTIONS", "TRACE", "POSTER", "PROPFIND"])
        return Hostile(family=right.family, method=method, headers=right.headers, body=right.body)

    def _spoil_path(self, right: Hostile) -> Hostile:
        path = self._dice.choice(
            [
                *[
                    "/",
                    "//slack/events",
                    "/slack/events/",
                    "/slack/event",
                    "/SLACK/EVENTS",
                    "/slack/events/..",
                    "/healthz",
                ],
                *[
                    "/slack/events;a=b",
                    "/slack/./events",
                    "/readyz",
                    "/admin",
                    "/.env",
                    "/" + "a" * 3000,
                    "/slack/\xe9",
                ],
            ]
        )
        return Hostile(family=right.family, path=path, headers=right.headers, body=right.body)


# --- Not even HTTP --------------------------------------------------------------------------------------------------

End = Literal["read", "close", "half-close"]


@dataclass(frozen=True, kw_only=True, slots=True)
class Raw:
    """Bytes for a socket, in pieces, and what the client does after the last one."""

    family: str
    pieces: tuple[bytes, ...]
    end: End = "half-close"


def raw(dice: Random, request: bytes) -> Raw:
    """This unsigned request, broken on the way. No piece of it is a whole good one."""
    head, _, body = request.partition(b"\r\n\r\n")
    line, _, fields = head.partition(b"\r\n")
    at = dice.randrange(1, len(request))

    def headers(*added: bytes) -> bytes:
        return b"\r\n".join([line, *added, fields]) + b"\r\n\r\n" + body

    flipped = bytearray(request)
    for _ in range(dice.randrange(1, 6)):
        flipped[dice.randrange(len(flipped))] = dice.randrange(256)
    family, whole = dice.choice(
        [
            ("flipped bytes", bytes(flipped)),
            ("half a request", request[:at]),
            ("noise", dice.randbytes(dice.randrange(1, 400))),
            ("bare line feeds", request.replace(b"\r\n", b"\n")),
            ("bare carriage returns", request.replace(b"\r\n", b"\r")),
            ("two framings", headers(b"Transfer-Encoding: chunked", b"Content-Length: 3")),
            ("two framings", headers(b"Transfer-Encoding : chunked")),
            ("two framings", headers(b"Transfer-Encoding: \x0bchunked")),
            ("two lengths", headers(b"Content-Length: 0", b"Content-Length: 99999")),
            ("chunks", headers(b"Transfer-Encoding: chunked") + b"5\r\nhello\r\nZZ\r\n"),
            ("chunks", headers(b"Transfer-Encoding: chunked") + b"f" * 17 + b"\r\n"),
            ("folded header", headers(b"X-A: b\r\n c")),
            ("strange header", headers(b"X-A\0: b")),
            ("strange header", headers(b": nameless", b"no colon")),
            ("strange header", headers(b"X_Slack_Signature: v0=" + b"0" * 64, "X-\u00e9: \u00e9".encode())),
            ("huge header", headers(b"X-A: " + b"a" * 70_000)),
            ("many headers", headers(*(b"X-%d: a" % number for number in range(300)))),
            ("huge line", b"POST /" + b"a" * 70_000 + b" HTTP/1.1\r\n\r\n"),
            ("strange line", b"POST  /slack/events  HTTP/1.1\r\n\r\n"),
            ("strange line", b"GET /healthz HTTP/9.9\r\nHost: x\r\n\r\n"),
            ("strange line", b"CONNECT evil.test:443 HTTP/1.1\r\nHost: x\r\n\r\n"),
            ("strange line", b"POST http://evil.test/slack/events HTTP/1.1\r\nHost: x\r\nContent-Length: 0\r\n\r\n"),
            ("another protocol", b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"),
            ("another protocol", b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" + dice.randbytes(40)),
            ("continue", headers(b"Expect: 100-continue")),
            ("pipelined", request.replace(b"Connection: close\r\n", b"") * dice.randrange(2, 5)),
        ]
    )
    cuts = sorted(dice.sample(range(len(whole)), min(dice.choice([0, 0, 3, 12]), len(whole))))
    pieces = tuple(whole[begin:end] for begin, end in zip([0, *cuts], [*cuts, len(whole)], strict=True))
    return Raw(family=family, pieces=pieces, end=dice.choice(["half-close", "half-close", "half-close", "close"]))


# --- Signed ---------------------------------------------------------------------------------------------------------


def mutated(dice: Random, tree: Any, *, kinds: Sequence[str] = ("removed", "retyped", "forged", "added")) -> str:
    """Change one place of the JSON tree, an object or a list, and tell how."""
    places = list(_places(tree))
    holder, key = dice.choice(places)
    kind = dice.choice(kinds)
    if kind == "removed":
        del holder[key]
    elif kind == "retyped":
        holder[key] = copy.deepcopy(dice.choice(VALUES))
    elif kind == "forged":
        holder[key] = dice.choice(TEXTS)
    elif isinstance(holder, dict):
        holder[dice.choice([*TEXTS, "type", "view", "event", "authorizations", "enterprise", "function_data"])] = (
            copy.deepcopy(dice.choice(VALUES + TEXTS))
        )
    else:
        holder.insert(0, copy.deepcopy(dice.choice(VALUES)))
    return kind


def _places(tree: Any) -> list[tuple[Any, Any]]:
    """Where something stands in the tree: the object or list that holds it, and its key or index."""
    found: list[tuple[Any, Any]] = []
    waiting = [tree]
    while waiting:
        holder = waiting.pop()
        keys: Any = list(holder) if isinstance(holder, dict) else range(len(holder))
        for key in keys:
            found.append((holder, key))
            if isinstance(holder[key], dict | list) and holder[key]:
                waiting.append(holder[key])
    return found or [({"": None}, "")]


def form_body(dice: Random, fields: Mapping[str, Any]) -> bytes:
    """The fields as a form, now and then with one of them twice."""
    pairs = [(name, value if isinstance(value, str) else json.dumps(value)) for name, value in fields.items()]
    if pairs and dice.random() < 0.1:
        pairs.insert(dice.randrange(len(pairs)), (dice.choice(pairs)[0], dice.choice(TEXTS)))
    return "&".join(
        f"{quote_plus(name, errors='surrogatepass')}={quote_plus(value, errors='surrogatepass')}"
        for name, value in pairs
    ).encode()


# --- What the exchange answers --------------------------------------------------------------------------------------

ERRORS: Final = (
    "order_not_found",
    "nonce_used",
    "validation_error",
    "invalid_access_key",
    "out_of_scope",
    "no_such_name",
)


@dataclass(frozen=True, kw_only=True, slots=True)
class Answer:
    """What the exchange says about an order."""

    family: str
    status: int
    headers: Headers
    body: bytes


def answer(dice: Random, uuid: str, other: str) -> Answer:
    """An answer about the order `uuid` in which something is wrong, most of the time."""
    fields = order_fields(dice, uuid)
    family, body = "as it should be", json.dumps(fields).encode()
    match dice.choice(["as it is", "fields", "uuid", "bytes", "text", "error", "error"]):
        case "fields":
            family = f"field {mutated(dice, fields)}"
            body = json.dumps(fields).encode()
        case "uuid":
            family = "another uuid"
            wrong = dice.choice([other, uuid.upper(), f" {uuid}", f"{uuid}\n", uuid[:-1], [uuid], {"uuid": uuid}, None])
            body = json.dumps(fields | {"uuid": wrong}).encode()
        case "bytes":
            family, body = "bytes", _spoiled_bytes(dice, body)
        case "text":
            family, body = "text", _spoiled_text(dice, fields, other)
        case "error":
            error = {"error": {"name": dice.choice(ERRORS), "message": dice.choice(TEXTS)}}
            family = f"error {mutated(dice, error)}" if dice.random() < 0.5 else "error"
            body = json.dumps(error).encode()
        case _:
            pass
    status = dice.choice([200] * 6 + [201, 204, 206, 302, 307, 400, 400, 401, 404, 404, 418, 422, 429, 500, 502, 599])
    return Answer(family=family, status=status, headers=_answer_headers(dice), body=body)


def order_fields(dice: Random, uuid: str) -> dict[str, Any]:
    return {
        "uuid": uuid,
        "side": dice.choice(["ask", "bid"]),
        "ord_type": "limit",
        "state": dice.choice(["wait", "watch", "done", "cancel", "paused"]),
        "market": "KRW-BTC",
        "created_at": "2026-11-01T12:00:00+09:00",
        "price": f"{dice.randrange(1, 10**9)}.{dice.randrange(10**8):08}",
        "volume": f"{dice.random():.8f}",
        "remaining_volume": f"{dice.random():.8f}",
        "executed_volume": "0",
        "remaing_fee": "0.5",
        "trades_count": dice.randrange(5),
        "something_new": [1],
    }


def _spoiled_bytes(dice: Random, body: bytes) -> bytes:
    flipped = bytearray(body)
    for _ in range(dice.randrange(1, 4)):
        flipped[dice.randrange(len(flipped))] = dice.randrange(256)
    at = dice.randrange(len(body))
    return dice.choice(
        [
            *[bytes(flipped), bytes(flipped), body[:at], body[at:], body + body, b"\xef\xbb\xbf" + body, b""],
            *[body.decode().encode("utf-16"), b"\x1f\x8b" + body, b"[" + body + b"]", body + b"\0", b"\xff" + body],
        ]
    )


def _spoiled_text(dice: Random, fields: dict[str, Any], other: str) -> bytes:
    text = json.dumps(fields)
    name = dice.choice([*fields])
    number = dice.choice(["NaN", "Infinity", "-Infinity", "1e999999999", "9" * 5000, "1" + "0" * 40, "-0", "0.1e-40"])
    return dice.choice(
        [
            f'{{"uuid": "{other}", {text[1:]}',
            f'{text[:-1]}, "uuid": "{other}"}}',
            f'{text[:-1]}, "{name}": "{dice.choice(["cancel", "wait", "1"])}"}}',
            f'{text[:-1]}, "price": {number}}}',
            f'{text[:-1]}, "executed_volume": {number}, "locked": "{number}"}}',
            json.dumps({key: value for key, value in fields.items() if key != "price"})[:-1] + f', "price": {number}}}',
            '{"a":' * 3000 + text + "}" * 3000,
            "[" * 100_000,
            text.replace('"', "'"),
            f"<html>{text}</html>",
            f"{text}//",
            text.replace("wait", "w\\u0061it").replace("KRW", "\\ud800KRW"),
            json.dumps({**fields, "identifier": "i" * 300}),
            json.dumps({"order": fields}),
        ]
    ).encode()


def _answer_headers(dice: Random) -> Headers:
    return dice.choice(
        [
            *[(), (), (("Content-Type", "application/json"),), (("Content-Type", "text/html; charset=x\xff"),)],
            *[(("Remaining-Req", told),) for told in ("group=order; min=1; sec=0", "sec=-1", "x" * 3000, "sec=٣")],
            *[(("Retry-After", told),) for told in ("0", "5", "-1", "9" * 20, "1e9", "Wed, 21 Oct 2026 07:28:00 GMT")],
            *[(("Location", "http://127.0.0.1:9/v1/order"),), (("Set-Cookie", "a=b; Path=/"),)],
            *[(("Content-Encoding", coding),) for coding in ("gzip", "br", "x")],
            *[(("Connection", "close"),), (("X-A", "a" * 5000),), (("Retry-After", "1"), ("Retry-After", "2"))],
        ]
    )


@dataclass(frozen=True, kw_only=True, slots=True)
class Reply:
    """An answer as bytes for a socket, and what is done after them; `body` is what can be read of it, if anything."""

    family: str
    answer: Answer
    sent: bytes
    then: Literal["keep", "close", "drip", "silence"]
    body: bytes | None


POISON: Final = b'{"error": {"name": "validation_error", "message": "of somebody else"}}'
"""If it were taken for the next answer, a cancel that was sent would count as one that was not."""


def reply(dice: Random, said: Answer) -> Reply:
    """The answer in HTTP, most of the time well framed, so that the connection can be kept."""
    body = said.body
    head = f"HTTP/1.1 {said.status} {dice.choice(['OK', '', 'x' * 500])}\r\n".encode()
    head += b"".join(f"{name}: {value}\r\n".encode() for name, value in said.headers)
    whole = head + b"Content-Length: %d\r\n\r\n" % len(body) + body
    poison = b"HTTP/1.1 400 Bad Request\r\nContent-Length: %d\r\n\r\n" % len(POISON) + POISON
    at = dice.randrange(len(whole))

    def framed(
        family: str, sent: bytes, then: Literal["keep", "close", "drip", "silence"], read: bytes | None
    ) -> Reply:
        return Reply(family=f"frame: {family}", answer=said, sent=sent, then=then, body=read)

    if dice.random() < WELL_FRAMED:
        return Reply(family=said.family, answer=said, sent=whole, then="keep", body=body)
    if dice.random() < SLOW:
        return framed("slow", whole[:at], dice.choice(["drip", "silence"]), None)
    short = len(body) // 2
    return dice.choice(
        [
            framed("cut", whole[:at], "close", None if at < len(whole) else body),
            framed("too long", head + b"Content-Length: %d\r\n\r\n" % short + body, "close", body[:short]),
            framed("too short", head + b"Content-Length: %d\r\n\r\n" % (len(body) + 1) + body, "close", None),
            framed("until closed", head + b"\r\n" + body, "close", body),
            framed("chunks", head + b"Transfer-Encoding: chunked\r\n\r\n" + _chunked(body), "keep", body),
            framed("chunks cut", head + b"Transfer-Encoding: chunked\r\n\r\n" + _chunked(body)[:-5], "close", None),
            framed("chunks wrong", head + b"Transfer-Encoding: chunked\r\n\r\nzz\r\n" + body, "close", None),
            framed("two at once", whole + poison, "keep", body),
            framed("continue", b"HTTP/1.1 100 Continue\r\n\r\n" + whole, "keep", body),
            framed("noise", dice.randbytes(200), "close", None),
            framed("silence", b"", "close", None),
            framed("no head", body, "close", None),
            framed("HTTP/1.0", whole.replace(b"HTTP/1.1", b"HTTP/1.0", 1), "close", body),
            framed("many headers", head + b"X-A: b\r\n" * 200 + b"\r\n" + body, "close", None),
            framed("huge header", head + b"X-A: " + b"a" * 70_000 + b"\r\n\r\n" + body, "close", None),
            framed("strange length", head + b"Content-Length: -1\r\n\r\n" + body, "close", body),
        ]
    )


WELL_FRAMED: Final = 0.7
SLOW: Final = 0.03


def _chunked(body: bytes) -> bytes:
    return b"".join(b"%x\r\n%b\r\n" % (len(part), part) for part in (body[:7], body[7:]) if part) + b"0\r\n\r\n"
