"""What each queue has used."""

import sqlalchemy as sa
from alembic import op

revision = "0002"
down_revision = "0001"


def upgrade() -> None:
    op.create_table(
        "accounts",
        sa.Column("queue", sa.Text, primary_key=True),
        sa.Column("record", sa.Text, nullable=False),
    )
