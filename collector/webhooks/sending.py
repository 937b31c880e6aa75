"""One attempt: connect to a checked address, send the stored bytes, read the answer's head and nothing more.

What an answer says is never read or shown: a receiver's URL must not become a way to read what only we can reach. The
whole attempt has one time limit, so that an answer that drips costs as much as one that never comes.
"""

from __future__ import annotations

import asyncio
import base64
import contextlib
import hashlib
import hmac
import json
import smtplib
import ssl
import time
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from datetime import datetime
from email.message import EmailMessage
from email.policy import SMTP as SMTP_POLICY
from email.utils import format_datetime
from typing import Any, Protocol
from urllib.parse import unquote, urlsplit

import certifi
import h11

from collector.webhooks import reach
from collector.webhooks.formats import line
from collector.webhooks.reach import Policy, Refused, Resolver
from models.columns import to_microseconds
from models.errors import InvalidInput
from models.notices import Format

TIMEOUT_SECONDS = 15.0
# A mail with files takes longer; less than the lease of a delivery, or another process would send it too.
_MAIL_SECONDS = 30.0
# Of what is enclosed, before it grows by a third on its way: the smallest limit that mail servers in use have is 10 MB.
MOST_ENCLOSED = 7_000_000
_MOST_INTERIM = 10  # 1xx answers before the real one
_HEAD_BYTES = 64 * 1024
_AGENT = "meterbridge"


@dataclass(frozen=True, slots=True)
class Mail:
    """The operator's mail server (METERBRIDGE_SMTP_URL) and whom mails are from."""

    host: str
    port: int
    is_tls: bool  # from the first byte; otherwise by STARTTLS where it is offered
    user: str
    password: str
    sender: str

    def __repr__(self) -> str:
        return f"Mail({self.host}:{self.port})"

    @classmethod
    def parse(cls, url: str, sender: str) -> Mail | None:
        """``smtp://user:password@host:587`` or ``smtps://…:465``; None where no mail is set up."""
        if not url:
            return None
        try:
            parts = urlsplit(url)
            port = parts.port
        except ValueError:
            parts, port = urlsplit(""), None
        if parts.scheme not in ("smtp", "smtps") or not parts.hostname:
            raise InvalidInput("METERBRIDGE_SMTP_URL is like smtp://user:password@mail.example.com:587, or smtps://… for TLS from the start")
        if not sender or len(reach.mailbox(f"mailto:{sender}")) != 1:
            raise InvalidInput("METERBRIDGE_SMTP_FROM must be the address that mails are from, such as meterbridge@example.com")
        is_tls = parts.scheme == "smtps"
        return cls(parts.hostname, port or (465 if is_tls else 587), is_tls, unquote(parts.username or ""), unquote(parts.password or ""), sender)


@dataclass(frozen=True, slots=True)
class Enclosed:
    """A file that goes with a mail."""

    name: str
    media_type: str
    content: bytes


@dataclass(frozen=True, slots=True)
class Page:
    """A mail that is more than a text: both say the same."""

    subject: str
    text: str
    html: str
    files: tuple[Enclosed, ...]


class Writer(Protocol):
    """Writes the mail of a report from what the outbox says of it; None where there is nothing to write it from."""

    def __call__(self, told: Mapping[str, Any], *, takes_files: bool) -> Page | None: ...


@dataclass(frozen=True, slots=True)
class Parcel:
    """What one attempt needs to know: a copy, so that no transaction is open while we wait for a receiver."""

    delivery_id: str
    notice_id: str
    receiver_id: str
    url: str
    format: Format
    secrets: tuple[str, ...]
    body: str
    created_at: datetime
    step: int
    started_at: datetime
    is_resend: bool

    def __repr__(self) -> str:
        return f"Parcel({self.delivery_id})"


@dataclass(frozen=True, slots=True)
class Outcome:
    """What came of an attempt: a status, or why there was none."""

    status: int | None
    error: str = ""
    retry_after: str | None = None
    duration_ms: int = 0

    @property
    def is_delivered(self) -> bool:
        """2xx, or a mail server's 250; a redirect is not followed, so it is a failure."""
        return self.status is not None and 200 <= self.status < 300 and not self.error


def sign(secret: str, *, notice_id: str, timestamp: int, body: bytes) -> str:
    """A signature of Standard Webhooks."""
    key = base64.b64decode(secret.removeprefix("whsec_"))
    return "v1," + base64.b64encode(hmac.new(key, f"{notice_id}.{timestamp}.".encode() + body, hashlib.sha256).digest()).decode()


