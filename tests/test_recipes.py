"""What the recipes promise beyond the output that their pages show."""

from __future__ import annotations

import asyncio
import inspect
import logging
import os
import re
import shlex
import subprocess
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import click
import httpx
import pytest
import yaml
from memory_journal import MemoryJournal
from test_docs_pages import FENCE, ROOT, blocks_of

from asyncflow import (
    Orchestrator,
    Pool,
    RunReport,
    WorkflowStep,
    current_step,
    events,
    run_pipeline,
)
from asyncflow._cli import commands
from asyncflow.events import AttemptStarted
from asyncflow.journal import PostgresJournal, SQLiteJournal
from asyncflow.service import Service
from asyncflow.testing import fake, run_in_virtual_time

RECIPES = ROOT / "docs" / "recipes"


def names_of(page: str, *marks: str) -> dict[str, Any]:
    """Return what those blocks of a page define that have one of these texts, and await nothing."""
    names: dict[str, Any] = {"__name__": page}
    for block in blocks_of(RECIPES / page):
        code = re.split(r"\n(?:async with |for _ in |report = await )", block.code)[0]
        if any(mark in code for mark in marks):
            exec(compile(code, f"{page}:{block.line}", "exec"), names)
    return names


CircuitBreaker = names_of("circuit-breaker.md", "\nclass ")["CircuitBreaker"]


class Provider:
    """Fails, hangs or answers, behind a circuit breaker in virtual time."""

    def __init__(self, **options: Any) -> None:
        self.clock = asyncio.get_running_loop().time
        self.started_s = self.clock()
        self.pool = Pool(1)
        self.breaker = CircuitBreaker(clock=self.clock, **options)
        self.answer: BaseException | None = None
        self.takes_s = 0.0
        self.asked_at: list[float] = []

    async def call(self) -> None:
        self.asked_at.append(round(self.clock() - self.started_s, 3))
        await asyncio.sleep(self.takes_s)
        if self.answer is not None:
            raise self.answer

    async def run(self, calls: int = 1, **options: Any) -> None:
        """Make so many calls, one after the other."""
        steps = [
            WorkflowStep(
                f"call {n}", self.call, pool=self.pool, retry=self.breaker.policy(), **options
            )
            for n in range(calls)
        ]
        await run_pipeline(steps, fail_fast=False)


class TestCircuitBreaker:
    pytestmark = pytest.mark.virtual_time

    async def test_after_some_failures_within_the_window_nobody_asks_for_a_while(self) -> None:
        provider = Provider(failures=3, window_s=10, open_s=30)
        provider.answer = ConnectionError()

        await provider.run(4)

        assert provider.asked_at == [0, 0, 0, 30]

    async def test_failures_that_are_further_apart_than_the_window_open_nothing(self) -> None:
        provider = Provider(failures=3, window_s=10)
        provider.answer = ConnectionError()

        for _ in range(10):
            await provider.run()
            await asyncio.sleep(6)

        assert provider.asked_at == [6 * n for n in range(10)]

    async def test_the_next_failure_opens_it_again_at_once_and_a_success_closes_it(self) -> None:
        provider = Provider(failures=3, window_s=10, open_s=30)
        provider.answer = ConnectionError()
        await provider.run(5)
        provider.answer = None
        await provider.run(2)
        provider.answer = ConnectionError()
        await provider.run(3)

        assert provider.asked_at == [0, 0, 0, 30, 60, 90, 90, 90, 90, 90]

    async def test_a_timeout_counts_and_a_cancellation_does_not(self) -> None:
        provider = Provider(failures=1)
        provider.takes_s = 60.0
        run = asyncio.create_task(provider.run())
        await asyncio.sleep(1)
        run.cancel()
        await asyncio.wait([run])

        await provider.run(2, timeout_ms=1_000)

        assert provider.asked_at == [0, 1, 32]


