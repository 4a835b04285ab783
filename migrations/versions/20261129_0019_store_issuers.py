"""store the issuer and the subject of users of OpenID Connect providers

Revision ID: 0019
Revises: 0018
"""

import sqlalchemy as sa
from alembic import op

revision = "0019"
down_revision = "0018"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.add_column("users", sa.Column("issuer", sa.String(512), nullable=True))
    op.add_column("users", sa.Column("subject", sa.String(255), nullable=True))


def downgrade() -> None:
    op.drop_column("users", "subject")
    op.drop_column("users", "issuer")
