"""How data gets in: what the overview shows while there is none, and a page of its own."""

from __future__ import annotations

import json

from dash import html
from dash.development.base_component import Component

from dashboard.shell import View, age_line, card
from models.periods import floor, rfc3339

PATH = "start"
NAME = "Add data"
GROUP = "Data"


def layout(view: View) -> list[Component]:
    """The three ways to get data in, with commands to paste."""
    age = view.ask("the age of the data", lambda: view.ledger.data_age(visible=view.visible, now=view.now))
    return [html.Div([html.H1(NAME), html.P("Three ways, in any order", className="subtitle")], className="heading"), age_line(age, view.now), *steps(view)]


def steps(view: View) -> list[Component]:
    """The same as the body of an empty overview."""
    # The hour's start: a time that changed with every refresh would pull the text from under the reader's cursor.
    hour = floor(view.now, "hour")
    event = json.dumps(
        {
            "id": f"first-event-{hour:%Y%m%d%H}",
            "time": rfc3339(hour),
            "workspace": "my-workspace",
            "deployment": "my-llama",
            "model": "Llama-3.3-70B-Instruct",
            "input_tokens": 1200,
            "output_tokens": 300,
        },
        indent=2,
    )
    key = "" if view.is_open else "  -H 'Authorization: Bearer YOUR_INGEST_KEY' \\\n"
    curl = f"curl -X POST {view.origin}/v1/usage \\\n{key}  -H 'Content-Type: application/json' \\\n  -d '{event}'"
    return [
        card(
            "1. Send usage",
            html.P("One event for each call to a deployment, in any accepted format. It is on this page within seconds."),
            html.Pre(html.Code(curl), tabIndex="0"),
            html.P("Files work too, while the service runs:"),
            html.Pre(html.Code("meterbridge import usage events.ndjson"), tabIndex="0"),
            name="wide",
        ),
        card(
            "2. Import a bill",
            html.P("An Azure cost-details or FOCUS file puts billed beside metered; prices and the inventory say what a request should have cost."),
            html.Pre(
                html.Code("meterbridge import charges cost-details.csv\nmeterbridge import prices prices.csv\nmeterbridge import inventory inventory.json"),
                tabIndex="0",
            ),
            name="wide",
        ),
        card(
            "3. Point what you already run at it",
            html.P("OpenTelemetry exporters, LiteLLM, CloudEvents senders (OpenMeter's clients too) and Azure log batches are read as they are:"),
            html.Pre(html.Code(_environment(view)), tabIndex="0"),
            html.P(["Every route is described at ", html.A("/docs", href=f"{view.origin}/docs"), ". Prompts and completions are never stored."]),
            html.P(["Or look at the sample world first: ", html.Code("make demo"), " runs everything on made-up data in its own database."]),
            name="wide",
        ),
    ]


def _environment(view: View) -> str:
    """What a process sets so that its telemetry comes here."""
    key = "" if view.is_open else ",authorization=Bearer YOUR_INGEST_KEY"
    otlp_key = key.replace(" ", "%20")
    return (
        "# OpenTelemetry (traces and logs of model calls)\n"
        f"export OTEL_EXPORTER_OTLP_ENDPOINT={view.origin}/otlp\n"
        "export OTEL_EXPORTER_OTLP_PROTOCOL=http/protobuf\n"
        f'export OTEL_EXPORTER_OTLP_HEADERS="x-meterbridge-workspace=my-workspace{otlp_key}"\n'
        '# LiteLLM proxy, with callbacks: ["generic_api"]\n'
        f"export GENERIC_LOGGER_ENDPOINT={view.origin}/v1/usage/litellm\n"
        f'export GENERIC_LOGGER_HEADERS="x-meterbridge-workspace=my-workspace{key}"'
    )
