"""The token, compared with one made by hand from RFC 7515, without the library that the bot signs with."""

import base64
import hashlib
import hmac
import json
import pickle
import traceback
import warnings
from concurrent.futures import ThreadPoolExecutor

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bot.upbit.auth import Signer, order_query, query_hash

UUID = "cdd92199-2897-4e14-9448-f923320408ad"
NONCE = "5a2f6f0c-0a53-4d5a-8c84-6a8f7c1f6f10"
ACCESS_KEY = "made-up-access-key-0123456789"
SECRET_KEY = "made-up-secret-key-of-forty-characters-.."


def base64url(text: bytes) -> str:
    return base64.urlsafe_b64encode(text).rstrip(b"=").decode()


def token_by_hand(secret_key: str, claims: dict[str, str]) -> str:
    header = base64url(b'{"alg":"HS512","typ":"JWT"}')
    signed = f"{header}.{base64url(json.dumps(claims, separators=(',', ':')).encode())}"
    signature = hmac.new(secret_key.encode(), signed.encode(), hashlib.sha512).digest()
    return f"{signed}.{base64url(signature)}"


def test_the_token_is_the_one_made_by_hand() -> None:
    """Upbit answers jwt_verification or invalid_query_payload to anything else."""
    claims = {
        "access_key": ACCESS_KEY,
        "nonce": NONCE,
        "query_hash": hashlib.sha512(f"uuid={UUID}".encode()).hexdigest(),
        "query_hash_alg": "SHA512",
    }
    token = Signer(access_key=ACCESS_KEY, secret_key=SECRET_KEY).token(
        query_hash=query_hash(order_query(UUID)), nonce=NONCE
    )
    assert token == token_by_hand(SECRET_KEY, claims)


def test_the_query_hash_is_sha_512_in_hexadecimal() -> None:
    """A vector that does not come from the code: the SHA-512 of `abc` in FIPS 180-4."""
    assert query_hash("abc") == (
        "ddaf35a193617abacc417349ae20413112e6fa4e89a97ea20a9eeee64b55d39a"
        "2192992a274fc1a836ba3c23a3feebbd454d4423643ce80e2a9ac94fa54ca49f"
    )


@pytest.mark.parametrize(
    "uuid",
    [
        "",
        "X",
        f"{UUID}&identifier=Y",
        f"{UUID}\n",
        f" {UUID}",
        UUID.upper(),
        UUID.replace("-", ""),
        f"{UUID}#",
        UUID.replace("c", "с"),  # noqa: RUF001 - a Cyrillic letter on purpose
        UUID.replace("9", "٩"),
    ],
)
def test_only_a_uuid_gets_into_the_query(uuid: str) -> None:
    """The hash of `X&identifier=Y` as a uuid equals that of two fields: a signed query could name another order."""
    with pytest.raises(ValueError, match="32 lower-case"):
        order_query(uuid)


@given(st.text())
def test_whatever_text_comes_the_query_names_one_order_or_is_refused(text: str) -> None:
    """What is typed in Slack gets here: no text may add a field."""
    try:
        query = order_query(text)
    except ValueError:
        return
    assert query == f"uuid={text}"
    assert set(text) <= set("0123456789abcdef-")


def test_signing_with_a_short_secret_warns_nobody_and_leaves_the_filters_alone() -> None:
    """A warning per request drowns the log, and a filter set per call is not safe for threads."""
    signer = Signer(access_key=ACCESS_KEY, secret_key="short")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        before = list(warnings.filters)
        with ThreadPoolExecutor(4) as threads:
            tokens = set(threads.map(lambda _: signer.token(query_hash="x", nonce=NONCE), range(100)))
        assert list(warnings.filters) == before
    assert len(tokens) == 1


def test_a_signer_shows_stars_and_cannot_be_copied_out() -> None:
    """Keys leak through reprs, `vars` and pickles before they leak through anything clever."""
    signer = Signer(access_key=ACCESS_KEY, secret_key=SECRET_KEY)
    assert repr(signer) == str(signer) == "Signer(access_key=***, secret_key=***)"
    with pytest.raises(TypeError):
        vars(signer)
    with pytest.raises(TypeError):
        pickle.dumps(signer)


PEM_KEY = "-----BEGIN PRIVATE KEY-----\nc2VjcmV0\n-----END PRIVATE KEY-----"


@pytest.mark.parametrize(
    ("access_key", "secret_key"),
    [("", SECRET_KEY), (ACCESS_KEY, ""), (ACCESS_KEY, PEM_KEY), (ACCESS_KEY, '{"kty": "oct", "k": "c2VjcmV0"}')],
)
def test_keys_that_cannot_sign_are_refused_at_once_and_not_shown(access_key: str, secret_key: str) -> None:
    """The library's own exception holds the key in its frames; a reporter that shows variables would send it out."""
    with pytest.raises(ValueError, match="cannot sign") as caught:
        Signer(access_key=access_key, secret_key=secret_key)
    assert caught.value.__cause__ is None
    assert caught.value.__context__ is None
    assert caught.value.__traceback__ is not None
    frames = caught.value.__traceback__.tb_next  # the first one is this test, which made the keys up
    shown = "".join(traceback.TracebackException(ValueError, caught.value, frames, capture_locals=True).format())
    assert "Signer(access_key=***, secret_key=***)" in shown
    for key in filter(None, (access_key, secret_key)):
        assert key not in shown
        assert repr(key) not in shown


def test_keys_and_tokens_are_scrubbed_from_an_answer_that_echoes_them() -> None:
    """A gateway's error page may repeat the request; the audit keeps what was answered for years."""
    signer = Signer(access_key=ACCESS_KEY, secret_key=SECRET_KEY)
    token = signer.token(query_hash="x", nonce=NONCE)
    scrubbed = signer.scrub(f"Authorization: Bearer {token}; {ACCESS_KEY}; {SECRET_KEY}; fine")
    assert scrubbed == "Authorization: Bearer ***; ***; ***; fine"
