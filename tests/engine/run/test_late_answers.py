"""A worker to which the answers of PostgreSQL arrive late starts nothing that another worker has finished meanwhile."""

from __future__ import annotations

import asyncio
from asyncio import StreamWriter
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine
from dataclasses import dataclass, field
from typing import Any

import pytest
import sqlalchemy as sa
from pydantic import SecretStr

from bloxserver.encryption import get_cipher
from bloxserver.engine.queue.checkpoints import CheckpointWriter
from bloxserver.engine.queue.claims import ClaimedExecution, with_steps
from bloxserver.engine.queue.recovery import reclaim_all
from bloxserver.engine.queue.values import LeaseLost
from bloxserver.engine.run import lease_check
from bloxserver.engine.run.context import SharedClients
from bloxserver.engine.run.runner import ExecutionRunner
from bloxserver.models.database import Database
from bloxserver.models.enums import ExecutionStatus
from bloxserver.models.tables import ExecutionRecord, ExecutionStepRecord
from bloxserver.services.secrets import set_secret
from bloxserver.settings import Settings
from tests.chaos.proxy import Proxy
from tests.clients.loopback import LoopbackServer, answer, running_server
from tests.clients.mailing import LOOPBACK
from tests.engine.pump_runs import organism
from tests.engine.queue_claims import take
from tests.factories import create_execution, create_flow, create_user
from tests.llm_server import LanguageModelServer, calls, language_model, says
from tests.smtp_server import SmtpServer, running_smtp_server

SECONDS = 30


@dataclass
class Installation:
    """Two workers with one database. One of them connects through a proxy that can stop the answers of the server."""

    settings: Settings
    database: Database
    proxy: Proxy
    proxied: Database
    clients: SharedClients
    http: LoopbackServer
    smtp: SmtpServer
    model: LanguageModelServer
    execution: ExecutionRecord = field(init=False)

    async def accept(self, *listeners: str, secret: str | None = None) -> None:
        async with self.database.transaction() as session:
            user = await create_user(session)
            flow = await create_flow(session, user, organism_yaml=organism(*listeners))
            self.execution = await create_execution(session, flow)
            if secret is not None:
                await set_secret(session, get_cipher(self.settings), user.id, secret, "value")

    async def begin(self, *, stopped: bool) -> asyncio.Task[None]:
        """Run the execution on the proxied worker, if `stopped` without the answers to its transactions."""
        claimed = await take(self.proxied, self.execution, "w-proxied")
        if stopped:
            self.proxy.stop_answers()
        return asyncio.create_task(self._run(self.proxied, claimed))

    async def finish_elsewhere(self) -> None:
        """Recover the execution and run it to its end on the other worker."""
        async with self.database.transaction() as session:
            assert len(await reclaim_all(session)) == 1
        claimed = await take(self.database, self.execution, "w-direct")
        async with self.database.transaction(read_only=True) as session:
            claimed = await with_steps(session, claimed)
        await self._run(self.database, claimed)
        async with self.database.transaction(read_only=True) as session:
            ended = await session.get_one(ExecutionRecord, self.execution.id)
        assert ended.status is ExecutionStatus.SUCCESS, ended.error_message

    async def until_stored(self, listener: str, condition: sa.ColumnElement[bool]) -> None:
        """Wait until the step of this listener is stored and meets the condition."""
        step = sa.select(ExecutionStepRecord.id).where(ExecutionStepRecord.listener == listener, condition)
        async with asyncio.timeout(SECONDS):
            while True:
                async with self.database.transaction(read_only=True) as session:
                    if await session.scalar(step) is not None:
                        return
                await asyncio.sleep(0.01)

    def _run(self, database: Database, execution: ClaimedExecution) -> Coroutine[Any, Any, None]:
        return ExecutionRunner(database, CheckpointWriter(database), self.clients, execution).run()


