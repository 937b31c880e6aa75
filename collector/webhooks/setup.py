"""What the settings make of telling: where receivers may be, the mail server, and where files of reports may go."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import datetime

from collector.reports.mailing import Writer
from collector.reports.places import Places
from collector.settings import Settings
from collector.webhooks import reach
from collector.webhooks.dispatch import Dispatcher
from collector.webhooks.reach import Policy, Resolver
from collector.webhooks.sending import Mail, Sender
from models.store import Store


@dataclass(frozen=True, slots=True)
class Telling:
    """How this process tells."""

    policy: Policy = field(default_factory=Policy)
    mail: Mail | None = None
    resolver: Resolver = reach.look_up
    places: Places = field(default_factory=lambda: Places.of(Settings()))
    public_url: str = ""

    @classmethod
    def of(cls, settings: Settings) -> Telling:
        """As the operator set it."""
        return cls(
            Policy.parse(settings.webhook_allow, settings.webhook_ports),
            Mail.parse(settings.smtp_url, settings.smtp_from),
            places=Places.of(settings),
            public_url=settings.public_url,
        )

    def dispatcher(self, store: Store, *, now: Callable[[], datetime]) -> Dispatcher:
        """The thread that delivers, not started yet."""
        return Dispatcher(store, Sender(self.policy, mail=self.mail, writer=Writer(store), resolver=self.resolver), now=now)
