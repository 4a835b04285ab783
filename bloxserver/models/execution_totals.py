"""The triggers that maintain `execution_totals` and `execution_series`, and the statements that count all rows.

Only executions of a flow that exists count. A cascade deletes the flow before its executions, whose triggers then find
no flow. The tables have no foreign key to the flow, but a trigger: the check of a foreign key locks the flow, and a
worker that ends an execution would deadlock with a transaction that locked the flow and then waits for the execution.
"""

from __future__ import annotations

import re
from collections.abc import Iterator

COUNTERS = {
    "executions": "1",
    **{
        status: f"CASE WHEN {{row}}.status = '{status}' THEN 1 ELSE 0 END"
        for status in ("running", "success", "error", "timeout", "cancelled")
    },
    "durations": "CASE WHEN {row}.duration_ms IS NULL THEN 0 ELSE 1 END",
    "duration_ms": "coalesce({row}.duration_ms, 0)",
    "input_tokens": "{row}.input_tokens",
    "output_tokens": "{row}.output_tokens",
}
"""What an execution adds to each counter."""
KEY = ("flow_id", "mode", "started_at")
COUNTED = ("status", "duration_ms", "input_tokens", "output_tokens")
"""The columns of an execution on which the counters depend, apart from the key."""
BUCKETS = (60, 900)
"""The widths of buckets, in seconds. Time zones differ by multiples of 15 minutes."""
FILL_PERCENT = 50
"""Free space in each page, so that most updates of counters change no index."""


def create_triggers(dialect: str) -> list[str]:
    return list(_postgresql() if dialect == "postgresql" else _sqlite())


def drop_triggers(dialect: str) -> list[str]:
    statements = create_triggers(dialect)
    if dialect == "postgresql":
        return [f"DROP FUNCTION {name} CASCADE" for name in re.findall(r"FUNCTION (\w+\(\)) RETURNS", str(statements))]
    return [f"DROP TRIGGER {name}" for name in re.findall(r"TRIGGER (\w+)", str(statements))]


def count_anew(dialect: str) -> list[str]:
    """The statements that fill the empty tables."""
    return [
        f"INSERT INTO execution_totals (flow_id, mode, slot, {_names()}) {count_totals()}",
        f"INSERT INTO execution_series (flow_id, mode, seconds, start, slot, {_names()}) {count_series(60, dialect)}",
        # The rows of the minutes are fewer and smaller than the executions.
        f"INSERT INTO execution_series (flow_id, mode, seconds, start, slot, {_names()})"  # noqa: S608
        f" SELECT flow_id, mode, 900, {_bucket('start', 900, dialect)}, 0, {_sums('{name}')} FROM execution_series"
        f" GROUP BY flow_id, mode, {_bucket('start', 900, dialect)}",
    ]


def count_totals() -> str:
    """The query that counts the executions of each flow and mode."""
    return (
        f"SELECT flow_id, mode, 0, {_sums()} FROM executions AS e"  # noqa: S608
        f" WHERE EXISTS (SELECT 1 FROM flows WHERE flows.id = flow_id) GROUP BY flow_id, mode"
    )


def count_series(seconds: int, dialect: str) -> str:
    """The query that counts the executions of each flow, mode and bucket of this width."""
    bucket = _bucket("started_at", seconds, dialect)
    return (
        f"SELECT flow_id, mode, {seconds}, {bucket}, 0, {_sums()} FROM executions AS e"  # noqa: S608
        f" WHERE EXISTS (SELECT 1 FROM flows WHERE flows.id = flow_id) GROUP BY flow_id, mode, {bucket}"
    )


def _bucket(time: str, seconds: int, dialect: str) -> str:
    """The start of the bucket that contains a time."""
    if dialect == "postgresql":
        return f"date_bin('{seconds} s', {time}, TIMESTAMPTZ '2000-01-01 00:00:00+00')"
    if seconds == 60:
        return f"substr({time}, 1, 16) || ':00.000000'"
    return f"substr({time}, 1, 14) || printf('%02d', substr({time}, 15, 2) / 15 * 15) || ':00.000000'"


def _names() -> str:
    return ", ".join(COUNTERS)


def _each(template: str, separator: str = ", ") -> str:
    """The template for each counter. `{value}` is what `{row}` adds to it."""
    return separator.join(template.format(name=name, value=value) for name, value in COUNTERS.items())


def _sums(value: str = "{value}", row: str = "e") -> str:
    return _each(f"sum({value}) AS {{name}}").format(row=row)


