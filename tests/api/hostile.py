"""Malformed and malicious requests, with the expected status of each."""

from __future__ import annotations

import json
from typing import NamedTuple
from uuid import uuid4

JSON = {"Content-Type": b"application/json"}
SURROGATE = r"\ud800"
NUL = r"\u0000"
DEEP = [65, 300, 500, 900]


class Row(NamedTuple):
    """A request and its expected status. `{flow}`, `{trigger}` and `{token}` are replaced by existing values."""

    name: str
    status: int
    method: str
    path: str
    content: bytes | None = None
    headers: dict[str, bytes] | None = JSON

    def raw_headers(self) -> list[tuple[bytes, bytes]]:
        return [(name.encode(), value) for name, value in (self.headers or {}).items()]


def arrays(depth: int) -> str:
    return "[" * depth + "]" * depth


def objects(depth: int) -> str:
    return '{"a":' * depth + "1" + "}" * depth


def post(name: str, status: int, path: str, text: str | bytes, content_type: str = "application/json") -> Row:
    content = text if isinstance(text, bytes) else text.encode()
    return Row(name, status, "POST", path, content, {"Content-Type": content_type.encode("latin-1")})


def create(name: str, status: int, text: str | bytes, content_type: str = "application/json") -> Row:
    return post(name, status, "/api/v1/flows", text, content_type)


def canvas(name: str, status: int, data: str) -> Row:
    """`data` is the JSON of a node's data."""
    text = f'{{"canvasState": {{"nodes": [{{"id": "n", "position": {{}}, "data": {data}}}]}}}}'
    return Row(name, status, "PATCH", "/api/v1/flows/{flow}", text.encode())


def config(name: str, status: int, text: str, kind: str = "manual") -> Row:
    body = f'{{"type": "{kind}", "name": "T", "config": {text}}}'
    return post(name, status, "/api/v1/flows/{flow}/triggers", body)


def schedule(name: str, **members: object) -> Row:
    return config(name, 422, json.dumps({"cron": "0 9 * * *"} | members), "schedule")


def run(name: str, status: int, text: str | bytes, content_type: str = "application/json") -> Row:
    return post(name, status, "/api/v1/flows/{flow}/executions/run", text, content_type)


def hook(name: str, body: bytes, content_type: str = "application/json") -> Row:
    return post(name, 200, "/webhooks/{token}", body, content_type)


def key(name: str, status: int, /, **members: str) -> Row:
    """`members` are JSON texts."""
    body = {"name": '"K"', "scopes": '["read"]'} | members
    text = ", ".join(f'"{member}": {value}' for member, value in body.items())
    return post(name, status, "/api/v1/api-keys", f"{{{text}}}")


def expiry(text: str, status: int = 422) -> Row:
    return key(f"expiry {text[:40]}", status, expiresAt=text)


def with_header(name: str, status: int, method: str, path: str, header: str, value: bytes) -> Row:
    body = None if method == "GET" else b'{"name": "x"}'
    return Row(f"{header} of {method}: {name}", status, method, path, body, JSON | {header: value})


def get(name: str, status: int, path: str) -> Row:
    return Row(name, status, "GET", path, None, None)


ANY_JSON = [
    ("NUL in a value", 422, f'{{"a": "{NUL}"}}'),
    ("NUL in a key", 422, f'{{"{NUL}": 1}}'),
    ("surrogate in a value", 422, f'{{"a": "{SURROGATE}"}}'),
    ("surrogate in a key", 422, f'{{"{SURROGATE}": 1}}'),
    ("NaN", 422, '{"a": NaN}'),
    ("Infinity", 422, '{"a": [-Infinity]}'),
    ("1e400", 422, '{"a": 1e400}'),
    ("-1e400", 422, '{"a": -1e400}'),
    ("60,000 values", 422, f'{{"a": [{",".join("1" * 60_000)}]}}'),
    *((f"{depth} arrays", 422, f'{{"a": {arrays(depth)}}}') for depth in DEEP),
    *((f"{depth} objects", 422, objects(depth)) for depth in DEEP),
    # Python's JSON parser raises an exception for these.
    ("5,000 digits", 422, f'{{"a": {"9" * 5_000}}}'),
    ("100,000 arrays", 422, f'{{"a": {arrays(100_000)}}}'),
    ("100,000 objects", 422, objects(100_000)),
]

