"""The example service: orders by HTTP, and a container that needs no change."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import socket
import subprocess
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import httpx
import pytest

from asyncflow.journal import SQLiteJournal
from examples.service.app import create_app
from tests.load.tenants import tenants

ROOT = Path(__file__).parents[2]
LARGE = {"customer": "ada", "items": [{"sku": "tea", "quantity": 400}]}
ORDER = {
    "customer": "ada",
    "items": [{"sku": "tea", "quantity": 2}, {"sku": "milk", "quantity": 1}],
}


@asynccontextmanager
async def running(folder: Path, monkeypatch: pytest.MonkeyPatch, **environment: str) -> Any:
    """Run the service in this process, and yield a client of it."""
    monkeypatch.chdir(folder)
    for name, value in {"SHOP_DELAY_S": "0", **environment}.items():
        monkeypatch.setenv(name, value)
    app = create_app()
    async with (
        app.router.lifespan_context(app),
        httpx.AsyncClient(
            transport=httpx.ASGITransport(app), base_url="http://localhost"
        ) as client,
    ):
        yield client


async def ended(
    client: httpx.AsyncClient, location: str, before: tuple[str, ...] = ("RUNNING",)
) -> dict[str, Any]:
    async with asyncio.timeout(20):
        while True:
            found: dict[str, Any] = (await client.get(location)).json()
            if found["status"] not in before:
                return found
            await asyncio.sleep(0.01)


async def test_an_order_is_accepted_followed_and_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with running(tmp_path, monkeypatch) as client:
        answer = await client.post("/orders", json=ORDER)
        location = answer.headers["location"]
        streamed = await client.get(f"{location}/events")
        state = await ended(client, location)
        page = await client.get(f"/runs-ui{location.replace('orders', 'runs')}")
        health = await client.get("/health")

    assert (answer.status_code, answer.json()["status"]) == (202, "RUNNING")
    events = [
        line.removeprefix("event: ") for line in streamed.text.split("\r\n") if "event:" in line
    ]
    step = ["AttemptStarted", "StepSucceeded"]
    assert events == ["RunStarted", *step, "StepSkipped", *step * 2, "RunFinished"]
    assert "id: 1\r\n" in streamed.text
    assert state["status"] == "PASSED"
    assert state["steps"] == {
        "price": "SUCCESS",
        "approved": "SKIPPED",
        "charge": "SUCCESS",
        "book": "SUCCESS",
    }
    assert state["receipt"]["total_cents"] == 2 * 300 + 400
    assert state["receipt"]["payment"] == f"paid-{state['order_id']}/charge"
    assert (page.status_code, health.json()) == (200, {"ready": True, "runs": 0})


async def test_a_client_may_wait_and_a_repeated_key_repeats_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with running(tmp_path, monkeypatch) as client:
        headers = {"Idempotency-Key": "order-7"}
        first = await client.post("/orders?wait=true", json=ORDER, headers=headers)
        second = await client.post("/orders?wait=true", json=ORDER, headers=headers)
        quote = await client.post("/quotes", json=ORDER)

    assert (first.status_code, first.headers["location"]) == (200, "/orders/order-7")
    assert first.json()["status"] == "PASSED"
    assert second.json() == first.json()
    assert quote.json() == {"cents": 1_000}


async def test_a_key_belongs_to_one_order(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    headers, other = {"Idempotency-Key": "order-7"}, {**ORDER, "customer": "bob"}
    async with running(tmp_path, monkeypatch, SHOP_DELAY_S="0.05") as client:
        at_once = await asyncio.gather(
            *(client.post("/orders", json=ORDER, headers=headers) for _ in range(4))
        )
        active = await client.post("/orders", json=other, headers=headers)
        await ended(client, "/orders/order-7")
        passed = await client.post("/orders", json=other, headers=headers)
        odd = [
            await client.post("/orders", json=ORDER, headers={"Idempotency-Key": key})
            for key in ("", "..", "a/b", "a?b")
        ]

    # A request that comes before the first one is stored is asked to come again.
    statuses = sorted(answer.status_code for answer in at_once)
    assert statuses[0] == 202
    assert set(statuses) <= {202, 409}
    assert all(a.status_code == 202 or a.headers["retry-after"] == "1" for a in at_once)
    assert [active.status_code, passed.status_code] == [422, 422]
    assert [answer.status_code for answer in odd] == [422] * 4


async def test_an_order_is_cancelled(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    async with running(tmp_path, monkeypatch, SHOP_DELAY_S="60", MAX_RUNS="1") as client:
        location = (await client.post("/orders", json=ORDER)).headers["location"]
        refused = await client.post("/orders", json=ORDER)
        cancelled = await client.delete(location)
        state = await ended(client, location)

    assert refused.status_code == 503
    assert refused.headers["retry-after"] == "1"
    assert cancelled.status_code == 202
    assert (state["status"], state["receipt"]) == ("INTERRUPTED", None)
    assert "the customer has cancelled the order" in state["error"]


async def test_a_large_order_waits_for_its_approval(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with running(tmp_path, monkeypatch) as client:
        waiting, answers, states = [], [], []
        for yes in (True, False):
            location = (await client.post("/orders", json=LARGE)).headers["location"]
            waiting.append(await ended(client, location))
            answers += [
                (
                    await client.post(
                        f"{location}/approval", json={"yes": said, "by": "Zoë", "note": "fine"}
                    )
                ).status_code
                for said in (yes, yes, not yes)
            ]
            states.append(await ended(client, location, ("RUNNING", "WAITING")))

    assert [(state["status"], state["waits_for"]) for state in waiting] == [
        ("WAITING", "signal")
    ] * 2
    assert answers == [200, 200, 409] * 2
    assert [state["status"] for state in states] == ["PASSED", "PASSED"]
    assert states[0]["receipt"]["total_cents"] == 120_000
    assert (states[1]["receipt"], states[1]["steps"]["charge"]) == (None, "SKIPPED")


async def test_a_tenant_with_many_orders_holds_up_no_other(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with running(tmp_path, monkeypatch, SHOP_DELAY_S="0.02", MAX_RUNS="3") as client:
        headers = {"Idempotency-Key": "many"}
        many = await client.post("/tenants/acme/orders", json=[ORDER] * 20)
        one = await client.post("/tenants/umbrella/orders", json=[ORDER], headers=headers)
        again = await client.post("/tenants/umbrella/orders", json=[ORDER], headers=headers)
        other = await client.post("/tenants/umbrella/orders", json=[LARGE], headers=headers)
        await ended(client, f"/orders/{one.json()[0]}", ("RUNNING", "WAITING"))
        queue = (await client.get("/queue")).json()
        for order_id in many.json():
            await ended(client, f"/orders/{order_id}", ("RUNNING", "WAITING"))
        passed = await client.get("/tenants/acme/orders?status=PASSED")
        failed = await client.get("/tenants/acme/orders?status=FAILED")

    assert one.json() == again.json() == ["many-0"]
    assert other.status_code == 422
    assert queue["waiting"] > 5  # of acme
    assert sorted(passed.json()) == sorted(many.json())
    assert failed.json() == []


async def test_of_many_statements_the_newest_is_made(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with running(tmp_path, monkeypatch, STATEMENT_DELAY_MS="50") as client:
        await client.post("/orders?wait=true", json=ORDER)
        asked = [(await client.post("/tenants/acme/statement")).json() for _ in range(5)]
        async with asyncio.timeout(20), SQLiteJournal("runs.db") as journal:
            while (await journal.record(asked[-1])).status != "PASSED":
                await asyncio.sleep(0.01)
            report = await journal.report(asked[-1])
            causes = [(await journal.record(run_id)).cause for run_id in asked]

    assert report["total"].output == 1_000
    assert causes == ["replaced"] * 4 + [None]


@pytest.mark.process
@pytest.mark.timeout(300)  # each replica starts for some seconds on a busy machine
@pytest.mark.parametrize("kind", ["sqlite", pytest.param("postgres", marks=pytest.mark.postgres)])
async def test_replicas_that_are_killed_lose_and_double_no_order(kind: str) -> None:
    assert await tenants(kind, kills=5, seed=0) == []


async def test_what_is_wrong_has_its_status(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with running(tmp_path, monkeypatch) as client:
        invalid = await client.post("/orders", json={**ORDER, "items": []})
        missing = [
            await client.get("/orders/none"),
            await client.get("/orders/none/events"),
            await client.delete("/orders/none"),
        ]

    assert invalid.status_code == 422
    assert [answer.status_code for answer in missing] == [404] * 3


# --- the container -------------------------------------------------------------------------------

FOLDER = ROOT / "examples" / "service"


def instructions() -> list[tuple[str, str]]:
    """Return the instructions of the Dockerfile, each with its arguments."""
    text = (FOLDER / "Dockerfile").read_text().replace("\\\n", " ")
    lines = [line for line in text.splitlines() if line and not line.startswith("#")]
    return [(name, rest.strip()) for name, _, rest in (line.partition(" ") for line in lines)]


def command() -> list[str]:
    found: list[str] = json.loads(dict(instructions())["CMD"])
    return found


def test_the_image_has_what_it_copies_and_runs_as_a_user_without_rights() -> None:
    copied = [
        source
        for name, arguments in instructions()
        if name == "COPY" and not arguments.startswith("--from")
        for source in arguments.split()[:-1]
    ]
    allowed = (FOLDER / "Dockerfile.dockerignore").read_text().splitlines()

    assert copied
    assert all((ROOT / source).exists() and f"!{source}" in allowed for source in copied)
    assert dict(instructions())["USER"] not in ("root", "0")
    # Without a shell, so that SIGTERM reaches the server.
    assert command()[:2] == ["uvicorn", "examples.service.app:app"]


def test_the_platform_waits_for_longer_than_requests_and_steps_may_take() -> None:
    yaml = pytest.importorskip("yaml")
    services = yaml.safe_load((FOLDER / "compose.yaml").read_text())["services"]

    assert services.keys() == {"database", "orders-1", "orders-2"}
    for name in ("orders-1", "orders-2"):
        service = services[name]
        patience_s = int(command()[command().index("--timeout-graceful-shutdown") + 1])
        grace_s = int(service["environment"]["GRACE_MS"]) / 1000
        assert int(service["stop_grace_period"].removesuffix("s")) > patience_s + grace_s
        assert service["depends_on"]["database"]["condition"] == "service_healthy"
        assert (FOLDER / service["build"]["context"]).resolve() == ROOT
        assert (ROOT / service["build"]["dockerfile"]).exists()


@pytest.mark.process
@pytest.mark.skipif(not hasattr(signal, "SIGTERM"), reason="needs SIGTERM")
async def test_the_command_of_the_container_continues_after_a_restart(
    dsn: str, tmp_path: Path
) -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    arguments = [str(port) if each == "8000" else each for each in command()]
    arguments[arguments.index("0.0.0.0")] = "127.0.0.1"
    environment = {**os.environ, "DATABASE_URL": dsn, "SHOP_DELAY_S": "1", "PYTHONPATH": str(ROOT)}

    @asynccontextmanager
    async def container() -> AsyncIterator[httpx.AsyncClient]:
        line = [sys.executable, "-m", *arguments]
        with subprocess.Popen(
            line, cwd=tmp_path, env=environment, stderr=subprocess.PIPE
        ) as server:
            try:
                async with httpx.AsyncClient(base_url=f"http://127.0.0.1:{port}") as client:
                    async with asyncio.timeout(90):
                        while not await is_healthy(client):
                            await asyncio.sleep(0.05)
                    yield client
                server.send_signal(signal.SIGTERM)
                assert server.wait(30) == -signal.SIGTERM
            finally:
                server.kill()

    async def is_healthy(client: httpx.AsyncClient) -> bool:
        try:
            return (await client.get("/health")).is_success
        except httpx.TransportError:
            return False

    async with container() as client:
        location = (await client.post("/orders", json=ORDER)).headers["location"]
    async with container() as client:
        state = await ended(client, location, ("INTERRUPTED", "RUNNING"))

    assert state["status"] == "PASSED"
    assert state["receipt"]["total_cents"] == 1_000