@pytest.fixture
async def installation(live_settings: Settings, live_database: Database) -> AsyncIterator[Installation]:
    if live_database.is_sqlite:
        pytest.skip("SQLite has no network")
    async with (
        Proxy(sa.make_url(live_settings.database_url)).serving() as proxy,
        running_server() as http,
        running_smtp_server() as smtp,
        language_model([calls(("b", {"input": 1})), says("Done.")]) as model,
    ):
        settings = live_settings.model_copy(
            update={
                "database_url": proxy.url(live_settings.database_url),
                "ssrf_allow_cidrs": (LOOPBACK,),
                "api_key_encryption_key": SecretStr("k" * 32),
                "smtp_host": "127.0.0.1",
                "smtp_port": smtp.port,
                "smtp_security": "none",
                "smtp_from": "flows@example.com",
                "llm_base_url": model.url,
                "llm_model": "scripted",
            }
        )
        proxied, clients = Database(settings), SharedClients.of(settings)
        yield Installation(settings, live_database, proxy, proxied, clients, http, smtp, model)
        proxy.heal()
        await clients.aclose()
        await proxied.dispose()


async def end_late(installation: Installation, late: asyncio.Task[None], monkeypatch: pytest.MonkeyPatch) -> None:
    """Let the answers arrive. The proxied worker finds that it has lost the lease."""
    assert not late.done()
    monkeypatch.setattr(lease_check, "RECHECK_SECONDS", 0.0)
    installation.proxy.heal()
    async with asyncio.timeout(SECONDS):
        with pytest.raises(LeaseLost):
            await late


def request(name: str, url: str, more: str = "") -> str:
    return f"name: {name}, handler: http.request, config: {{url: '{url}'{more}}}"


def stop_answers_during(installation: Installation, listener: str) -> Callable[[StreamWriter], Awaitable[None]]:
    """A server that answers a step's request when the proxied worker receives no more answers of PostgreSQL."""

    async def respond(writer: StreamWriter) -> None:
        # The step is saved as running first: the save of its result would wait for the answer to that. The driver has
        # then prepared the statement, so that the result is stored although no answer arrives.
        await installation.until_stored(listener, sa.true())
        async with installation.proxied.transaction(read_only=True) as session:
            await session.execute(sa.select(1))
        installation.proxy.stop_answers()
        writer.write(answer(b"{}"))

    return respond


async def test_step_after_a_late_checkpoint_does_not_start(
    installation: Installation, monkeypatch: pytest.MonkeyPatch
) -> None:
    http = installation.http
    http.answers |= {"/a": stop_answers_during(installation, "a"), "/b": answer(b"{}")}
    await installation.accept(f"{request('a', http.url('/a'))}, peers: [b]", request("b", http.url("/b")))
    late = await installation.begin(stopped=False)
    await installation.until_stored("b", sa.true())
    await installation.finish_elsewhere()
    await end_late(installation, late, monkeypatch)
    assert len(http.received) == 2


async def test_step_does_not_start_after_a_late_secret(
    installation: Installation, monkeypatch: pytest.MonkeyPatch
) -> None:
    http = installation.http
    http.answers["/a"] = answer(b"{}")
    await installation.accept(request("a", http.url("/a"), ", headers: {X-Key: '{{ secrets.KEY }}'}"), secret="KEY")
    late = await installation.begin(stopped=True)
    await installation.finish_elsewhere()
    await end_late(installation, late, monkeypatch)
    assert len(http.received) == 1


async def test_email_is_not_sent_after_its_late_count(
    installation: Installation, monkeypatch: pytest.MonkeyPatch
) -> None:
    await installation.accept("name: a, handler: email.send, config: {to: ada@example.com, subject: Hello, text: Hi}")
    late = await installation.begin(stopped=True)
    await installation.finish_elsewhere()
    await end_late(installation, late, monkeypatch)
    assert len(installation.smtp.received) == 1


async def test_agent_asks_its_model_nothing_after_a_late_checkpoint(
    installation: Installation, monkeypatch: pytest.MonkeyPatch
) -> None:
    http = installation.http
    http.answers["/b"] = stop_answers_during(installation, "b")
    tool = request("b", http.url("/b"), ", body: '{{ payload }}', method: POST")
    await installation.accept("name: a, prompt: Be brief., peers: [b]", tool)
    late = await installation.begin(stopped=False)
    await installation.until_stored("b", ExecutionStepRecord.completed_at.is_not(None))
    await installation.finish_elsewhere()
    await end_late(installation, late, monkeypatch)
    assert (len(http.received), len(installation.model.requests)) == (1, 2)
