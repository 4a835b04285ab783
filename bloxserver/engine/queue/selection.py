"""Selection of the executions to claim next. An execution that is `running` and has no lease waits for a worker.

The queue is read flow by flow, a few rows of each, so that a long backlog of one flow does not delay other flows.
"""

from __future__ import annotations

from collections.abc import Mapping
from datetime import datetime
from functools import lru_cache
from uuid import UUID

import sqlalchemy as sa
from sqlalchemy.ext.asyncio import AsyncSession

from bloxserver.models.enums import Tier
from bloxserver.models.tables import QUARANTINE_THRESHOLD
from bloxserver.models.types import UtcDateTime

MAX_PER_FLOW = 25
"""Executions of one flow that a selection considers; there may be thousands of flows."""

MAX_SELECTED = 500
"""Executions that a selection considers. If more flows wait, it considers up to two executions of each."""

# A loose index scan: one step through the index of waiting executions for each flow.
_WAITING = """
WITH RECURSIVE waiting (flow_id) AS (
  SELECT (SELECT e.flow_id FROM executions e WHERE e.status = 'running' AND e.lease IS NULL ORDER BY e.flow_id LIMIT 1)
  UNION ALL
  SELECT (SELECT e.flow_id FROM executions e WHERE e.status = 'running' AND e.lease IS NULL
          AND e.flow_id > waiting.flow_id ORDER BY e.flow_id LIMIT 1)
  FROM waiting WHERE waiting.flow_id IS NOT NULL
)"""
# The order includes `resume_at`, though it is always null here: PostgreSQL then uses the order of the index.
_FRESH = """
  SELECT {columns} FROM (SELECT e.id, e.started_at AS since, 1 AS fresh FROM executions e
                         WHERE e.status = 'running' AND e.lease IS NULL
                         AND e.flow_id = waiting.flow_id AND e.resume_at IS NULL AND e.crash_count < {many}
                         ORDER BY e.resume_at, e.started_at, e.id LIMIT (SELECT number FROM most)) AS fresh"""
_RESUMED = """
  SELECT {columns} FROM (SELECT e.id, e.resume_at AS since, 0 AS fresh FROM executions e
                         WHERE e.status = 'running' AND e.lease IS NULL
                         AND e.flow_id = waiting.flow_id AND e.resume_at <= :moment AND e.crash_count < {many}
                         ORDER BY e.resume_at, e.id LIMIT (SELECT number FROM most)) AS resumed"""
_DUE = {
    "postgresql": """
  SELECT due.id, waiting.flow_id, due.since, due.fresh FROM waiting
  CROSS JOIN LATERAL ({fresh} UNION ALL {resumed}) AS due""",
    "sqlite": """
  SELECT due.id, due.flow_id, coalesce(due.resume_at, due.started_at) AS since,
         due.resume_at IS NULL AS fresh FROM waiting
  JOIN executions due ON due.id IN ({fresh} UNION ALL {resumed})""",
}
_COLUMNS = {"postgresql": "id, since, fresh", "sqlite": "id"}
_TIER_NAMES = ", ".join(f"'{tier.value}'" for tier in Tier)
# An unknown tier counts as free, and shares its slots.
_TIER = f"CASE WHEN u.tier IN ({_TIER_NAMES}) THEN u.tier ELSE '{Tier.FREE.value}' END"
_WHEN_TIER = " ".join(f"WHEN '{tier.value}' THEN :{{0}}_{tier.value}" for tier in Tier)
_BY_TIER = f"CASE {{1}} {_WHEN_TIER} ELSE :{{0}}_{Tier.FREE.value} END"
# Those with the fewest crashes first.
_QUARANTINED = """
  SELECT e.id, e.flow_id, coalesce(e.resume_at, e.started_at) AS since, 0 AS fresh
  FROM executions e JOIN flows f ON f.id = e.flow_id AND f.deleted_at IS NULL
  LEFT JOIN users u ON u.id = f.user_id LEFT JOIN claimed ON claimed.user_id = f.user_id
  WHERE e.status = 'running' AND e.lease IS NULL AND e.crash_count >= {many}
  AND (e.resume_at IS NULL OR e.resume_at <= :moment)
  AND coalesce(claimed.number, 0) < {of_user} AND {of_tier} > 0
  ORDER BY e.crash_count, since, e.id LIMIT :quarantined"""
