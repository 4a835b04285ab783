"""Processes that send emails are killed: no email is sent twice, and none is lost before its attempt."""

from __future__ import annotations

import asyncio
import os
import random
import signal
import subprocess
import sys
from collections import Counter
from collections.abc import AsyncIterator, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from bloxserver.account_emails.outbox import BATCH
from bloxserver.models.database import Database
from bloxserver.settings import Settings
from tests.account_emails.email_world import EmailWorld, email_world
from tests.engine.retention_world import until

EMAILS, KILLS, PROCESSES = 120, 10, 2


@pytest.fixture
async def emails(live_database: Database, live_settings: Settings) -> AsyncIterator[EmailWorld]:
    async with email_world(live_database, live_settings) as world:
        yield world


def start(mode: str, emails: EmailWorld) -> subprocess.Popen[str]:
    arguments = [mode, emails.settings.database_url, str(emails.smtp.port)]
    command = [sys.executable, "-m", "tests.account_emails.email_process", *arguments]
    kept = {name: os.environ[name] for name in ("PATH", "HOME", "PYTHONPATH") if name in os.environ}
    directory = Path(__file__).parents[2]
    return subprocess.Popen(
        command, env=kept, cwd=directory, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True
    )


@contextmanager
def running(mode: str, emails: EmailWorld) -> Iterator[subprocess.Popen[str]]:
    process = start(mode, emails)
    try:
        yield process
    finally:
        kill(process)


def kill(process: subprocess.Popen[str]) -> None:
    process.send_signal(signal.SIGKILL)
    assert process.wait(30) == -signal.SIGKILL
    assert process.stdout is not None
    process.stdout.close()


async def test_process_is_killed_between_the_claim_and_the_attempt(emails: EmailWorld) -> None:
    await emails.write(await emails.user(), "a", "b")
    with running("claim", emails) as process:
        assert process.stdout is not None
        assert await asyncio.to_thread(process.stdout.readline) == "2\n"
    assert await emails.sender().send_due() == 0
    await emails.make_due()
    assert await emails.sender().send_due() == 2
    assert len(emails.smtp.received) == 2
    assert all(row.sent_at is not None and row.attempts == 2 for row in await emails.rows())


async def test_process_is_killed_during_the_attempt(emails: EmailWorld) -> None:
    """The mail server gets the whole email, and the process ends before it gets the answer."""
    await emails.write(await emails.user(), "a")
    arrived, accept = asyncio.Event(), emails.smtp.handle_DATA

    async def accept_and_wait(*arguments: Any) -> str:
        answer = await accept(*arguments)
        arrived.set()
        await asyncio.Event().wait()
        return answer

    emails.smtp.handle_DATA = accept_and_wait  # type: ignore[method-assign, assignment]
    with running("send", emails):
        await arrived.wait()
    await emails.make_due()
    assert await emails.sender().send_due() == 0
    row = await emails.row()
    assert (row.sent_at, row.due_at, row.error, len(emails.smtp.received)) == (None, None, "outcome unknown", 1)


async def test_no_email_is_sent_twice(emails: EmailWorld) -> None:
    user_id = await emails.user()
    processes = [start("send", emails) for _ in range(PROCESSES)]
    try:
        for number in range(KILLS):
            await emails.write(user_id, *(f"{number}-{index}" for index in range(EMAILS // KILLS)))
            await wait_for_some(emails, random.randint(1, 12))  # noqa: S311
            kill(processes.pop(0))
            processes.append(start("send", emails))

        async def is_done() -> bool:
            return all(row.due_at is None for row in await emails.rows())

        await until(is_done, interval_seconds=0.1)
    finally:
        for process in processes:
            kill(process)
    rows = await emails.rows()
    sent = [row for row in rows if row.sent_at is not None]
    unknown = [row for row in rows if row.error == "outcome unknown"]
    received = Counter(str(mail.message["Message-ID"]) for mail in emails.smtp.received)
    assert max(received.values()) == 1
    assert len(sent) + len(unknown) == len(rows) == EMAILS
    assert len(sent) <= len(received) <= len(sent) + len(unknown)
    assert len(unknown) <= KILLS * BATCH
    sys.stdout.write(f"kills {KILLS}, emails {EMAILS}, sent {len(sent)}, unknown {len(unknown)}\n")


async def wait_for_some(emails: EmailWorld, number: int) -> None:
    before = len(emails.smtp.received)

    async def has_progressed() -> bool:
        return len(emails.smtp.received) >= min(before + number, EMAILS) or not await has_due()

    async def has_due() -> bool:
        return any(row.due_at is not None for row in await emails.rows())

    await until(has_progressed, interval_seconds=0.02)
