"""Times: parsing, formatting, calendar arithmetic and time zones."""

from __future__ import annotations

import pytest
from pydantic import JsonValue

from tests.blocks.cel.evaluation import failure, value

PARSED = {
    "'2026-01-31T12:00:00Z'": "2026-01-31T12:00:00Z",
    "' 2026-01-31T12:00:00.5Z\\n'": "2026-01-31T12:00:00.500000Z",
    "'2026-01-31 12:00+01'": "2026-01-31T11:00:00Z",
    "'2026-01-31T12:00:00 -0530'": "2026-01-31T17:30:00Z",
    "'2026-01-31T12:00:00,25+01:00'": "2026-01-31T11:00:00.250000Z",
    "'2026-01-31'": "2026-01-31T00:00:00Z",
    "'2026-01-31', 'Europe/Berlin'": "2026-01-30T23:00:00Z",
    "'2026-07-01T10:00', 'Europe/Berlin'": "2026-07-01T08:00:00Z",
    "'2026-07-01T10:00Z', 'Europe/Berlin'": "2026-07-01T10:00:00Z",
    # The clock omits this time in Berlin, and repeats the next one.
    "'2026-03-29 02:30', 'Europe/Berlin'": "2026-03-29T01:30:00Z",
    "'2026-10-25 02:30', 'Europe/Berlin'": "2026-10-25T00:30:00Z",
    "'Sat, 31 Jan 2026 12:00:00 +0100'": "2026-01-31T11:00:00Z",
    "'Sat, 31 jan 2026 12:00:00 GMT'": "2026-01-31T12:00:00Z",
    "'31 Jan 26 12:00 EST'": "2026-01-31T17:00:00Z",
    "'1 Jan 99 00:00 UT'": "1999-01-01T00:00:00Z",
    "'Sat, 31 Jan 2026 12:00:00 -0500 (EST)'": "2026-01-31T17:00:00Z",
    "'Sat, 31 Jan 2026 12:00:00', 'Asia/Tokyo'": "2026-01-31T03:00:00Z",
    "1767225600": "2026-01-01T00:00:00Z",
    "1767225600.5": "2026-01-01T00:00:00.500000Z",
    "1767225600123": "2026-01-01T00:00:00.123000Z",
    "'1767225600'": "2026-01-01T00:00:00Z",
    "'1767225600123'": "2026-01-01T00:00:00.123000Z",
    "'-1'": "1969-12-31T23:59:59Z",
}


@pytest.mark.parametrize(("arguments", "expected"), PARSED.items(), ids=PARSED)
def test_common_forms_are_parsed(arguments: str, expected: str) -> None:
    assert value(f"parse_time({arguments})") == expected


