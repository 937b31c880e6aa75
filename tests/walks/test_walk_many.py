"""Two services on one PostgreSQL: whatever comes to both is counted once, and what one learns the other knows."""

from __future__ import annotations

import json
import threading
from pathlib import Path

import httpx
import pytest

from tests.walks.service import Behind, Service, run, totals, until, verify

pytestmark = pytest.mark.walk

BODIES, EVENTS_A_BODY = 30, 50
EFFECTIVE_WITHIN = 5.0


def body(number: int) -> str:
    """Fifty calls, and five of the body before: two senders of one stream seldom cut it alike."""
    first = number * EVENTS_A_BODY
    lines = (
        {
            "id": f"call-{each}",
            "time": f"2026-11-19T{each % 24:02}:{each % 60:02}:00Z",
            "workspace": f"ws-{each % 2}",
            "deployment": "llama",
            "model": "Llama-3.3-70B-Instruct",
            "input_tokens": each,
            "output_tokens": 1,
        }
        for each in range(max(0, first - 5), first + EVENTS_A_BODY)
    )
    return "\n".join(json.dumps(line) for line in lines) + "\n"


def test_two_services_on_one_database(postgresql_url: str, tmp_path: Path) -> None:
    with Service(postgresql_url, tmp_path) as one, Service(postgresql_url, tmp_path) as other:
        answers: list[httpx.Response] = []

        def send_all(service: Service) -> None:
            for number in range(BODIES):
                # 503 is an answer too (two writers that met in the same rows); its sender comes again.
                answer = until(
                    lambda number=number: _stored(service.client.post("/v1/usage", content=body(number), headers={"content-type": "application/x-ndjson"})),  # type: ignore[misc]
                    within=30,
                    what="a body stored",
                )
                answers.append(answer)

        senders = [threading.Thread(target=send_all, args=(service,)) for service in (one, other)]
        for sender in senders:
            sender.start()
        for sender in senders:
            sender.join(60)

        events = BODIES * EVENTS_A_BODY
        said = [answer.json() for answer in answers]
        assert (len(said), [each["rejected"] for each in said if each["rejected"]]) == (2 * BODIES, [])
        assert sum(each["accepted"] for each in said) == events
        assert Behind(postgresql_url).number("SELECT COUNT(*) FROM usage_event") == events
        for service in (one, other):
            found = totals(service.client, since="2026-11-19", to="2026-11-20", basis="metered").values()
            assert [sum(total[name] for total in found) for name in ("requests", "input_tokens")] == [events, events * (events - 1) // 2]

        # Either may go and come back; the other goes on.
        assert one.stop() == 0
        assert other.client.post("/v1/usage", content=body(0)).json()["duplicates"] == EVENTS_A_BODY
        one.start()
        other.kill()
        assert one.client.post("/v1/usage", content=body(1)).json()["duplicates"] == EVENTS_A_BODY + 5
        other.start()
        assert {service.client.get("/v1/costs").status_code for service in (one, other)} == {200}, "open, while there is no key"
        know_of_keys(postgresql_url, (one, other), tmp_path)
        verify(postgresql_url, folder=tmp_path)


def _stored(answer: httpx.Response) -> httpx.Response | None:
    assert answer.status_code in {200, 503}, answer.text
    return answer if answer.status_code == 200 else None


def know_of_keys(database_url: str, services: tuple[Service, ...], folder: Path) -> None:
    """A key made or revoked beside them is soon known to every service."""

    def answered(status: int, **headers: str) -> None:
        until(
            lambda: all(service.client.get("/v1/costs", headers=headers).status_code == status for service in services),
            within=EFFECTIVE_WITHIN,
            what=f"{status} from every service",
        )

    made = run(database_url, "keys", "create", "--name", "first", "--scope", "admin", folder=folder)
    assert made.code == 0, made.err
    bearer = f"Bearer {max(made.out.split(), key=len)}"
    answered(401)
    answered(200, authorization=bearer)
    key_id = run(database_url, "keys", "list", folder=folder).out.split()[0]
    assert run(database_url, "keys", "revoke", key_id, folder=folder).code == 0
    answered(401, authorization=bearer)
