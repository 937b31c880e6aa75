"""When models end on Azure, as announced, where they are sold and how much they read at once: dated tables, used where inventory says nothing.

A row of the inventory (``retires_at``) replaces it for its deployment; a newer version of this software brings a newer
table. Managed compute is not in it: instances go on with the weights they have.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import UTC, datetime

from models.prices import model_key
from models.resources import DeploymentFact, Mode, Route

LOOKED_OVER_ON = "2026-07"


@dataclass(frozen=True, slots=True)
class Retirement:
    """From ``at`` on the model cannot be called by this route; ``source`` says who announced it."""

    model: str
    route: Route
    at: datetime
    source: str


_SCHEDULE = "Azure AI model retirement schedule, read 2026-07"
_JUNE = datetime(2026, 6, 13, tzinfo=UTC)
RETIREMENTS: tuple[Retirement, ...] = tuple(
    Retirement(name, Route.MARKETPLACE, _JUNE, _SCHEDULE)
    for name in (
        "Meta-Llama-3.1-8B-Instruct",
        "Meta-Llama-3.1-405B-Instruct",
        "Llama-3.2-11B-Vision-Instruct",
        "Llama-3.2-90B-Vision-Instruct",
    )
)
_BY_MODEL = {(model_key(one.model), one.route): one for one in RETIREMENTS}


def retirement(model: str | None, route: Route | None) -> Retirement | None:
    """What is announced of a model by a route; None where nothing is."""
    return None if not model or route is None else _BY_MODEL.get((model_key(model), route))


# Regions in which the Marketplace offers Llama serverless, as documented; Foundry models are deployed globally.
SERVERLESS_REGIONS = frozenset({"eastus", "eastus2", "northcentralus", "southcentralus", "westus", "westus3"})


def is_sold_serverless(region: str | None) -> bool:
    """Whether the Marketplace offers Llama serverless there; an unknown region is given the benefit of the doubt."""
    return not region or region.casefold().replace(" ", "") in SERVERLESS_REGIONS


# The context windows of Meta's model cards (read 2026-07), by the beginning of the name as ``model_key`` spells it.
_CONTEXTS: tuple[tuple[str, int], ...] = (
    ("llama-4-scout", 10_485_760),
    ("llama-4-maverick", 1_048_576),
    ("llama-3-1", 131_072),
    ("llama-3-2", 131_072),
    ("llama-3-3", 131_072),
    ("llama-3-8b", 8_192),
    ("llama-3-70b", 8_192),
    ("llama-2", 4_096),
)


def context_tokens(model: str | None) -> int | None:
    """How many tokens of prompt and answer together the model takes; None where it is not known."""
    key = model_key(model) if model else ""
    return next((tokens for beginning, tokens in _CONTEXTS if key.startswith(beginning)), None)


def retires_at(fact: DeploymentFact | None, route: Route | None) -> datetime | None:
    """When the deployment's model ends: as its inventory says, else as announced for its model and route."""
    if fact is None:
        return None
    if fact.retires_at is not None:
        return fact.retires_at
    announced = retirement(fact.model, route) if fact.mode == Mode.SERVERLESS else None
    return None if announced is None else announced.at