VALUES: dict[str, JsonValue] = {
    "format_time(t, '%A %a %d %e %B %b %m %Y %y %j')": "Sunday Sun 01 1 March Mar 03 2026 26 060",
    "format_time(t, '%H:%M:%S.%f %I %p %z %Z %s %%')": "00:30:00.000000 12 AM +0000 UTC 1772325000 %",
    "format_time(t, '%G-W%V-%u')": "2026-W09-7",
    "format_time(t, '%d %H:%M %z %Z', 'America/New_York')": "28 19:30 -0500 EST",
    "format_time(t, '')": "",
    "in_zone(t, 'Asia/Kolkata')": "2026-03-01T06:00:00+05:30",
    "in_zone(t, 'America/New_York')": "2026-02-28T19:30:00-05:00",
    "parse_time(in_zone(t, 'Asia/Kolkata')) == t": True,
    "t.getHours('Asia/Kolkata')": 6,
    "t.getDate('America/New_York')": 28,
    "t.getDate()": 1,
    "string(add_time(t, 90, 'minutes'))": "2026-03-01T02:00:00Z",
    "string(t.add_time(-1, 'month'))": "2026-02-01T00:30:00Z",
    "string(timestamp('2026-01-31T12:00:00Z').add_time(1, 'month'))": "2026-02-28T12:00:00Z",
    "string(timestamp('2024-02-29T12:00:00Z').add_time(-1, 'years'))": "2023-02-28T12:00:00Z",
    "string(timestamp('2026-12-31T12:00:00Z').add_time(2, 'months'))": "2027-02-28T12:00:00Z",
    "string(timestamp('2026-03-28T12:00:00Z').add_time(1, 'day'))": "2026-03-29T12:00:00Z",
    # The day has 23 hours in Berlin: noon stays noon.
    "string(timestamp('2026-03-28T11:00:00Z').add_time(1, 'day', 'Europe/Berlin'))": "2026-03-29T10:00:00Z",
    "string(timestamp('2026-03-28T11:00:00Z').add_time(24, 'hours', 'Europe/Berlin'))": "2026-03-29T11:00:00Z",
    "string(timestamp('2026-03-22T01:30:00Z').add_time(1, 'week', 'Europe/Berlin'))": "2026-03-29T01:30:00Z",
    # The second 02:30 of the night in which the clock is set back.
    "string(timestamp('2026-10-25T01:30:00Z').add_time(0, 'days', 'Europe/Berlin'))": "2026-10-25T01:30:00Z",
    "string(timestamp('2026-10-25T01:30:00Z').add_time(1, 'days', 'Europe/Berlin'))": "2026-10-26T01:30:00Z",
}


@pytest.mark.parametrize(("text", "expected"), VALUES.items(), ids=VALUES)
def test_values(text: str, expected: JsonValue) -> None:
    # The macro names the time `t`.
    assert value(f"[timestamp('2026-03-01T00:30:00Z')].map(t, {text})[0]") == expected


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("parse_time('tomorrow')", "parse_time cannot read 'tomorrow'"),
        ("parse_time('2026-07-01 10:00')", 'has no time zone; write parse_time(…, "Europe/Berlin")'),
        ("parse_time('2026-02-30')", "this time does not exist"),
        ("parse_time('31 Foo 2026 10:00 GMT')", "this time does not exist"),
        ("parse_time('31 Jan 2026 10:00 XYZ')", "does not know the time zone"),
        ("parse_time('2026-01-31T10:00+99:00')", "does not know the time zone"),
        ("parse_time(1e300)", "a time is out of range"),
        ("parse_time('0001-01-01', 'Asia/Tokyo')", "a time is out of range"),
        ("parse_time('2026-01-31', 'Europe/Berln')", "'Europe/Berln' is not a time zone like Europe/Berlin"),
        ("parse_time('2026-01-31', '../../etc/passwd')", "is not a time zone"),
        ("parse_time('2026-01-31', 'Europe')", "is not a time zone"),
        ("parse_time('2026-01-31', 'localtime')", "is not a time zone"),
        ("parse_time('2026-01-31', '')", "is not a time zone"),
        ("format_time(timestamp(0), '%Q')", "format_time does not know '%Q'; it knows %Y"),
        ("format_time(timestamp(0), '100%')", "format_time does not know '%'"),
        ("format_time(timestamp(0), '%10000000d')", "format_time does not know '%1'"),
        ("format_time('2026-01-01', '%Y')", "does not accept a text"),
        ("add_time(timestamp(0), 9223372036854775807, 'months')", "a time is out of range"),
        ("add_time(timestamp(0), 9223372036854775807, 'seconds')", "a time is out of range"),
        ("add_time(timestamp(0), 9000, 'years')", "a time is out of range"),
        ("add_time(timestamp(0), 0.5, 'days')", "add_time requires an integer"),
        ("add_time(timestamp(0), 1, 'eons')", "add_time does not know 'eons'; the units are seconds"),
        ("in_zone(timestamp('0001-01-01T00:00:00Z'), 'America/New_York')", "a time is out of range"),
    ],
)
def test_errors(text: str, reason: str) -> None:
    assert reason in failure(text)


def test_format_has_a_limit() -> None:
    assert "at most 200 characters" in failure("format_time(timestamp(0), payload)", "x" * 1_000_000)