_NEXT = """
{waiting}, most (number) AS (
  SELECT CASE WHEN count(*) * :most <= :most_in_all THEN :most
              WHEN count(*) * 2 >= :most_in_all THEN 2 ELSE :most_in_all / count(*) END FROM waiting
), claimed AS (
  SELECT f.user_id, count(*) AS number FROM executions e JOIN flows f ON f.id = e.flow_id
  WHERE e.status = 'running' AND e.lease IS NOT NULL GROUP BY f.user_id
), quarantined AS ({quarantined}
), due AS ({due}
  UNION ALL SELECT id, flow_id, since, fresh FROM quarantined
), turns AS (
  SELECT due.id, due.since, {tier} AS tier, coalesce(claimed.number, 0)
         + row_number() OVER (PARTITION BY f.user_id ORDER BY due.fresh, due.since, due.id) AS slot
  FROM due JOIN flows f ON f.id = due.flow_id AND f.deleted_at IS NULL
  LEFT JOIN users u ON u.id = f.user_id LEFT JOIN claimed ON claimed.user_id = f.user_id
), ranks AS (
  SELECT id, tier, row_number() OVER (PARTITION BY tier ORDER BY slot, since, id) AS rank
  FROM turns WHERE slot <= {of_user}
)
SELECT id FROM ranks WHERE rank <= {of_tier} ORDER BY rank, id"""
_RESUME = """
{waiting}
SELECT min((SELECT min(e.resume_at) FROM executions e WHERE e.status = 'running' AND e.lease IS NULL
            AND e.flow_id = waiting.flow_id AND e.resume_at > :moment)) AS resume_at FROM waiting"""


async def read_next_executions(
    session: AsyncSession,
    moment: datetime,
    slots: Mapping[str, int],
    slots_per_user: Mapping[str, int],
    quarantined: int = 1,
) -> list[UUID]:
    """The executions to claim now: up to `slots` per tier, users in rotation.

    Within a user, started executions come before new ones, and older before newer. `slots_per_user` limits the
    executions that a user of each tier runs at once on all workers together. At most `quarantined` of the result are
    executions with `QUARANTINE_THRESHOLD` or more consecutive crashes.
    """
    values = {f"tier_{tier}": number for tier, number in slots.items()}
    values |= {f"user_{tier}": number for tier, number in slots_per_user.items()}
    values |= {"most": MAX_PER_FLOW, "most_in_all": MAX_SELECTED, "quarantined": quarantined}
    chosen = await session.scalars(next_executions(session.get_bind().dialect.name), {"moment": moment, **values})
    return list(chosen)


async def read_next_resume(session: AsyncSession, moment: datetime) -> datetime | None:
    """When the next execution that is not due at `moment` resumes; None if there is none."""
    resume_at: datetime | None = await session.scalar(_next_resume(), {"moment": moment})
    return resume_at


@lru_cache
def next_executions(dialect: str) -> sa.TextualSelect:
    """The statement of `read_next_executions`."""
    fresh, resumed = (part.format(columns=_COLUMNS[dialect], many=QUARANTINE_THRESHOLD) for part in (_FRESH, _RESUMED))
    user_tier = {"of_user": _BY_TIER.format("user", "u.tier"), "of_tier": _BY_TIER.format("tier", "u.tier")}
    text = _NEXT.format(
        waiting=_WAITING,
        due=_DUE[dialect].format(fresh=fresh, resumed=resumed),
        tier=_TIER,
        quarantined=_QUARANTINED.format(many=QUARANTINE_THRESHOLD, **user_tier),
        of_user=_BY_TIER.format("user", "tier"),
        of_tier=_BY_TIER.format("tier", "tier"),
    )
    by_tier = [f"{whose}_{tier.value}" for whose in ("user", "tier") for tier in Tier]
    numbers = [sa.bindparam(name, type_=sa.Integer()) for name in ("most", "most_in_all", "quarantined", *by_tier)]
    return sa.text(text).bindparams(_moment(), *numbers).columns(sa.column("id", sa.Uuid()))


@lru_cache
def _next_resume() -> sa.TextualSelect:
    text = sa.text(_RESUME.format(waiting=_WAITING)).bindparams(_moment())
    return text.columns(sa.column("resume_at", UtcDateTime()))


def _moment() -> sa.BindParameter[datetime]:
    return sa.bindparam("moment", type_=UtcDateTime())
