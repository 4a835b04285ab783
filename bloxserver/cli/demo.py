"""`bloxserver demo`: the main job, done over HTTP against a real server, with everything checked."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import httpx
from rich.console import Console
from rich.markup import escape
from rich.table import Table

TIMEOUT_SECONDS = 30.0
ENDED = {"success", "error", "timeout", "cancelled"}

BROKEN = """\
organism:
  name: broken
listeners:
  - name: answer
    description: Names a block that does not exist
    handler: ecko
"""

ORDER = """\
organism:
  name: order
listeners:
  - name: reserve
    description: Reserves the goods in the stock
    handler: http.request
    config: {{method: POST, url: "{shop}/reserve"}}
    peers: [bill]
  - name: bill
    description: Makes a bill of the reservation
    handler: transform
    config:
      output: {{order: "{{{{ payload.body.order }}}}", text: "Order {{{{ payload.body.order }}}} is reserved"}}
    peers: [charge]
  - name: charge
    description: Charges the customer
    handler: http.request
    config: {{method: POST, url: "{shop}/charge"}}
    peers: [cool_down]
  - name: cool_down
    description: Waits a moment, without holding a worker
    handler: delay
    config: {{seconds: 1}}
    peers: [confirm]
  - name: confirm
    description: Confirms the order
    handler: http.request
    config: {{method: POST, url: "{shop}/confirm"}}