def _add_to(table: str) -> str:
    """The end of an INSERT that adds to the counters of a row that exists."""
    key = "flow_id, mode, slot" if table == "execution_totals" else "flow_id, mode, seconds, start, slot"
    return f"ON CONFLICT ({key}) DO UPDATE SET " + _each(f"{{name}} = {table}.{{name}} + excluded.{{name}}")


def _is_empty(row: str) -> str:
    return _each(f"{row}.{{name}} = 0", " AND ")


# SQLite: one slot, since one connection writes at a time.


def _sqlite() -> Iterator[str]:
    same_key = " AND ".join(f"OLD.{column} IS NEW.{column}" for column in KEY)
    same_counts = " AND ".join(f"OLD.{column} IS NEW.{column}" for column in COUNTED)
    added = _each("{value}").format(row="NEW")
    removed = _each("-({value})").format(row="OLD")
    changed = ", ".join(f"{value.format(row='NEW')} - ({value.format(row='OLD')})" for value in COUNTERS.values())
    yield _sqlite_trigger("insert", "AFTER INSERT ON executions", *_sqlite_add("NEW", added))
    columns = ", ".join(COUNTED)
    when = f"AFTER UPDATE OF {columns} ON executions WHEN {same_key} AND NOT ({same_counts})"
    yield _sqlite_trigger("update", when, *_sqlite_add("NEW", changed))
    when = f"AFTER UPDATE OF {', '.join(KEY)} ON executions WHEN NOT ({same_key})"
    empty = _sqlite_remove_empty()
    yield _sqlite_trigger("move", when, *_sqlite_add("OLD", removed), *_sqlite_add("NEW", added), *empty)
    yield _sqlite_trigger("delete", "AFTER DELETE ON executions", *_sqlite_add("OLD", removed), *empty)
    yield _sqlite_trigger("of_flow", "BEFORE DELETE ON flows", *_delete_of_flow("= OLD.id"))


def _sqlite_trigger(name: str, when: str, *statements: str) -> str:
    return f"CREATE TRIGGER execution_totals_{name} {when} BEGIN {'; '.join(statements)}; END"


def _sqlite_add(row: str, values: str) -> Iterator[str]:
    exists = f"WHERE EXISTS (SELECT 1 FROM flows WHERE id = {row}.flow_id)"  # noqa: S608
    yield (
        f"INSERT INTO execution_totals (flow_id, mode, slot, {_names()})"
        f" SELECT {row}.flow_id, {row}.mode, 0, {values} {exists} {_add_to('execution_totals')}"
    )
    for seconds in BUCKETS:
        start = _bucket(f"{row}.started_at", seconds, "sqlite")
        yield (
            f"INSERT INTO execution_series (flow_id, mode, seconds, start, slot, {_names()})"
            f" SELECT {row}.flow_id, {row}.mode, {seconds}, {start}, 0, {values} {exists} {_add_to('execution_series')}"
        )


def _sqlite_remove_empty() -> Iterator[str]:
    for seconds in BUCKETS:
        yield (
            f"DELETE FROM execution_series WHERE flow_id = OLD.flow_id AND mode = OLD.mode AND seconds = {seconds}"  # noqa: S608
            f" AND start = {_bucket('OLD.started_at', seconds, 'sqlite')} AND {_is_empty('execution_series')}"
        )


def _delete_of_flow(condition: str) -> Iterator[str]:
    for table in ("execution_totals", "execution_series"):
        yield f"DELETE FROM {table} WHERE flow_id {condition}"  # noqa: S608


# PostgreSQL: for each flow and mode, a transaction adds to a row of the totals that no other transaction has locked, or
# creates one. It never waits for a lock. It adds to the rows of the series that have the number of this row, so no
# other transaction writes them. The number of a new row is random: any other could be one that is locked.

