"""The demo: runs flows over HTTP on a real server and checks every result."""

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
    description: Creates a bill for the reservation
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
    description: Waits for one second without occupying a worker slot
    handler: delay
    config: {{seconds: 1}}
    peers: [confirm]
  - name: confirm
    description: Confirms the order
    handler: http.request
    config: {{method: POST, url: "{shop}/confirm"}}
"""


class DemoFailed(Exception):
    """A check of the demo failed."""


class Shop:
    """A web service on loopback. It counts requests and does not answer the first charge until its client is killed."""

    def __init__(self) -> None:
        self.calls: Counter[str] = Counter()
        self.charge_keys: set[str | None] = set()
        self.charging = threading.Event()
        self.client_killed = threading.Event()
        shop = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                self.rfile.read(int(self.headers.get("content-length", 0)))
                shop.record(self.path.strip("/"), self.headers.get("idempotency-key"))
                body = b'{"order": 42, "done": true}'
                try:
                    self.send_response(200)
                    self.send_header("content-type", "application/json")
                    self.send_header("content-length", str(len(body)))
                    self.end_headers()
                    self.wfile.write(body)
                except OSError:
                    return  # the client was killed

            def log_message(self, format: str, *args: Any) -> None:
                return

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self._server.server_port}"
        threading.Thread(target=self._server.serve_forever, daemon=True).start()

    def record(self, path: str, key: str | None) -> None:
        self.calls[path] += 1
        if path == "charge":
            self.charge_keys.add(key)
            if self.calls[path] == 1:
                self.charging.set()
                self.client_killed.wait(TIMEOUT_SECONDS)

    def close(self) -> None:
        self.client_killed.set()
        self._server.shutdown()
        self._server.server_close()


class Server:
    """A process of `bloxserver serve` on a free port, with a temporary SQLite file."""

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
        """Start the server; returns the seconds until it was ready."""
        started = time.monotonic()
        with self.log.open("ab") as log:
            self._process = subprocess.Popen(  # noqa: S603
                [sys.executable, "-m", "bloxserver", "serve", "--port", str(self.port)],
                env=self._environment,
                cwd=self._directory,
                stdout=log,
                stderr=log,
            )
        wait_for("the server to be ready", self._is_ready)
        return time.monotonic() - started

    def _is_ready(self) -> bool:
        if self._process is None or self._process.poll() is not None:
            raise DemoFailed("the server exited")
        try:
            return httpx.get(f"{self.url}/health/ready").status_code == 200
        except httpx.TransportError:
            return False

    def kill(self) -> None:
        """Send SIGKILL and wait for the end of the process."""
        if self._process is not None:
            self._process.send_signal(signal.SIGKILL)
            self._process.wait()

    def stop(self) -> int:
        """Send SIGTERM and wait; returns the exit status."""
        if self._process is None:
            return 0
        self._process.terminate()
        return self._process.wait(TIMEOUT_SECONDS)


def wait_for(event: str, condition: Callable[[], bool]) -> None:
    """Wait until the condition is true. Raises `DemoFailed` after `TIMEOUT_SECONDS`."""
    deadline = time.monotonic() + TIMEOUT_SECONDS
    while not condition():
        if time.monotonic() > deadline:
            raise DemoFailed(f"timed out waiting for {event}")
        time.sleep(0.05)


class Demo:
    """The demo; each public method from `run_greetings` on is one part of it."""

    def __init__(self, console: Console, directory: Path) -> None:
        self.console = console
        self.shop = Shop()
        self.server = Server(directory, self.shop)
        self.http = httpx.Client(base_url=self.server.url, timeout=10)
        self.flows: dict[str, str] = {}

    def print(self, text: str) -> None:
        self.console.print(f"  {text}", highlight=False)

    def expect(self, check: str, actual: object, expected: object) -> None:
        if actual != expected:
            raise DemoFailed(f"{check}: expected {expected!r}, got {actual!r}")
        self.console.print(f"  [green]✓[/green] {check}", highlight=False)

    def call(self, method: str, path: str, status: int, **options: Any) -> Any:
        response = self.http.request(method, path, **options)
        if response.status_code != status:
            raise DemoFailed(f"{method} {path}: expected {status}, got {response.status_code}: {response.text}")
        return response.json() if response.content else None

    def start_flow(self, name: str, organism: str | None, status: str) -> dict[str, Any]:
        """Create and start a flow, and check that it gets this status."""
        created = self.call("POST", "/api/v1/flows", 201, json={"name": name, "organismYaml": organism})
        path = f"/api/v1/flows/{created['id']}"
        self.flows[name] = path
        self.call("POST", f"{path}/start", 200)
        wait_for(f"flow {name} to start", lambda: self.call("GET", path, 200)["status"] != "starting")
        flow: dict[str, Any] = self.call("GET", path, 200)
        self.expect(
            f"flow {name!r} is {status}", (flow["status"], flow["errorMessage"] is None), (status, status != "error")
        )
        return flow

    def wait_for_end(self, name: str, execution_id: str) -> dict[str, Any]:
        path = f"{self.flows[name]}/executions/{execution_id}"
        wait_for(f"execution {execution_id} to end", lambda: self.call("GET", path, 200)["status"] in ENDED)
        execution: dict[str, Any] = self.call("GET", path, 200)
        return execution

    def run_greetings(self) -> None:
        """Run the default organism by a webhook and manually."""
        self.console.rule("A webhook and a manual run")
        path = self.flows["greetings"] if self.start_flow("greetings", None, "running") else ""
        trigger = self.call("POST", f"{path}/triggers", 201, json={"type": "webhook", "name": "greet", "config": {}})
        self.print(f"webhook: {trigger['webhookUrl'].replace(trigger['webhookToken'], '…')}")
        accepted = self.call("POST", f"/webhooks/{trigger['webhookToken']}", 200, content='{"name": "Ada"}')
        webhook_run = self.wait_for_end("greetings", accepted["executionId"])
        self.expect(
            "webhook run",
            (webhook_run["status"], webhook_run["outputPayload"]),
            ("success", '{"message": "Hello, Ada!"}'),
        )
        run = self.call("POST", f"{path}/executions/run", 201, json={"inputPayload": "Grace"})
        manual_run = self.wait_for_end("greetings", run["id"])
        self.expect(
            "manual run",
            (manual_run["status"], manual_run["outputPayload"]),
            ("success", '{"message": "Hello, Grace!"}'),
        )

    def report_invalid_definition(self) -> None:
        """Start a flow whose definition is invalid."""
        self.console.rule("An invalid definition")
        flow = self.start_flow("broken", BROKEN, "error")
        self.print(f"[yellow]{flow['errorMessage']}[/yellow]")
        self.expect(
            "the error message has a line and a column", flow["errorMessage"].startswith("line 6, column "), True
        )

    def recover_execution(self) -> None:
        """Kill the server during a step, and start it again."""
        self.console.rule("kill -9 during an execution")
        self.start_flow("order", ORDER.format(shop=self.shop.url), "running")
        run = self.call("POST", f"{self.flows['order']}/executions/run", 201, json={"inputPayload": {"order": 42}})
        wait_for("the charge request", self.shop.charging.is_set)
        self.expect("requests before the kill", dict(self.shop.calls), {"reserve": 1, "charge": 1})
        self.server.kill()
        self.shop.client_killed.set()
        self.print("server killed during the charge request")
        self.print(f"server ready again after {self.server.start():.1f} s")
        ended = self.wait_for_end("order", run["id"])
        self.expect("the execution succeeded", ended["status"], "success")
        self.expect(
            "completed steps ran once, the interrupted step ran again",
            dict(self.shop.calls),
            {"reserve": 1, "charge": 2, "confirm": 1},
        )
        self.expect("both charge requests had the same idempotency key", len(self.shop.charge_keys - {None}), 1)

    def show_history(self) -> None:
        """Print the history and statistics of all flows."""
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
            stats = self.call("GET", f"{path}/executions/stats", 200)
            counts = [stats[f"executions{kind}"] for kind in ("Total", "Success", "Error")]
            statistics.add_row(name, *map(str, counts), f"{stats['avgDurationMs']:.0f}")
            self.expect(f"statistics of {name!r}", counts, [len(seen.get(name, [])), len(seen.get(name, [])), 0])
        self.console.print(history)
        self.console.print(statistics)
        self.expect(
            "every run is in the history once",
            seen,
            {"greetings": [("manual", "success"), ("webhook", "success")], "order": [("manual", "success")]},
        )
        self.expect("every run is counted in the usage once", self.call("GET", "/api/v1/usage", 200)["runsUsed"], 3)

    def shut_down(self) -> None:
        """Stop the flows and the server."""
        self.console.rule("Shutdown")
        path = self.flows["order"]
        self.call("POST", f"{path}/stop", 200)
        wait_for("the flow to stop", lambda: self.call("GET", path, 200)["status"] == "stopped")
        refused = self.call("POST", f"{path}/executions/run", 400)
        self.expect(
            "a stopped flow does not run", refused["detail"], "Flow must be running to execute (current: stopped)"
        )
        self.expect("the server exits with status 0", self.server.stop(), 0)


def run_demo() -> int:
    """Run the demo; returns the exit status."""
    console = Console()
    with tempfile.TemporaryDirectory(prefix="bloxserver-demo-") as directory:
        demo = Demo(console, Path(directory))
        try:
            console.rule("A server with a temporary SQLite file")
            demo.print(f"{demo.server.url} ready after {demo.server.start():.1f} s")
            for part in (
                demo.run_greetings,
                demo.report_invalid_definition,
                demo.recover_execution,
                demo.show_history,
                demo.shut_down,
            ):
                part()
        except (DemoFailed, httpx.HTTPError) as failure:
            console.print(f"  [red]✗[/red] {escape(str(failure))}", highlight=False)
            console.print("last lines of the server's log:")
            console.print(
                "".join(demo.server.log.read_text().splitlines(keepends=True)[-15:]), markup=False, soft_wrap=True
            )
            return 1
        finally:
            demo.server.kill()
            demo.shop.close()
            demo.http.close()
    console.print("[green]All checks passed.[/green]")
    return 0
