"""The playground's exchange, spoken to with plain requests and tokens made by hand: each error and each mood."""

import base64
import hashlib
import hmac
import json
import re
import ssl
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime
from pathlib import Path
from typing import Any
from uuid import uuid4

import pytest
import requests
import trustme

from bot.playground.exchange import Exchange, Key, Mood

KEY = Key()
FIELDS = {
    *("uuid", "side", "ord_type", "price", "state", "market", "created_at", "volume", "remaining_volume"),
    *("reserved_fee", "remaining_fee", "paid_fee", "locked", "executed_volume", "trades_count", "time_in_force"),
    *("identifier", "smp_type", "prevented_volume", "prevented_locked"),
}


class Clock:
    def __init__(self) -> None:
        self.now_s = 1_800_000_000.0

    def __call__(self) -> float:
        return self.now_s


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def exchange(clock: Clock) -> Iterator[Exchange]:
    with Exchange(now=clock, requests_per_s=10_000) as exchange:
        yield exchange


def base64url(text: bytes) -> str:
    return base64.urlsafe_b64encode(text).rstrip(b"=").decode()


def token(query: str = "", *, key: Key = KEY, algorithm: str = "HS512", **changed: Any) -> str:
    """A token for the query; `changed` claims replace the right ones, and None leaves one out."""
    claims: dict[str, Any] = {"access_key": key.access_key, "nonce": str(uuid4())}
    if query:
        claims |= {"query_hash": hashlib.sha512(query.encode()).hexdigest(), "query_hash_alg": "SHA512"}
    claims = {name: value for name, value in {**claims, **changed}.items() if value is not None}
    header = {"alg": algorithm, "typ": "JWT"}
    signed = f"{base64url(json.dumps(header).encode())}.{base64url(json.dumps(claims).encode())}"
    digest = {"HS256": hashlib.sha256, "HS512": hashlib.sha512}.get(algorithm, hashlib.sha384)
    return f"{signed}.{base64url(hmac.new(key.secret_key.encode(), signed.encode(), digest).digest())}"


def call(
    exchange: Exchange, method: str, uuid: str, *, authorization: str | None = None, **more: Any
) -> requests.Response:
    query = f"uuid={uuid}"
    authorization = f"Bearer {token(query)}" if authorization is None else authorization
    return requests.request(
        method,
        f"{exchange.url}/v1/order?{query}",
        headers={"Authorization": authorization},
        timeout=5,
        allow_redirects=False,
        **more,
    )


def look(exchange: Exchange, uuid: str, **more: Any) -> requests.Response:
    return call(exchange, "GET", uuid, **more)


def cancel(exchange: Exchange, uuid: str, **more: Any) -> requests.Response:
    return call(exchange, "DELETE", uuid, **more)


def error_of(response: requests.Response) -> tuple[int, str]:
    return response.status_code, response.json()["error"]["name"]


# Orders


def test_an_order_shows_every_field_that_upbit_documents(exchange: Exchange) -> None:
    """What the bot shows to approvers comes from here."""
    uuid = exchange.place(
        side="bid", price="1000", volume="2", time_in_force="post_only", identifier="mine", smp_type="reduce"
    )
    order = look(exchange, uuid).json()
    assert order.keys() == FIELDS
    assert (order["reserved_fee"], order["locked"], order["trades_count"]) == ("1.0000", "2001.0000", 0)


@pytest.mark.parametrize("ord_type", ["price", "best"])
def test_a_bid_by_its_total_lacks_the_volumes(exchange: Exchange, ord_type: str) -> None:
    """Upbit leaves them out, and whoever reads them blindly fails."""
    uuid = exchange.place(side="bid", ord_type=ord_type, price="500000", volume=None)
    assert not {"volume", "remaining_volume", "prevented_volume"} & look(exchange, uuid).json().keys()


def test_an_order_fills_in_parts_and_is_then_done(exchange: Exchange) -> None:
    """The exchange keeps the books, as the truth that the bot is compared with."""
    uuid = exchange.place(side="bid", price="1000", volume="2")
    exchange.fill(uuid, "0.5")
    order = look(exchange, uuid).json()
    assert (order["state"], order["executed_volume"], order["remaining_volume"]) == ("wait", "0.5", "1.5")
    assert (order["paid_fee"], order["remaining_fee"]) == ("0.25000", "0.75000")
    exchange.fill(uuid)
    order = exchange.order(uuid)
    assert (order["state"], order["executed_volume"], order["locked"]) == ("done", "2.0", "0")