UNPARSABLE = {"5,000 digits", "100,000 arrays", "100,000 objects"}

TEXT = [
    create("NUL in the name", 422, f'{{"name": "a{NUL}b"}}'),
    create("raw NUL in the name", 422, b'{"name": "a\0b"}'),
    create("surrogate in the name", 422, f'{{"name": "{SURROGATE}"}}'),
    create("surrogate pair in the name", 201, r'{"name": "\ud83d\ude00"}'),
    create("surrogate in a list", 422, f'{{"name": ["{SURROGATE}"]}}'),
    create("surrogate as an unknown member's name", 201, f'{{"name": "x", "{SURROGATE}": 1}}'),
    create("101 characters", 422, json.dumps({"name": "n" * 101})),
    create("100 characters of four bytes", 201, json.dumps({"name": "\U0001f600" * 100})),
    create("501 characters of description", 422, json.dumps({"name": "n", "description": "d" * 501})),
    create("empty name", 422, '{"name": ""}'),
    create("null as name", 422, '{"name": null}'),
    create("NUL in YAML", 422, f'{{"name": "y", "organismYaml": "a: {NUL}"}}'),
    create("surrogate in YAML", 422, f'{{"name": "y", "organismYaml": "{SURROGATE}"}}'),
    create("escapes inside YAML", 201, json.dumps({"name": "y", "organismYaml": 'a: "\\0\\ud800"'})),
    create("YAML of 100,000 brackets", 201, json.dumps({"name": "y", "organismYaml": "[" * 100_000})),
    create("YAML that is a list", 201, json.dumps({"name": "y", "organismYaml": "[]"})),
    create("YAML of 5,000 digits", 201, json.dumps({"name": "y", "organismYaml": "a: " + "9" * 5_000})),
    create("YAML that refers to itself", 201, json.dumps({"name": "y", "organismYaml": "&a [*a]"})),
    create("YAML that is a number", 422, '{"name": "y", "organismYaml": 5}'),
]
NUMBERS = [
    *(create(f"{text} as name", 422, f'{{"name": {text}}}') for text in ("1e400", "NaN", "true")),
    create("5,000 digits as name", 422, '{"name": %s}' % ("9" * 5_000)),
    *(
        Row(
            f"position {text}", 422, "PATCH", "/api/v1/flows/{flow}",
            f'{{"canvasState": {{"nodes": [{{"id": "n", "position": {{"x": {text}}}}}]}}}}'.encode(),
        )
        for text in ("NaN", "1e400", '"nan"', '"Infinity"', "null", "[]", "true", '"1"')
    ),
    Row("zoom false", 422, "PATCH", "/api/v1/flows/{flow}", b'{"canvasState": {"viewport": {"zoom": false}}}'),
    Row("zoom 1e400", 422, "PATCH", "/api/v1/flows/{flow}", b'{"canvasState": {"viewport": {"zoom": 1e400}}}'),
    canvas("an integer of 64 bits and more", 200, '{"a": 18446744073709551616}'),
    canvas("an integer of 400 digits", 200, '{"a": 1%s}' % ("0" * 400)),
]  # fmt: skip
JSON_VALUES = [
    *(canvas(f"canvas: {name}", status, text) for name, status, text in ANY_JSON),
    *(config(f"config: {name}", status, text) for name, status, text in ANY_JSON),
    *(run(f"run: {name}", status, f'{{"inputPayload": {text}}}') for name, status, text in ANY_JSON),
    *(
        create(f"unknown: {name}", 422 if name in UNPARSABLE else 201, f'{{"name": "x", "extra": {text}}}')
        for name, _, text in ANY_JSON
    ),
    canvas("60 nested arrays", 200, f'{{"a": {arrays(56)}}}'),
    config("config that is a list", 422, "[]"),
    config("config that is null", 422, "null"),
]
BODIES = [
    # The parser detects these encodings.
    create("UTF-16", 201, '{"name": "x"}'.encode("utf-16")),
    create("UTF-32 without a mark", 201, '{"name": "x"}'.encode("utf-32-le")),
    create("UTF-8 with a mark", 201, '{"name": "x"}'.encode("utf-8-sig")),
    create("not UTF-8", 422, b'{"name": "\xff\xfe"}'),
    create("truncated character", 422, b'{"name": "\xc3'),
    create("not JSON", 422, "name=x"),
    create("nothing", 422, ""),
    create("a number", 422, "5"),
    create("a list", 422, "[]"),
    create("null", 422, "null"),
    create("a trailing comma", 422, '{"name": "x",}'),
    create("two values", 422, '{"name": "x"}{"name": "y"}'),
    create("a million brackets", 422, "[" * 1_000_000),
    create("the same member twice", 201, '{"name": "x", "name": "y"}'),
    create("as text", 422, '{"name": "x"}', "text/plain"),
    create("as a form", 422, "name=x", "application/x-www-form-urlencoded"),
    create("as a multipart without a boundary", 422, "name=x", "multipart/form-data"),
    create("as an invalid content type", 422, '{"name": "x"}', ";;;/,"),
    create("in an unknown charset", 201, '{"name": "x"}', "application/json; charset=klingon"),
    run("run: text", 422, "hello", "text/plain"),
    run("run: half JSON", 422, "{"),
    run("run: not UTF-8", 422, b'{"inputPayload": "\xff"}'),
    Row("a body on GET", 200, "GET", "/api/v1/flows", b"[" * 5_000),
    Row("a body on DELETE", 404, "DELETE", f"/api/v1/flows/{uuid4()}", b"\xff\0", {"Content-Type": b"x"}),
]
ZONES: list[object] = [
    "../../etc/passwd", "America", "", "%00", "\u00e9", "a" * 300, "Mars/Base", "/UTC", 5, None, [],
]  # fmt: skip
CRONS: list[object] = [
    "", "* * * *", "@daily", "* * * * * *", "61 * * * *", "0 0 30 2 *", "*" * 5_000, "\u0661 * * * *", "*/0 * * * *",
    "0-99999999 * * * *", "5-1 * * * *", "9" * 200 + " * * * *", 5, None, [], {},
]  # fmt: skip
SCHEDULES = [
    *(schedule(f"zone {str(zone)[:20]!r}", timezone=zone) for zone in ZONES),
    *(schedule(f"cron {str(cron)[:20]!r}", cron=cron) for cron in CRONS),
]
LISTS = ("/api/v1/flows", "/api/v1/flows/{flow}/executions")
QUERIES = [
    *(
        get(f"{query} of {path}", 422, f"{path}?{query}")
        for path in LISTS
        for query in (
            "page=0", "page=-5", "page=-1", "page=", "page=x", "page=1.5", "page=%00", "page=4611686018427387904",
            "page=9223372036854775808", "page=" + "9" * 5_000, "page=NaN", "page=%FF", "page=1_0_",
            "page_size=0", "page_size=-1", "page_size=1001", "page_size=9223372036854775808", "page_size=1e3",
        )
    ),
    *(get(f"status {text}", 422, f"{LISTS[1]}?status_filter={text}") for text in ("nope", "", "%00", "RUNNING", "%FF")),
    *(get(f"unknown: {query}", 200, f"{LISTS[0]}?{query}") for query in ("sort=__class__", "q=%00", "%00=%00", "&&=")),
    get("the last allowed page", 200, f"{LISTS[0]}?page=1000000000&page_size=1000"),
    get("the page parameter twice", 200, f"{LISTS[0]}?page=1&page=2"),
    Row("NUL as payload", 422, "POST", "/api/v1/flows/{flow}/executions/run?input_payload=%00", None, None),
    Row("not UTF-8 as payload", 201, "POST", "/api/v1/flows/{flow}/executions/run?input_payload=%ED%A0%80", None, None),
]  # fmt: skip
JUNK_IDS = ["abc", "2147483648", "9223372036854775808", "%00", "%FF", "a" * 5_000, "{}", "..%2F..", "null", "%F0%9F"]
PATHS = [
    *(get(f"flow {text[:20]}", 404 if "%2F" in text else 422, f"/api/v1/flows/{text}") for text in JUNK_IDS),
    *(
        get(f"{kind} {text[:20]}", 404 if "%2F" in text else 422, f"/api/v1/flows/{{flow}}/{kind}/{text}")
        for kind in ("triggers", "executions")
        for text in JUNK_IDS
    ),
    get("a truncated id", 422, "/api/v1/flows/0190b1e2-c3d4"),
    *(
        get(f"token {text[:20]}", 404, f"/webhooks/{text}/test")
        for text in ("%00", "a%00b", "%FF", "%ED%A0%80", "t" * 20_000, "{token}%00", "%F0%9F%98%80", "%0A", "%25")
    ),
    post("NUL as token", 404, "/webhooks/%00", "x"),
    post("a token of 20 kB", 404, "/webhooks/" + "t" * 20_000, "x"),
    get("NUL as path", 404, "/%00"),
    get("a path with double slashes", 404, "//api//v1//flows"),
    get("dots", 404, "/api/v1/flows/%2E%2E/%2E%2E/secrets/x"),
    Row("an unknown method", 405, "BREW", "/api/v1/flows", None, None),
    Row("DELETE of all flows", 405, "DELETE", "/api/v1/flows", None, None),
]
HOOKS = [
    hook("not UTF-8", b"\xff\xfe\0"),
    hook("NUL", b"a\0b"),
    hook("no JSON with NUL", b'{"a": \0'),
    hook("escaped NUL", b'{"a": "\\u0000"}'),
    hook("surrogate", b'{"a": "\\ud800"}'),
    hook("encoded surrogate", b"\xed\xa0\x80"),
    hook("NaN", b"NaN"),
    hook("5,000 digits", b"9" * 5_000),
    hook("100,000 deep", b"[" * 100_000),
    hook("nothing", b""),
    hook("a form", b"a=1&b=%00", "application/x-www-form-urlencoded"),
    hook("multipart without a boundary", b"--x", "multipart/form-data"),
    hook("an invalid content type", b"\xff", "te\"xt/;;\\,=\t\xe9"),
    hook("a content type of 5 kB", b"\xff", "x" * 5_000),
    post("NUL in the query", 200, "/webhooks/{token}?a=%00&%FF", "x"),
    Row("a key of 20 kB", 200, "POST", "/webhooks/{token}", b"x", {"Idempotency-Key": b"k" * 20_000}),
]  # fmt: skip

