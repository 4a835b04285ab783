"""Expressions, regular expressions, templates and values that take long to compute."""

from __future__ import annotations

import json

from benchmarks.neighbours.cases.case import Case, expression, fan_out, listener, organism, webhooks

MEGABYTE = 1_000_000
LISTS = b"[" + b"[]," * 330_000 + b"[]]"
DEEP = b"[" * 60 + b"1," * 490_000 + b"1" + b"]" * 60

LONG_TEXTS = json.dumps({"text": "a" * 600_000, "part": "ab" + "a" * 300_000}).encode()
ZEROS = json.dumps({"items": [0] * 100_000}, separators=(",", ":")).encode()
LETTERS = json.dumps({"text": "a" * 65_000}).encode()
MANY_TEXTS = json.dumps({"items": ["a" * 200] * 4_000}).encode()
UMLAUTS = json.dumps({"text": "Ä" * 400_000}, ensure_ascii=False).encode()

CALLS_ITSELF = organism(
    listener(
        "branch",
        {
            "cases": [
                {"when": f"payload.items.exists(x, payload.items.exists(y, x + y == {number + 3}))", "to": "a"}
                for number in range(99)
            ],
            "otherwise": "a",
        },
    ),
)
SQUARE = organism(
    listener("echo", peers=[f"b{n}" for n in range(99)]),
    *(listener("echo", name=f"b{n}", peers=[f"c{m}" for m in range(99)]) for n in range(99)),
    *(listener("echo", name=f"c{m}") for m in range(99)),
)
PLACEHOLDERS = " ".join(["{{ payload.text }}"] * 100)
ENDLESS = "while True:\n    pass"
ALLOCATE = "x = []\nwhile True:\n    x.append('a' * 1000)"
RETURNS_LISTS = "[[] for _ in range(200000)]"

CASES = [
    Case(
        "last-index-of",
        "C1",
        "`lastIndexOf` of 300 KB in 600 KB",
        webhooks(LONG_TEXTS),
        expression("payload.text.lastIndexOf(payload.part)"),
    ),
    Case(
        "error-texts",
        "C2",
        "an error that quotes 200 KB, for each of 100,000 items",
        webhooks(ZEROS),
        expression("payload.items.exists(x, payload[payload.items])"),
    ),
    Case(
        "regex",
        "C3",
        "`matches('(?:a|aa|aaa){5000}c')` on 65 KB",
        webhooks(LETTERS),
        expression("payload.text.matches('(?:a|aa|aaa){5000}c')"),
    ),
    Case(
        "branches",
        "H1",
        "a branch with 99 expensive cases that calls itself",
        webhooks(json.dumps({"items": [1] * 20}).encode()),
        CALLS_ITSELF,
    ),
    Case(
        "endless-python",
        "H4",
        "10 endless Python snippets in each execution",
        webhooks(b"{}"),
        fan_out(10, "python", {"code": ENDLESS, "timeout_seconds": 30}),
    ),
    Case(
        "lower-ascii",
        "M9",
        "`lowerAscii` of 400,000 umlauts, 100 times",
        webhooks(UMLAUTS),
        fan_out(100, "transform", {"expression": "payload.text.lowerAscii()"}),
    ),
    Case("fan-out", "M9", "99 times 99 echo steps in each execution", webhooks(b"{}", 4), SQUARE),
    Case(
        "python-memory",
        "new",
        "Python snippets that allocate memory",
        webhooks(b"{}"),
        fan_out(10, "python", {"code": ALLOCATE, "memory_mb": 256, "timeout_seconds": 30}),
    ),
    Case(
        "python-values",
        "new",
        "Python snippets with 1 MB of lists as input, that answer 200,000 lists",
        webhooks(LISTS),
        fan_out(10, "python", {"code": RETURNS_LISTS, "memory_mb": 256}),
    ),
    Case(
        "list-inputs",
        "new",
        "inputs of 1 MB `[[],[],…]` through echo, transform and json.format",
        webhooks(LISTS),
        organism(
            listener("echo", peers=["b"]),
            listener("transform", {"output": "{{ payload }}"}, name="b", peers=["c"]),
            listener("json.format", {"indent": 2}, name="c"),
        ),
    ),
    Case(
        "indented-json",
        "new",
        "`json.format` with `indent: 8` of 1 MB at depth 60: 240 MB of text",
        webhooks(DEEP),
        organism(listener("json.format", {"indent": 8})),
    ),
    Case(
        "parsed-json",
        "new",
        "`json.parse` of 1 MB of lists, in 10 steps",
        webhooks(json.dumps({"text": LISTS[:480_001].decode() + "[]]"}).encode()),
        fan_out(10, "json.parse"),
    ),
    Case(
        "placeholders",
        "new",
        "templates with 100 placeholders of 1 MB each",
        webhooks(json.dumps({"text": "a" * MEGABYTE}).encode()),
        fan_out(20, "text.template", {"template": PLACEHOLDERS}),
    ),
    Case(
        "regex-items",
        "new",
        "a regular expression on each of 4,000 texts, in 20 steps",
        webhooks(MANY_TEXTS),
        fan_out(20, "transform", {"expression": "payload.items.filter(x, x.matches('(a+)+b|(.*a){12}$'))"}),
    ),
    Case(
        "comparisons",
        "new",
        "comparisons of equal lists of 100,000 items, for each of the items",
        webhooks(ZEROS),
        expression("payload.items.filter(x, payload.items == payload.items && payload == payload).size()"),
    ),
    Case(
        "growing-texts",
        "new",
        "an expression that doubles a text 25 times",
        webhooks(json.dumps({"text": "a" * 500_000}).encode()),
        fan_out(20, "transform", {"expression": "[1].map(x, " + "+".join(["payload.text"] * 60) + ").size()"}),
    ),
    Case(
        "replacements",
        "new",
        "`replace` that makes 100 GB, `split` and `join`",
        webhooks(json.dumps({"text": "a" * 400_000}).encode()),
        fan_out(
            20, "transform", {"expression": "payload.text.replace('a', payload.text).split('a').join(payload.text)"}
        ),
    ),
    Case(
        "key-value",
        "new",
        "100 steps in each execution that increment one key",
        webhooks(b"{}"),
        fan_out(100, "key_value", {"operation": "increment", "key": "hot"}),
    ),
    Case(
        "stored-values",
        "new",
        "100 steps in each execution that store 60 KB",
        webhooks(json.dumps({"text": "a" * 60_000}).encode()),
        fan_out(100, "key_value", {"operation": "set", "key": "k", "value": "{{ payload.text }}"}),
    ),
    Case(
        "times",
        "new",
        "20,000 conversions of texts to times",
        webhooks(json.dumps({"items": ["2026-01-01T00:00:00Z"] * 20_000}).encode()),
        expression("payload.items.map(x, timestamp(x).getHours()).size()"),
    ),
    Case(
        "self-calls",
        "new",
        "a flow that calls itself 10 times, to the maximum depth",
        webhooks(b"{}"),
        fan_out(10, "flow.call", {"flow": "attack"}),
    ),
]
