"""A secret appears nowhere but in the actions that receive it, and where a caller asks for it."""

from __future__ import annotations

import dataclasses
import io
import json
import logging
import pickle
import threading
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from fastapi import FastAPI
from fastapi.encoders import jsonable_encoder
from httpx import ASGITransport, AsyncClient
from pydantic import BaseModel, TypeAdapter, ValidationError
from rich.console import Console
from rich.text import Text
from telemetry import Telemetry

from asyncflow import (
    Pipeline,
    Retry,
    RunReport,
    StepResult,
    WorkflowStep,
    after,
    current_step,
    run_pipeline,
)
from asyncflow._views.run_view import RunView
from asyncflow.events import Event, NoteEvent, StepLogged, StepSucceeded
from asyncflow.journal import SQLiteJournal
from asyncflow.live import LiveView
from asyncflow.live._end import run_end
from asyncflow.live._theme import UNICODE
from asyncflow.logs import LoggingObserver, keep_record
from asyncflow.web import app

SECRET = "hunter2-marker"


class Client:
    """A client with a token, whose methods are actions."""

    def __init__(self, token: str) -> None:
        self.token = token
        self.lock = threading.Lock()

    def __repr__(self) -> str:
        return f"Client({self.token!r})"

    async def fetch(self) -> dict[str, str]:
        return {"token": self.token}

    def send(self) -> str:
        return self.token


def send(token: str, more: object = None) -> str:
    return token


def tell(secret: str) -> None:
    """Say a secret in all ways that a run keeps."""
    print(secret)
    print("a secret without an end:", secret, end="")
    keep_record(None, "info", {"event": f"with {secret}", "token": {"password": secret}})
    step = current_step()
    step.progress(1, unit=secret)
    step.attach(f"the {secret}", secret)
    step.attach("table", [{"token": secret}])
    step.attach("json", {"token": [secret]}, "application/json")
    step.attach("image", f"<svg><text>{secret}</text></svg>")


async def log_in(password: str) -> dict[str, str]:
    tell(password)
    return {"token": password}


async def each_secret() -> list[str]:
    return [SECRET, SECRET]


async def one_item(each_secret: str) -> str:
    return each_secret


async def download(log_in: dict[str, str]) -> int:
    tell(log_in["token"])
    return len(log_in["token"])


async def show_results() -> str:
    return f"{current_step()!r} {current_step().results!r}"


def steps_with_secrets() -> list[WorkflowStep]:
    """Return steps whose outputs and bound arguments are secret, some of which fail."""
    refuse, made_unpicklable = Retry(until=lambda _: False), list[Any]()
    steps = [
        WorkflowStep("log_in", log_in, secret=True),
        WorkflowStep("method", Client(SECRET).fetch, secret=True),
        WorkflowStep("partial", partial(send, SECRET), runs_in="thread", secret=True),
        WorkflowStep("refused", Client(SECRET).fetch, secret=True, retry=refuse, max_retries=2),
        WorkflowStep("unpicklable", partial(send, SECRET, made_unpicklable), runs_in="process"),
        WorkflowStep("bound", Client(SECRET).send, runs_in="process"),
        WorkflowStep("each_secret", each_secret, secret=True),
        WorkflowStep("items", one_item, ["each_secret"], map_over="each_secret", secret=True),
        WorkflowStep("download", download, ["log_in"]),
        WorkflowStep("results", show_results, ["log_in", "refused", "items"], run_if="always"),
    ]
    made_unpicklable.append(threading.Lock())
    return steps


async def run_with_secrets(**options: Any) -> RunReport:
    return await run_pipeline(
        steps_with_secrets(),
        inputs={"password": SECRET},
        secret_inputs=["password"],
        fail_fast=False,
        run_id="r",
        **options,
    )


@pytest.mark.parametrize("resumed", [False, True])
async def test_no_view_of_a_run_shows_a_secret(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, resumed: bool
) -> None:
    caplog.set_level(logging.DEBUG)
    otel, terminal, events = Telemetry(), io.StringIO(), list[Event]()
    observers = [events.append, LoggingObserver(level="DEBUG"), otel.observer]
    shown: list[Any] = []

    async with SQLiteJournal(tmp_path / "runs.db", logs="DEBUG", prints=True) as journal:
        for _ in range(1 + resumed):
            report = await run_with_secrets(
                journal=journal, observers=[*observers, LiveView(Console(file=terminal))]
            )
        stored, listed = await journal.report("r"), await journal.events("r")
        notes = await journal.notes("r")
        client = AsyncClient(transport=ASGITransport(app(journal)), base_url="http://127.0.0.1")
        async with client:
            for path in ("/runs/r", "/parts/r", "/api/runs/r", "/"):
                answer = await client.get(path)
                assert answer.status_code == 200
                shown.append(answer.text)
    for each in (report, stored):
        shown += [repr(each), str(each), each.to_json(), each.to_html(), each.to_mermaid()]
        shown.append(each.to_markdown())
        shown += [repr(result) for result in each.results]
        shown += [repr(result.error) for result in each.results]
    shown += [repr(event) for event in events] + [repr(event) for event in listed]
    said = [event for event in events if isinstance(event, NoteEvent)]
    for note in [*said, *(each.event for each in notes)]:
        shown += [repr(note), repr(getattr(note, "data", b""))]
    shown += [record.getMessage() + repr(record.__dict__) for record in caplog.records]
    shown += [caplog.text, terminal.getvalue(), repr(steps_with_secrets())]
    lines = run_end(RunView(events), width=199, height=99, theme=UNICODE, title=Text("run r"))
    shown += [line.plain for line in lines]
    shown += [span.to_json() for span in otel.spans]
    shown += [path.read_bytes().decode("latin-1") for path in tmp_path.iterdir()]

    assert [text for text in shown if SECRET in text] == []
    texts = {each.event.message for each in notes if isinstance(each.event, StepLogged)}
    assert "a secret without an end: <secret>" in texts
    assert "with <secret> token={'password': '<secret>'}" in texts
    assert "7 records were left out: the step is secret" in texts
    assert resumed or report["log_in"].output == {"token": SECRET}
    assert {result.step_name for result in report.failed} == {"refused", "unpicklable", "bound"}
    assert "test_secrets.send or one of its arguments" in str(report["unpicklable"].error)


