"""The schema's history; written by Alembic, read by ``models.store``."""