def test_an_accepted_cancel_takes_effect_when_the_clock_says_so(exchange: Exchange, clock: Clock) -> None:
    """200 is the order as it was: the gap between accepted and canceled is what the bot is about."""
    uuid = exchange.place(state="watch")
    response = cancel(exchange, uuid)
    assert (response.status_code, response.json()["state"]) == (200, "watch")
    assert exchange.order(uuid)["state"] == "watch"
    clock.now_s += 0.19
    assert look(exchange, uuid).json()["state"] == "watch"
    clock.now_s += 0.02
    assert look(exchange, uuid).json()["state"] == "cancel"


def test_settle_does_not_wait_for_the_clock(exchange: Exchange) -> None:
    """Tests that do not care for time say so."""
    uuid, untouched = exchange.place(), exchange.place()
    cancel(exchange, uuid)
    for each in (uuid, untouched):
        exchange.settle(each)
    assert (exchange.order(uuid)["state"], exchange.order(untouched)["state"]) == ("cancel", "wait")


def test_a_fill_between_accepted_and_canceled_wins(exchange: Exchange) -> None:
    """A race that Upbit's documents name: the answer to the cancel said nothing wrong, and the order is done."""
    uuid = exchange.place()
    cancel(exchange, uuid)
    exchange.fill(uuid)
    exchange.settle(uuid)
    assert exchange.order(uuid)["state"] == "done"


def test_a_second_cancel_finds_no_order(exchange: Exchange) -> None:
    """Read as "failed", that answer makes a lie of a cancel that worked."""
    uuid = exchange.place()
    assert cancel(exchange, uuid).status_code == 200
    assert error_of(cancel(exchange, uuid)) == (404, "order_not_found")
    exchange.settle(uuid)
    assert error_of(cancel(exchange, uuid)) == (404, "order_not_found")
    assert [delete.effective for delete in exchange.deletes(uuid)] == [True, False, False]


def test_an_order_that_was_canceled_elsewhere_is_not_found_by_a_cancel(exchange: Exchange) -> None:
    """And a look still finds it."""
    uuid = exchange.place()
    exchange.cancel_elsewhere(uuid)
    assert error_of(cancel(exchange, uuid)) == (404, "order_not_found")
    assert look(exchange, uuid).json()["state"] == "cancel"


def test_an_identifier_names_an_order_too_and_uuid_wins(exchange: Exchange) -> None:
    """Documented, and the reason why nothing but a uuid may be signed."""
    mine, other = exchange.place(identifier="mine"), exchange.place()
    for query, uuid in (("identifier=mine", mine), (f"uuid={other}&identifier=mine", other)):
        response = requests.get(
            f"{exchange.url}/v1/order?{query}", headers={"Authorization": f"Bearer {token(query)}"}, timeout=5
        )
        assert response.json()["uuid"] == uuid


# Errors


@pytest.mark.parametrize("algorithm", ["HS256", "HS512"])
def test_both_algorithms_of_upbit_are_taken(exchange: Exchange, algorithm: str) -> None:
    """Upbit recommends one and takes the other too."""
    uuid = exchange.place()
    authorization = f"Bearer {token(f'uuid={uuid}', algorithm=algorithm)}"
    assert look(exchange, uuid, authorization=authorization).status_code == 200


UUID = "cdd92199-2897-4e14-9448-f923320408ad"
QUERY = f"uuid={UUID}"
WRONG_KEY = Key(secret_key="another-secret-key")


