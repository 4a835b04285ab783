"""The functions of the language: those of CEL that JSON needs, the common extensions, and those that flows need.

Each function can be called as `f(x, y)` and as `x.f(y)`. Names of CEL are in camelCase, all others in snake_case.
"""

from __future__ import annotations

import math
from typing import Any

from bloxserver.blocks.cel import conversions, encodings, patterns
from bloxserver.blocks.cel.function import ANYTHING, LIST, MEDIUM, NUMBER, SLOW, TEXT, TIME, Function
from bloxserver.blocks.cel.list_functions import distinct, extreme, flatten, sort, total
from bloxserver.blocks.cel.number_functions import (
    format_number,
    round_half_up,
    round_number,
    rounding,
    sign,
    sqrt,
    to_integer,
    to_number,
)
from bloxserver.blocks.cel.text_functions import (
    change_ascii,
    change_case,
    char_at,
    contains,
    index_of,
    join,
    last_index_of,
    part_between,
    replace,
    split,
)
from bloxserver.blocks.cel.time_functions import (
    add_time,
    check_format,
    check_unit,
    format_time,
    in_zone,
    time_part,
    timestamp_part,
)
from bloxserver.blocks.cel.time_parsing import parse_time
from bloxserver.blocks.cel.values import EvaluationError, Invocation, Run, bounded
from bloxserver.blocks.cel.zones import check_zone

STEPS_OF_DECIMAL = 40
STEPS_OF_HASH = 30
STEPS_OF_TIME = 40


def _invocation(run: Run, name: str) -> Invocation:
    if run.budget.invocation is None:
        raise EvaluationError(f"{name} needs a message")
    return run.budget.invocation


def _part(of: Any, takes: str = TIME) -> Function:
    return Function(of, (takes, TEXT), optional=1, steps=SLOW, constants={1: check_zone})


_least = extreme("min", min)
_greatest = extreme("max", max)
_TO_NUMBER = "a text|a number|a timestamp"
_SPAN = "a timestamp|a duration"