FLOW_ID = '"{flow}"'
UNKNOWN_IDS = [f'"{uuid4()}"' for _ in range(101)]
KEYS = [
    key("NUL in the name", 422, name=f'"a{NUL}b"'),
    key("surrogate in the name", 422, name=f'"{SURROGATE}"'),
    key("surrogate pair in the name", 201, name=r'"\ud83d\ude00"'),
    key("101 characters", 422, name=json.dumps("n" * 101)),
    key("100 characters of four bytes", 201, name=json.dumps("\U0001f600" * 100)),
    *(key(f"{text[:20]} as name", 422, name=text) for text in ("NaN", "1e400", "true", "null", "[]", "1" + "0" * 400)),
    key("5,000 digits as name", 422, name="9" * 5_000),
    *(
        key(f"scopes {text[:30]}", 422, scopes=text)
        for text in (
            "[]", "null", '"read"', "{}", "[null]", "[NaN]", f'["{NUL}"]', f'["{SURROGATE}"]', '["READ"]', "[[]]",
        )
    ),
    key("the same scope ten times", 201, scopes=json.dumps(["read"] * 10)),
    key("the same scope eleven times", 422, scopes=json.dumps(["read"] * 11)),
    key("a scope of a million characters", 422, scopes=json.dumps(["r" * 1_000_000])),
    *(
        key(f"flowIds {text[:30]}", 422, flowIds=text)
        for text in (
            "[]", '"x"', "[null]", "[NaN]", "[1e400]", "[9223372036854775808]", f'["{NUL}"]', f'["{SURROGATE}"]', "{}",
            "[1" + "0" * 400 + "]", '["%00"]', arrays(900), '[""]', "[{}]",
        )
    ),
    key("flowIds null", 201, flowIds="null"),
    key("an unknown flow", 404, flowIds=f"[{UNKNOWN_IDS[0]}]"),
    key("100 unknown flows", 404, flowIds=f"[{', '.join(UNKNOWN_IDS[:100])}]"),
    key("101 unknown flows", 422, flowIds=f"[{', '.join(UNKNOWN_IDS)}]"),
    key("the same flow 100 times", 201, flowIds=f"[{', '.join([FLOW_ID] * 100)}]"),
    key("the same flow 101 times", 422, flowIds=f"[{', '.join([FLOW_ID] * 101)}]"),
    key("600 unknown flows", 422, flowIds=f"[{', '.join(UNKNOWN_IDS * 6)}]"),
    *(
        expiry(text)
        for text in (
            "NaN", "Infinity", "1e400", "-1e400", "1" + "0" * 400, "0", "-1", "true", "[]", '""', '"nan"', f'"{NUL}"',
            f'"{SURROGATE}"', '"soon"', '"2100-01-01"', '"2100-01-01T00:00:00"', '"2100-02-30T00:00:00Z"',
            '"0001-01-01T00:00:00Z"', '"0001-01-01T00:00:00+14:00"', '"9999-12-31T23:59:59-14:00"',
            '"10000-01-01T00:00:00Z"', '"2100-01-01T00:00:00+24:00"', '"1970-01-01T00:00:00Z"', "99999999999999999999",
            '"' + "9" * 5_000 + '"', '"2100-01-01T00:00:00Z\\u0000"',
        )
    ),
    *(
        expiry(text, 201)
        for text in (
            '"9999-12-31T23:59:59.999999Z"', '"9999-12-31T23:59:59+23:59"', '"2100-01-01T00:00:00-23:59"', "null",
        )
    ),
    *(
        key(f"unknown: {name}", 422 if name in UNPARSABLE else 201, extra=text)
        for name, _, text in ANY_JSON
    ),
    post("no JSON", 422, "/api/v1/api-keys", b"\xff"),
    *(
        Row(f"key {text[:20]}", 404 if "%2F" in text else 422, "DELETE", f"/api/v1/api-keys/{text}", None, None)
        for text in JUNK_IDS
    ),
    Row("an unknown key", 404, "DELETE", f"/api/v1/api-keys/{uuid4()}", None, None),
]  # fmt: skip
TAGS = {
    "nothing": b"",
    "spaces": b"   ",
    "a comma": b",",
    "commas": b"," * 5_000,
    "not UTF-8": b"\xff\xfe",
    "a euro sign": "\u20ac".encode(),
    "20 kB": b'"' + b"x" * 20_000 + b'"',
    "2,000 tags": b", ".join([b'"%d"' % number for number in range(2_000)]),
    "a weak tag": b'W/"x"',
    "half a tag": b'"',
    "no quotes": b"x",
    "stars": b"**",
    "a star in quotes": b'"*"',
    "a tab": b'"a\tb"',
    "an escaped NUL": b"%00",
    "JSON": b'{"a": [1e400]}',
}
CONDITIONS = [
    *(with_header(name, 412, "PATCH", "/api/v1/flows/{flow}", "If-Match", tag) for name, tag in TAGS.items()),
    with_header("a star", 200, "PATCH", "/api/v1/flows/{flow}", "If-Match", b" * "),
    with_header("a star of an unknown flow", 404, "PATCH", f"/api/v1/flows/{uuid4()}", "If-Match", b"*"),
    with_header("junk of an unknown flow", 404, "PATCH", f"/api/v1/flows/{uuid4()}", "If-Match", b"\xff"),
    *(
        with_header(name, 200, method, "/api/v1/flows/{flow}", header, tag)
        for method, header in (("GET", "If-Match"), ("GET", "If-None-Match"), ("PATCH", "If-None-Match"))
        for name, tag in (TAGS | {"a star": b"*"}).items()
    ),
    *(
        with_header(name, 422 if not tag.strip() else 201, "POST", "/api/v1/flows", "Idempotency-Key", tag)
        for name, tag in TAGS.items()
    ),
]

