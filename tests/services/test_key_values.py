"""The key-value store of flows: limits, concurrency, and idempotent writes of steps."""

from __future__ import annotations

import asyncio
from uuid import UUID, uuid4

import pytest
import sqlalchemy as sa
from pydantic import JsonValue

from bloxserver.blocks.base import BlockError
from bloxserver.engine.run.context import FlowStore
from bloxserver.models.database import Database
from bloxserver.models.tables import FlowRecord, KeyValueRecord, StoredBytesRecord, UserRecord
from bloxserver.services.key_values import MARKS_KEPT, MAX_BYTES, MAX_KEYS, MAX_VALUE_BYTES
from tests import factories

HALF_MEBIBYTE = 512 * 1024


@pytest.fixture
async def flow(live_database: Database) -> UUID:
    return await new_flow(live_database)


async def new_flow(database: Database) -> UUID:
    async with database.sessions() as session:
        return (await factories.create_flow(session, await factories.create_user(session))).id


@pytest.fixture
def store(live_database: Database, flow: UUID) -> FlowStore:
    """The store of a single step."""
    return FlowStore(live_database, flow, "execution:step")


def stores(database: Database, flow: UUID, count: int) -> list[FlowStore]:
    """The stores of `count` other steps of the same flow."""
    return [FlowStore(database, flow, f"{uuid4()}:step") for _ in range(count)]


async def rows(database: Database) -> list[KeyValueRecord]:
    async with database.transaction(read_only=True) as session:
        return list(await session.scalars(sa.select(KeyValueRecord).order_by(KeyValueRecord.key)))


async def fill(database: Database, flow: UUID, *, keys: int, size: int = 10) -> None:
    async with database.transaction() as session:
        session.add_all(
            KeyValueRecord(flow_id=flow, key=f"filled {number}", value="0", size=size) for number in range(keys)
        )


async def refusal(work: object) -> tuple[str, str, bool]:
    with pytest.raises(BlockError) as caught:
        await work  # type: ignore[misc]
    return caught.value.code, caught.value.message, caught.value.retryable


class TestValues:
    @pytest.mark.parametrize(
        "value", [None, False, 0, 1.5, "", "ä🌍\n", [1, [None]], {"a": {"b": [True]}, "": 2**63}, 0.1, 2**70]
    )
    async def test_stored_value_is_read_back(self, store: FlowStore, value: JsonValue) -> None:
        assert await store.get("key") == (False, None)
        await store.set("key", "before")
        await store.set("key", value)
        assert await store.get("key") == (True, value)
        assert await store.add("key", "other") == (True, value), "this step has set it"
        assert await store.delete("key")
        assert not await store.delete("key")
        assert await store.get("key") == (False, None)

    async def test_flows_have_separate_stores(self, live_database: Database, store: FlowStore) -> None:
        other = FlowStore(live_database, await new_flow(live_database), "execution:step")
        await store.set("key", 1)
        assert await other.get("key") == (False, None)
        assert await other.add("key", 2) == (True, 2)
        assert not await other.delete("another")
        assert await store.get("key") == (True, 1)

    @pytest.mark.parametrize("key", ["k", " ", "ä🌍", "x" * 255, "🌍" * 255, "' OR 1=1 --", "%_"])
    async def test_valid_keys_are_accepted(self, store: FlowStore, key: str) -> None:
        await store.set(key, 1)
        assert await store.get(key) == (True, 1)
        assert await store.get("other") == (False, None)

    @pytest.mark.parametrize("key", ["", "x" * 256, "a\nb", "\0", "a\x7f", "\ud800", "\u2028"])
    async def test_invalid_keys_are_refused(self, live_database: Database, store: FlowStore, key: str) -> None:
        expected = ("key_value_invalid", "A key has 1 to 255 printable characters", False)
        for work in (store.get(key), store.set(key, 1), store.delete(key), store.add(key, 1), store.increment(key, 1)):
            assert await refusal(work) == expected
        assert await rows(live_database) == []

    @pytest.mark.parametrize(
        "value",
        ["\0", {"a\0": 1}, "\ud800", float("nan"), [float("inf")], [10**5000]],
        ids=["NUL", "NUL in a key", "surrogate", "NaN", "infinity", "many digits"],
    )
    async def test_invalid_values_are_refused(
        self, live_database: Database, store: FlowStore, value: JsonValue
    ) -> None:
        for work in (store.set("key", value), store.add("key", value)):
            code, message, retryable = await refusal(work)
            assert (code, retryable) == ("key_value_invalid", False)
            assert message.startswith("The value cannot be stored: ")
        assert await rows(live_database) == []

    async def test_deeply_nested_value_is_refused(self, store: FlowStore) -> None:
        value: JsonValue = 1
        for _ in range(100_000):
            value = [value]
        assert (await refusal(store.set("key", value)))[0] == "key_value_invalid"

    async def test_deleted_flow_stores_nothing(self, live_database: Database, store: FlowStore) -> None:
        await store.set("key", 1)
        async with live_database.transaction() as session:
            await session.execute(sa.delete(FlowRecord))
        assert await rows(live_database) == []
        for work in (store.set("key", 1), store.add("key", 1), store.increment("key", 1)):
            assert await refusal(work) == ("flow_not_found", "Flow not found", False)
        assert (await store.get("key"), await store.delete("key")) == ((False, None), False)


