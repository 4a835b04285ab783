"""The triggers that maintain `stored_bytes`, and the statements that count these bytes from all rows.

Only rows that belong to a user count. When a flow or an execution is deleted, its trigger first subtracts what is
stored below it. The rows below are then deleted by a cascade, and their triggers find no owner and change nothing.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass

ROW_BYTES = 500
"""Added for each row: its other columns and its entries in indexes."""


@dataclass(frozen=True)
class Source:
    """A table whose rows count. `link` refers to the flow, or for steps to the execution."""

    table: str
    link: str
    texts: tuple[str, ...]
    """The columns whose bytes count."""

    def size(self, row: str, dialect: str) -> str:
        """The expression for the bytes of a row."""
        sizes = [f"coalesce({_length(f'{row}.{column}', dialect)}, 0)" for column in self.texts]
        return " + ".join([str(ROW_BYTES), *sizes])

    def owner(self, link: str) -> str:
        """The query for the owner of the rows with this value of `link`; no row if there is none."""
        if self.link == "flow_id":
            return f"SELECT f.user_id FROM flows f WHERE f.id = {link}"  # noqa: S608
        return f"SELECT f.user_id FROM executions e JOIN flows f ON f.id = e.flow_id WHERE e.id = {link}"  # noqa: S608


EXECUTIONS = Source("executions", "flow_id", ("input_payload", "output_payload", "error_message"))
STEPS = Source("execution_steps", "execution_id", ("input_payload", "output_payload", "state", "error_message"))
VERSIONS = Source("flow_versions", "flow_id", ("organism_yaml", "canvas_state"))
KEY_VALUES = Source("key_values", "flow_id", ("key", "value"))
SOURCES = (EXECUTIONS, STEPS, VERSIONS, KEY_VALUES)
PARENTS = {"flows": "user_id", "executions": "flow_id"}
"""Tables with sources below them, and the column that refers to their own owner."""


def create_triggers(dialect: str) -> list[str]:
    return list(_postgresql() if dialect == "postgresql" else _sqlite())


def drop_triggers(dialect: str) -> list[str]:
    statements = create_triggers(dialect)
    if dialect == "postgresql":
        return [f"DROP FUNCTION {name} CASCADE" for name in re.findall(r"FUNCTION (\w+\(\)) RETURNS", str(statements))]
    return [f"DROP TRIGGER {name}" for name in re.findall(r"TRIGGER (\w+)", str(statements))]


def functions(dialect: str) -> list[str]:
    """The statements that create the functions of the triggers again; none on SQLite."""
    return [statement for statement in create_triggers(dialect) if "REPLACE FUNCTION" in statement]


def count_anew(dialect: str) -> list[str]:
    """The statements that fill the empty table."""
    return [f"INSERT INTO stored_bytes (user_id, source, slot, bytes) {query}" for query in count_queries(dialect)]


def count_queries(dialect: str) -> list[str]:
    """The queries that count the bytes of each user, one for each source."""
    queries = []
    for source in SOURCES:
        link = "JOIN executions e ON e.id = r.execution_id JOIN flows f ON f.id = e.flow_id"
        if source.link == "flow_id":
            link = "JOIN flows f ON f.id = r.flow_id"
        queries.append(
            f"SELECT f.user_id, '{source.table}', 0, sum({source.size('r', dialect)})"  # noqa: S608
            f" FROM {source.table} r {link} GROUP BY f.user_id"
        )
    return queries


def _length(column: str, dialect: str) -> str:
    if dialect == "sqlite":
        return f"length(CAST({column} AS BLOB))"
    # Of a column of text, PostgreSQL reads only the header of a value that is stored out of line.
    return f"octet_length({column}::text)" if column.endswith("canvas_state") else f"octet_length({column})"


# SQLite: one row for each user and source, since one connection writes at a time.


def _sqlite() -> Iterator[str]:
    for source in SOURCES:
        table, link = source.table, source.link
        insert = _sqlite_add(source, source.owner(f"NEW.{link}"), source.size("NEW", "sqlite"))
        delete = _sqlite_subtract(source, source.owner(f"OLD.{link}"), source.size("OLD", "sqlite"))
        columns = ", ".join((link, *source.texts))
        yield _sqlite_trigger(f"{table}_insert", f"AFTER INSERT ON {table}", insert)
        yield _sqlite_trigger(f"{table}_update", f"AFTER UPDATE OF {columns} ON {table}", delete, insert)
        yield _sqlite_trigger(f"{table}_delete", f"AFTER DELETE ON {table}", delete)
    for parent, link in PARENTS.items():
        gone = [_sqlite_subtract(*one) for one in _moved(parent, "OLD", "sqlite")]
        arrived = [_sqlite_add(*one) for one in _moved(parent, "NEW", "sqlite")]
        yield _sqlite_trigger(f"below_{parent}_update", f"AFTER UPDATE OF {link} ON {parent}", *gone, *arrived)
        yield _sqlite_trigger(f"below_{parent}_delete", f"BEFORE DELETE ON {parent}", *gone)


def _sqlite_trigger(name: str, when: str, *statements: str) -> str:
    return f"CREATE TRIGGER stored_bytes_{name} {when} BEGIN {'; '.join(statements)}; END"


def _sqlite_add(source: Source, owner: str, size: str) -> str:
    return (
        f"INSERT INTO stored_bytes (user_id, source, slot, bytes)"  # noqa: S608
        f" SELECT user_id, '{source.table}', 0, coalesce(({size}), 0) FROM ({owner}) WHERE true"
        f" ON CONFLICT (user_id, source, slot) DO UPDATE SET bytes = bytes + excluded.bytes"
    )


def _sqlite_subtract(source: Source, owner: str, size: str) -> str:
    return (
        f"UPDATE stored_bytes SET bytes = bytes - coalesce(({size}), 0)"  # noqa: S608
        f" WHERE user_id = ({owner}) AND source = '{source.table}' AND slot = 0"
    )


# PostgreSQL: a transaction adds to a row that no other transaction has locked, and creates one if there is none. It
# never waits for a lock, so that concurrent writes of one user neither delay nor deadlock each other. The number of a
# new row is random: any other could be that of a row that is locked.

_ADD = """
WITH deltas AS MATERIALIZED ({deltas}), chosen AS MATERIALIZED (
  SELECT deltas.user_id, delta, slot FROM deltas LEFT JOIN LATERAL (
    SELECT slot FROM stored_bytes s WHERE s.user_id = deltas.user_id AND s.source = '{source}'
    LIMIT 1 FOR NO KEY UPDATE SKIP LOCKED
  ) AS free ON true WHERE deltas.user_id IS NOT NULL AND delta <> 0
), updated AS (
  UPDATE stored_bytes s SET bytes = s.bytes + delta FROM chosen
  WHERE s.user_id = chosen.user_id AND s.source = '{source}' AND s.slot = chosen.slot
)
INSERT INTO stored_bytes (user_id, source, slot, bytes)
SELECT user_id, '{source}', floor(random() * 2147483647)::integer, delta FROM chosen WHERE slot IS NULL
ON CONFLICT (user_id, source, slot) DO UPDATE SET bytes = stored_bytes.bytes + excluded.bytes;"""


_EVENTS = {
    "INSERT": "NEW TABLE AS added",
    "UPDATE": "OLD TABLE AS removed NEW TABLE AS added",
    "DELETE": "OLD TABLE AS removed",
}


def _postgresql() -> Iterator[str]:
    for source in SOURCES:
        table = source.table
        for event, rows in _EVENTS.items():
            name = f"{table}_{event.lower()}"
            yield _function(name, _body(source, rows))
            yield _trigger(name, f"AFTER {event} ON {table} REFERENCING {rows} FOR EACH STATEMENT")
        yield _function(f"{table}_truncate", f"DELETE FROM stored_bytes WHERE source = '{table}';")  # noqa: S608
        yield _trigger(f"{table}_truncate", f"AFTER TRUNCATE ON {table} FOR EACH STATEMENT")
    for parent, link in PARENTS.items():
        gone, arrived = (
            [_add(source, f"SELECT ({owner}) AS user_id, {sign}({size}) AS delta") for source, owner, size in moved]
            for sign, moved in (("-", _moved(parent, "OLD", "postgresql")), ("", _moved(parent, "NEW", "postgresql")))
        )
        yield _function(f"below_{parent}_delete", " ".join(gone), result="OLD")
        yield _trigger(f"below_{parent}_delete", f"BEFORE DELETE ON {parent} FOR EACH ROW")
        yield _function(f"below_{parent}_update", " ".join([*gone, *arrived]))
        when = f"AFTER UPDATE OF {link} ON {parent} FOR EACH ROW WHEN (OLD.{link} IS DISTINCT FROM NEW.{link})"
        yield _trigger(f"below_{parent}_update", when)


def _function(name: str, body: str, *, result: str = "NULL") -> str:
    return (
        # A function remains when a program drops all tables.
        f"CREATE OR REPLACE FUNCTION stored_bytes_{name}() RETURNS trigger LANGUAGE plpgsql AS"
        f" $$ BEGIN {body} RETURN {result}; END $$"
    )


def _trigger(name: str, when: str) -> str:
    return f"CREATE TRIGGER stored_bytes_{name} {when} EXECUTE FUNCTION stored_bytes_{name}()"


def _body(source: Source, transition: str) -> str:
    """Adds and subtracts the sizes of the rows that a statement changed, in one change for each owner."""
    changed = " UNION ALL ".join(
        f"SELECT {source.link} AS link, {sign}({source.size(rows, 'postgresql')}) AS bytes FROM {rows}"  # noqa: S608
        for rows, sign in (("added", ""), ("removed", "-"))
        if f"AS {rows}" in transition
    )
    # The owner is a query for each group, not a join, which a cached plan might do by a scan of a whole table.
    deltas = f"""
      SELECT user_id, sum(delta) AS delta FROM (
        SELECT ({source.owner("link")}) AS user_id, delta
        FROM (SELECT link, sum(bytes) AS delta FROM ({changed}) AS changed
              GROUP BY link HAVING sum(bytes) <> 0) AS links
      ) AS owners GROUP BY user_id"""  # noqa: S608
    # An upsert runs the triggers of INSERT and UPDATE, of which one often has no rows.
    filled = "added" if "AS added" in transition else "removed"
    return f"IF EXISTS (SELECT FROM {filled}) THEN {_add(source, deltas)} END IF;"


def _add(source: Source, deltas: str) -> str:
    """The statement that adds the deltas of users. Deltas of no user are ignored."""
    return _ADD.format(source=source.table, deltas=deltas)


def _moved(parent: str, row: str, dialect: str) -> Iterator[tuple[Source, str, str]]:
    """For the parent in this row: each source below it, the query for the owner, and the one for the bytes."""
    owner = EXECUTIONS.owner(f"{row}.flow_id")
    if parent == "flows":
        # While a cascade deletes the flows of a user, PostgreSQL would check the foreign key of a changed row.
        of_user = f"SELECT id FROM users WHERE id = {row}.user_id"  # noqa: S608
        owner = of_user if dialect == "postgresql" else f"SELECT {row}.user_id AS user_id"
    for source in SOURCES if parent == "flows" else (STEPS,):
        yield source, owner, _size_below(source, parent, f"{row}.id", dialect)


def _size_below(source: Source, parent: str, id: str, dialect: str) -> str:
    """The query that sums the bytes of the source's rows below a parent."""
    condition = f"execution_id = {id}"
    if parent == "flows":
        condition = f"flow_id = {id}"
        if source is STEPS:
            condition = f"execution_id IN (SELECT id FROM executions WHERE flow_id = {id})"  # noqa: S608
    rows = f"SELECT * FROM {source.table} WHERE {condition}"  # noqa: S608
    # Locked, so that no other transaction changes a row, or inserts one below it, after it was summed and before it is
    # deleted. The executions come first.
    locked = " FOR UPDATE" if dialect == "postgresql" else ""
    return f"SELECT sum({source.size('below', dialect)}) FROM ({rows}{locked}) AS below"  # noqa: S608