TRIGGER = "/api/v1/flows/{flow}/triggers/{trigger}"
TRIGGERS = [
    *(
        Row(f"grace {text[:20]}", 422, "POST", f"{TRIGGER}/regenerate-token?grace_seconds={text}", None, None)
        for text in ("-1", "604801", "NaN", "1e400", "1.5", "", "%00", "9" * 5_000, "true", "null", "%FF")
    ),
    *(
        post(f"signing secret {text[:30]}", 422, f"{TRIGGER}/signing-secrets", f'{{"secret": {text}}}')
        for text in (
            f'"aaaaaaaa{NUL}"', f'"aaaaaaaa{SURROGATE}"', '""', '"short"', json.dumps("x" * 513), "5", "NaN", "[]",
            "1e400", "1" + "0" * 400, "true", arrays(900),
        )
    ),
    *(
        Row(f"{kind} {text[:20]}", 404 if "%2F" in text else 422, method, f"{TRIGGER}/{kind}/{text}{rest}", None, None)
        for kind, method, rest in (("deliveries", "POST", "/redeliver"), ("signing-secrets", "DELETE", ""))
        for text in JUNK_IDS
    ),
    Row("an unknown delivery", 404, "POST", f"{TRIGGER}/deliveries/{uuid4()}/redeliver", None, None),
    *(
        get(f"audit {query[:40]}", 422, f"/api/v1/audit?{query}")
        for query in (
            *("limit=0", "limit=-1", "limit=101", "limit=1e400", f"limit={10**400}", "limit=%00"),
            *("action=nope", "action=", "action=%00", "actor=%FF", "actor=USER", "flow_id=x", "flow_id=%00"),
            *("since=nope", "since=%00", "since=9999-12-31T23:59:59-14:00", "until=0001-01-01T00:00:00%2B14:00"),
            *("until=1e400", "resource_id=%00", "resource_id=" + "x" * 5000),
        )
    ),
    *(get(f"audit cursor {text[:20]}", 400, f"/api/v1/audit?cursor={text}") for text in ("x", "e30", "%00", "%FF")),
    get("audit with an empty interval", 200, "/api/v1/audit?since=2030-01-01T00:00:00Z&until=2020-01-01T00:00:00Z"),
    get("deliveries", 200, f"{TRIGGER}/deliveries"),
    get("signing secrets", 200, f"{TRIGGER}/signing-secrets"),
]  # fmt: skip

ROWS = {
    "text": TEXT,
    "numbers": NUMBERS,
    "json": JSON_VALUES,
    "bodies": BODIES,
    "schedules": SCHEDULES,
    "queries": QUERIES,
    "paths": PATHS,
    "hooks": HOOKS,
    "keys": KEYS,
    "conditions": CONDITIONS,
    "triggers": TRIGGERS,
}
