"""What people decided about differences and price rows: owners, notes, sign-offs, reviews."""

from __future__ import annotations
