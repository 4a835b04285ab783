"""Rows of the outbox: claims, attempts and their ends."""

from __future__ import annotations

import asyncio
from datetime import datetime, timedelta

import sqlalchemy as sa

from bloxserver.account_emails.kinds import Email, EmailKind
from bloxserver.account_emails.outbox import (
    BATCH,
    CHUNK,
    CLAIM,
    EXPIRY,
    KEPT,
    MAX_BACKOFF,
    ClaimedEmail,
    backoff_after,
    begin_attempt,
    claim_emails,
    delete_old_emails,
    end_attempt,
    postpone,
    read_recipient,
    without_written,
)
from bloxserver.clock import now
from bloxserver.services.account_deletions import delete_account
from tests.account_emails.email_world import EmailWorld
from tests.metric_increase import measure_increase


async def claim(emails: EmailWorld, moment: datetime | None = None) -> list[ClaimedEmail]:
    async with emails.database.transaction() as session:
        return await claim_emails(session, moment or now())


async def begin(emails: EmailWorld, email: ClaimedEmail) -> bool:
    async with emails.database.transaction() as session:
        return await begin_attempt(session, email, now())


async def test_key_is_written_once_for_each_user(emails: EmailWorld) -> None:
    users = [await emails.user() for _ in range(2)]
    for user_id in users:
        await emails.write(user_id, "a", "a", "b")
        await emails.write(user_id, "b", kind=EmailKind.TRIAL_STARTED)
    rows = await emails.rows()
    assert [(row.user_id, row.event_key) for row in rows] == [(user, key) for user in users for key in "ab"]
    assert {row.kind for row in rows} == {EmailKind.TRIAL_ENDING}


async def test_concurrent_transactions_write_one_row(emails: EmailWorld) -> None:
    user_id = await emails.user()
    await asyncio.gather(*(emails.write(user_id, "a") for _ in range(8)))
    assert len(await emails.rows()) == 1


async def test_many_emails_are_written_and_found(emails: EmailWorld) -> None:
    users = [await emails.user() for _ in range(2)]
    keys = [str(number) for number in range(CHUNK + 1)]
    await emails.write(users[0], *keys)
    wanted = [(user_id, Email(EmailKind.TRIAL_ENDING, key)) for user_id in users for key in keys]
    async with emails.database.sessions() as session:
        assert await without_written(session, wanted) == wanted[len(keys) :]


async def test_due_email_is_claimed_by_one_process(emails: EmailWorld) -> None:
    await emails.write(await emails.user(), *"abc")
    claimed = [email for part in await asyncio.gather(*(claim(emails) for _ in range(5))) for email in part]
    assert sorted(email.event_key for email in claimed) == [*"abc"]
    assert await claim(emails) == []


async def test_claim_is_limited_and_the_earliest_are_first(emails: EmailWorld) -> None:
    await emails.write(await emails.user(), *(str(number) for number in range(BATCH + 1)))
    assert len(await claim(emails)) == BATCH
    assert len(await claim(emails)) == 1


async def test_claim_without_an_attempt_is_void_after_its_time(emails: EmailWorld) -> None:
    await emails.write(await emails.user(), "a")
    [first] = await claim(emails)
    assert await claim(emails, first.until - timedelta(seconds=1)) == []
    [second] = await claim(emails, first.until)
    assert (first.attempts, second.attempts) == (1, 2)
    assert second.until == first.until + CLAIM
    assert not await begin(emails, first)
    assert await begin(emails, second)


async def test_attempt_without_a_result_is_not_repeated(emails: EmailWorld) -> None:
    await emails.write(await emails.user(), "a")
    [email] = await claim(emails)
    assert await begin(emails, email)
    with measure_increase("bloxserver_account_emails_total", outcome="unknown") as unknown:
        assert await claim(emails, email.until) == []
    row = await emails.row()
    assert (row.due_at, row.sent_at, row.error) == (None, None, "outcome unknown")
    assert unknown.number == 1


async def test_sent_email_is_not_due(emails: EmailWorld) -> None:
    await emails.write(await emails.user(), "a")
    [email] = await claim(emails)
    await begin(emails, email)
    async with emails.database.transaction() as session:
        await end_attempt(session, email, now())
    row = await emails.row()
    assert (row.due_at, row.error, row.attempts) == (None, None, 1)
    assert row.sent_at is not None
    assert await claim(emails, now() + EXPIRY * 2) == []


async def test_postponed_email_is_due_after_the_pause(emails: EmailWorld) -> None:
    await emails.write(await emails.user(), "a")
    [email] = await claim(emails)
    await begin(emails, email)
    moment = now()
    async with emails.database.transaction() as session:
        await postpone(session, email, moment, "mail_refused")
    row = await emails.row()
    assert (row.due_at, row.attempted_at, row.error) == (moment + backoff_after(1), None, "mail_refused")
    assert [again.attempts for again in await claim(emails, moment + backoff_after(1))] == [2]


async def test_result_of_a_void_claim_changes_nothing(emails: EmailWorld) -> None:
    await emails.write(await emails.user(), "a")
    [first] = await claim(emails)
    [second] = await claim(emails, first.until)
    async with emails.database.transaction() as session:
        await end_attempt(session, first, now(), "mail_refused")
    row = await emails.row()
    assert (row.due_at, row.error) == (second.until, None)


def test_pauses_double_up_to_two_hours() -> None:
    minutes = [backoff_after(attempts) / timedelta(minutes=1) for attempts in (1, 2, 3, 7, 100)]
    assert minutes == [2, 4, 8, 120, 120]
    assert MAX_BACKOFF < EXPIRY


async def test_stale_email_is_not_sent(emails: EmailWorld) -> None:
    """Switching on a mail server does not send what was written long ago."""
    await emails.write(await emails.user(), "a", "b")
    await emails.change(created_at=now() - EXPIRY - timedelta(seconds=1))
    await emails.write(await emails.user(), "c")
    assert [email.event_key for email in await claim(emails)] == ["c"]
    assert [row.error for row in await emails.rows()] == ["expired", "expired", None]


async def test_rows_are_deleted_when_they_are_old(emails: EmailWorld) -> None:
    await emails.write(await emails.user(), "a")
    await emails.change(created_at=now() - KEPT)
    await emails.write(await emails.user(), "b")
    async with emails.database.transaction() as session:
        assert not await delete_old_emails(session, now())
    assert [row.event_key for row in await emails.rows()] == ["b"]


async def test_deletion_of_the_user_deletes_their_emails(emails: EmailWorld) -> None:
    user_id = await emails.user(email="ada@example.com", name="Ada")
    await emails.write(user_id, "a")
    [email] = await claim(emails)
    async with emails.database.transaction() as session:
        assert await read_recipient(session, user_id) == ("ada@example.com", "Ada")
        await delete_account(session, user_id)
        assert await read_recipient(session, user_id) is None
    assert await emails.rows() == []
    assert not await begin(emails, email)


async def test_claims_use_the_index_of_due_rows(emails: EmailWorld) -> None:
    async with emails.database.sessions() as session:
        indexes = await session.run_sync(lambda sync: sa.inspect(sync.connection()).get_indexes("account_emails"))
    assert {index["name"] for index in indexes} >= {"ix_account_emails_due", "ix_account_emails_created_at"}
