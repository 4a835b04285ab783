"""The triggers that maintain `execution_totals` and `execution_series`, and the statements that count all rows.

Only executions of a flow that exists count. A cascade deletes the flow before its executions, whose triggers then find
no flow. The tables have no foreign key to the flow, but a trigger: the check of a foreign key locks the flow, and a
worker that ends an execution would deadlock with a transaction that locked the flow and then waits for the execution.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator

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
FILL_PERCENT = {"execution_totals": 50, "execution_series": 80}
"""The rest of each page is left free, so that most updates of counters change no index."""


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
    empty = list(_sqlite_remove_empty())
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
# other transaction writes them. The number of a new row is random: any other could be that of a row that is locked.

_FUNCTION = """CREATE OR REPLACE FUNCTION execution_totals_{name}() RETURNS trigger LANGUAGE plpgsql AS $$
DECLARE
  d record;
  flow_ids uuid[];
  modes text[];
  slots integer[];
  is_empty boolean;
  emptied execution_series[];
BEGIN
  IF NOT {is_needed} THEN RETURN NULL; END IF;
  FOR d IN
    SELECT flow_id, mode, NULL::integer AS slot, min(started_at) AS time, max(started_at) AS last, {sums}
    FROM ({rows}) AS e GROUP BY flow_id, mode
  LOOP
    SELECT t.slot INTO d.slot FROM execution_totals AS t WHERE t.flow_id = d.flow_id AND t.mode = d.mode
    ORDER BY t.slot LIMIT 1 FOR NO KEY UPDATE SKIP LOCKED;
    IF FOUND THEN
      UPDATE execution_totals AS t SET {add}
      WHERE t.flow_id = d.flow_id AND t.mode = d.mode AND t.slot = d.slot;
    ELSIF EXISTS (SELECT FROM flows WHERE id = d.flow_id) THEN
      d.slot := floor(random() * 2147483647);
      INSERT INTO execution_totals (flow_id, mode, slot, {names}) VALUES (d.flow_id, d.mode, d.slot, {values});
    ELSE
      CONTINUE;
    END IF;
    IF {minute} = {last_minute} THEN
      {add_to_series}
    ELSE
      flow_ids := flow_ids || d.flow_id;
      modes := modes || d.mode::text;
      slots := slots || d.slot;
    END IF;
  END LOOP;
  IF slots IS NOT NULL THEN
    WITH deltas AS MATERIALIZED (
      SELECT flow_id, mode, slot, {row_minute} AS start, {sums}
      FROM ({rows}) AS e JOIN unnest(flow_ids, modes, slots) AS s (flow_id, mode, slot) USING (flow_id, mode)
      GROUP BY flow_id, mode, slot, {row_minute} HAVING {changed}
    ), changed AS (
      INSERT INTO execution_series AS s (flow_id, mode, seconds, start, slot, {names})
      SELECT flow_id, mode, 60, start, slot, {names} FROM deltas
      UNION ALL
      SELECT flow_id, mode, 900, {row_quarter}, slot, {sums_of_deltas} FROM deltas
      GROUP BY flow_id, mode, {row_quarter}, slot
      ON CONFLICT (flow_id, mode, seconds, start, slot) DO UPDATE SET {add_excluded}
      RETURNING s AS bucket, {empty} AS is_empty
    )
    SELECT array_agg(c.bucket) INTO emptied FROM changed AS c WHERE c.is_empty;
    DELETE FROM execution_series AS s USING unnest(emptied) AS e
    WHERE s.flow_id = e.flow_id AND s.mode = e.mode AND s.seconds = e.seconds AND s.start = e.start AND s.slot = e.slot;
  END IF;
  RETURN NULL;
