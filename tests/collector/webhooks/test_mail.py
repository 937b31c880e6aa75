"""Notices by mail, to a real server on this machine."""

from __future__ import annotations

import email
import email.policy
from datetime import UTC, datetime
from typing import Any

import pytest
from aiosmtpd.controller import Controller

from collector.webhooks.dispatch import Dispatcher
from collector.webhooks.reach import Policy
from collector.webhooks.sending import Mail, Sender
from models.errors import InvalidInput
from models.notices import DeliveryStatus, Format
from models.store import Store
from tests.collector.webhooks.test_dispatch import post, receiver, rows

NOW = datetime(2026, 11, 20, 10, tzinfo=UTC)


class OnFreePort(Controller):
    """Tries itself at the port that it found, not at 0."""

    def _trigger_server(self) -> None:
        server: Any = self.server
        self.port = server.sockets[0].getsockname()[1]
        super()._trigger_server()  # type: ignore[no-untyped-call]


class Inbox:
    """Keeps what it is sent."""

    def __init__(self) -> None:
        self.mails: list[Any] = []

    async def handle_DATA(self, _server: Any, _session: Any, envelope: Any) -> str:  # noqa: N802 - aiosmtpd's word
        self.mails.append(envelope)
        return "250 kept"


def test_a_mail_is_one_line_of_subject_and_plain_text_under_the_notices_id(sqlite_store: Store) -> None:
    inbox = Inbox()
    controller = OnFreePort(inbox, hostname="127.0.0.1", port=0)
    controller.start()
    try:
        port = controller.port
        mail = Mail.parse(f"smtp://127.0.0.1:{port}", "meterbridge@example.com")
        receiver(sqlite_store, "mailto:ops@example.com,night@example.com", format=Format.EMAIL, secret=None)
        post(sqlite_store, rule="Tokens\r\nBcc: evil@example.com", why="<b>390,000</b> of 400,000")
        sender = Sender(Policy(), mail=mail)
        Dispatcher(sqlite_store, sender, now=lambda: NOW).drain()
        sender.close()
    finally:
        controller.stop()
    [envelope] = inbox.mails
    [row] = rows(sqlite_store)
    assert (row.status, row.last_status) == (DeliveryStatus.DELIVERED, 250)
    assert (envelope.mail_from, envelope.rcpt_tos) == ("meterbridge@example.com", ["ops@example.com", "night@example.com"])
    said = email.message_from_bytes(envelope.content, policy=email.policy.default)
    assert said["Subject"] == "[meterbridge] firing: critical Tokens Bcc: evil@example.com"
    assert said["Bcc"] is None
    assert said["Message-ID"] == f"<{row.notice_id}@example.com>"
    assert said.get_content_type() == "text/plain"
    assert "<b>390,000</b> of 400,000" in said.get_content()


def test_a_password_is_not_sent_in_the_clear(sqlite_store: Store) -> None:
    inbox = Inbox()
    controller = OnFreePort(inbox, hostname="127.0.0.1", port=0)
    controller.start()
    try:
        mail = Mail.parse(f"smtp://user:secret@127.0.0.1:{controller.port}", "meterbridge@example.com")
        receiver(sqlite_store, "mailto:ops@example.com", format=Format.EMAIL, secret=None)
        post(sqlite_store)
        sender = Sender(Policy(), mail=mail)
        Dispatcher(sqlite_store, sender, now=lambda: NOW).drain()
        sender.close()
    finally:
        controller.stop()
    assert inbox.mails == []
    assert "offers no TLS" in rows(sqlite_store)[0].last_error
    assert "secret" not in repr(mail)


@pytest.mark.parametrize(("url", "sender"), [("http://mail.example", "a@example.com"), ("smtp://", "a@example.com"), ("smtp://mail.example", "")])
def test_settings_of_mail_that_are_none_are_said(url: str, sender: str) -> None:
    with pytest.raises(InvalidInput):
        Mail.parse(url, sender)
    assert Mail.parse("", "") is None