_ADD = """
  WITH deltas AS MATERIALIZED (
    SELECT flow_id, mode, {minute} AS start, {sums} FROM ({rows}) AS e
    GROUP BY flow_id, mode, {minute} HAVING {changed}
  ), slots AS MATERIALIZED (
    SELECT flow_id, mode, coalesce((
      SELECT slot FROM execution_totals AS t WHERE t.flow_id = keys.flow_id AND t.mode = keys.mode
      ORDER BY slot LIMIT 1 FOR NO KEY UPDATE SKIP LOCKED
    ), floor(random() * 2147483647)::integer) AS slot
    FROM (SELECT DISTINCT flow_id, mode FROM deltas) AS keys
    WHERE EXISTS (SELECT FROM flows WHERE id = keys.flow_id)
  ), totals AS (
    INSERT INTO execution_totals (flow_id, mode, slot, {names})
    SELECT flow_id, mode, slot, {resums} FROM deltas JOIN slots USING (flow_id, mode) GROUP BY flow_id, mode, slot
    {add_to_totals}
  ), series AS (
    INSERT INTO execution_series AS s (flow_id, mode, seconds, start, slot, {names})
    SELECT flow_id, mode, 60, start, slot, {names} FROM deltas JOIN slots USING (flow_id, mode)
    UNION ALL
    SELECT flow_id, mode, 900, {quarter}, slot, {resums} FROM deltas JOIN slots USING (flow_id, mode)
    GROUP BY flow_id, mode, {quarter}, slot
    {add_to_series}
    RETURNING s AS bucket, {is_empty} AS is_empty
  )
  SELECT array_agg(bucket) INTO emptied FROM series WHERE is_empty;
  IF emptied IS NOT NULL THEN
    DELETE FROM execution_series AS s USING unnest(emptied) AS e WHERE s.flow_id = e.flow_id AND s.mode = e.mode
      AND s.seconds = e.seconds AND s.start = e.start AND s.slot = e.slot;
  END IF;"""

_EVENTS = {
    "INSERT": ("NEW TABLE AS added", "EXISTS (SELECT FROM added)"),
    # Most updates, such as claims, change no counter. They only compare the rows.
    "UPDATE": (
        "OLD TABLE AS removed NEW TABLE AS added",
        f"EXISTS (SELECT {', '.join(KEY + COUNTED)} FROM added"  # noqa: S608
        f" EXCEPT ALL SELECT {', '.join(KEY + COUNTED)} FROM removed)",
    ),
    "DELETE": ("OLD TABLE AS removed", "EXISTS (SELECT FROM removed)"),
}


def _postgresql() -> Iterator[str]:
    for table in ("execution_totals", "execution_series"):
        yield f"ALTER TABLE {table} SET (fillfactor = {FILL_PERCENT})"
    for event, (rows, is_needed) in _EVENTS.items():
        name = event.lower()
        yield _function(name, f"IF {is_needed} THEN {_add(rows)} END IF;", declare="emptied execution_series[];")
        yield _trigger(name, f"AFTER {event} ON executions REFERENCING {rows} FOR EACH STATEMENT")
    yield _function("truncate", "DELETE FROM execution_totals; DELETE FROM execution_series;")
    yield _trigger("truncate", "AFTER TRUNCATE ON executions FOR EACH STATEMENT")
    yield _function("of_flow", " ".join(f"{one};" for one in _delete_of_flow("IN (SELECT id FROM removed)")))
    yield _trigger("of_flow", "AFTER DELETE ON flows REFERENCING OLD TABLE AS removed FOR EACH STATEMENT")


def _function(name: str, body: str, *, declare: str = "") -> str:
    return (
        # A function remains when a program drops all tables.
        f"CREATE OR REPLACE FUNCTION execution_totals_{name}() RETURNS trigger LANGUAGE plpgsql AS"
        f" $$ DECLARE {declare} BEGIN {body} RETURN NULL; END $$"
    )


def _trigger(name: str, when: str) -> str:
    return f"CREATE TRIGGER execution_totals_{name} {when} EXECUTE FUNCTION execution_totals_{name}()"


def _add(transition: str) -> str:
    """The statements that add what a statement changed."""
    rows = " UNION ALL ".join(
        "SELECT {key}, {values} FROM {rows}".format(  # noqa: S608
            key=", ".join(KEY), values=_each(f"{sign}({{value}}) AS {{name}}").format(row=rows), rows=rows
        )
        for rows, sign in (("added", ""), ("removed", "-"))
        if f"AS {rows}" in transition
    )
    return _ADD.format(
        rows=rows,
        names=_names(),
        sums=_sums("e.{name}"),
        resums=_each("sum({name})"),
        changed=_each("sum(e.{name}) <> 0", " OR "),
        minute=_bucket("started_at", 60, "postgresql"),
        quarter=_bucket("start", 900, "postgresql"),
        add_to_totals=_add_to("execution_totals"),
        add_to_series=_add_to("execution_series").replace("execution_series.", "s."),
        is_empty=_is_empty("s"),
    )