def default_tls() -> ssl.SSLContext:
    """The system's authorities (SSL_CERT_FILE adds a private one) and those of the bundle."""
    context = ssl.create_default_context()
    context.load_verify_locations(certifi.where())
    return context


class Sender:
    """Makes attempts; one for a process."""

    def __init__(
        self,
        policy: Policy,
        *,
        mail: Mail | None = None,
        writer: Writer | None = None,
        resolver: Resolver = reach.look_up,
        tls: Callable[[], ssl.SSLContext] = default_tls,
        timeout_seconds: float = TIMEOUT_SECONDS,
    ) -> None:
        self._policy = policy
        self._mail = mail
        self._writer = writer
        self._resolver = resolver
        self._tls_of = tls
        self._tls: ssl.SSLContext | None = None
        self._timeout_seconds = timeout_seconds
        # A name server that hangs holds one of these, and no database call.
        self._blocking = ThreadPoolExecutor(max_workers=64, thread_name_prefix="receivers")

    def close(self) -> None:
        """Wait for nobody."""
        self._blocking.shutdown(wait=False, cancel_futures=True)

    async def send(self, parcel: Parcel, *, now: datetime) -> Outcome:
        """One attempt; every fault of the receiver is an outcome."""
        began = time.monotonic()
        limit = max(self._timeout_seconds, _MAIL_SECONDS) if parcel.format is Format.EMAIL else self._timeout_seconds
        try:
            async with asyncio.timeout(limit):
                outcome = await (self._send_mail(parcel) if parcel.format is Format.EMAIL else self._send_http(parcel, now=now))
        except TimeoutError:
            outcome = Outcome(None, f"no answer within {limit:g} seconds")
        except Refused as fault:
            outcome = Outcome(None, f"refused: {fault.message}")
        except ssl.SSLCertVerificationError as fault:
            outcome = Outcome(None, f"its certificate is not valid: {fault.verify_message}")
        except h11.RemoteProtocolError:
            outcome = Outcome(None, "its answer is not HTTP, or its head is too long")
        except (OSError, ValueError) as fault:
            outcome = Outcome(None, f"no connection: {getattr(fault, 'strerror', None) or type(fault).__name__}")
        return Outcome(outcome.status, outcome.error[:300], outcome.retry_after, int((time.monotonic() - began) * 1000))

    async def _send_http(self, parcel: Parcel, *, now: datetime) -> Outcome:
        target = reach.parse(parcel.url)
        loop = asyncio.get_running_loop()
        found = [target.host] if reach.literal(target.host) else await loop.run_in_executor(self._blocking, self._resolver, target.host, target.port)
        addresses = self._policy.check(target, found)
        path = target.path
        if parcel.format is Format.ALERTMANAGER_API and not path.endswith("/api/v2/alerts"):
            path = path.rstrip("/") + "/api/v2/alerts"
        body = parcel.body.encode()
        headers = [("Host", target.authority), ("User-Agent", _AGENT), ("Content-Type", "application/json"), ("Content-Length", str(len(body)))]
        headers += [("Accept", "*/*"), ("Connection", "close")]
        if parcel.secrets:
            timestamp = to_microseconds(now) // 1_000_000
            signatures = " ".join(sign(secret, notice_id=parcel.notice_id, timestamp=timestamp, body=body) for secret in parcel.secrets)
            headers += [("webhook-id", parcel.notice_id), ("webhook-timestamp", str(timestamp)), ("webhook-signature", signatures)]
        connection = h11.Connection(h11.CLIENT, max_incomplete_event_size=_HEAD_BYTES)
        head = connection.send(h11.Request(method="POST", target=path, headers=headers)) or b""
        head += connection.send(h11.Data(data=body)) or b""
        head += connection.send(h11.EndOfMessage()) or b""
        if target.scheme == "https" and self._tls is None:
            self._tls = self._tls_of()
        reader, writer = await self._connect(addresses, target, self._tls if target.scheme == "https" else None)
        try:
            writer.write(head)
            # A receiver may answer (413) before it has read everything: its answer counts then.
            with contextlib.suppress(ConnectionError):
                await writer.drain()
            return await _answer(connection, reader)
        finally:
            writer.transport.abort()

    async def _connect(self, addresses: list[str], target: reach.Target, tls: ssl.SSLContext | None) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        last: OSError | None = None
        for address in addresses[:4]:
            try:
                return await asyncio.open_connection(address, target.port, ssl=tls, server_hostname=target.host if tls is not None else None)
            except ssl.SSLError:
                raise
            except OSError as fault:
                last = fault
        raise last or OSError("no address")

    async def _send_mail(self, parcel: Parcel) -> Outcome:
        if self._mail is None:
            return Outcome(None, "no mail server is set up (METERBRIDGE_SMTP_URL, METERBRIDGE_SMTP_FROM)")
        to = reach.mailbox(parcel.url)
        return await asyncio.get_running_loop().run_in_executor(self._blocking, self._mail_out, self._mail, parcel, to)

    def _mail_out(self, mail: Mail, parcel: Parcel, to: list[str]) -> Outcome:
        said = json.loads(parcel.body)
        page = self._page(said, takes_files=True)
        if page is not None and sum(len(file.content) for file in page.files) > MOST_ENCLOSED:
            page = self._page(said, takes_files=False)
        message = compose(parcel, mail.sender, to, page)
        try:
            with signed_in(mail, timeout=self._timeout_seconds / 2) as server:
                if page is not None and page.files and 0 < _size_limit(server) < len(message.as_bytes()):
                    message = compose(parcel, mail.sender, to, self._page(said, takes_files=False))
                refused = server.send_message(message, mail.sender, to)
        except NoTls as fault:
            return Outcome(None, str(fault))
        except smtplib.SMTPResponseException as fault:
            return Outcome(fault.smtp_code, "the mail server refused it")
        except smtplib.SMTPException as fault:
            return Outcome(None, f"the mail server refused it: {type(fault).__name__}")
        # Some got it: those are not told again for the sake of the others.
        return Outcome(250, "" if len(refused) < len(to) else "the mail server refused every address")

    def _page(self, said: Mapping[str, Any], *, takes_files: bool) -> Page | None:
        return self._writer(said["report"], takes_files=takes_files) if self._writer is not None and "report" in said else None


