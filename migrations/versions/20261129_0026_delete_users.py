"""delete users

Revision ID: 0026
Revises: 0025
"""

import sqlalchemy as sa
from alembic import op

from bloxserver.models.types import UtcDateTime, database_now

revision = "0026"
down_revision = "0025"
branch_labels = None
depends_on = None

DELETING = sa.text("deleted_at IS NOT NULL AND clerk_id NOT LIKE 'deleted:%'")


def upgrade() -> None:
    op.create_table(
        "deleted_users",
        sa.Column("identity", sa.String(255), nullable=False),
        sa.Column("deleted_at", UtcDateTime(), server_default=database_now(), nullable=False),
        sa.PrimaryKeyConstraint("identity", name=op.f("pk_deleted_users")),
    )
    op.add_column("users", sa.Column("clerk_updated_at", sa.BigInteger(), nullable=True))
    op.add_column("users", sa.Column("deleted_at", UtcDateTime(), nullable=True))
    op.create_index("ix_users_deleting", "users", ["deleted_at"], sqlite_where=DELETING, postgresql_where=DELETING)


def downgrade() -> None:
    # The older version does not read `deleted_at`. No sign-in can have this identity.
    op.execute(sa.text(f"UPDATE users SET clerk_id = 'deleted:' || id WHERE {DELETING}"))  # noqa: S608
    op.drop_index("ix_users_deleting", table_name="users")
    op.drop_column("users", "deleted_at")
    op.drop_column("users", "clerk_updated_at")
    op.drop_table("deleted_users")