def test_the_refusal_of_an_action_shows_no_argument() -> None:
    with pytest.raises(TypeError) as caught:
        WorkflowStep("a", partial(send, SECRET, threading.Lock()), runs_in="process")
    assert SECRET not in str(caught.value)

    declared, bound = Pipeline("p"), after(partial(send, SECRET))

    @declared.step
    async def takes(value: Any = bound) -> None: ...

    with pytest.raises(ValueError, match="depends on send, which is not a step") as refused:
        declared.orchestrator()
    assert SECRET not in str(refused.value) + repr(bound)


async def test_a_refused_secret_is_not_in_the_error() -> None:
    report = await run_with_secrets()

    assert report["refused"].error.result.text == "redacted"  # type: ignore[union-attr]


async def test_a_pickle_keeps_a_secret_for_whoever_reads_it() -> None:
    report = pickle.loads(pickle.dumps(await run_with_secrets()))

    assert report["log_in"].output == {"token": SECRET}
    assert report.inputs["password"].text == "redacted"


@pytest.mark.parametrize(
    "data",
    [
        StepResult("a", "SUCCESS", output=SECRET, secret=True),  # type: ignore[arg-type]
        StepSucceeded("a", 1, 1.0, SECRET, secret=True),
    ],
)
def test_dataclasses_leave_a_secret_out_of_a_dictionary_and_keep_it_in_a_copy(data: Any) -> None:
    copied = dataclasses.replace(data, secret=False)

    assert "output" not in dataclasses.asdict(data)
    assert SECRET not in repr(dataclasses.astuple(data)) + repr(jsonable_encoder(data)) + repr(data)
    assert copied.output == SECRET
    assert dataclasses.asdict(copied)["output"] == SECRET
    assert "output" in {field.name for field in dataclasses.fields(type(data))}


# --- FastAPI -------------------------------------------------------------------------------------


class Answer(BaseModel):
    report: RunReport
    first: StepResult


fastapi = FastAPI()


@fastapi.get("/annotated")
async def annotated() -> RunReport:
    return await run_with_secrets()


@fastapi.get("/bare")
async def bare():  # type: ignore[no-untyped-def]
    return await run_with_secrets()


@fastapi.get("/model")
async def model() -> Answer:
    report = await run_with_secrets()
    return Answer(report=report, first=report.results[0])


@fastapi.get("/results", response_model=dict[str, StepResult])
async def results() -> Any:
    return dict(await run_with_secrets())


@pytest.mark.parametrize("path", ["annotated", "bare", "model", "results"])
async def test_an_endpoint_sends_no_secret(path: str) -> None:
    async with AsyncClient(transport=ASGITransport(fastapi), base_url="http://test") as client:
        answer = await client.get(f"/{path}")

    assert answer.status_code == 200
    assert "log_in" in answer.text
    assert SECRET not in answer.text


async def test_pydantic_writes_and_reads_a_report_as_its_json() -> None:
    report, adapter = await run_with_secrets(), TypeAdapter(RunReport)

    text = adapter.dump_json(report)

    assert json.loads(text) == json.loads(report.to_json())
    again = adapter.validate_json(text)
    assert again.to_json() == report.to_json()
    assert adapter.dump_python(report) is report
    assert (
        TypeAdapter(StepResult).validate_python(json.loads(text)["results"][0]) == again["log_in"]
    )
    with pytest.raises(ValidationError, match="not the JSON of a report: version is None"):
        adapter.validate_python({})


async def test_a_report_has_a_json_schema() -> None:
    async with AsyncClient(transport=ASGITransport(fastapi), base_url="http://test") as client:
        document = (await client.get("/openapi.json")).json()
    content = document["paths"]["/annotated"]["get"]["responses"]["200"]["content"]
    schema = content["application/json"]["schema"]

    report = json.loads((await run_with_secrets()).to_json())
    assert sorted(schema["required"]) == sorted(report)
    item = schema["properties"]["results"]["items"]
    assert report["results"][0].keys() <= item["properties"].keys()
    assert item["properties"]["status"]["enum"][0] == "PENDING"
    own = TypeAdapter(RunReport).json_schema(mode="serialization")
    assert own == {**schema, "title": "RunReport"}