@pytest.mark.parametrize(
    ("authorization", "name"),
    [
        ("", "no_authorization_token"),
        ("Bearer ", "no_authorization_token"),
        (f"Basic {token(QUERY)}", "no_authorization_token"),
        (token(QUERY), "no_authorization_token"),
        ("Bearer nonsense", "jwt_verification"),
        ("Bearer a.b.c", "jwt_verification"),
        (f"Bearer {token(QUERY, key=WRONG_KEY)}", "jwt_verification"),
        (f"Bearer {token(QUERY, algorithm='none')}", "jwt_verification"),
        (f"Bearer {token(QUERY, algorithm='HS384')}", "jwt_verification"),
        (f"Bearer {token(QUERY)[:-4]}", "jwt_verification"),
        (f"Bearer {token(QUERY, nonce=None)}", "jwt_verification"),
        (f"Bearer {token(QUERY, access_key='unknown')}", "invalid_access_key"),
        (f"Bearer {token()}", "invalid_query_payload"),
        (f"Bearer {token('uuid=another')}", "invalid_query_payload"),
        (f"Bearer {token(QUERY, query_hash_alg='SHA256')}", "invalid_query_payload"),
        (f"Bearer {token(QUERY, query_hash_alg=None)}", "invalid_query_payload"),
    ],
)
def test_a_wrong_token_is_refused_by_its_fault(exchange: Exchange, authorization: str, name: str) -> None:
    """A fake that takes any token proves nothing about the signature."""
    exchange.place(uuid=UUID)
    assert error_of(cancel(exchange, UUID, authorization=authorization)) == (401, name)
    assert not exchange.deletes(UUID)[0].verified
    assert exchange.order(UUID)["state"] == "wait"


def test_a_nonce_is_taken_once(exchange: Exchange) -> None:
    """So a request that is sent again word for word is refused, although the first may have worked."""
    uuid = exchange.place()
    authorization = f"Bearer {token(f'uuid={uuid}')}"
    assert cancel(exchange, uuid, authorization=authorization).status_code == 200
    assert error_of(cancel(exchange, uuid, authorization=authorization)) == (401, "nonce_used")


@pytest.mark.parametrize(
    ("key", "name"),
    [
        (Key(permissions=frozenset({"view"})), "out_of_scope"),
        (Key(ips=frozenset({"203.0.113.9"})), "no_authorization_ip"),
        (Key(expires_at=1_800_000_000.0), "expired_access_key"),
    ],
)
def test_a_key_may_do_what_it_may(exchange: Exchange, key: Key, name: str) -> None:
    """Keys expire, lose permissions and have lists of addresses: also while the bot runs."""
    uuid = exchange.place()
    exchange.set_key(key)
    assert error_of(cancel(exchange, uuid)) == (401, name)
    exchange.set_key(Key(ips=frozenset({"127.0.0.1"}), expires_at=1_800_000_001.0))
    assert cancel(exchange, uuid).status_code == 200


def test_to_look_is_a_permission_of_its_own(exchange: Exchange) -> None:
    """A key that cancels and cannot look leaves every outcome open."""
    uuid = exchange.place()
    exchange.set_key(Key(permissions=frozenset({"make_orders"})))
    assert error_of(look(exchange, uuid)) == (401, "out_of_scope")
    assert cancel(exchange, uuid).status_code == 200


def test_wrong_parameters_are_refused(exchange: Exchange) -> None:
    """A body on a DELETE is the classic mistake: Upbit's own sample sends one."""
    uuid = exchange.place()
    assert cancel(exchange, uuid, json={"uuid": uuid}).status_code == 400
    assert cancel(exchange, uuid, data=iter([b"uuid"])).status_code == 400
    assert error_of(look(exchange, "nonsense")) == (400, "invalid_parameter")
    assert error_of(look(exchange, str(uuid4()))) == (404, "order_not_found")
    bare = requests.get(f"{exchange.url}/v1/order", headers={"Authorization": f"Bearer {token()}"}, timeout=5)
    assert error_of(bare) == (400, "validation_error")


def look_at(exchange: Exchange, query: str, *, signed: str | None = None) -> requests.Response:
    """A look at several orders, with a token for the query unless for another one."""
    authorization = f"Bearer {token(query if signed is None else signed)}"
    url = f"{exchange.url}/v1/orders/uuids" + (f"?{query}" if query else "")
    return requests.get(url, headers={"Authorization": authorization}, timeout=5)


def named(*uuids: str) -> str:
    return "&".join(f"uuids[]={uuid}" for uuid in uuids)


def test_several_orders_are_looked_at_in_one_call(exchange: Exchange) -> None:
    """The newest first; what is not there is not in the answer."""
    first, second, third = (exchange.place() for _ in range(3))
    exchange.fill(second)
    shown = look_at(exchange, named(first, str(uuid4()), second)).json()
    assert [(each["uuid"], each["state"]) for each in shown] == [(second, "done"), (first, "wait")]
    assert shown[1].keys() <= FIELDS
    assert look_at(exchange, named(str(uuid4()))).json() == []
    assert third not in {each["uuid"] for each in shown}


