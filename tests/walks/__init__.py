"""Tests: walks."""
