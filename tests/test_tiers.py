"""More approvals for larger orders: how a rule is written, what an order is worth, and which rule holds."""

from decimal import Decimal
from fractions import Fraction
from typing import Any, Final

import pytest
from builders import order
from hypothesis import given
from hypothesis import strategies as st

from bot.domain.order import Order
from bot.domain.tiers import MAX_APPROVALS, Tier, parse_tier, parse_tiers, remaining_value, requirement

EXAMPLE: Final = parse_tiers("KRW-*:50000000=2, *=1")


def required(written: str, of: Order, *, at_least: int = 1) -> int:
    return requirement(of, parse_tiers(written), at_least=at_least).approvals


# What is written


def test_rules_are_read_as_they_are_written() -> None:
    """Market, side, amount, number; spaces and case do not matter."""
    assert parse_tiers(" krw-* / ASK : 50000000.5 = 3 ,KRW-BTC:0=2,, *=1 ") == (
        Tier(market="KRW-*", side="ask", over=Decimal("50000000.5"), approvals=3),
        Tier(market="KRW-BTC", over=Decimal(0), approvals=2),
        Tier(market="*", approvals=1),
    )


@pytest.mark.parametrize(
    ("rule", "cause"),
    [
        ("KRW-BTC", "names no number of approvals"),
        ("KRW-BTC:2", "names no number of approvals"),
        ("KRW-BTC=0", "a whole number of approvals from 1 to 20"),
        ("KRW-BTC=21", "a whole number of approvals from 1 to 20"),
        ("KRW-BTC=-1", "a whole number of approvals from 1 to 20"),
        ("KRW-BTC=1.5", "a whole number of approvals from 1 to 20"),
        ("KRW-BTC=", "a whole number of approvals from 1 to 20"),
        ("KRW-BTC=2=3", "a whole number of approvals from 1 to 20"),
        ("KRW-BTC=\u0662", "a whole number of approvals from 1 to 20"),
        ("=2", "names no market"),
        ("BTC=2", "names no market"),
        ("KRW-=2", "names no market"),
        ("-BTC=2", "names no market"),
        ("KRW-**=2", "names no market"),
        ("KRW_BTC=2", "names no market"),
        ("KRW-BTC-ETH=2", "names no market"),
        ("KRW-BTC/=2", "neither bid nor ask"),
        ("KRW-BTC/sell=2", "neither bid nor ask"),
        ("KRW-BTC:-5=2", "has a negative amount"),
        ("KRW-BTC:=2", "no plain number"),
        ("KRW-BTC:1e9=2", "no plain number"),
        ("KRW-BTC:NaN=2", "no plain number"),
        ("KRW-BTC:1_000=2", "no plain number"),
        ("KRW-BTC:.5=2", "no plain number"),
        (f"KRW-BTC:{'9' * 31}=2", "no plain number"),
        ("*:50000000=2", "not the currency"),
        ("*-BTC:50000000=2", "not the currency"),
        ("K*-BTC:50000000=2", "not the currency"),
    ],
)
def test_a_wrong_rule_is_named_by_its_place_and_cause(rule: str, cause: str) -> None:
    """A rule that is read otherwise than it was meant lets one person cancel what needs three."""
    with pytest.raises(ValueError, match=cause) as caught:
        parse_tiers(f"KRW-ETH=1, {rule}")
    assert str(caught.value).startswith("rule 2 ")


def test_every_wrong_rule_is_told_at_once() -> None:
    """A restart for each of them is how people give up."""
    with pytest.raises(ValueError, match=r"^rule 1 .*; rule 3 ") as caught:
        parse_tiers("KRW-BTC, KRW-*=2, KRW-*:-1=2")
    assert "rule 2" not in str(caught.value)


def test_two_rules_for_the_same_orders_are_a_slip() -> None:
    """Whoever edits one of them believes that it holds."""
    with pytest.raises(ValueError, match="rule 2 is about the same orders as rule 1"):
        parse_tiers("KRW-*:50000000=2, krw-*:50000000.0=3")


def test_an_amount_with_thousands_separators_is_not_cut_in_three() -> None:
    """`KRW-*:50,000,000=2` is a rule over 50 KRW to nobody but a parser."""
    with pytest.raises(ValueError, match="without thousands separators"):
        parse_tiers("KRW-*:50,000,000=2")


def test_no_rules_are_not_an_empty_list() -> None:
    """`APPROVAL_TIERS=,` is a mistake, not a wish for no rules."""
    with pytest.raises(ValueError, match="lists no rule"):
        parse_tiers(" , ")


# What an order is worth

BUY_BY_TOTAL: Final[dict[str, Any]] = {"side": "bid", "ord_type": "price", "volume": None, "remaining_volume": None}
SELL_AT_MARKET: Final[dict[str, Any]] = {"ord_type": "market", "price": None}