def test_a_list_is_verified_and_limited_as_at_upbit(exchange: Exchange) -> None:
    """The hash is over the query with bare brackets, whether they were encoded on the way or not."""
    uuid, other = exchange.place(), exchange.place()
    query = named(uuid, other)
    encoded = query.replace("[]", "%5B%5D")
    assert look_at(exchange, encoded, signed=query).status_code == 200
    assert error_of(look_at(exchange, query, signed=encoded)) == (401, "invalid_query_payload")
    assert error_of(look_at(exchange, query, signed=named(other, uuid))) == (401, "invalid_query_payload")
    assert error_of(look_at(exchange, "")) == (400, "validation_error")
    assert error_of(look_at(exchange, f"uuid={uuid}")) == (400, "validation_error")
    assert error_of(look_at(exchange, named("nonsense"))) == (400, "invalid_parameter")
    assert look_at(exchange, named(*(str(uuid4()) for _ in range(100)))).status_code == 200
    assert error_of(look_at(exchange, named(*(str(uuid4()) for _ in range(101))))) == (400, "validation_error")
    exchange.set_key(Key(permissions=frozenset({"make_orders"})))
    assert error_of(look_at(exchange, query)) == (401, "out_of_scope")


def open_orders(exchange: Exchange, query: str) -> requests.Response:
    url = f"{exchange.url}/v1/orders/open" + (f"?{query}" if query else "")
    return requests.get(url, headers={"Authorization": f"Bearer {token(query)}"}, timeout=5)


def test_open_orders_are_listed_by_state_market_and_page(exchange: Exchange) -> None:
    """Without states[] only what waits in the book: the trap that hides stop orders."""
    first, stop, other = exchange.place(), exchange.place(state="watch"), exchange.place(market="KRW-ETH")
    done, canceled = exchange.place(), exchange.place()
    exchange.fill(done)
    exchange.cancel_elsewhere(canceled)

    def uuids(query: str) -> list[str]:
        return [each["uuid"] for each in open_orders(exchange, query).json()]

    assert uuids("") == [other, first]
    both = "states[]=wait&states[]=watch"
    assert uuids(both) == [other, stop, first]
    assert uuids(f"{both}&market=KRW-ETH") == [other]
    assert uuids(f"{both}&order_by=asc&limit=2") == [first, stop]
    assert uuids(f"{both}&order_by=asc&limit=2&page=2") == [other]
    assert uuids(f"{both}&page=3") == []
    assert uuids("state=watch") == [stop]


@pytest.mark.parametrize(
    ("query", "name"),
    [
        ("states[]=done", "invalid_parameter"),
        ("order_by=newest", "invalid_parameter"),
        ("limit=101", "validation_error"),
        ("limit=0", "validation_error"),
        ("page=0", "validation_error"),
        ("page=-1", "validation_error"),
        ("uuid=X", "QUERY_PARAMETER_NOT_SUPPORTED"),
    ],
)
def test_open_orders_are_limited_as_at_upbit(exchange: Exchange, query: str, name: str) -> None:
    """What Upbit refuses must not work here."""
    assert error_of(open_orders(exchange, query)) == (400, name)


def test_open_orders_need_the_permission_to_view(exchange: Exchange) -> None:
    """As every look does."""
    exchange.set_key(Key(permissions=frozenset({"make_orders"})))
    assert error_of(open_orders(exchange, "")) == (401, "out_of_scope")


def closed_orders(exchange: Exchange, query: str, *, sent: str | None = None) -> requests.Response:
    """`sent` is the query as it goes out, where that is not how it was signed."""
    url = f"{exchange.url}/v1/orders/closed" + (f"?{query if sent is None else sent}" if query else "")
    return requests.get(url, headers={"Authorization": f"Bearer {token(query)}"}, timeout=5)


