"""Runs the migrations on the connection that `bot.database.migration` hands over, or on DATABASE_URL."""

import os

from alembic import context
from sqlalchemy import Connection

from bot.database.engine import Database
from bot.database.schema import metadata


def run(connection: Connection) -> None:
    context.configure(
        connection=connection,
        target_metadata=metadata,
        render_as_batch=connection.dialect.name == "sqlite",
        transaction_per_migration=False,
        compare_server_default=False,
    )
    with context.begin_transaction():
        context.run_migrations()


given = context.config.attributes.get("connection")
if given is not None:
    run(given)
else:
    # The developer's own `alembic revision` and `alembic check`.
    database = Database(os.environ["DATABASE_URL"])
    with database.write() as developers_connection:
        run(developers_connection)
    database.close()