@pytest.mark.parametrize(
    ("changes", "value"),
    [
        ({}, Decimal(95_000_000)),
        ({"remaining_volume": Decimal("0.58")}, Decimal(55_100_000)),
        ({"remaining_volume": Decimal(0)}, Decimal(0)),
        ({"remaining_volume": None}, Decimal(95_000_000)),
        ({"remaining_volume": None, "volume": None}, None),
        ({"remaining_volume": Decimal(-1)}, None),
        ({"price": Decimal(-1)}, None),
        ({"price": Decimal(0)}, None),
        ({"side": "bid", "price": None, "locked": Decimal(700)}, Decimal(700)),
        ({"side": "bid", "price": None, "locked": None}, None),
        ({"side": "bid", "price": None, "locked": Decimal(0)}, None),
        (BUY_BY_TOTAL | {"price": Decimal(1500), "locked": Decimal(900)}, Decimal(900)),
        (BUY_BY_TOTAL | {"price": Decimal(1500), "locked": None}, Decimal(1500)),
        (BUY_BY_TOTAL | {"price": None, "locked": None}, None),
        (BUY_BY_TOTAL | {"ord_type": "best", "price": Decimal(1500), "locked": Decimal(900)}, Decimal(900)),
        (SELL_AT_MARKET | {"locked": Decimal(1)}, None),
        (SELL_AT_MARKET | {"ord_type": "best", "locked": Decimal(1)}, None),
    ],
)
def test_what_remains_has_a_value_or_is_not_known(changes: dict[str, Any], value: Decimal | None) -> None:
    """A sell locks the coins that it sells: one BTC is not one won, and must not pass for a small order."""
    assert remaining_value(order(**changes)) == value


AMOUNTS: Final = st.decimals(min_value=0, max_value=10**30 - 1, allow_nan=False, allow_infinity=False, places=8)


@given(price=AMOUNTS.filter(bool), volume=AMOUNTS)
def test_no_digit_of_a_value_is_lost(price: Decimal, volume: Decimal) -> None:
    """An order worth one unit over the amount is over it, however many digits that takes."""
    value = remaining_value(order(price=price, remaining_volume=volume))
    assert value is not None
    assert Fraction(value) == Fraction(price) * Fraction(volume)


# Which rule holds


@pytest.mark.parametrize(
    ("changes", "approvals"),
    [
        ({}, 2),
        ({"remaining_volume": Decimal("0.5")}, 1),
        ({"price": Decimal(50_000_000)}, 1),
        ({"price": Decimal("50000000.00000001")}, 2),
        ({"price": None}, 2),
        ({"side": "bid", "price": None, "locked": Decimal(49_000_000)}, 1),
        ({"market": "BTC-ETH"}, 1),
        ({"market": "KRWX-BTC"}, 1),
    ],
)
def test_larger_orders_need_more_and_unknown_ones_count_as_the_largest(changes: dict[str, Any], approvals: int) -> None:
    """Over means over: exactly the amount is not. What cannot be valued is not taken for small."""
    assert requirement(order(**changes), EXAMPLE, at_least=1).approvals == approvals


def test_the_strictest_of_the_rules_that_match_holds() -> None:
    """The order in which somebody wrote them must not decide about money."""
    written = "KRW-BTC=1, KRW-*/ask:1000=4, KRW-*=2, *=3, KRW-*/bid=5, USDT-*=6"
    held = requirement(order(), parse_tiers(written), at_least=1)
    assert (held.approvals, str(held.rule)) == (4, "KRW-*/ask:1000=4")
    assert required(written, order(side="bid")) == 5
    assert required(written, order(market="BTC-ETH")) == 3


def test_a_side_that_the_bot_does_not_know_matches_every_rule() -> None:
    """Upbit may add a word; until it is understood, it needs as many as the strictest side."""
    assert required("KRW-*/ask=2, KRW-*/bid=3", order(side="short")) == 3


def test_no_rule_asks_for_less_than_everybody_needs() -> None:
    """`APPROVALS_REQUIRED` is the floor; a rule below it is not the reason for anything."""
    held = requirement(order(), EXAMPLE, at_least=3)
    assert (held.approvals, held.rule) == (3, None)
    assert requirement(order(), (), at_least=1).rule is None


CODES: Final = st.text("ABKRWTC19", min_size=1, max_size=5)
TIERS: Final = st.builds(
    lambda quote, base, side, over, approvals: Tier(
        market=f"{quote}-{base}", side=side, over=over, approvals=approvals
    ),
    CODES,
    CODES | st.just("*") | CODES.map(lambda code: f"{code}*"),
    st.sampled_from(["bid", "ask", None]),
    st.none() | AMOUNTS,
    st.integers(1, MAX_APPROVALS),
)
ORDERS: Final = st.builds(
    lambda market, side, price, volume, locked: order(
        market=market, side=side, price=price, remaining_volume=volume, locked=locked
    ),
    st.builds("{}-{}".format, CODES, CODES) | st.just("KRW-BTC"),
    st.sampled_from(["bid", "ask"]),
    *[st.none() | AMOUNTS] * 3,
)


@given(tier=TIERS)
def test_a_rule_is_read_back_as_it_was_frozen(tier: Tier) -> None:
    """The row keeps the rule as text; what the card says a week later must be the rule that was used."""
    assert parse_tier(str(tier)) == tier


@given(of=ORDERS, tiers=st.lists(TIERS, max_size=6), more=TIERS, at_least=st.integers(1, 5))
def test_another_rule_never_asks_for_less(of: Order, tiers: list[Tier], more: Tier, at_least: int) -> None:
    """Whoever adds a rule makes the bot stricter or leaves it as it is, in whatever order the rules stand."""
    before = requirement(of, tiers, at_least=at_least)
    after = requirement(of, [more, *tiers], at_least=at_least)
    assert at_least <= before.approvals <= after.approvals
    assert requirement(of, [*tiers, more], at_least=at_least).approvals == after.approvals
    if after.rule is not None:
        assert after.rule.matches(of)
        assert after.rule.approvals == after.approvals


@given(of=ORDERS, over=AMOUNTS)
def test_an_order_that_hides_its_value_is_never_small(of: Order, over: Decimal) -> None:
    """Fail closed: what is not told counts as over any amount."""
    tier = Tier(market=of.market, over=over, approvals=2)
    value = remaining_value(of)
    assert tier.matches(of) == (value is None or Fraction(value) > Fraction(over))