def test_closed_orders_are_listed_by_the_time_of_their_creation(exchange: Exchange, clock: Clock) -> None:
    """Not of their end, which Upbit does not tell; without a window the latest 7 days, a hundred of them."""
    canceled, done, old, other, waiting = (
        exchange.place(created_at=f"2026-11-{day}T09:00:00+09:00", market=market)
        for day, market in (
            ("20", "KRW-BTC"),
            ("21", "KRW-BTC"),
            ("10", "KRW-BTC"),
            ("19", "KRW-ETH"),
            ("22", "KRW-BTC"),
        )
    )
    clock.now_s = datetime(2026, 11, 23, tzinfo=UTC).timestamp()
    for uuid in (canceled, old, other):
        exchange.cancel_elsewhere(uuid)
    exchange.fill(done)

    def uuids(query: str) -> list[str]:
        return [each["uuid"] for each in closed_orders(exchange, query).json()]

    assert uuids("") == [done, canceled, other]
    assert uuids("states[]=cancel") == uuids("state=cancel") == [canceled, other]
    assert uuids("states[]=done&states[]=cancel&order_by=asc") == [other, canceled, done]
    assert uuids("states[]=cancel&order_by=asc&limit=1") == [other]
    assert uuids("market=KRW-ETH") == [other]
    at = [int(datetime.fromisoformat(f"2026-11-{day}T00:00:00Z").timestamp() * 1000) for day in (10, 17, 20)]
    assert uuids(f"start_time={at[0]}") == uuids(f"end_time={at[1]}") == [old]
    assert uuids(f"start_time={at[0]}&end_time={at[1]}") == [old]
    assert uuids(f"start_time={at[2]}&end_time={at[2]}") == [canceled]
    assert waiting not in uuids("")


def test_the_times_of_closed_orders_may_be_iso_8601(exchange: Exchange) -> None:
    """With an offset, and encoded on the way: the hash is over what was meant."""
    uuid = exchange.place(created_at="2026-11-20T09:00:00+09:00")
    exchange.cancel_elsewhere(uuid)
    query = "start_time=2026-11-20T00:00:00+00:00"
    assert [each["uuid"] for each in closed_orders(exchange, query, sent=query.replace("+", "%2B")).json()] == [uuid]


@pytest.mark.parametrize(
    ("query", "name"),
    [
        ("states[]=wait", "invalid_parameter"),
        ("state=cancel&states[]=cancel", "invalid_parameter"),
        ("order_by=newest", "invalid_parameter"),
        ("limit=1001", "validation_error"),
        ("limit=0", "validation_error"),
        ("page=1", "QUERY_PARAMETER_NOT_SUPPORTED"),
        ("start_time=1793491200000&end_time=1794096000001", "invalid_parameter"),
        ("start_time=1793491200001&end_time=1793491200000", "invalid_parameter"),
        ("start_time=1793491200", "invalid_parameter"),
        ("start_time=2026-11-01T00:00:00", "invalid_parameter"),
        ("start_time=yesterday", "invalid_parameter"),
    ],
)
def test_closed_orders_are_limited_as_at_upbit(exchange: Exchange, query: str, name: str) -> None:
    """Seven days and a thousand orders at most; what Upbit refuses must not work here."""
    assert error_of(closed_orders(exchange, query)) == (400, name)


def test_closed_orders_need_the_permission_to_view(exchange: Exchange) -> None:
    """As every look does."""
    exchange.set_key(Key(permissions=frozenset({"make_orders"})))
    assert error_of(closed_orders(exchange, "states[]=cancel")) == (401, "out_of_scope")


def test_a_mood_can_meet_one_path_alone(exchange: Exchange) -> None:
    """What fails for a list must be told apart from what fails for one order."""
    uuid = exchange.place()
    exchange.set_mood("GET /v1/orders/uuids", Mood.WRONG_UUID, times=1)
    assert look(exchange, uuid).json()["uuid"] == uuid
    assert uuid not in {each["uuid"] for each in look_at(exchange, named(uuid)).json()}
    assert look_at(exchange, named(uuid)).json()[0]["uuid"] == uuid


@pytest.mark.parametrize(
    ("method", "path"),
    [("GET", "/v1/orders"), ("POST", "/v1/order"), ("PUT", "/v1/order"), ("DELETE", "/v1/orders/uuids")],
)
def test_there_is_no_other_route(exchange: Exchange, method: str, path: str) -> None:
    """What the bot must not do cannot be done here."""
    assert requests.request(method, exchange.url + path, timeout=5).status_code == 404


# Limits


