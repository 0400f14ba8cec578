"""Cancels orders with one of the clients, one after the other; started with the Python of its environment.

    python cancel_client.py KIND SERVER_URL [CA_FILE]

Each line of its input is a JSON list of orders' uuids, each line of its output the seconds that each of them took.
"""

import hashlib
import json
import sys
import time
import uuid
from collections.abc import Callable
from typing import Any

ACCESS_KEY = "playground-access-key"
SECRET_KEY = "playground-secret-key-with-forty-charact"

Cancel = Callable[[str], bool]


def ours(server_url: str, ca_file: str | None) -> Cancel:
    from bot.domain.answer import Accepted  # noqa: PLC0415 - each environment has only one of these
    from bot.upbit.client import UpbitClient  # noqa: PLC0415

    client = UpbitClient(server_url=server_url, access_key=ACCESS_KEY, secret_key=SECRET_KEY, ca_bundle=ca_file)
    return lambda order: isinstance(client.cancel_order(order, nonce=str(uuid.uuid4())), Accepted)


def by_hand(server_url: str, ca_file: str | None) -> Cancel:
    """What one writes with requests and PyJWT, following Upbit's examples."""
    import jwt  # noqa: PLC0415
    import requests  # noqa: PLC0415

    session = requests.Session()
    session.verify = ca_file or True

    def cancel(order: str) -> bool:
        query = f"uuid={order}"
        claims = {
            "access_key": ACCESS_KEY,
            "nonce": str(uuid.uuid4()),
            "query_hash": hashlib.sha512(query.encode()).hexdigest(),
            "query_hash_alg": "SHA512",
        }
        token = jwt.encode(claims, SECRET_KEY, algorithm="HS256")
        headers = {"Authorization": f"Bearer {token}"}
        answer = session.delete(f"{server_url}/v1/order", params={"uuid": order}, headers=headers, timeout=5)
        answer.raise_for_status()
        return bool(answer.json()["uuid"] == order)

    return cancel


def upbit_sdk(server_url: str, _: str | None) -> Cancel:
    from upbit import Upbit  # type: ignore[import-not-found] # noqa: PLC0415

    client = Upbit(access_key=ACCESS_KEY, secret_key=SECRET_KEY, base_url=f"{server_url}")
    return lambda order: bool(client.orders.cancel(uuid=order).uuid == order)


def pyupbit(server_url: str, _: str | None) -> Cancel:
    import pyupbit as library  # type: ignore[import-not-found] # noqa: PLC0415
    from pyupbit import exchange_api  # noqa: PLC0415

    client, send = library.Upbit(ACCESS_KEY, SECRET_KEY), exchange_api._send_delete_request  # noqa: SLF001

    def elsewhere(url: str, **more: Any) -> Any:
        return send(url.replace("https://api.upbit.com", server_url), **more)

    # The server's address stands in its code.
    exchange_api._send_delete_request = elsewhere  # noqa: SLF001
    return lambda order: bool(client.cancel_order(order)["uuid"] == order)


def ccxt(server_url: str, _: str | None) -> Cancel:
    import ccxt as library  # type: ignore[import-not-found] # noqa: PLC0415

    client = library.upbit({"apiKey": ACCESS_KEY, "secret": SECRET_KEY, "enableRateLimit": False})
    client.urls["api"] = {"public": server_url, "private": server_url}
    client.markets, client.markets_by_id = {}, {}  # else it asks for the list of all markets first
    return lambda order: bool(client.cancel_order(order)["id"] == order)


CLIENTS: dict[str, Callable[[str, str | None], Cancel]] = {
    "ours": ours,
    "requests": by_hand,
    "upbit-sdk": upbit_sdk,
    "pyupbit": pyupbit,
    "ccxt": ccxt,
}


def main(kind: str, server_url: str, ca_file: str | None = None) -> None:
    cancel = CLIENTS[kind](server_url, ca_file)
    for line in sys.stdin:
        took_s = []
        for order in json.loads(line):
            began_at = time.perf_counter()
            is_done = cancel(order)
            took_s.append(time.perf_counter() - began_at)
            if not is_done:
                raise SystemExit(f"{kind} did not cancel {order}")
        print(json.dumps(took_s), flush=True)


if __name__ == "__main__":
    main(*sys.argv[1:])
