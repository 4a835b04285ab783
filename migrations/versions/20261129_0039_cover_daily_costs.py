"""let the index of the times of language model calls have their costs

Revision ID: 0039
Revises: 0038
"""

from alembic import op

revision = "0039"
down_revision = "0038"
branch_labels = None
depends_on = None

OLD = "ix_llm_calls_created_at"
NEW = "ix_llm_calls_created_at_own_key_cost_nanousd"


def upgrade() -> None:
    op.create_index(NEW, "llm_calls", ["created_at", "own_key", "cost_nanousd"])
    op.drop_index(OLD, "llm_calls")


def downgrade() -> None:
    op.create_index(OLD, "llm_calls", ["created_at"])
    op.drop_index(NEW, "llm_calls")
