"""No command shows a secret, and none writes one into a file."""

from __future__ import annotations

import pytest

from .conftest import Shell

PIPELINE = """
    import functools, threading
    from asyncflow import Pipeline, Retry, WorkflowStep

    SECRET = "hunter2" + "-marker"

    def send(token, more=None): ...

    async def log_in(password: str):
        return {"token": password}

    async def use(log_in):
        return len(log_in["token"])

    async def polled():
        return SECRET

    more, again = [], Retry(until=lambda _: False)
    steps = [
        WorkflowStep("log_in", log_in, secret=True),
        WorkflowStep("use", use, ["log_in"]),
        WorkflowStep("polled", polled, secret=True, max_retries=2, retry=again),
        WorkflowStep("sent", functools.partial(send, SECRET, more), runs_in="process"),
    ]
    more.append(threading.Lock())

    from asyncflow import Orchestrator
    logins = Orchestrator(steps, secret_inputs=["password"], fail_fast=False)
"""


@pytest.mark.parametrize("journal", [(), ("--no-journal",)])
def test_no_command_shows_a_secret(shell: Shell, journal: tuple[str, ...]) -> None:
    shell.write("secrets_.py", PIPELINE)
    run = ("run", "secrets_:logins", "--input", "password=hunter2-marker", "--html", "a.html")
    shown = [
        shell(*run, *journal, "--log-level", "DEBUG", exits=1),
        shell(*run, *journal, "--json", exits=1),
        shell("plan", "secrets_:logins"),
    ]
    if not journal:
        run_id = shell.json("runs", "--json")[0]["run_id"]
        shown += [shell("show", run_id), shell("show", run_id, "--json"), shell("runs")]
        shown.append(shell("logs", run_id))
    texts = [text for result in shown for text in (result.stdout, result.stderr)]
    texts += [path.read_bytes().decode("latin-1") for path in shell.directory.glob("*[lbw]*.[!p]*")]

    assert (shell.directory / "a.html").exists()
    assert [text for text in texts if "hunter2-marker" in text] == []
    assert any("secrets_.send or one of its arguments can't be pickled" in text for text in texts)
