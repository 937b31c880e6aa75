"""What a billed row is for: its class, meter, unit, model and the names it carries.

These are the defaults; what somebody says of a meter (``models/meters.py``) goes before them when charges are read.
Pure: the texts of one row in, an ``Item`` out. Nothing is looked up and nothing fails; what cannot be told is ``OTHER``
or None and shows as a problem of the landed part, because its money counts all the same.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, fields
from decimal import Decimal
from functools import lru_cache
from hashlib import sha256
from typing import Any, NamedTuple

from models import money, skus
from models.charges import ChargeClass, MeterKind
from models.columns import canonical_json
from models.errors import InvalidInput
from models.meters import HOUR_KINDS, TOKEN_KINDS, unit_from
from models.prices import model_key


class Dimensions(NamedTuple):
    """The texts of a row that say what was charged, as the file has them; '' where a column is absent or empty."""

    subscription: str
    billing_account: str
    period_start: str
    period_end: str
    resource_id: str
    resource_type: str
    resource_group: str
    publisher_type: str
    publisher_id: str
    publisher: str
    service: str
    category: str
    subcategory: str
    meter: str
    product: str
    offer_name: str
    plan: str
    unit: str
    unit_description: str
    block_size: str
    region: str
    cost_center: str
    details: str
    tags: str
    charge_type: str
    charge_class: str
    commitment_id: str
    commitment_name: str
    commitment_type: str
    commitment_status: str
    currency: str
    pricing_currency: str
    exchange_rate: str
    exchange_rate_on: str


@dataclass(frozen=True, slots=True)
class Item:
    """What was charged, as a value; ``digest`` is its identity in the database."""

    charge_class: ChargeClass
    meter_kind: MeterKind
    is_fine_tuned: bool = False
    subscription_id: str = ""
    resource_group: str = ""
    resource_id: str = ""
    workspace: str | None = None
    endpoint: str | None = None
    deployment: str | None = None
    model: str | None = None
    offer_id: str | None = None
    plan_id: str | None = None
    publisher: str | None = None
    sku: str | None = None
    cores: int | None = None
    region: str | None = None
    meter_category: str = ""
    meter_name: str = ""
    unit: str = ""
    unit_size: Decimal | None = None
    cost_center: str | None = None
    tags: dict[str, str] = field(default_factory=dict)
    digest: bytes = field(init=False, compare=False)

    def __post_init__(self) -> None:
        said = {name: getattr(self, name) for name in _SAID}
        if self.unit_size is not None:
            said["unit_size"] = money.text(self.unit_size)
        object.__setattr__(self, "digest", sha256(canonical_json(said).encode()).digest())

    def values(self) -> dict[str, Any]:
        """The columns of a ``charge_item`` row."""
        return {one.name: getattr(self, one.name) for one in fields(self)}


_SAID = tuple(one.name for one in fields(Item) if one.init)


@dataclass(frozen=True, slots=True)
class ArmId:
    """The parts of an Azure resource id; ``kind`` is lower case, such as ``microsoft.saas/resources``."""

    subscription: str = ""
    resource_group: str = ""
    kind: str = ""
    names: tuple[str, ...] = ()


ML_WORKSPACE = "microsoft.machinelearningservices/workspaces"
SAAS = "microsoft.saas/"
AI_ACCOUNT = "microsoft.cognitiveservices/accounts"

_META = re.compile(r"meta(?:genai)?(?:[ ,]+platforms.*)?\Z")
# As a word of its own: other sellers' LlamaIndex, LlamaCloud and the like are not Meta's models.
_LLAMA = re.compile(r"(?<![a-z])(?:code[- ]?)?llama(?![a-z])")
_GUID_END = re.compile(r"-[0-9a-f]{8}(?:-[0-9a-f]{4}){3}-[0-9a-f]{12}\Z|-[0-9a-f]{32}\Z", re.IGNORECASE)


def arm_id(resource_id: str) -> ArmId:
    """The parts of a resource id; what is not one gives empty parts."""
    pieces = [piece for piece in resource_id.strip().split("/") if piece]
    lower = [piece.casefold() for piece in pieces]
    subscription = group = ""
    if len(lower) > 1 and lower[0] == "subscriptions":
        subscription = lower[1]
    if len(lower) > 3 and lower[2] == "resourcegroups":
        group = lower[3]
    if "providers" not in lower:
        return ArmId(subscription, group)
    # An extension resource has several providers; the last names what it is.
    start = len(lower) - 1 - lower[::-1].index("providers")
    return ArmId(subscription, group, "/".join(lower[start + 1 : start + 2] + lower[start + 2 :: 2]), tuple(pieces[start + 3 :: 2]))


def subscription_of(row: Dimensions, arm: ArmId) -> str:
    """The subscription, lower case, bare (FOCUS files write it with and without ``/subscriptions/``); '' where none is named."""
    said = row.subscription.strip().casefold().strip("/")
    return said.removeprefix("subscriptions/") or arm.subscription


def charge_type_of(row: Dimensions, *, is_negative: bool) -> str:
    """The kind of charge in cost-details words, so that the same charge reads the same from either dataset.

    FOCUS has no word for a refund (it is a negative Correction, which Azure writes as a Purchase) nor for the unused
    part of a commitment (a Usage with a status).
    """
    if row.commitment_status.casefold() == "unused":
        return "UnusedSavingsPlan" if "saving" in row.commitment_type.casefold() else "UnusedReservation"
    if row.charge_class.casefold() == "correction" and is_negative and row.charge_type.casefold() in {"usage", "purchase"}:
        return "Refund"
    return row.charge_type


def classify(row: Dimensions, *, charge_type: str) -> Item:
    """What the row is for."""
    arm = arm_id(row.resource_id)
    kind_of_charge = charge_type.casefold()
    is_rounding = kind_of_charge == "roundingadjustment" or (kind_of_charge == "adjustment" and not row.resource_id)
    if is_rounding:
        return Item(
            ChargeClass.ADJUSTMENT,
            MeterKind.ADJUSTMENT,
            subscription_id=subscription_of(row, arm),
            meter_category=row.category,
            meter_name=row.meter or row.product,
            unit=row.unit,
            cost_center=row.cost_center or None,
        )
    if kind_of_charge == "tax":
        return _out_of_scope(row, arm, charge_type)
    if _is_marketplace(row, arm):
        return _tokens(ChargeClass.MARKETPLACE, row, arm) if _is_llama_offer(row, arm) else _out_of_scope(row, arm, charge_type)
    if _is_foundry(row, arm):
        return _tokens(ChargeClass.FOUNDRY, row, arm)
    if _META.match(row.publisher.casefold()) or _META.match(row.publisher_id.casefold()):
        return _tokens(ChargeClass.MARKETPLACE, row, arm)
    return _compute(row, arm, charge_type) or _out_of_scope(row, arm, charge_type)


# -- serverless -----------------------------------------------------------------------------------


def _is_marketplace(row: Dimensions, arm: ArmId) -> bool:
    return (
        row.publisher_type.casefold() in {"marketplace", "vendor"}
        or row.service.casefold() == "microsoft.saas"
        or row.resource_type.casefold().startswith(SAAS)
        or arm.kind.startswith(SAAS)
        or arm.kind == f"{ML_WORKSPACE}/serverlessendpoints"
    )


def _is_llama_offer(row: Dimensions, arm: ArmId) -> bool:
    seller = row.publisher.casefold()
    if _META.match(seller) or _META.match(row.publisher_id.casefold()):
        return True
    texts = [row.offer_name, row.product, row.subcategory, row.meter, row.plan]
    if not seller:
        # A customer chooses a SaaS resource's name; it speaks only where no seller does.
        texts.extend(arm.names[-1:])
    return any(_LLAMA.search(text.casefold()) for text in texts)


def _is_foundry(row: Dimensions, arm: ArmId) -> bool:
    sold_by_azure = any("foundry models" in text.casefold() for text in (row.category, row.service)) or arm.kind.startswith(AI_ACCOUNT)
    return sold_by_azure and any(_LLAMA.search(text.casefold()) for text in (row.meter, row.product, row.subcategory))


def _tokens(charge_class: ChargeClass, row: Dimensions, arm: ArmId) -> Item:
    tags = flat_map(row.tags)
    kind, is_fine_tuned = meter_kind(row.meter or row.product)
    workspace = endpoint = deployment = None
    if arm.kind.startswith((AI_ACCOUNT, ML_WORKSPACE)) and arm.names:
        workspace = arm.names[0]
    if charge_class is ChargeClass.FOUNDRY:
        deployment = _tag(tags, "deployment")
    elif arm.kind == f"{ML_WORKSPACE}/serverlessendpoints" and len(arm.names) > 1:
        endpoint = deployment = arm.names[1]
    is_offer = charge_class is ChargeClass.MARKETPLACE
    return Item(
        charge_class,
        kind,
        is_fine_tuned=is_fine_tuned,
        subscription_id=subscription_of(row, arm),
        resource_group=arm.resource_group or row.resource_group.casefold(),
        resource_id=row.resource_id,
        workspace=workspace,
        endpoint=endpoint,
        deployment=deployment,
        model=model_from((row.offer_name, row.product, row.meter, row.subcategory), resource_name=arm.names[-1] if is_offer and arm.names else ""),
        offer_id=(row.subcategory or None) if is_offer else None,
        plan_id=_plan(row) if is_offer else None,
        publisher=row.publisher or row.publisher_id or None,
        region=row.region or None,
        meter_category=row.category,
        meter_name=row.meter,
        unit=row.unit_description or row.unit,
        unit_size=unit_size(row, kind),
        cost_center=row.cost_center or None,
        tags=tags,
    )


def _plan(row: Dimensions) -> str | None:
    """The plan: of its own column, else the middle of ``offer - plan - meter`` or the end of ``offer - plan``."""
    if row.plan:
        return row.plan
    of_meter, of_product = row.meter.split(" - "), row.product.split(" - ")
    if len(of_meter) > 2:
        return of_meter[-2]
    if len(of_product) > 1 and meter_kind(of_product[-1])[0] is MeterKind.OTHER:
        return of_product[-1]
    return None


_HOSTING, _TRAINING, _CACHED = re.compile("hosting"), re.compile("training"), re.compile(r"cach|\bcchd\b")
_INPUT, _OUTPUT = re.compile(r"\b(?:inp|inpt|input|prompt)\b"), re.compile(r"\b(?:outp|outpt|output|completion)\b")
_FINE_TUNED = re.compile(r"fine[- ]?tun|\bft\b")


def meter_kind(text: str) -> tuple[MeterKind, bool]:
    """What a meter's text says it counts, and whether for a fine-tuned model.

    Marketplace meters are ``paygo-inference-input-tokens``, ``paygo-inf-output-tokens``,
    ``paygo-finetuned-model-inference-hosting`` (after offer and plan); Foundry ones ``Llama 3.3 70B Inp glbl Tokens``.
    """
    words = text.rsplit(" - ", 1)[-1].casefold().replace("_", "-")
    is_fine_tuned = bool(_FINE_TUNED.search(words))
    if _HOSTING.search(words):
        return MeterKind.HOSTING, is_fine_tuned
    if _TRAINING.search(words):
        return MeterKind.TRAINING, True
    is_input, is_output = bool(_INPUT.search(words)), bool(_OUTPUT.search(words))
    if is_input == is_output:
        return (MeterKind.CACHED_INPUT if _CACHED.search(words) and not is_output else MeterKind.OTHER), is_fine_tuned
    if is_output:
        return MeterKind.OUTPUT, is_fine_tuned
    return (MeterKind.CACHED_INPUT if _CACHED.search(words) else MeterKind.INPUT), is_fine_tuned


# -- models ---------------------------------------------------------------------------------------

# Meters of models sold by Azure say version and size only; the model behind them is the instruct one (the only kind
# that is deployed by token). Written as the catalogue writes them, so that they meet the price list.
_BY_VERSION_AND_SIZE = {
    ("3", "8b"): "Meta-Llama-3-8B-Instruct",
    ("3", "70b"): "Meta-Llama-3-70B-Instruct",
    ("3.1", "8b"): "Meta-Llama-3.1-8B-Instruct",
    ("3.1", "70b"): "Meta-Llama-3.1-70B-Instruct",
    ("3.1", "405b"): "Meta-Llama-3.1-405B-Instruct",
    ("3.2", "1b"): "Llama-3.2-1B-Instruct",
    ("3.2", "3b"): "Llama-3.2-3B-Instruct",
    # Of these two sizes only vision models exist, and meters leave the word out.
    ("3.2", "11b"): "Llama-3.2-11B-Vision-Instruct",
    ("3.2", "90b"): "Llama-3.2-90B-Vision-Instruct",
    ("3.3", "70b"): "Llama-3.3-70B-Instruct",
    # Llama 4 goes by name; the catalogue adds sizes and, for Maverick, the number format it is served in.
    ("4", "maverick"): "Llama-4-Maverick-17B-128E-Instruct-FP8",
    ("4", "scout"): "Llama-4-Scout-17B-16E-Instruct",
}
_CATALOGUE = {model_key(name): name for name in _BY_VERSION_AND_SIZE.values()}
_SPELLED = re.compile(r"(?<![a-z0-9])((?:meta-)?(?:code)?llama-[a-z0-9][a-z0-9.\-]*)", re.IGNORECASE)
_IN_WORDS = re.compile(r"(?<![a-z])llama[ -]*(\d(?:\.\d)?)[ -]+(?:\w+[ -]+)??(maverick|scout|\d+b)\b")
_BY_NAME = re.compile(r"llama-?(4)-(maverick|scout)")


def model_from(texts: Iterable[str], *, resource_name: str = "") -> str | None:
    """The model that the texts name (best text first), in the offer's spelling; None where none does."""
    for text in texts:
        if found := _model_in(text):
            return found
    # A SaaS resource is called after its offer, unless its owner thought otherwise: only a known model counts.
    return _CATALOGUE.get(model_key(_GUID_END.sub("", resource_name)))


