"""vLLM's own counters: read from a server on this machine, kept as a witness, and the ways in which a server fails."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy as sa

from collector import jobs, vllm
from collector.settings import Settings
from collector.vllm import Target
from models.errors import InvalidInput
from models.store import Store

NOW = datetime(2026, 11, 20, 10, tzinfo=UTC)
SAMPLE = (Path(__file__).resolve().parents[1] / "data" / "other" / "vllm-metrics.prom").read_text()
MINUTE = timedelta(minutes=1)


class Engine:
    """A stand-in for vLLM's metrics endpoint: answers what the test says, and remembers how it was asked."""

    def __init__(self) -> None:
        self.status, self.body = 200, SAMPLE.encode()
        self.headers: dict[str, str] = {}
        self.asked: list[tuple[str, str | None]] = []
        engine = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                engine.asked.append((self.path, self.headers.get("authorization")))
                self.send_response(engine.status)
                for name, value in engine.headers.items():
                    self.send_header(name, value)
                self.end_headers()
                self.wfile.write(engine.body)

            def log_message(self, *_: Any) -> None:
                pass

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.server.server_port}"


@pytest.fixture
def engine() -> Iterator[Engine]:
    found = Engine()
    thread = threading.Thread(target=found.server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True)
    thread.start()
    yield found
    found.server.shutdown()
    found.server.server_close()
    thread.join()


def target(engine: Engine) -> Target:
    (found,) = vllm.targets(f"ws-east/llama-online/blue={engine.url}")
    return found


def state(store: Store) -> tuple[Any, ...]:
    with store.read() as session:
        return tuple(session.execute(sa.text("SELECT asked_at, answered_at, failure FROM witness_target")).one())


def values(store: Store) -> list[tuple[str, int]]:
    query = "SELECT s.measure, p.value FROM witness_point p JOIN witness_series s ON s.id = p.series_id ORDER BY s.measure, p.time, p.value"
    with store.read() as session:
        return [(str(measure), int(value)) for measure, value in session.execute(sa.text(query))]


# --- the text format ---------------------------------------------------------------------------------------------


def test_the_counters_of_the_sample() -> None:
    found = vllm.points(SAMPLE, Target("ws", "e", "d", "http://h/metrics"), now=NOW)
    assert [(one.measure, one.value, one.model, one.deployment, one.started_at) for one in found] == [
        ("input", 10432, "meta-llama/Llama-3.1-8B-Instruct", "d", None),
        ("output", 2210, "meta-llama/Llama-3.1-8B-Instruct", "d", None),
        ("requests", 88, "meta-llama/Llama-3.1-8B-Instruct", "d", None),
        ("requests", 4, "meta-llama/Llama-3.1-8B-Instruct", "d", None),
    ]
    assert len({one.digest for one in found}) == 4


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        ('a{b="c",d="e"} 1', ("a", {"b": "c", "d": "e"}, 1.0)),
        ('a{b="c", } 1.5e3 1795168800000', ("a", {"b": "c"}, 1500.0)),
        (r'a{b="x\"y\\z\n,}w"} 7', ("a", {"b": 'x"y\\z\n,}w'}, 7.0)),
        ("a 3", ("a", {}, 3.0)),
        ("a{} 3", ("a", {}, 3.0)),
    ],
)
def test_a_sample_of_the_text_format(line: str, expected: tuple[Any, ...]) -> None:
    (found,) = vllm.samples(f"# HELP a b\n\n {line}\n")
    assert (found.name, found.labels, found.value) == expected


@pytest.mark.parametrize("line", ["a", "a b", "a{b=c} 1", 'a{b="c} 1', "<html>", '{"error": 1}'])
def test_what_is_no_sample_is_named(line: str) -> None:
    with pytest.raises(ValueError, match=r"not|could not"):
        list(vllm.samples(line))


def test_a_counter_says_when_it_began() -> None:
    began = NOW.timestamp() - 60
    own = (
        SAMPLE + f'vllm:prompt_tokens_created{{engine="0",model_name="meta-llama/Llama-3.1-8B-Instruct"}} {began + 7.25}\nprocess_start_time_seconds {began}\n'
    )
    found = {one.measure: one.started_at for one in vllm.points(own, Target("ws", "e", "d", "u"), now=NOW)}
    assert (found["input"], found["output"]) == (int(began + 7) * 1_000_000, int(began) * 1_000_000)


@pytest.mark.parametrize("value", ["NaN", "+Inf", "-1", "1.5", "1e300"])
def test_a_value_that_is_no_count_is_refused(value: str) -> None:
    with pytest.raises(ValueError, match="is not a count"):
        vllm.points(f"vllm:prompt_tokens_total {value}", Target("ws", "e", "d", "u"), now=NOW)


# --- asking ------------------------------------------------------------------------------------------------------