class TestArtifacts:
    pytestmark = pytest.mark.virtual_time

    async def test_a_file_that_was_not_finished_leaves_nothing_under_its_name(
        self, tmp_path: Path
    ) -> None:
        recipe = names_of("artifacts.md", "def artifact")
        recipe["ARTIFACTS"] = tmp_path

        async def export(names: str) -> None:
            with recipe["artifact"]("rows.csv") as path:
                path.write_text(names)
                if names == "bad":
                    raise ConnectionError

        async def names() -> list[str]:
            return ["good", "bad"]

        steps = [
            WorkflowStep("names", names),
            WorkflowStep("export", export, ["names"], map_over="names"),
        ]
        await run_pipeline(steps, run_id="a/b", fail_fast=False)

        files = [path.relative_to(tmp_path) for path in tmp_path.rglob("*") if path.is_file()]
        assert files == [Path("a%2Fb", "export%230", "rows.csv")]
        assert not list(tmp_path.rglob("tmp*"))

    async def test_files_stay_as_long_as_a_run_or_a_rerun_of_it_needs_them(
        self, tmp_path: Path
    ) -> None:
        recipe = names_of("artifacts.md", "def artifact", "def sweep")
        recipe["ARTIFACTS"] = tmp_path

        async def export() -> str:
            with recipe["artifact"]("rows.csv") as path:
                path.write_text("rows")
            return str(tmp_path / recipe["key_of_step"]() / "rows.csv")

        async def count(export: str, least: int) -> int:
            return least

        async with SQLiteJournal(tmp_path.with_suffix(".db")) as journal:
            steps = [WorkflowStep("export", export), WorkflowStep("count", count, ["export"])]
            runs = Orchestrator(steps, name="runs", journal=journal)
            await runs.with_options(run_id="a").run(least=1)
            await runs.rerun("a", "b", inputs={"least": 2})
            await runs.rerun("b", "c", inputs={"least": 3})
            await runs.with_options(run_id="gone").run(least=1)
            for run_id in ("a", "b", "gone"):
                await journal.forget(run_id)

            await recipe["sweep"](journal)

            report = await journal.report("c")
        assert [path.name for path in tmp_path.iterdir()] == ["a"]
        assert Path(report["export"].output).read_text() == "rows"


class TestNotifications:
    @pytest.mark.virtual_time
    async def test_a_clean_up_step_repeats_only_a_message_that_was_being_sent(self) -> None:
        sent: list[str] = []

        async def load() -> None:
            raise OSError("the disk is full")

        async def alert() -> None:
            sent.append(current_step().idempotency_key)

        steps = [WorkflowStep("load", load), WorkflowStep("alert", alert, run_if="failure")]
        journal = MemoryJournal()
        await run_pipeline(steps, journal=journal, run_id="r", fail_fast=False)
        begun = journal.stored["r"].index(AttemptStarted("alert", 1, 0.0)) + 1
        sent_later = []
        for stored in range(1, len(journal.stored["r"])):
            sent.clear()
            left = journal.died_after(stored)
            await run_pipeline(steps, journal=left, run_id="r", fail_fast=False)
            sent_later.append(len(sent))

        assert sent_later == [1] * begun + [0] * (len(sent_later) - begun)
        assert sent_later[-1] == 0

    @pytest.mark.virtual_time
    async def test_a_message_that_fails_or_hangs_costs_no_other_one_and_no_run(
        self, caplog: pytest.LogCaptureFixture
    ) -> None:
        sent: list[str] = []

        async def post(slack: object, text: str) -> None:
            if "b failed" in text:
                raise RuntimeError("the client has been closed")
            if "d failed" in text:
                await asyncio.sleep(60)
            sent.append(text)

        recipe = names_of("notifications.md", "class SlackAlerts")
        recipe |= {"asyncio": asyncio, "events": events, "logging": logging, "post": post}

        async def fail() -> None:
            raise OSError("the disk is full")

        async with recipe["SlackAlerts"](None) as alerts:
            steps = [WorkflowStep(name, fail) for name in "abcd"]
            await run_pipeline(steps, fail_fast=False, name="n", run_id="r", observers=[alerts])

        assert sent == [f"n r: {name} failed: the disk is full" for name in "ac"]
        assert [record.levelname for record in caplog.records] == ["ERROR", "ERROR"]

    def test_the_address_of_a_webhook_is_in_no_error(self) -> None:
        (code,) = [
            block.code
            for block in blocks_of(RECIPES / "notifications.md")
            if "async def post" in block.code
        ]

        def refuse(request: object) -> httpx.Response:
            return httpx.Response(404)

        async def send() -> None:
            async with httpx.AsyncClient(transport=httpx.MockTransport(refuse)) as slack:
                await recipe["post"](slack, "x")

        recipe: dict[str, Any] = {}
        exec(code.partition("\nnightly = ")[0], recipe)
        with pytest.raises(OSError, match=r"\ASlack answered 404\Z"):
            asyncio.run(send())