def _model_in(text: str) -> str | None:
    for spelled in _SPELLED.findall(text):
        name = re.sub(r"-(?:offer|plan)\Z", "", _GUID_END.sub("", spelled.rstrip(".-")), flags=re.IGNORECASE)
        known = _CATALOGUE.get(model_key(name))
        if known is not None:
            # Ids are lower case throughout; a name that has capitals is the offer's own spelling.
            return known if name.islower() else name
        if (by_name := _BY_NAME.search(name.casefold())) is not None:
            return _BY_VERSION_AND_SIZE[by_name.group(1), by_name.group(2)]
        if any(letter.isdigit() for letter in name):
            return name
    said = _IN_WORDS.search(text.casefold())
    return _BY_VERSION_AND_SIZE.get((said.group(1), said.group(2))) if said else None


# -- managed compute ------------------------------------------------------------------------------


def _compute(row: Dimensions, arm: ArmId, charge_type: str) -> Item | None:
    kind_of_charge = charge_type.casefold()
    on_workspace = arm.kind.startswith(ML_WORKSPACE) or row.resource_type.casefold().startswith(ML_WORKSPACE)
    of_machine_learning = on_workspace or row.service.casefold() == "microsoft.machinelearningservices"
    is_commitment = kind_of_charge.startswith("unused") or (kind_of_charge not in {"usage", "roundingadjustment"} and bool(row.commitment_id))
    if not of_machine_learning or not (on_workspace or is_commitment):
        return None
    details, tags = flat_map(row.details), flat_map(row.tags)
    endpoint, deployment = _tag(tags, "azuremlendpoint"), _tag(tags, "azuremldeployment")
    if arm.kind.startswith(f"{ML_WORKSPACE}/onlineendpoints") and len(arm.names) > 1:
        endpoint = endpoint or arm.names[1]
        deployment = deployment or (arm.names[2] if len(arm.names) > 2 else None)
    sku = _sku(details, row.meter)
    is_vm = sku is not None or row.category.casefold().startswith("virtual machines")
    if is_commitment:
        kind = MeterKind.COMMITMENT
    elif endpoint or deployment:
        kind = MeterKind.COMPUTE if is_vm else MeterKind.OTHER
    elif is_vm and not arm.kind.startswith(f"{ML_WORKSPACE}/computes") and not _names_training_compute(details, tags):
        kind = MeterKind.COMPUTE
    else:
        return None
    said_cores = details.get("VCPUs") or details.get("CoreCount") or ""
    return Item(
        ChargeClass.COMPUTE,
        kind,
        subscription_id=subscription_of(row, arm),
        resource_group=arm.resource_group or row.resource_group.casefold(),
        resource_id=row.resource_id,
        workspace=arm.names[0] if arm.kind.startswith(ML_WORKSPACE) and arm.names else None,
        endpoint=endpoint,
        deployment=deployment,
        offer_id=row.commitment_id or None,
        plan_id=row.commitment_name or None,
        publisher=row.publisher or None,
        sku=sku,
        cores=int(said_cores) if said_cores.isascii() and said_cores.isdigit() and 0 < int(said_cores) < 10_000 else skus.cores(sku) if sku else None,
        region=row.region or None,
        meter_category=row.category,
        meter_name=row.meter,
        unit=row.unit_description or row.unit,
        unit_size=unit_size(row, kind),
        cost_center=row.cost_center or None,
        tags=tags,
    )


