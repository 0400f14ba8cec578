"""`/cancel` while the bot is at work: fifty commands a second beside twenty cancels, each call to Upbit taking 2 s."""

from collections.abc import Iterator

from stage import Kind, Stage
from table import NotDoneError, Row, at_most, ms, percentile

from bot.playground.demo import BEN, DESK
from bot.playground.exchange import Mood

COMMANDS_PER_S = 50.0
CANCELS = 20
SLOW_S = 2.0
LONGEST_S = 1.0
WAIT_S = 60.0


def rows(here: Stage) -> Iterator[Row]:
    for kind in here.sizes.kinds:
        yield _of(kind, here)


def _of(kind: Kind, here: Stage) -> Row:
    url = here.new_database(kind)
    cancels = here.sizes.some(CANCELS, quick=4)
    with here.bot(url) as bot:
        here.send([bot.port], here.commands(cancels + 10).requests, connections=4)
        here.rest(url)
        before = len(here.exchange.deletes())
        here.slack.events_url = bot.events_url
        for method in ("GET", "DELETE"):
            here.exchange.set_mood(method, Mood.SLOW, seconds=SLOW_S)
        try:
            for card in [card for card in here.slack.messages(DESK) if card.buttons][-cancels:]:
                here.slack.click(BEN.id, card, "approve")
            asked = here.commands(here.sizes.some(500, quick=25))
            answers = here.send([bot.port], asked.requests, connections=16, per_s=COMMANDS_PER_S)
            turned_away = len(answers) - here.check_commands(url, asked, answers)
            sent = here.exchange.wait_for(lambda it: len(it.deletes()) - before >= cancels, timeout_s=WAIT_S)
        finally:
            here.exchange.clear_moods()
        if not sent or not all(each.effective and each.verified for each in here.exchange.deletes()[before:]):
            raise NotDoneError("not every cancel reached the exchange")
        here.rest(url)
    here.check_chain(url)
    took_s = [answer.took_s for answer in answers]
    p99, longest = percentile(took_s, 99), max(took_s)
    return Row(
        name=f"the same, {kind}, 50/s beside {CANCELS} cancels at a slow exchange, p99 (longest)",
        figure=f"{ms(p99)} ({ms(longest)})" + (f", {turned_away} turned away" if turned_away else ""),
        must="< 100 ms (< 1 s)",
        aim="< 30 ms",
        met=at_most(p99, must=0.1, aim=0.03) if longest < LONGEST_S and not turned_away else "missed",
    )