class TestLimits:
    async def test_value_size_is_limited_to_64_kibibytes(self, live_database: Database, store: FlowStore) -> None:
        fits = "é" * ((MAX_VALUE_BYTES - 2) // 2)
        await store.set("key", fits)
        (row,) = await rows(live_database)
        assert row.size == len("key") + MAX_VALUE_BYTES
        expected = ("key_value_limit", "Limit reached: a value may have 65536 bytes of JSON", False)
        assert await refusal(store.set("key", fits + "x")) == expected
        assert await refusal(store.add("other", fits + "x")) == expected
        assert await store.get("key") == (True, fits)

    async def test_keys_of_a_flow_are_limited_to_a_thousand(
        self, live_database: Database, flow: UUID, store: FlowStore
    ) -> None:
        await fill(live_database, flow, keys=MAX_KEYS - 1)
        await store.set("last", 1)
        expected = ("key_value_limit", "Limit reached: a flow may have 1000 keys", False)
        for work in (store.set("more", 1), store.add("more", 1), store.increment("more", 1)):
            assert await refusal(work) == expected
        await store.set("last", "longer than it was before")
        assert await store.increment("filled 0", 1) == 1
        assert await store.delete("filled 1")
        assert await store.add("more", 1) == (True, 1)
        assert len(await rows(live_database)) == MAX_KEYS

    async def test_size_of_a_store_is_limited_to_four_mebibytes(
        self, live_database: Database, flow: UUID, store: FlowStore
    ) -> None:
        await fill(live_database, flow, keys=7, size=HALF_MEBIBYTE)
        await fill_to(live_database, flow, MAX_BYTES - 100)
        expected = ("key_value_limit", "Limit reached: the keys and values of a flow may have 4194304 bytes", False)
        assert await refusal(store.set("key", "x" * 96)) == expected
        await store.set("key", "x" * 95)
        assert await refusal(store.set("key", "x" * 96)) == expected
        assert await refusal(store.add("k", 1)) == expected
        await store.set("key", "x" * 94)
        assert await store.delete("filled 0")
        await store.set("key", "x" * 1000)

    async def test_no_value_is_added_or_made_longer_at_the_limit_of_stored_bytes(
        self, live_database: Database, store: FlowStore
    ) -> None:
        await store.set("key", "long")
        async with live_database.transaction() as session:
            stored = int(await session.scalar(sa.select(sa.func.sum(StoredBytesRecord.bytes))) or 0)
            await session.execute(sa.update(UserRecord).values(limits={"stored_bytes": stored}))
        before = [(row.key, row.value) for row in await rows(live_database)]
        for work in (store.set("key", "longer"), store.add("other", 1), store.increment("other", 1)):
            code, message, retryable = await refusal(work)
            assert (code, retryable) == ("stored_bytes_limit_reached", False)
            assert message.startswith(f"The limit of {stored} stored bytes is reached (in use: {stored}). Delete flows")
        assert [(row.key, row.value) for row in await rows(live_database)] == before
        await store.set("key", "new!")
        await store.set("key", "")
        await store.set("key", "long")
        assert await store.delete("key")

    async def test_limits_do_not_count_other_flows(self, live_database: Database, flow: UUID, store: FlowStore) -> None:
        other = await new_flow(live_database)
        await fill(live_database, other, keys=MAX_KEYS, size=10_000)
        await store.set("key", 1)

    async def test_limit_is_exact_under_concurrency(self, live_database: Database, flow: UUID) -> None:
        """Twenty keys are added concurrently, and three more are allowed."""
        await fill(live_database, flow, keys=MAX_KEYS - 3)

        async def one(number: int, store: FlowStore) -> str:
            try:
                await store.set(f"new {number}", number)
            except BlockError as error:
                return error.code
            return "set"

        answers = await asyncio.gather(*(one(*each) for each in enumerate(stores(live_database, flow, 20))))
        assert sorted(answers) == ["key_value_limit"] * 17 + ["set"] * 3
        assert len(await rows(live_database)) == MAX_KEYS


async def fill_to(database: Database, flow: UUID, size: int) -> None:
    used = sum(row.size for row in await rows(database))
    async with database.transaction() as session:
        session.add(KeyValueRecord(flow_id=flow, key="filled up", size=size - used))


class TestConcurrency:
    async def test_concurrent_increments_are_all_counted(self, live_database: Database, flow: UUID) -> None:
        sums = await asyncio.gather(*(store.increment("n", 1) for store in stores(live_database, flow, 50)))
        assert sorted(sums) == list(range(1, 51))
        (row,) = await rows(live_database)
        assert row.value == "50"

    async def test_concurrent_adds_succeed_once(self, live_database: Database, flow: UUID) -> None:
        several = stores(live_database, flow, 20)
        answers = await asyncio.gather(*(store.add("n", number) for number, store in enumerate(several)))
        ((_, winner),) = [answer for answer in answers if answer[0]]
        assert answers.count((False, winner)) == 19

    async def test_concurrent_writes_and_deletions_do_not_fail(self, live_database: Database, flow: UUID) -> None:
        several = stores(live_database, flow, 24)
        async with asyncio.timeout(30):
            await asyncio.gather(
                *(store.set("a", 1) for store in several[::3]),
                *(store.delete("a") for store in several[1::3]),
                *(store.add("a", 2) for store in several[2::3]),
            )


class TestOncePerStep:
    async def test_repeated_step_increments_once(self, live_database: Database, flow: UUID) -> None:
        """In between, other steps write, as many as the key records."""
        step, *others = stores(live_database, flow, MARKS_KEPT)
        assert [await step.increment("n", 5) for _ in range(3)] == [5, 5, 5]
        for other in others:
            await other.increment("n", 1)
        assert await step.increment("n", 5) == 5 + len(others)
        (row,) = await rows(live_database)
        assert len(row.written_by or "") == 320

    async def test_keys_are_incremented_independently(self, store: FlowStore) -> None:
        assert [await store.increment(key, 1) for key in "abab"] == [1, 1, 1, 1]

    async def test_repeated_step_keeps_a_newer_value(
        self, live_database: Database, flow: UUID, store: FlowStore
    ) -> None:
        (other,) = stores(live_database, flow, 1)
        await store.increment("n", 1)
        await other.set("n", 0)
        assert await store.increment("n", 1) == 0

    async def test_repeated_step_adds_once(self, live_database: Database, flow: UUID, store: FlowStore) -> None:
        (other,) = stores(live_database, flow, 1)
        assert [await store.add("order 1", "a") for _ in range(2)] == [(True, "a")] * 2
        assert [await other.add("order 1", "b") for _ in range(2)] == [(False, "a")] * 2
        assert await store.add("order 1", "a") == (True, "a")
        await store.delete("order 1")
        assert await other.add("order 1", "b") == (True, "b")


class TestNumbers:
    async def test_integers_and_floats_keep_their_type(self, live_database: Database, flow: UUID) -> None:
        first, second, third, fourth = stores(live_database, flow, 4)
        sums = [await first.increment("n", 2), await second.increment("n", -5), await third.increment("n", 0.5)]
        assert sums == [2, -3, -2.5]
        assert [type(one) for one in sums] == [int, int, float]
        assert await fourth.increment("n", 2**60) == 2**60 - 2.5

    @pytest.mark.parametrize("value", [None, True, "1", [], {"n": 1}])
    async def test_increment_of_a_non_number_is_refused(self, store: FlowStore, value: JsonValue) -> None:
        await store.set("n", value)
        expected = ("key_value_no_number", "The stored value is not a number", False)
        assert await refusal(store.increment("n", 1)) == expected
        assert await store.get("n") == (True, value)

    @pytest.mark.parametrize("by", [float("nan"), float("inf"), -float("inf"), 10**400, True])
    async def test_increment_by_a_non_number_is_refused(
        self, live_database: Database, store: FlowStore, by: float
    ) -> None:
        expected = ("key_value_no_number", "The value to add must be a number", False)
        assert await refusal(store.increment("n", by)) == expected
        assert await rows(live_database) == []

    async def test_a_sum_that_is_too_large_is_refused(self, live_database: Database, flow: UUID) -> None:
        first, second = stores(live_database, flow, 2)
        await first.increment("n", 1e300)
        assert await refusal(second.increment("n", 1e300)) == ("key_value_no_number", "The sum is too large", False)
        assert await first.get("n") == (True, 1e300)
