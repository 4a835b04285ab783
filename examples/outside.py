#!/usr/bin/env python3
"""Simulates the external services of the examples: websites, a shop, a stock, payments, a mail server, a model.

It requires only Python, and prints the requests that it receives. Start it with `python3 examples/outside.py`, and
BloxServer with the settings in `examples/outside.env`.
"""

# ruff: noqa: T201 -- prints the requests

from __future__ import annotations

import json
import os
import socketserver
import sys
import threading
from collections import Counter
from datetime import UTC, datetime
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import parse_qs, urlsplit

PORT = int(os.environ.get("OUTSIDE_PORT", "9000"))
SMTP_PORT = int(os.environ.get("OUTSIDE_SMTP_PORT", "9025"))

PAGE = """<!doctype html><title>The bridge is open</title><script>count()</script>
<h1>The bridge is open</h1><p>After two years of work the old bridge carries traffic again.</p>
<p>Lorries stay on the motorway until the spring.</p><footer>Imprint</footer>"""
SALES = {"orders": 12, "revenue": 1834.5, "best": [{"name": "Desk lamp", "sold": 9}, {"name": "Notebook", "sold": 5}]}


class Services(BaseHTTPRequestHandler):
    """The HTTP services. The first part of a path is the name of the service."""

    protocol_version = "HTTP/1.1"
    server_version, sys_version = "outside", ""
    attempts: Counter[str] = Counter()

    def do_GET(self) -> None:
        url = urlsplit(self.path)
        body = self.rfile.read(int(self.headers.get("Content-Length", 0))).decode()
        given = json.loads(body) if body.startswith("{") else {}
        status, answer = self.respond(f"{self.command} {url.path}", given, parse_qs(url.query))
        signed = " (signed)" if "webhook-signature" in self.headers else ""
        print(f"{self.command} {self.path} {body[:300]}{signed} -> {status}", flush=True)
        content = answer.encode() if isinstance(answer, str) else json.dumps(answer).encode()
        self.send_response(status)
        self.send_header("Content-Type", "text/html" if isinstance(answer, str) else "application/json")
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        self.wfile.write(content)

    do_POST = do_DELETE = do_GET  # noqa: N815 -- http.server's names

    def respond(self, route: str, given: dict[str, Any], query: dict[str, list[str]]) -> tuple[int, Any]:
        match route.split("/", 2):
            case ["GET ", "news", _]:
                return 200, PAGE
            case ["GET ", "shop", "sales"]:
                until = datetime.now(UTC).isoformat(timespec="seconds").replace("+00:00", "Z")
                return 200, {"since": query["since"][0], "until": until, **SALES}
            case ["POST ", "stock", "reservations"]:
                gone = given.get("sku") == "vase" or any(item["sku"] == "vase" for item in given.get("items", []))
                return (409, {"error": "out of stock"}) if gone else (201, {**given, "id": f"R-{given.get('order')}"})
            case ["POST ", "payments", "charges"]:
                return self.charge(given)
            case ["POST ", "llm", "v1/chat/completions"]:
                return 200, completion(given["messages"][-1]["content"])
            case ["POST ", "payments", "refunds"]:
                return 200, given
            case ["DELETE ", "stock", reservation]:
                return 200, {"id": reservation.removeprefix("reservations/"), "released": True}
            case ["POST ", "hooks", _]:
                return 200, {}
        return 404, {"error": "not found"}

    def charge(self, given: dict[str, Any]) -> tuple[int, Any]:
        """Fail the first two attempts at each charge, and decline charges of 500 or more."""
        key = self.headers.get("Idempotency-Key", "")
        self.attempts[key] += 1
        if self.attempts[key] <= 2:
            return 503, {"error": "try again"}
        return (402, {"error": "card declined"}) if given["amount"] >= 500 else (201, given)

    def log_message(self, *arguments: object) -> None:
        """Log nothing: `do_GET` prints each request."""


def completion(prompt: str) -> dict[str, Any]:
    text = f"A model would summarise this: {prompt[:100]}…"
    choice = {"index": 0, "message": {"role": "assistant", "content": text}, "finish_reason": "stop"}
    usage = {"prompt_tokens": len(prompt) // 4, "completion_tokens": 30, "total_tokens": len(prompt) // 4 + 30}
    return {"id": "1", "object": "chat.completion", "created": 0, "model": "none", "choices": [choice], "usage": usage}


class Mail(socketserver.StreamRequestHandler):
    """A mail server that accepts and prints every mail."""

    def handle(self) -> None:
        self.reply("220 outside")
        for line in self.rfile:
            match line.decode(errors="replace").split()[0:1]:
                case [word] if word.upper() == "DATA":
                    self.reply("354 go on")
                    mail = iter(self.rfile.readline, b".\r\n")
                    print("mail:", *(f"  {part.decode()}".rstrip() for part in mail), sep="\n", flush=True)
                    self.reply("250 taken")
                case [word] if word.upper() == "QUIT":
                    self.reply("221 bye")
                    return
                case _:
                    self.reply("250 OK")

    def reply(self, text: str) -> None:
        self.wfile.write(f"{text}\r\n".encode())


if __name__ == "__main__":
    socketserver.ThreadingTCPServer.allow_reuse_address = True
    mail = socketserver.ThreadingTCPServer(("127.0.0.1", SMTP_PORT), Mail)
    threading.Thread(target=mail.serve_forever, daemon=True).start()
    server = ThreadingHTTPServer(("127.0.0.1", PORT), Services)
    port, smtp_port = server.server_address[1], mail.server_address[1]
    print(f"services on http://127.0.0.1:{port}, mail server on port {smtp_port}", flush=True)
    try:
        server.serve_forever()
    except KeyboardInterrupt:
        sys.exit(0)