FUNCTIONS: dict[str, Function] = {
    "size": Function(lambda run, value: len(value), ("a text|a list|an object",)),
    "int": Function(conversions.to_int, (_TO_NUMBER,), steps=MEDIUM),
    "double": Function(conversions.to_double, ("a text|a number",), steps=MEDIUM),
    "string": Function(conversions.to_string, ("a text|a number|a boolean|a timestamp|a duration|a type",), steps=SLOW),
    "bool": Function(conversions.to_bool, ("a text|a boolean",)),
    "type": Function(conversions.type_of, (ANYTHING,)),
    "dyn": Function(lambda run, value: value, (ANYTHING,)),
    "timestamp": Function(conversions.to_timestamp, (_TO_NUMBER,), steps=SLOW),
    "duration": Function(conversions.to_duration, ("a text|a number|a duration",), steps=SLOW),
    "getFullYear": _part(timestamp_part(lambda moment: moment.year)),
    "getMonth": _part(timestamp_part(lambda moment: moment.month - 1)),
    "getDate": _part(timestamp_part(lambda moment: moment.day)),
    "getDayOfMonth": _part(timestamp_part(lambda moment: moment.day - 1)),
    "getDayOfWeek": _part(timestamp_part(lambda moment: moment.isoweekday() % 7)),
    "getDayOfYear": _part(timestamp_part(lambda moment: moment.timetuple().tm_yday - 1)),
    "getHours": _part(time_part(lambda moment: moment.hour, 3600), _SPAN),
    "getMinutes": _part(time_part(lambda moment: moment.minute, 60), _SPAN),
    "getSeconds": _part(time_part(lambda moment: moment.second, 1), _SPAN),
    "getMilliseconds": _part(timestamp_part(lambda moment: moment.microsecond // 1000)),
    "matches": Function(patterns.matches, (TEXT, TEXT)),
    "contains": Function(contains, ("a text|a list", ANYTHING)),
    "startsWith": Function(lambda run, text, part: text.startswith(part), (TEXT, TEXT)),
    "endsWith": Function(lambda run, text, part: text.endswith(part), (TEXT, TEXT)),
    "charAt": Function(char_at, (TEXT, NUMBER)),
    "indexOf": Function(index_of, (TEXT, TEXT)),
    "lastIndexOf": Function(last_index_of, (TEXT, TEXT)),
    "substring": Function(part_between("substring"), (TEXT, NUMBER, NUMBER), optional=1),
    "replace": Function(replace, (TEXT, TEXT, TEXT)),
    "split": Function(split, (TEXT, TEXT)),
    "join": Function(join, (LIST, TEXT), optional=1),
    "lowerAscii": Function(change_ascii(bytes.lower), (TEXT,)),
    "upperAscii": Function(change_ascii(bytes.upper), (TEXT,)),
    "lower": Function(change_case(str.lower), (TEXT,)),
    "upper": Function(change_case(str.upper), (TEXT,)),
    "trim": Function(lambda run, text: text.strip(), (TEXT,)),
    "reverse": Function(lambda run, value: value[::-1], ("a text|a list",)),
    "slice": Function(part_between("slice"), (LIST, NUMBER, NUMBER)),
    "distinct": Function(distinct, (LIST,)),
    "unique": Function(distinct, (LIST,)),
    "flatten": Function(flatten, (LIST,)),
    "sort": Function(sort, (LIST,)),
    "sum": Function(total, (LIST,)),
    "min": Function(_least, (ANYTHING,), repeats=True),
    "max": Function(_greatest, (ANYTHING,), repeats=True),
    "math.least": Function(_least, (ANYTHING,), repeats=True),
    "math.greatest": Function(_greatest, (ANYTHING,), repeats=True),
    "math.abs": Function(lambda run, number: bounded(abs(number), run), (NUMBER,)),
    "math.sign": Function(sign, (NUMBER,)),
    "math.ceil": Function(rounding(math.ceil), (NUMBER,)),
    "math.floor": Function(rounding(math.floor), (NUMBER,)),
    "math.round": Function(round_half_up, (NUMBER, NUMBER), optional=1, steps=SLOW),
    "math.trunc": Function(rounding(math.trunc), (NUMBER,)),
    "math.sqrt": Function(sqrt, (NUMBER,)),
    "abs": Function(lambda run, number: bounded(abs(number), run), (NUMBER,)),
    "ceil": Function(to_integer(math.ceil), (NUMBER,)),
    "floor": Function(to_integer(math.floor), (NUMBER,)),
    "round": Function(round_number, (NUMBER, NUMBER), optional=1, steps=SLOW),
    "number": Function(to_number, ("a text|a number",), steps=MEDIUM),
    "format_number": Function(format_number, (NUMBER, NUMBER, TEXT, TEXT), optional=2, steps=STEPS_OF_DECIMAL),
    "parse_time": Function(
        parse_time, ("a text|a number", TEXT), optional=1, steps=STEPS_OF_TIME, constants={1: check_zone}
    ),
    "format_time": Function(
        format_time, (TIME, TEXT, TEXT), optional=1, steps=SLOW, constants={1: check_format, 2: check_zone}
    ),
    "in_zone": Function(in_zone, (TIME, TEXT), steps=SLOW, constants={1: check_zone}),
    "add_time": Function(
        add_time,
        (TIME, NUMBER, TEXT, TEXT),
        optional=1,
        steps=STEPS_OF_TIME,
        constants={2: check_unit, 3: check_zone},
    ),
    "url_encode": Function(encodings.url_encode, (TEXT,), steps=MEDIUM),
    "url_decode": Function(encodings.url_decode, (TEXT,), steps=MEDIUM),
    "base64_encode": Function(encodings.base64_encode, (TEXT,), steps=MEDIUM),
    "base64_decode": Function(encodings.base64_decode, (TEXT,), steps=MEDIUM),
    "json_parse": Function(encodings.json_parse, (TEXT,), steps=STEPS_OF_HASH),
    "json_format": Function(encodings.json_format, (ANYTHING,), steps=STEPS_OF_HASH),
    "sha256": Function(encodings.sha256, (TEXT, TEXT), optional=1, steps=SLOW, constants={1: encodings.check_result}),
    "hmac": Function(
        encodings.hmac,
        (TEXT, TEXT, TEXT, TEXT),
        optional=1,
        steps=STEPS_OF_HASH,
        constants={0: encodings.check_algorithm, 3: encodings.check_result},
    ),
    "hmac_sha256": Function(
        encodings.hmac_sha256,
        (TEXT, TEXT, TEXT),
        optional=1,
        steps=STEPS_OF_HASH,
        constants={2: encodings.check_result},
    ),
    "now": Function(lambda run: _invocation(run, "now").moment, (), is_pure=False),
    "uuid": Function(lambda run: _invocation(run, "uuid").next_uuid(), (), steps=STEPS_OF_HASH, is_pure=False),
}