class NoTls(Exception):
    """A password is not sent to a mail server in the clear."""

    def __init__(self) -> None:
        super().__init__("the mail server offers no TLS; its password is not sent in the clear")


@contextlib.contextmanager
def signed_in(mail: Mail, *, timeout: float) -> Iterator[smtplib.SMTP]:
    """The mail server, ready to take mails; ``smtplib``'s errors and ``OSError`` where it is not."""
    context = ssl.create_default_context()
    with (
        smtplib.SMTP_SSL(mail.host, mail.port, timeout=timeout, context=context) if mail.is_tls else smtplib.SMTP(mail.host, mail.port, timeout=timeout)
    ) as server:
        is_safe = mail.is_tls
        server.ehlo()
        if not is_safe and server.has_extn("starttls"):
            server.starttls(context=context)
            server.ehlo()
            is_safe = True
        if mail.user:
            if not is_safe:
                raise NoTls
            server.login(mail.user, mail.password)
        yield server


def _size_limit(server: smtplib.SMTP) -> int:
    """The largest message that the server takes; 0 where it does not say."""
    said = server.esmtp_features.get("size", "") if server.does_esmtp else ""
    return int(said) if said.isascii() and said.isdigit() else 0


def compose(parcel: Parcel, sender: str, to: list[str], page: Page | None = None) -> EmailMessage:
    """The mail: the same in every attempt, under one Message-ID. A page is text and HTML of the same matter, and its files."""
    said = json.loads(parcel.body)
    message = EmailMessage(policy=SMTP_POLICY)
    message["From"], message["To"] = sender, ", ".join(to)
    # One line, whatever names are in it: a line end would begin another header.
    message["Subject"] = said["subject"] if page is None else f"[meterbridge] {line(page.subject, 200)}"
    message["Date"] = format_datetime(parcel.created_at)
    message["Message-ID"] = f"<{parcel.notice_id}@{sender.rpartition('@')[2]}>"
    message["Auto-Submitted"] = "auto-generated"
    message.set_content(said["text"] if page is None else page.text, cte="base64")
    if page is not None:
        message.add_alternative(page.html, subtype="html", cte="base64")
        for file in page.files:
            kind, _, subtype = file.media_type.partition(";")[0].partition("/")
            message.add_attachment(file.content, maintype=kind, subtype=subtype, filename=file.name)
    return message


async def _answer(connection: h11.Connection, reader: asyncio.StreamReader) -> Outcome:
    interim = 0
    while True:
        event = connection.next_event()
        if event is h11.NEED_DATA:
            connection.receive_data(await reader.read(4096))
        elif isinstance(event, h11.Response):
            after = next((value.decode("latin-1") for name, value in event.headers if name == b"retry-after"), None)
            return Outcome(event.status_code, "" if 200 <= event.status_code < 300 else f"answered {event.status_code}", after)
        elif isinstance(event, h11.InformationalResponse) and interim < _MOST_INTERIM:
            interim += 1
        else:
            return Outcome(None, "it closed the connection without an answer")