END $$"""

_ADD_TO_SERIES = """
      WITH changed AS (
        INSERT INTO execution_series AS s (flow_id, mode, seconds, start, slot, {names})
        VALUES (d.flow_id, d.mode, 60, {minute}, d.slot, {values}),
          (d.flow_id, d.mode, 900, {quarter}, d.slot, {values})
        ON CONFLICT (flow_id, mode, seconds, start, slot) DO UPDATE SET {add_excluded}
        RETURNING {empty} AS empty
      )
      SELECT bool_or(empty) INTO is_empty FROM changed;
      IF is_empty THEN
        DELETE FROM execution_series AS s WHERE s.flow_id = d.flow_id AND s.mode = d.mode AND s.seconds = 60
          AND s.start = {minute} AND s.slot = d.slot AND {empty};
        DELETE FROM execution_series AS s WHERE s.flow_id = d.flow_id AND s.mode = d.mode AND s.seconds = 900
          AND s.start = {quarter} AND s.slot = d.slot AND {empty};
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
    for table, percent in FILL_PERCENT.items():
        yield f"ALTER TABLE {table} SET (fillfactor = {percent})"
    for event, (transition, is_needed) in _EVENTS.items():
        yield _counting_function(event.lower(), transition, is_needed)
        yield _trigger(event.lower(), f"AFTER {event} ON executions REFERENCING {transition} FOR EACH STATEMENT")
    yield _function("truncate", ["DELETE FROM execution_totals", "DELETE FROM execution_series"])
    yield _trigger("truncate", "AFTER TRUNCATE ON executions FOR EACH STATEMENT")
    yield _function("of_flow", _delete_of_flow("IN (SELECT id FROM removed)"))
    yield _trigger("of_flow", "AFTER DELETE ON flows REFERENCING OLD TABLE AS removed FOR EACH STATEMENT")


def _function(name: str, statements: Iterable[str]) -> str:
    return (
        # A function remains when a program drops all tables.
        f"CREATE OR REPLACE FUNCTION execution_totals_{name}() RETURNS trigger LANGUAGE plpgsql AS"
        f" $$ BEGIN {'; '.join(statements)}; RETURN NULL; END $$"
    )


def _trigger(name: str, when: str) -> str:
    return f"CREATE TRIGGER execution_totals_{name} {when} EXECUTE FUNCTION execution_totals_{name}()"


def _counting_function(name: str, transition: str, is_needed: str) -> str:
    """The function that adds what a statement changed."""
    rows = " UNION ALL ".join(
        "SELECT {key}, {values} FROM {rows}".format(  # noqa: S608
            key=", ".join(KEY), values=_each(f"{sign}({{value}}) AS {{name}}").format(row=rows), rows=rows
        )
        for rows, sign in (("added", ""), ("removed", "-"))
        if f"AS {rows}" in transition
    )
    parts = {
        "names": _names(),
        "values": _each("d.{name}"),
        "minute": _bucket("d.time", 60, "postgresql"),
        "quarter": _bucket("d.time", 900, "postgresql"),
    }
    parts |= {"add_excluded": _each("{name} = s.{name} + excluded.{name}"), "empty": _is_empty("s")}
    return _FUNCTION.format(
        **parts,
        name=name,
        is_needed=is_needed,
        rows=rows,
        sums=_sums("e.{name}"),
        changed=_each("sum(e.{name}) <> 0", " OR "),
        add=_each("{name} = t.{name} + d.{name}"),
        last_minute=_bucket("d.last", 60, "postgresql"),
        row_minute=_bucket("started_at", 60, "postgresql"),
        row_quarter=_bucket("start", 900, "postgresql"),
        sums_of_deltas=_each("sum({name})"),
        add_to_series=_ADD_TO_SERIES.format(**parts),
    )


# Rows of a bucket that other transactions have locked are left out. What is deleted adds up to nothing.
_DELETE_EMPTY_BUCKETS = """
WITH empty AS MATERIALIZED (
  SELECT seconds, start FROM execution_series
  WHERE flow_id = :flow_id AND mode = :mode AND seconds IN (60, 900) AND start <= :until
  GROUP BY seconds, start HAVING {is_zero} LIMIT :limit
), locked AS MATERIALIZED (
  SELECT s.* FROM empty JOIN execution_series AS s USING (seconds, start)
  WHERE s.flow_id = :flow_id AND s.mode = :mode FOR UPDATE OF s SKIP LOCKED
), zero AS (
  SELECT seconds, start FROM locked GROUP BY seconds, start HAVING {is_zero}
)
DELETE FROM execution_series AS s USING locked JOIN zero USING (seconds, start)
WHERE s.flow_id = :flow_id AND s.mode = :mode AND s.seconds = locked.seconds AND s.start = locked.start
  AND s.slot = locked.slot
RETURNING s.slot"""
DELETE_EMPTY_BUCKETS = _DELETE_EMPTY_BUCKETS.format(is_zero=_each("sum({name}) = 0", " AND "))
"""Deletes buckets whose slots add up to zero, on PostgreSQL."""