"""


class DemoFailed(Exception):
    """Something was not as it should be."""


class Shop:
    """A service outside, on loopback: it counts its calls, and holds the first charge until its caller is dead."""

    def __init__(self) -> None:
        self.calls: Counter[str] = Counter()
        self.charge_keys: set[str | None] = set()
        self.charging = threading.Event()
        self.caller_died = threading.Event()
        shop = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                self.rfile.read(int(self.headers.get("content-length", 0)))
                shop.called(self.path.strip("/"), self.headers.get("idempotency-key"))
                body = b'{"order": 42, "done": true}'
                try:
                    self.send_response(200)
                    self.send_header("content-type", "application/json")
                    self.send_header("content-length", str(len(body)))
                    self.end_headers()
                    self.wfile.write(body)
                except OSError:
                    return  # the caller was killed

            def log_message(self, format: str, *args: Any) -> None:
                return

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self._server.server_port}"
        threading.Thread(target=self._server.serve_forever, daemon=True).start()

    def called(self, path: str, key: str | None) -> None:
        self.calls[path] += 1
        if path == "charge":
            self.charge_keys.add(key)
            if self.calls[path] == 1:
                self.charging.set()
                self.caller_died.wait(TIMEOUT_SECONDS)

    def close(self) -> None:
        self.caller_died.set()
        self._server.shutdown()
        self._server.server_close()


class Server:
    """`bloxserver serve` as its own process, on a free port and a temporary SQLite file."""

    def __init__(self, directory: Path, shop: Shop) -> None:
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            self.port: int = free.getsockname()[1]
        self.log = directory / "server.log"
        kept = {name: value for name, value in os.environ.items() if name in ("PATH", "HOME", "LANG", "SYSTEMROOT")}
        self._environment = kept | {
            "ENV": "development",
            "DATABASE_URL": f"sqlite+aiosqlite:///{directory}/demo.db",
            "SSRF_ALLOW_CIDRS": "127.0.0.0/8",
        }
        self._directory = directory
        self._process: subprocess.Popen[bytes] | None = None
        self._shop = shop

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def start(self) -> float:
        """Returns the seconds until the server was ready."""
        begun = time.monotonic()
        with self.log.open("ab") as log:
            self._process = subprocess.Popen(  # noqa: S603
                [sys.executable, "-m", "bloxserver", "serve", "--port", str(self.port)],
                env=self._environment,
                cwd=self._directory,
                stdout=log,
                stderr=log,
            )
        wait_for("the server to be ready", self._is_ready)
        return time.monotonic() - begun

    def _is_ready(self) -> bool:
        if self._process is None or self._process.poll() is not None:
            raise DemoFailed("the server ended by itself")
        try:
            return httpx.get(f"{self.url}/health/ready").status_code == 200
        except httpx.TransportError:
            return False

    def kill(self) -> None:
        """SIGKILL: no chance to tidy up."""
        if self._process is not None:
            self._process.send_signal(signal.SIGKILL)
            self._process.wait()

    def stop(self) -> int:
        """SIGTERM; returns the exit status."""
        if self._process is None:
            return 0
        self._process.terminate()
        return self._process.wait(TIMEOUT_SECONDS)


def wait_for(what: str, condition: Callable[[], bool]) -> None:
    """Return once the condition holds; raises `DemoFailed` when patience ends."""
    deadline = time.monotonic() + TIMEOUT_SECONDS
    while not condition():
        if time.monotonic() > deadline:
            raise DemoFailed(f"waited in vain for {what}")
        time.sleep(0.05)


class Demo:
    """The story, a method a chapter."""

    def __init__(self, console: Console, directory: Path) -> None:
        self.console = console
        self.shop = Shop()
        self.server = Server(directory, self.shop)
        self.http = httpx.Client(base_url=self.server.url, timeout=10)
        self.flows: dict[str, str] = {}

    def tell(self, text: str) -> None:
        self.console.print(f"  {text}", highlight=False)

    def expect(self, what: str, found: object, wanted: object) -> None:
        if found != wanted:
            raise DemoFailed(f"{what}: expected {wanted!r}, found {found!r}")
        self.console.print(f"  [green]✓[/green] {what}", highlight=False)

    def call(self, method: str, path: str, status: int, **options: Any) -> Any:
        response = self.http.request(method, path, **options)
        if response.status_code != status:
            raise DemoFailed(f"{method} {path}: expected {status}, found {response.status_code}: {response.text}")
        return response.json() if response.content else None

    def start_flow(self, name: str, organism: str | None, ends: str) -> dict[str, Any]:
        """Create and start a flow, and wait until it is `ends`."""
        created = self.call("POST", "/api/v1/flows", 201, json={"name": name, "organismYaml": organism})
        path = f"/api/v1/flows/{created['id']}"
        self.flows[name] = path
        self.call("POST", f"{path}/start", 200)
        wait_for(f"flow {name} to settle", lambda: self.call("GET", path, 200)["status"] != "starting")
        flow: dict[str, Any] = self.call("GET", path, 200)
        self.expect(f"flow {name!r} is {ends}", (flow["status"], flow["errorMessage"] is None), (ends, ends != "error"))
        return flow

    def ended(self, name: str, execution_id: str) -> dict[str, Any]:
        path = f"{self.flows[name]}/executions/{execution_id}"
        wait_for(f"execution {execution_id}", lambda: self.call("GET", path, 200)["status"] in ENDED)
        execution: dict[str, Any] = self.call("GET", path, 200)
        return execution

    def greet(self) -> None:
        """The default organism, by webhook and by hand."""
        self.console.rule("A flow, a webhook, a run by hand")
        path = self.flows["greetings"] if self.start_flow("greetings", None, "running") else ""
        trigger = self.call(
            "POST", f"{path}/triggers", 201, json={"type": "webhook", "name": "from outside", "config": {}}
        )
        self.tell(f"webhook: {trigger['webhookUrl'].replace(trigger['webhookToken'], '…')}")
        accepted = self.call("POST", f"/webhooks/{trigger['webhookToken']}", 200, content='{"name": "Ada"}')
        by_hook = self.ended("greetings", accepted["executionId"])
        self.expect(
            "webhook run", (by_hook["status"], by_hook["outputPayload"]), ("success", '{"message": "Hello, Ada!"}')
        )
        run = self.call("POST", f"{path}/executions/run", 201, json={"inputPayload": "Grace"})
        by_hand = self.ended("greetings", run["id"])
        self.expect(
            "run by hand", (by_hand["status"], by_hand["outputPayload"]), ("success", '{"message": "Hello, Grace!"}')
        )

    def refuse(self) -> None:
        """A definition with a mistake."""
        self.console.rule("A mistake in a definition")
        flow = self.start_flow("broken", BROKEN, "error")
        self.tell(f"[yellow]{flow['errorMessage']}[/yellow]")
        self.expect("the message names line and column", flow["errorMessage"].startswith("line 6, column "), True)

    def survive(self) -> None:
        """kill -9 while a step is under way."""
        self.console.rule("kill -9 in the middle of an execution")
        self.start_flow("order", ORDER.format(shop=self.shop.url), "running")
        run = self.call("POST", f"{self.flows['order']}/executions/run", 201, json={"inputPayload": {"order": 42}})
        wait_for("the charge to be under way", self.shop.charging.is_set)
        self.expect("steps before the kill", dict(self.shop.calls), {"reserve": 1, "charge": 1})
        self.server.kill()
        self.shop.caller_died.set()
        self.tell("server killed with SIGKILL while it waited for the charge")
        self.tell(f"server ready again after {self.server.start():.1f} s")
        ended = self.ended("order", run["id"])
        self.expect("the execution ended", ended["status"], "success")
        self.expect(
            "finished steps ran once, the interrupted one again",
            dict(self.shop.calls),
            {"reserve": 1, "charge": 2, "confirm": 1},
        )
        self.expect("both charges bore the same idempotency key", len(self.shop.charge_keys - {None}), 1)

    def report(self) -> None:
        """History and statistics of all flows."""
        self.console.rule("History and statistics")
        history = Table("flow", "started", "trigger", "status", "ms", box=None)
        statistics = Table("flow", "total", "success", "error", "average ms", box=None)
        seen: dict[str, list[tuple[str, str]]] = {}
        for name, path in self.flows.items():
            for item in self.call("GET", f"{path}/executions", 200)["items"]:
                seen.setdefault(name, []).append((item["triggerType"], item["status"]))
                history.add_row(
                    name, item["startedAt"][11:23], item["triggerType"], item["status"], str(item["durationMs"])
                )
            figures = self.call("GET", f"{path}/executions/stats", 200)
            counts = [figures[f"executions{kind}"] for kind in ("Total", "Success", "Error")]
            statistics.add_row(name, *map(str, counts), f"{figures['avgDurationMs']:.0f}")
            self.expect(f"statistics of {name!r}", counts, [len(seen.get(name, [])), len(seen.get(name, [])), 0])
        self.console.print(history)
        self.console.print(statistics)
        self.expect(
            "the history holds every run once",
            seen,
            {"greetings": [("manual", "success"), ("webhook", "success")], "order": [("manual", "success")]},
        )
        self.expect("usage counts every run once", self.call("GET", "/api/v1/usage", 200)["runsUsed"], 3)

    def finish(self) -> None:
        """Stop the flows and the server."""
        self.console.rule("The end")
        path = self.flows["order"]
        self.call("POST", f"{path}/stop", 200)
        wait_for("the flow to stop", lambda: self.call("GET", path, 200)["status"] == "stopped")
        refused = self.call("POST", f"{path}/executions/run", 400)
        self.expect("a stopped flow refuses", refused["detail"], "Flow must be running to execute (current: stopped)")
        self.expect("the server stops in order", self.server.stop(), 0)


def run_demo() -> int:
    """Run the demo; returns the exit status."""
    console = Console()
    with tempfile.TemporaryDirectory(prefix="bloxserver-demo-") as directory:
        demo = Demo(console, Path(directory))
        try:
            console.rule("A server on a temporary SQLite file")
            demo.tell(f"{demo.server.url} ready after {demo.server.start():.1f} s")
            for chapter in (demo.greet, demo.refuse, demo.survive, demo.report, demo.finish):
                chapter()
        except (DemoFailed, httpx.HTTPError) as failure:
            console.print(f"  [red]✗[/red] {escape(str(failure))}", highlight=False)
            console.print("the server's last words:")
            console.print(
                "".join(demo.server.log.read_text().splitlines(keepends=True)[-15:]), markup=False, soft_wrap=True
            )
            return 1
        finally:
            demo.server.kill()
            demo.shop.close()
            demo.http.close()
    console.print("[green]All as it should be.[/green]")
    return 0