def test_the_limit_counts_per_second_and_tells_what_is_left(clock: Clock) -> None:
    """`sec` is what a careful client watches."""
    with Exchange(now=clock, requests_per_s=3) as exchange:
        uuid = exchange.place()
        told = [look(exchange, uuid).headers["Remaining-Req"] for _ in range(3)]
        assert told == [f"group=default; min=1800; sec={left}" for left in (2, 1, 0)]
        limited = look(exchange, uuid)
        assert (limited.status_code, limited.text) == (429, "Too many API requests.")
        clock.now_s += 1
        assert look(exchange, uuid).status_code == 200


def test_who_ignores_the_limit_is_banned_and_each_time_for_longer(clock: Clock) -> None:
    """The ban tells its time, and grows."""
    with Exchange(now=clock, requests_per_s=1) as exchange:
        uuid = exchange.place()
        bans = []
        for _ in range(2):
            clock.now_s += 1
            assert [look(exchange, uuid).status_code for _ in range(11)] == [200, *[429] * 10]
            banned = look(exchange, uuid)
            assert banned.status_code == 418
            told = re.search(r"(\d+) seconds", banned.json()["error"]["message"])
            assert told
            bans.append(int(told[1]))
            clock.now_s += bans[-1]
        assert bans == [60, 120]


# Moods


@pytest.mark.parametrize(
    ("mood", "status", "text", "effective"),
    [
        (Mood.SLOW, 200, "uuid", True),
        (Mood.DROP_BEFORE, None, "", False),
        (Mood.DROP_AFTER, None, "", True),
        (Mood.HTTP_500, 500, "server_error", False),
        (Mood.HTTP_500_AFTER, 500, "server_error", True),
        (Mood.HTML_502, 502, "<html>", False),
        (Mood.REDIRECT, 302, "", False),
        (Mood.RATELIMITED_429, 429, "Too many", False),
        (Mood.BANNED_418, 418, "1 seconds", False),
        (Mood.REFUSE, 400, "validation_error", False),
        (Mood.ORDER_NOT_FOUND_LIE, 404, "order_not_found", False),
        (Mood.WRONG_UUID, 200, "uuid", True),
        (Mood.NOT_JSON_200, 200, "OK", True),
        (Mood.HTML_200, 200, "<html>", True),
        (Mood.TRUNCATED, None, "", True),
    ],
)
def test_a_mood_meets_one_delete_and_the_books_tell_its_effect(
    exchange: Exchange, mood: Mood, status: int | None, text: str, *, effective: bool
) -> None:
    """A test of the bot relies on knowing what really happened."""
    uuid = exchange.place()
    exchange.set_mood("DELETE", mood, times=1, seconds=0.05)
    if status is None:
        with pytest.raises((requests.ConnectionError, requests.exceptions.ChunkedEncodingError)):
            cancel(exchange, uuid)
    else:
        response = cancel(exchange, uuid)
        assert response.status_code == status
        assert text in response.text
    assert exchange.wait_for(lambda it: it.deletes(uuid), timeout_s=5)
    exchange.settle(uuid)
    assert exchange.order(uuid)["state"] == ("cancel" if effective else "wait")
    assert exchange.deletes(uuid)[0].effective is effective
    assert exchange.deletes(uuid)[0].verified is effective
    assert exchange.deletes(uuid)[0].nonce


def test_a_mood_of_one_method_leaves_the_other_alone_and_ends_after_its_calls(exchange: Exchange) -> None:
    """The look goes on while the cancel fails, and the other way round."""
    uuid = exchange.place()
    exchange.set_mood("DELETE", Mood.HTTP_500, times=2)
    assert [cancel(exchange, uuid).status_code for _ in range(2)] == [500, 500]
    assert look(exchange, uuid).status_code == 200
    assert cancel(exchange, uuid).status_code == 200


def test_a_mood_without_a_number_lasts_until_it_is_cleared(exchange: Exchange) -> None:
    """An outage does not count."""
    uuid = exchange.place()
    exchange.set_mood("GET", Mood.HTTP_500)
    assert {look(exchange, uuid).status_code for _ in range(5)} == {500}
    exchange.clear_moods("GET")
    assert look(exchange, uuid).status_code == 200