def _sku(details: Mapping[str, str], meter: str) -> str | None:
    said = details.get("ServiceType") or details.get("InstanceType") or details.get("VMSize") or ""
    if said.casefold().startswith(("standard_", "basic_")):
        return known.name if (known := skus.find(said)) else said
    return known.name if (known := skus.find(meter)) else None


# A workspace's training clusters and notebooks bill VM hours on the same resource as its endpoints do.
_TRAINING_KEY = re.compile(r"cluster|computeinstance|amlcompute")
_TRAINING_VALUE = re.compile(r"amlcompute|compute[ _-]?(?:instance|cluster)|(?:training|aml)[ _-]?cluster", re.IGNORECASE)


def _names_training_compute(details: Mapping[str, str], tags: Mapping[str, str]) -> bool:
    return any(
        value.strip() and (_TRAINING_KEY.search(re.sub(r"[^a-z]", "", key.casefold())) or _TRAINING_VALUE.search(value))
        for said in (details, tags)
        for key, value in said.items()
        if value.strip().casefold() not in {"false", "none", "null", "no"}
    )


def _out_of_scope(row: Dimensions, arm: ArmId, charge_type: str) -> Item:
    # A company's whole bill comes along. Its thousands of disks and machines are kept by what they are, row by row in
    # amount; by resource only where someone may ask why it does not count.
    may_be_asked = arm.kind.startswith((SAAS, ML_WORKSPACE, AI_ACCOUNT))
    return _other(
        subscription_of(row, arm),
        arm.resource_group or row.resource_group.casefold(),
        row.resource_id if may_be_asked else "",
        row.publisher or None,
        row.category or row.service or charge_type,
        row.meter,
        row.unit,
    )