def manifests(page: str) -> list[Any]:
    return [
        yaml.safe_load(fence["body"])
        for fence in FENCE.finditer((RECIPES / page).read_text(encoding="utf-8"))
        if fence["language"] == "yaml"
    ]


class TestKubernetes:
    def test_pods_are_replaced_and_have_time_to_clean_up(self) -> None:
        job, cron_job, deployment = manifests("kubernetes.md")

        assert (job["apiVersion"], job["kind"]) == ("batch/v1", "Job")
        assert (cron_job["apiVersion"], cron_job["kind"]) == ("batch/v1", "CronJob")
        assert (deployment["apiVersion"], deployment["kind"]) == ("apps/v1", "Deployment")
        for spec in (job["spec"], cron_job["spec"]["jobTemplate"]["spec"]):
            pod = spec["template"]["spec"]
            assert spec["backoffLimit"] > 0
            assert pod["restartPolicy"] == "Never"  # which a podFailurePolicy requires
            assert pod["terminationGracePeriodSeconds"] >= 30
            (container,) = pod["containers"]
            assert "ASYNCFLOW_JOURNAL" in {variable["name"] for variable in container["env"]}
        assert cron_job["spec"]["concurrencyPolicy"] == "Forbid"
        assert cron_job["spec"]["timeZone"]  # without it, that of the control plane counts

    def test_a_job_gives_up_at_once_where_another_pod_would_not_help(self) -> None:
        job, *_ = manifests("kubernetes.md")
        gives_up, ignores = job["spec"]["podFailurePolicy"]["rules"]

        assert gives_up["action"] == "FailJob"
        assert gives_up["onExitCodes"] == {"operator": "In", "values": [2, 3, 4]}
        assert ignores["action"] == "Ignore"
        assert [next(iter(ignores["onPodConditions"]))["type"]] == ["DisruptionTarget"]

    def test_the_commands_are_ones_that_asyncflow_has(self) -> None:
        job, cron_job, _ = manifests("kubernetes.md")
        (of_job,) = job["spec"]["template"]["spec"]["containers"]
        (of_cron,) = cron_job["spec"]["jobTemplate"]["spec"]["template"]["spec"]["containers"]
        script = of_cron["args"][0].splitlines()[-1].removeprefix("exec ")

        for command in (of_job["command"], shlex.split(script)):
            options = options_of_run(command)
            assert options["wait"]  # for a pod that is still ending
            assert options["run_id"]

    @pytest.mark.process
    def test_a_pod_of_a_cron_job_knows_its_day(self) -> None:
        _, cron_job, _ = manifests("kubernetes.md")
        (container,) = cron_job["spec"]["jobTemplate"]["spec"]["template"]["spec"]["containers"]
        asked, _, _ = container["args"][0].partition("\n")
        six_o_clock = datetime(2026, 1, 31, 6, tzinfo=UTC)
        job = f"sales-{six_o_clock.timestamp() / 60:.0f}"

        told = subprocess.run(
            ["/bin/sh", "-c", f"{asked}; echo $day"],
            env={"JOB": job, "PATH": os.environ["PATH"]},
            capture_output=True,
            text=True,
            check=True,
        )

        assert told.stdout == "2026-01-31\n"

    def test_a_pod_of_the_service_outlasts_its_requests_and_its_runs(self) -> None:
        *_, deployment = manifests("kubernetes.md")
        pod = deployment["spec"]["template"]["spec"]
        (container,) = pod["containers"]
        requests_s = int(container["command"][-1])
        runs_s = inspect.signature(Service).parameters["grace_ms"].default / 1000

        waits_s = int(container["lifecycle"]["preStop"]["exec"]["command"][-1])
        assert pod["terminationGracePeriodSeconds"] > waits_s + requests_s + runs_s
        assert container["readinessProbe"]["httpGet"]["path"] == "/ready"
        assert container["livenessProbe"]["httpGet"]["path"] == "/alive"


