"""Tests: collector.capture."""
