"""Notices of alerts, the receivers they are for, and every attempt to deliver one: the outbox."""

from __future__ import annotations
