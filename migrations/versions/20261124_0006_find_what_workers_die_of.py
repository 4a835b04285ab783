"""find what workers die of

Executions that many workers in a row died with are run few at a time: found without reading all that wait.

Revision ID: 0006
Revises: 0005
"""

import sqlalchemy as sa
from alembic import op

revision = "0006"
down_revision = "0005"
branch_labels = None
depends_on = None

SUSPECT = "status = 'running' AND lease IS NULL AND takeovers >= 3"


def upgrade() -> None:
    op.create_index(
        "ix_executions_suspect",
        "executions",
        ["takeovers"],
        unique=False,
        sqlite_where=sa.text(SUSPECT),
        postgresql_where=sa.text(SUSPECT),
    )


def downgrade() -> None:
    op.drop_index("ix_executions_suspect", table_name="executions")