@lru_cache(maxsize=10_000)
def _other(*texts: str | None) -> Item:
    names = ("subscription_id", "resource_group", "resource_id", "publisher", "meter_category", "meter_name", "unit")
    said: dict[str, Any] = dict(zip(names, texts, strict=True))
    return Item(ChargeClass.OUT_OF_SCOPE, MeterKind.OTHER, **said)


# -- units ----------------------------------------------------------------------------------------


def unit_size(row: Dimensions, kind: MeterKind) -> Decimal | None:
    """Tokens or hours in one billed unit of that meter; None where the row does not say it, or says two things."""
    if kind not in TOKEN_KINDS and kind not in HOUR_KINDS:
        return None
    unit = unit_from(row.unit_description) or unit_from(row.unit)
    try:
        block = money.decimal_from(row.block_size, what="block") if row.block_size else None
    except InvalidInput:
        return None
    if unit is None:
        return None
    size: Decimal | None = unit.size
    if not unit.says_size:
        # "Units" alone says nothing (Azure writes it for 1K and 1M alike); "Tokens" and "Hours" say one.
        size = block or (unit.size if unit.noun else None)
    elif block is not None and block != unit.size:
        return None
    return size if unit.fits(kind) else None


# -- tags and details -----------------------------------------------------------------------------

_PAIR = re.compile(r'"((?:[^"\\]|\\.)*)"\s*:\s*"((?:[^"\\]|\\.)*)"')


def flat_map(text: str) -> dict[str, str]:
    """A JSON object as text to text, with or without its outer braces (EA leaves them out); '' is empty.

    Of a text that was cut off (Azure does that to long tags) the whole pairs are taken.
    """
    said = text.strip()
    if not said or said in {"{}", "null"}:
        return {}
    try:
        parsed = json.loads(said if said.startswith("{") else f"{{{said}}}", parse_float=str, parse_int=str)
    except (ValueError, RecursionError):
        return dict(_PAIR.findall(said))
    return {str(key): value if isinstance(value, str) else "" if value is None else json.dumps(value) for key, value in parsed.items()}


def _tag(tags: Mapping[str, str], name: str) -> str | None:
    """The tag's value whatever its case; tag names are not case-sensitive in Azure."""
    return next((value for key, value in tags.items() if key.casefold() == name and value), None)
