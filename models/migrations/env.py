"""Alembic's entry: runs the migrations on the connection that ``models.store`` hands over."""

from alembic import context
from sqlmodel import SQLModel

from models import charges, prices, resources, usage  # noqa: F401

connection = context.config.attributes["connection"]
context.configure(connection=connection, target_metadata=SQLModel.metadata, render_as_batch=False, transaction_per_migration=False)
with context.begin_transaction():
    context.run_migrations()
