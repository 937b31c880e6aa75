"""What a call of unknown tokens may have used at most, found in some hours of a day or in all of them: the same either way."""

from __future__ import annotations

from datetime import UTC, date, datetime, timedelta
from decimal import Decimal
from random import Random

import pytest
from sqlmodel import Session

from models import ledger
from models.charges import ChargeClass, MeterKind
from models.ledger.ceilings import Asked, Place, ceilings
from models.periods import Period
from models.prices import PriceMeter
from models.store import Store
from tests import factories as make

DAY = datetime(2026, 11, 10, tzinfo=UTC)
CHAT: Place = ("ws-east", "llama-chat")
INPUT, OUTPUT, CACHED = MeterKind.INPUT, MeterKind.OUTPUT, MeterKind.CACHED_INPUT


def nearest_rank(counts: list[int]) -> int:
    ordered = sorted(counts)
    return ordered[max(1, -(-99 * len(ordered) // 100)) - 1] if ordered else 0


def look(session: Session, asked: dict[Asked, int], calls: int, *, series: dict[int, Place], as_of: datetime | None = None) -> dict[Asked, int]:
    places = {place for place, _ in asked}
    return ceilings(session, DAY, asked, series=series, calls=dict.fromkeys(places, calls), as_of=as_of)


@pytest.mark.parametrize("seed", range(4))
def test_what_is_proved_early_is_what_all_calls_say(store: Store, seed: int) -> None:
    chance = Random(seed)
    with store.write() as session:
        one, other = make.series(session, deployment="llama-chat"), make.series(session, deployment="llama-chat", team="b")
        known: dict[MeterKind, list[int]] = {INPUT: [], OUTPUT: [], CACHED: []}
        count = chance.choice((3, 99, 100, 101, 180))
        for _ in range(count):
            tokens = [chance.choice((None, chance.randrange(5), chance.randrange(1000), chance.randrange(100_000))) for _ in known]
            for of_kind, number in zip(known.values(), tokens, strict=True):
                if number is not None:
                    of_kind.append(number)
            when = DAY + timedelta(seconds=chance.randrange(86_400))
            make.event(session, chance.choice((one, other)), time=when, input_tokens=tokens[0], output_tokens=tokens[1], cached_input_tokens=tokens[2])
        make.event(session, one, time=DAY - timedelta(seconds=1), input_tokens=10**9)
        make.event(session, one, time=DAY + timedelta(days=1), input_tokens=10**9)
        series = {one.id or 0: CHAT, other.id or 0: CHAT}
        for kind, counts in known.items():
            exact = nearest_rank(counts)
            for least in {0, 1, exact - 1, exact, exact + 1, 10**12, *chance.sample(range(100_000), 3)}:
                found = look(session, {(CHAT, kind): max(least, 0)}, count, series=series)[CHAT, kind]
                assert min(found, least) == min(exact, least)


def test_calls_that_do_not_count_or_came_later_have_no_say(store: Store) -> None:
    with store.write() as session:
        chat = make.series(session, deployment="llama-chat")
        made = [make.event(session, chat, time=DAY + timedelta(hours=hour), input_tokens=tokens) for hour, tokens in ((1, 10), (2, 5000), (3, 90))]
        late = make.event(session, chat, time=DAY + timedelta(hours=4), input_tokens=700, received_at=DAY + timedelta(days=2))
        make.taken_back(session, made[1], made_at=DAY + timedelta(days=1))
        series = {chat.id or 0: CHAT}
        far = {(CHAT, INPUT): 10**9}
        assert look(session, far, 3, series=series) == {(CHAT, INPUT): 700}
        # As it was known when the third had not been taken back, and the last had not come.
        assert look(session, far, 3, series=series, as_of=DAY + timedelta(hours=5)) == {(CHAT, INPUT): 5000}
        assert look(session, far, 3, series=series, as_of=DAY + timedelta(days=1, hours=1)) == {(CHAT, INPUT): 90}
        assert late.time < DAY + timedelta(days=1)


def test_without_known_tokens_there_is_nothing_to_go_by(sqlite_store: Store) -> None:
    with sqlite_store.write() as session:
        chat = make.series(session, deployment="llama-chat")
        make.event(session, chat, time=DAY, input_tokens=None)
        asked = {(CHAT, INPUT): 1, (("ws-east", "unheard-of"), OUTPUT): 1}
        assert look(session, asked, 1, series={chat.id or 0: CHAT}) == dict.fromkeys(asked, 0)


def test_cached_tokens_that_are_billed_apart_may_be_those_of_unknown_calls(store: Store) -> None:
    """Two calls of 400 and 100 cached tokens and one that told nothing; 800 are billed: 300 more, which the third may have had."""
    with store.write() as session:
        make.foundry(session)
        make.token_prices(session, "1.00", "1.00")
        make.price(session, PriceMeter.CACHED_INPUT_TOKENS, "1.00")
        of = make.series(session, deployment="llama-foundry")
        for cached in (400, 100):
            make.event(session, of, time=DAY, input_tokens=1000, output_tokens=0, cached_input_tokens=cached)
        make.event(session, of, time=DAY, input_tokens=None, output_tokens=None)
        part = make.bill_part(session)
        for kind, quantity, cost in ((INPUT, "0.0015", "0.0015"), (CACHED, "0.0008", "0.0008")):
            make.charge(session, part, make.charge_item(session, ChargeClass.FOUNDRY, kind), cost, charged_on=DAY.date(), quantity=quantity)
    with store.read() as session:
        answer = ledger.reconciliation(session, Period(DAY, DAY + timedelta(days=1)), now=make.NOW)
    causes = {row.meter: {cause.value: amount for cause, amount in row.causes.items()} for row in answer.rows}
    assert causes == {"input": {}, "cached_input": {"unknown_tokens": Decimal("0.0003")}}


def test_what_came_later_leaves_an_earlier_answer_as_it_was(store: Store) -> None:
    """2,500 tokens are billed and 1,000 known: of the rest a second call, of unknown tokens, had 1,000 at most, until a dearer one arrives."""
    known = datetime(2026, 11, 15, 12, tzinfo=UTC)
    with store.write() as session:
        make.foundry(session)
        make.token_prices(session, "1.00", "1.00")
        of = make.series(session, deployment="llama-foundry")
        make.event(session, of, time=DAY, input_tokens=1000, output_tokens=0)
        make.event(session, of, time=DAY, input_tokens=None, output_tokens=None)
        part = make.bill_part(session, landed_at=known - timedelta(days=1))
        make.charge(session, part, make.charge_item(session, ChargeClass.FOUNDRY, INPUT), "0.0025", charged_on=date(2026, 11, 10), quantity="0.0025")

    def unknown() -> Decimal:
        with store.read() as session:
            (row,) = (
                row for row in ledger.reconciliation(session, Period(DAY, DAY + timedelta(days=1)), now=make.NOW, as_of=known).rows if row.meter == "input"
            )
        return {cause.value: amount for cause, amount in row.causes.items()}["unknown_tokens"]

    before = unknown()
    with store.write() as session:
        make.event(
            session, make.series(session, deployment="llama-foundry"), time=DAY, input_tokens=1400, output_tokens=0, received_at=known + timedelta(days=1)
        )
    assert before == unknown() == Decimal("0.001")