def test_a_call_of_a_function_that_is_repeated_computes_nothing_again(
    dsn: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("JOURNAL", dsn)
    names: dict[str, Any] = {"__name__": "lambda.md"}
    for block in blocks_of(RECIPES / "lambda.md"):
        if "slow" not in block.code:
            exec(compile(block.code, f"{block.page}:{block.line}", "exec"), names)
    handler, context = names["handler"], names["Context"](30_000)

    answers = [handler({"day": "2026-01-31"}, context) for _ in range(2)]

    async def attempts() -> int:
        async with PostgresJournal(dsn) as journal:
            stored = await journal.events("sales-2026-01-31")
            return sum(isinstance(each.event, AttemptStarted) for each in stored)

    assert answers == [{"total": 32}] * 2
    assert asyncio.run(attempts()) == 2  # of two steps


def test_all_that_starts_a_day_names_the_journal_of_the_page() -> None:
    page = (RECIPES / "schedules.md").read_text(encoding="utf-8")
    starters = [fence["body"] for fence in FENCE.finditer(page) if "asyncflow run" in fence["body"]]

    assert len(starters) == 3  # cron, systemd, a loop in a shell
    for starter in starters:
        assert re.search(r"\bASYNCFLOW_JOURNAL=(/srv/shop/)?sales\.db$", starter, re.MULTILINE)


def test_commands_of_all_pages_have_options_that_asyncflow_has() -> None:
    unknown, known = set(), 0
    for page in (ROOT / "docs").rglob("*.md"):
        for name, rest in re.findall(
            r"\basyncflow (\w+)\b([^`\n]*)", page.read_text(encoding="utf-8")
        ):
            command = commands.get_command(click.Context(commands), name)
            given = set(re.findall(r"(?<![\w-])--[a-z][a-z-]*", rest))
            if command is not None:
                known += len(given)
                has = {text for parameter in command.params for text in parameter.opts}
                unknown |= {(page.name, name, option) for option in given - has}

    assert not unknown
    assert known >= 50


class TestCI:
    def test_a_job_that_is_started_again_has_the_journal_of_before(self) -> None:
        (workflow,) = manifests("ci.md")
        steps = workflow["jobs"]["checks"]["steps"]
        ((run,),) = [[n for n, step in enumerate(steps) if "asyncflow run" in step.get("run", "")]]
        restore, summary, save = steps[run - 1], steps[run + 1], steps[run + 2]

        command = steps[run]["run"]
        assert command.startswith("exec ")  # or the shell keeps the signals of a cancelled job

        options = options_of_run(shlex.split(command.removeprefix("exec ")))
        assert options["run_id"] == "$GITHUB_SHA"
        assert options["journal"] == restore["with"]["path"] == save["with"]["path"]
        assert restore["with"]["key"] == save["with"]["key"]
        assert save["with"]["key"].startswith(restore["with"]["restore-keys"])
        assert save["if"] == summary["if"] == "always()"
        assert f'show "{options["run_id"]}" --journal {options["journal"]} ' in summary["run"]

    @pytest.mark.parametrize("read_back", [False, True], ids=["own program", "from JSON"])
    def test_a_job_has_a_summary_and_an_error_where_each_step_raised(
        self,
        tmp_path: Path,
        monkeypatch: pytest.MonkeyPatch,
        capsys: pytest.CaptureFixture[str],
        *,
        read_back: bool,
    ) -> None:
        async def fails() -> None:
            raise OSError("no disk, 50%\n::warning::x")

        report = run_in_virtual_time(run_pipeline([WorkflowStep("a: b", fails)]))
        report = RunReport.from_json(report.to_json()) if read_back else report
        monkeypatch.chdir(ROOT)
        monkeypatch.setenv("GITHUB_STEP_SUMMARY", str(tmp_path / "summary.md"))

        names_of("ci.md", "def summarize")["summarize"](report)

        line = inspect.getsourcelines(fails)[1] + 1
        where = f"::error title=Step a%3A b failed,file=tests/test_recipes.py,line={line}::"
        (command,) = capsys.readouterr().out.splitlines()
        assert command.startswith(where)
        assert command.endswith("no disk, 50%25%0A::warning::x")
        assert (tmp_path / "summary.md").read_text(encoding="utf-8") == report.to_markdown()


def test_the_join_of_two_branches_does_not_outlive_a_deadline() -> None:
    """In LangGraph's page, a branch that is cancelled has not succeeded."""
    page = "../coming-from/langgraph.md"
    letters = names_of(page, "asyncflow import Pipeline", "letters =")["letters"]
    limited = letters.with_options(deadline_ms=1_000)

    with fake(letters, book_it=lambda: asyncio.sleep(3_600)):
        report = run_in_virtual_time(limited.run(text="please pay"))

    statuses = {name: result.status for name, result in report.items()}
    assert statuses["book_it"] == "CANCELLED"
    assert statuses["answer"] == "SKIPPED"
    assert report.total_duration_ms < 2_000


async def test_the_alert_of_prometheus_fires_on_a_run_that_waits_too_long() -> None:
    pytest.importorskip("prometheus_client", reason="needs prometheus_client")
    names = names_of("prometheus.md", "import Pipeline", "class WaitMetrics")
    page = (RECIPES / "prometheus.md").read_text(encoding="utf-8")
    (block,) = re.findall(r"```yaml\n(.+?)```", page, re.DOTALL)
    (rule,) = yaml.safe_load(block)["groups"][0]["rules"]
    registry = names["CollectorRegistry"]()
    metrics = names["WaitMetrics"](registry)

    def fires(days: float) -> bool:
        since = registry.get_sample_value(
            "asyncflow_waiting_since_timestamp_seconds", {"pipeline": "orders"}
        )
        if since is None:
            return False
        now = {"time": lambda: first.updated_at + days * 86_400}
        return bool(eval(rule["expr"], {"asyncflow_waiting_since_timestamp_seconds": since, **now}))

    async with SQLiteJournal(":memory:") as journal:
        for run_id in ("first", "second"):
            await names["orders"].with_options(journal=journal, run_id=run_id).run()
        first = await journal.record("first")
        await metrics.read(journal)

        assert registry.get_sample_value("asyncflow_waiting_runs", {"pipeline": "orders"}) == 2
        assert not fires(days=1.9)
        assert fires(days=2.1)

        for run_id in ("first", "second"):
            await journal.cancel(run_id)
        await metrics.read(journal)

        assert not fires(days=2.1)


def options_of_run(command: list[str]) -> dict[str, Any]:
    """Return the options of ``asyncflow run``, which refuses unknown ones."""
    assert command[:2] == ["asyncflow", "run"]
    run = commands.get_command(click.Context(commands), "run")
    options, _, _ = run.make_parser(click.Context(run)).parse_args(command[2:])
    return dict(options)


def run_items(call: Any, count: int, **options: Any) -> RunReport:
    async def items() -> range:
        return range(count)

    steps = [
        WorkflowStep("items", items),
        WorkflowStep("call", call, ["items"], map_over="items", **options),
    ]
    return run_in_virtual_time(run_pipeline(steps, fail_fast=False))