def test_a_deployment_is_asked_and_its_counters_kept(store: Store, engine: Engine) -> None:
    vllm.scrape(store, [target(engine)], now=NOW, token="s3cret")
    vllm.scrape(store, [target(engine)], now=NOW, token=None)
    engine.body = SAMPLE.replace("10432.0", "10500.0").encode()
    vllm.scrape(store, [target(engine)], now=NOW + MINUTE)
    assert engine.asked == [("/metrics", "Bearer s3cret"), ("/metrics", None), ("/metrics", None)]
    assert values(store) == [("input", 10432), ("input", 10500), ("output", 2210), ("output", 2210), *[("requests", one) for one in (4, 88, 4, 88)]]
    asked, answered, failure = state(store)
    assert (asked, failure) == (answered, None)


def test_a_server_that_fails_is_remembered_and_keeps_no_other_from_being_asked(sqlite_store: Store, engine: Engine) -> None:
    good = target(engine)
    (gone,) = vllm.targets("ws-east/llama-online/green=http://127.0.0.1:9")
    vllm.scrape(sqlite_store, [gone, good], now=NOW)
    assert len(values(sqlite_store)) == 4
    with sqlite_store.read() as session:
        found = session.execute(sa.text("SELECT name, failure, answered_at IS NULL FROM witness_target ORDER BY name")).all()
    assert [tuple(row) for row in found] == [("ws-east/llama-online/blue", None, 0), ("ws-east/llama-online/green", "ConnectError (127.0.0.1:9)", 1)]


@pytest.mark.parametrize(
    ("answer", "failure"),
    [
        pytest.param((503, b"", {}), "it answered 503", id="an error"),
        pytest.param((302, b"", {"location": "http://127.0.0.1:9/"}), "it answered 302", id="a redirection is not followed"),
        pytest.param((200, b"<html>sign in</html>", {}), "not a line of the Prometheus text format: '<html>sign in</html>'", id="a page"),
        pytest.param((200, b"up 1\n", {}), "no counters of vLLM in the answer; is it the /metrics of vLLM?", id="another server"),
        pytest.param((200, b"# x\n" * 1_100_000, {}), "its answer is longer than 4 MiB", id="without end"),
    ],
)
def test_answers_that_are_no_counters(sqlite_store: Store, engine: Engine, answer: tuple[int, bytes, dict[str, str]], failure: str) -> None:
    vllm.scrape(sqlite_store, [target(engine)], now=NOW)
    engine.status, engine.body, engine.headers = answer
    vllm.scrape(sqlite_store, [target(engine)], now=NOW + MINUTE)
    asked, answered, said = state(sqlite_store)
    assert (said, asked - answered) == (failure, 60_000_000)
    assert len(values(sqlite_store)) == 4


# --- settings ----------------------------------------------------------------------------------------------------


def test_targets_are_named_one_by_one() -> None:
    assert vllm.targets(" ws/e/d=http://10.0.0.4:8000 , ws/e/g=https://h/custom/metrics?x=1 ,") == [
        Target("ws", "e", "d", "http://10.0.0.4:8000/metrics"),
        Target("ws", "e", "g", "https://h/custom/metrics?x=1"),
    ]
    assert vllm.targets("") == []
    for wrong in ("ws/d=http://h", "ws/e/d", "ws/e/d=ftp://h", "ws/e/d=http://user:pass@h", "ws//d=http://h"):
        with pytest.raises(InvalidInput, match="METERBRIDGE_VLLM_TARGETS"):
            vllm.targets(wrong)
    with pytest.raises(InvalidInput, match="names 65 deployments and may name 64"):
        vllm.targets(",".join(f"ws/e/d{number}=http://h" for number in range(65)))


def test_the_job_asks_what_the_settings_name(sqlite_store: Store, engine: Engine, tmp_path: Path) -> None:
    file = tmp_path / "token"
    file.write_text("t0ken\n")
    settings = Settings.from_environment({"METERBRIDGE_VLLM_TARGETS": f"ws-east/e/d={engine.url}", "METERBRIDGE_VLLM_TOKEN_FILE": str(file)})
    found = {job.name: job for job in vllm.jobs(settings)}
    assert (found["scrape_vllm"].every, set(vllm.jobs(Settings())[0].name.split())) == (MINUTE, {"forget_witnesses"})
    found["scrape_vllm"].run(sqlite_store, NOW)
    assert engine.asked == [("/metrics", "Bearer t0ken")]
    file.unlink()
    with pytest.raises(InvalidInput, match="METERBRIDGE_VLLM_TOKEN_FILE"):
        found["scrape_vllm"].run(sqlite_store, NOW)
    scheduler = jobs.create_scheduler(sqlite_store, now=lambda: NOW, more=vllm.jobs(settings))
    assert {"scrape_vllm", "forget_witnesses"} <= {job.id for job in scheduler.get_jobs()}
