"""Requests of one client address in turns."""

from __future__ import annotations

import asyncio
import time
from ipaddress import ip_network
from typing import Any

import pytest

from bloxserver.api import turns as turns_module
from bloxserver.api.turns import ProcessLoad, RequestTurns, Turns

ADA, GRACE = "10.0.0.1", "10.0.0.2"
REQUEST = {"type": "http.request", "body": b"", "more_body": False}
DISCONNECT = {"type": "http.disconnect"}


@pytest.fixture(autouse=True)
def _no_pause(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(turns_module, "PAUSE_FACTOR", 0)
    monkeypatch.setattr(turns_module, "MIN_PAUSE_SECONDS", 0)


class Application:
    """Holds each request until it is released, and records their order."""

    def __init__(self, *, waits_for_disconnect: bool = False, status: int | None = None) -> None:
        self.begun: list[str] = []
        self.messages: list[Any] = []
        self.release = asyncio.Event()
        self._waits_for_disconnect = waits_for_disconnect
        self._status = status

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        self.begun.append(scope["name"])
        if self._waits_for_disconnect:
            self.messages += [await receive(), await receive()]
        else:
            await self.release.wait()
        if self._status is not None:
            await send({"type": "http.response.start", "status": self._status})


class Clients:
    """Send requests to the middleware."""

    def __init__(self, app: Application, maximum: int = 2, **options: Any) -> None:
        self.turns = Turns(maximum)
        self._app = RequestTurns(app, self.turns, **options)
        self.tasks: list[asyncio.Task[None]] = []

    async def send(self, name: str, address: str | None = ADA, path: str = "/", receive: Any = None) -> None:
        scope = {"type": "http", "client": address and (address, 1), "path": path, "name": name}
        self.tasks.append(asyncio.create_task(self._app(scope, receive or _received, _sent)))
        await turn_of_the_loop()

    async def finish(self) -> None:
        async with asyncio.timeout(10):
            await asyncio.gather(*self.tasks)
        assert not self.turns._addresses


async def _received() -> Any:
    return REQUEST


async def _sent(message: Any) -> None:
    pass


async def turn_of_the_loop() -> None:
    for _ in range(5):
        await asyncio.sleep(0)


async def test_address_waits_only_for_its_own_requests() -> None:
    app = Application()
    clients = Clients(app)
    for name in ("1", "2", "3", "4"):
        await clients.send(name)
    await clients.send("other", GRACE)
    assert app.begun == ["1", "2", "other"]
    app.release.set()
    await clients.finish()
    assert app.begun == ["1", "2", "other", "3", "4"]


async def test_addresses_of_one_ipv6_network_are_one_client() -> None:
    app = Application()
    clients = Clients(app, 1)
    await clients.send("1", "2001:db8::1")
    await clients.send("2", "2001:db8::2")
    assert app.begun == ["1"]
    app.release.set()
    await clients.finish()


async def test_probe_does_not_wait_for_other_requests() -> None:
    app = Application()
    clients = Clients(app, 1)
    await clients.send("1")
    await clients.send("probe", path="/health/live")
    await clients.send("second probe", path="/metrics")
    assert app.begun == ["1", "probe"]
    app.release.set()
    await clients.finish()


async def test_proxy_has_no_limit() -> None:
    app = Application()
    clients = Clients(app, 1, proxies=(ip_network("10.0.0.0/8"),))
    for name in ("1", "2", "3"):
        await clients.send(name)
    assert app.begun == ["1", "2", "3"]
    app.release.set()
    await clients.finish()


async def test_open_stream_does_not_hold_a_turn() -> None:
    """It waits for the disconnect of its client."""
    app = Application(waits_for_disconnect=True)
    clients = Clients(app, 1)
    disconnected = asyncio.Event()

    async def receive() -> Any:
        if not app.messages:
            app.messages.append("received")
            return REQUEST
        await disconnected.wait()
        return DISCONNECT

    await clients.send("stream", receive=receive)
    await clients.send("2")
    assert app.begun == ["stream", "2"]
    disconnected.set()
    await clients.finish()


async def test_body_of_a_waiting_request_is_complete() -> None:
    app = Application()
    clients = Clients(app, 1)
    await clients.send("1")
    app._waits_for_disconnect = True
    parts = [{"type": "http.request", "body": body, "more_body": more} for body, more in ((b"a", True), (b"b", False))]
    remaining = list(parts)

    async def receive() -> Any:
        return remaining.pop(0)

    await clients.send("2", receive=receive)
    assert remaining == parts, "nothing is received before its turn"
    app.release.set()
    await clients.finish()
    assert app.messages == parts


async def test_request_without_a_body_is_handled_when_its_turn_comes() -> None:
    """The application limits the time in which the body must arrive."""
    app = Application()
    clients = Clients(app, 1)
    await clients.send("1")

    async def receive() -> Any:
        await asyncio.Event().wait()

    await clients.send("2", receive=receive)
    app.release.set()
    await clients.finish()
    assert app.begun == ["1", "2"]


async def test_request_whose_client_left_while_it_waited_is_not_handled() -> None:
    app = Application()
    clients = Clients(app, 1)
    await clients.send("1")

    async def receive() -> Any:
        return DISCONNECT

    await clients.send("2", receive=receive)
    await clients.send("3")
    app.release.set()
    await clients.finish()
    assert app.begun == ["1", "3"]


async def test_request_that_is_cancelled_while_it_waits_is_forgotten() -> None:
    app = Application()
    clients = Clients(app, 1)
    for name in ("1", "2", "3"):
        await clients.send(name)
    clients.tasks.pop(1).cancel()
    app.release.set()
    await clients.finish()
    assert app.begun == ["1", "3"]


async def test_request_that_is_cancelled_when_its_turn_comes_passes_it_on(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(turns_module, "OTHERS_SECONDS", 0)
    app = Application()
    clients = Clients(app, 1)
    assert clients.turns.begin((ADA, False)) is None
    for name in ("1", "2"):
        await clients.send(name)
    clients.turns.end((ADA, False))
    clients.tasks.pop(0).cancel()
    app.release.set()
    await clients.finish()
    assert app.begun == ["2"]


async def test_slow_request_does_not_block_its_address(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(turns_module, "MAX_TURN_SECONDS", 0)
    app = Application()
    clients = Clients(app, 1)
    await clients.send("slow")
    async with asyncio.timeout(10):
        while len(app.begun) < 3:
            await clients.send("next")
    app.release.set()
    await clients.finish()


class TestPauses:
    """Between the requests of an address that never stops sending."""

    @pytest.fixture(autouse=True)
    def _endless_pause(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(turns_module, "PAUSE_FACTOR", 1e9)
        monkeypatch.setattr(turns_module, "BUSY", 0)

    @pytest.mark.parametrize(("status", "begun"), [(200, ["1", "2", "3"]), (429, ["1", "2"])])
    async def test_address_pauses_after_an_error_of_its_only_request(self, status: int, begun: list[str]) -> None:
        app = Application(status=status)
        clients = Clients(app, 1)
        app.release.set()
        for name, address in (("1", GRACE), ("2", ADA), ("3", ADA)):
            await clients.send(name, address)
        await turn_of_the_loop()
        assert app.begun == begun
        for task in clients.tasks:
            task.cancel()

    async def test_idle_process_causes_no_pause(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(turns_module, "BUSY", 1e9)
        app = Application()
        clients = Clients(app, 1)
        for name, address in (("1", GRACE), ("2", ADA), ("3", ADA)):
            await clients.send(name, address)
        app.release.set()
        await clients.finish()
        assert app.begun == ["1", "2", "3"]

    @pytest.mark.parametrize(("factor", "minimum"), [(1e9, 0), (0, 600)])
    async def test_address_pauses_while_others_send_requests(
        self, factor: float, minimum: float, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(turns_module, "PAUSE_FACTOR", factor)
        monkeypatch.setattr(turns_module, "MIN_PAUSE_SECONDS", minimum)
        app = Application()
        clients = Clients(app, 1)
        app.release.set()
        await clients.send("1", GRACE)
        app.release.clear()
        for name in ("2", "3"):
            await clients.send(name)
        app.release.set()
        await turn_of_the_loop()
        assert app.begun == ["1", "2"]
        clients.tasks.pop().cancel()

    async def test_slow_request_causes_no_pause(self, monkeypatch: pytest.MonkeyPatch) -> None:
        """It waits for something other than the event loop."""
        monkeypatch.setattr(turns_module, "MAX_TURN_SECONDS", 0.05)
        app = Application()
        clients = Clients(app, 1)
        await clients.send("1", GRACE)
        await clients.send("2")
        await clients.send("3")
        async with asyncio.timeout(10):
            while "3" not in app.begun:  # noqa: ASYNC110
                await asyncio.sleep(0)
        app.release.set()
        await clients.finish()

    async def test_address_without_others_does_not_pause(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(turns_module, "OTHERS_SECONDS", 0)
        app = Application()
        clients = Clients(app, 1)
        for name in ("1", "2", "3"):
            await clients.send(name)
        app.release.set()
        await clients.finish()
        assert app.begun == ["1", "2", "3"]

    async def test_address_without_waiting_requests_does_not_pause(self) -> None:
        app = Application()
        clients = Clients(app, 1)
        app.release.set()
        for name, address in (("1", GRACE), ("2", ADA), ("3", GRACE), ("4", ADA)):
            await clients.send(name, address)
        await clients.finish()
        assert app.begun == ["1", "2", "3", "4"]


def test_load_is_the_used_part_of_a_core(monkeypatch: pytest.MonkeyPatch) -> None:
    load = ProcessLoad()
    monkeypatch.setattr(turns_module, "SAMPLE_SECONDS", 0)
    used = time.process_time() + 0.02
    while time.process_time() < used:
        pass
    monkeypatch.setattr(turns_module, "BUSY", 0.01)
    assert load.is_busy()


def test_requests_of_a_closed_event_loop_do_not_count() -> None:
    turns = Turns(1)

    async def begin() -> object:
        return turns.begin((ADA, False))

    assert asyncio.run(begin()) is None
    assert asyncio.run(begin()) is None