def test_a_lie_can_come_after_the_work(exchange: Exchange) -> None:
    """The worst answer: the cancel is on its way, and Upbit says that it knows no such order."""
    for mood, answer in (
        (Mood.ORDER_NOT_FOUND_LIE, (404, "order_not_found")),
        (Mood.REFUSE, (403, "out_of_scope")),
    ):
        uuid = exchange.place()
        exchange.set_mood("DELETE", mood, times=1, after=True, status=403, name="out_of_scope")
        assert error_of(cancel(exchange, uuid)) == answer
        exchange.settle(uuid)
        assert exchange.order(uuid)["state"] == "cancel"


def test_wrong_uuid_shows_the_order_under_another_name(exchange: Exchange) -> None:
    """Whoever does not compare takes somebody else's order for this one."""
    uuid = exchange.place()
    exchange.set_mood("GET", Mood.WRONG_UUID)
    order = look(exchange, uuid).json()
    assert order["uuid"] != uuid
    assert order["state"] == "wait"


def test_a_cancel_can_lose_the_race_against_a_fill(exchange: Exchange) -> None:
    """Accepted, and then executed, wholly or in part; or nothing happens at all."""
    ends = {}
    for mood in (Mood.FILL_DURING_CANCEL, Mood.PARTIAL_FILL_DURING_CANCEL, Mood.ACCEPT_NEVER_CANCELS):
        uuid = exchange.place(volume="0.01")
        exchange.set_mood("DELETE", mood, times=1)
        assert cancel(exchange, uuid).json()["state"] == "wait"
        exchange.settle(uuid)
        ends[mood] = (exchange.order(uuid)["state"], exchange.order(uuid)["executed_volume"])
    assert ends == {
        Mood.FILL_DURING_CANCEL: ("done", "0.01"),
        Mood.PARTIAL_FILL_DURING_CANCEL: ("cancel", "0.005"),
        Mood.ACCEPT_NEVER_CANCELS: ("wait", "0"),
    }


def test_a_partial_fill_can_be_chosen(exchange: Exchange) -> None:
    """The summary in Slack shows the exact volumes."""
    uuid = exchange.place(volume="0.01")
    exchange.set_mood("DELETE", Mood.PARTIAL_FILL_DURING_CANCEL, volume="0.003")
    cancel(exchange, uuid)
    exchange.settle(uuid)
    assert (exchange.order(uuid)["executed_volume"], exchange.order(uuid)["remaining_volume"]) == ("0.003", "0.007")


def test_a_forced_ban_holds_for_its_time(exchange: Exchange, clock: Clock) -> None:
    """Also for those who did nothing wrong: a ban is by address."""
    uuid = exchange.place()
    exchange.set_mood("GET", Mood.BANNED_418, times=1, seconds=30)
    assert look(exchange, uuid).status_code == 418
    assert cancel(exchange, uuid).status_code == 418
    clock.now_s += 30
    assert cancel(exchange, uuid).status_code == 200


def test_429_comes_as_text_or_as_json(exchange: Exchange) -> None:
    """Both were seen."""
    uuid = exchange.place()
    exchange.set_mood("GET", Mood.RATELIMITED_429, plain=False)
    assert look(exchange, uuid).json()["error"]["message"]
    exchange.set_mood("GET", Mood.RATELIMITED_429)
    with pytest.raises(requests.exceptions.JSONDecodeError):
        look(exchange, uuid).json()


@pytest.mark.parametrize("after", [False, True])
def test_who_hangs_is_let_go_when_the_mood_is_cleared(exchange: Exchange, *, after: bool) -> None:
    """No answer ever comes; whether the work was done is in the books."""
    uuid = exchange.place()
    exchange.set_mood("DELETE", Mood.HANG, after=after)
    with ThreadPoolExecutor(1) as threads:
        hanging = threads.submit(cancel, exchange, uuid)
        assert exchange.wait_for(lambda it: it.deletes(uuid), timeout_s=5)
        assert not hanging.done()
        exchange.clear_moods()
        with pytest.raises(requests.ConnectionError):
            hanging.result(timeout=5)
    assert exchange.deletes(uuid)[0].effective is after
    assert exchange.deletes(uuid)[0].status is None


def test_stopping_lets_everyone_go_and_leaves_no_thread() -> None:
    """A test that fails in the middle must not hang the rest."""
    before = set(threading.enumerate())
    exchange = Exchange(requests_per_s=1_000)
    exchange.start()
    uuid = exchange.place()
    exchange.set_mood("GET", Mood.HANG)
    exchange.set_mood("DELETE", Mood.SLOW, seconds=600)
    kept = requests.Session()  # an idle connection
    kept.post(exchange.url, timeout=5)
    with ThreadPoolExecutor(4) as threads:
        calls = [threads.submit(each, exchange, uuid) for each in (look, cancel, look, cancel)]
        assert exchange.wait_for(lambda it: len(it.requests) == 5, timeout_s=5)
        exchange.stop()
        for each in calls:
            with pytest.raises(requests.ConnectionError):
                each.result(timeout=5)
    kept.close()
    assert set(threading.enumerate()) <= before


def test_an_exchange_that_was_never_started_can_be_stopped() -> None:
    """A fixture that fails half-way still cleans up."""
    Exchange().stop()


# Books


def test_the_books_tell_each_request_and_each_delete(exchange: Exchange, clock: Clock) -> None:
    """DELETEs seen by the exchange are compared with those the bot says it sent."""
    uuid, other = exchange.place(), exchange.place()
    look(exchange, uuid)
    cancel(exchange, uuid, authorization=f"Bearer {token(f'uuid={uuid}', nonce='my-nonce')}")
    cancel(exchange, other)
    assert [(seen.method, seen.path, seen.ip) for seen in exchange.requests] == [
        ("GET", "/v1/order", "127.0.0.1"),
        ("DELETE", "/v1/order", "127.0.0.1"),
        ("DELETE", "/v1/order", "127.0.0.1"),
    ]
    (delete,) = exchange.deletes(uuid)
    assert (delete.at, delete.nonce, delete.verified, delete.status) == (clock.now_s, "my-nonce", True, 200)
    assert len(exchange.deletes()) == 2


def test_whoever_waits_for_something_is_told(exchange: Exchange) -> None:
    """Tests wait for facts, not for time."""
    uuid = exchange.place()
    with ThreadPoolExecutor(1) as threads:
        waiting = threads.submit(exchange.wait_for, lambda it: it.order(uuid)["state"] == "done", timeout_s=5)
        exchange.fill(uuid)
        assert waiting.result() is True
    assert exchange.wait_for(lambda it: it.order(uuid)["state"] == "wait", timeout_s=0.05) is False


def test_a_test_can_act_when_a_request_comes(exchange: Exchange) -> None:
    """For races that have to happen at one exact moment."""
    uuid = exchange.place()
    exchange.on_request = lambda request: exchange.fill(uuid) if request.method == "DELETE" else None
    assert error_of(cancel(exchange, uuid)) == (404, "order_not_found")
    assert exchange.order(uuid)["state"] == "done"


def test_many_at_once_are_served(exchange: Exchange) -> None:
    """Eight threads of the bot, and only one cancel that counts."""
    uuid = exchange.place()
    with ThreadPoolExecutor(8) as threads:
        answers = list(threads.map(lambda _: cancel(exchange, uuid).status_code, range(40)))
    assert sorted(answers) == [200, *[404] * 39]
    assert sum(delete.effective for delete in exchange.deletes(uuid)) == 1


def test_it_speaks_tls_where_a_context_is_given(tmp_path: Path) -> None:
    """Upbit is https; a client that goes away in the handshake disturbs nobody."""
    authority = trustme.CA()
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    authority.issue_cert("127.0.0.1").configure_cert(context)
    authority.cert_pem.write_to_path(str(tmp_path / "ca.pem"))
    with Exchange(tls=context) as exchange:
        uuid = exchange.place()
        assert exchange.url.startswith("https://127.0.0.1:")
        with pytest.raises(requests.exceptions.SSLError):
            look(exchange, uuid)
        with pytest.raises(requests.ConnectionError):
            requests.get(exchange.url.replace("https", "http"), timeout=5)
        assert look(exchange, uuid, verify=str(tmp_path / "ca.pem")).status_code == 200


def test_it_shares_no_code_with_the_bot() -> None:
    """A mistake in the bot's signature must not be repeated on the other side."""
    source = Path(__file__).parent.parent / "bot" / "playground" / "exchange.py"
    imports = re.findall(r"^(?:from|import) (\w+)", source.read_text(), re.MULTILINE)
    assert not {"bot", "jwt", "requests", "urllib3"} & set(imports)
