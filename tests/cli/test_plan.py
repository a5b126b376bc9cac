"""``asyncflow plan`` shows a pipeline in three formats without running it."""

from __future__ import annotations

from .conftest import Shell

PLAN = """
    from asyncflow import Retry, WorkflowStep
    print("imported")

    async def act(**_):
        raise AssertionError("it was run")
    def plain(pages):
        raise AssertionError("it was run")

    steps = [
        WorkflowStep("pages", act, max_retries=3, fallback=plain),
        WorkflowStep("fetch", plain, ["pages"], map_over="pages", runs_in="thread"),
        WorkflowStep("save", act, ["fetch", "pages"], when=lambda: 1 / 0, secret=True),
        WorkflowStep("alert", act, run_if="failure"),
        WorkflowStep("tidy", act, ["save"], run_if="always"),
        WorkflowStep("join", act, ["pages", "save"], run_if="unless_failed"),
    ]
"""


def test_a_plan_shows_the_tiers_as_text(shell: Shell) -> None:
    shell.write("plans.py", PLAN)

    result = shell("plan", "plans:steps")

    assert result.stdout == (
        "Pipeline plans:steps: 6 steps in 5 tiers\n"
        "Tier 1\n"
        "  pages  (up to 3 attempts, with a fallback)\n"
        "Tier 2\n"
        "  fetch  after pages  (for each item of pages, in a thread)\n"
        "Tier 3\n"
        "  save  after fetch, pages  (if its condition is met)\n"
        "Tier 4\n"
        "  tidy  after save  (in any case)\n"
        "  join  after pages, save  (unless something has failed)\n"
        "Tier 5\n"
        "  alert  after all others  (if something has failed)\n"
    )
    assert result.stderr == "imported\n"


def test_a_plan_shows_which_steps_take_which_resources(shell: Shell) -> None:
    shell.write(
        "plans.py",
        """
        from contextlib import nullcontext
        from asyncflow import Pipeline, after
        pipeline = Pipeline("p", resources={"db": lambda: 1 / 0, "http": lambda: 1 / 0})

        @pipeline.step
        async def load(db, rows=1):
            raise AssertionError("it was run")

        @pipeline.step(when=lambda http: True, max_retries=2)
        async def send(db, load=after(load)):
            raise AssertionError("it was run")
        """,
    )

    text = shell("plan", "plans:pipeline").stdout
    plan = shell.json("plan", "plans:pipeline", "--format", "json")

    assert "\n  load  with db\n" in text
    send = "\n  send  after load  with db, http  (if its condition is met, up to 2 attempts)\n"
    assert send in text
    assert [step["resources"] for step in plan["steps"]] == [["db"], ["db", "http"]]


def test_a_plan_explains_which_policies_act_on_a_step_and_in_which_order(shell: Shell) -> None:
    shell.write(
        "plans.py",
        """
        from asyncflow import Pipeline, Pool
        from asyncflow.journal import SQLiteJournal
        pipeline = Pipeline("p", journal=SQLiteJournal("runs.db"), observers=[print])

        @pipeline.step(cache_ms=1000, pool=Pool(1), runs_in="thread", heartbeat_ms=10)
        def load(): 1 / 0
        """,
    )

    result = shell("plan", "plans:pipeline", "--explain", "load")

    assert result.stdout == (
        "Step load: its policies, hook by hook, as they are called\n"
        "  on_line_up      Permits\n"
        "  on_gate         StepCache, WorkerSteps, Permits\n"
        "  on_started      Persisting\n"
        "  on_call         WorkerSteps, HeartbeatLimits\n"
        "  on_output       Persisting\n"
        "  on_retry_after  Permits\n"
        "  on_attempted    Permits\n"
        "  on_hold         Permits\n"
        "  on_over         StepCache, Permits\n"
        "Its attempts are made in the full lane.\n"
        "Around the whole run: SecretOutputs, Noted, CheckpointWriter, Persisting, StepCache, "
        "Observing, Permits, LoopBlocks\n"
    )
    assert not (shell.directory / "runs.db").exists()


def test_a_step_that_is_to_be_explained_must_be_there(shell: Shell) -> None:
    shell.write("plans.py", PLAN)

    result = shell("plan", "plans:steps", "--explain", "page", exits=2)

    assert "the pipeline has no step 'page' (did you mean 'pages'?)" in result.stderr


def test_the_plan_as_json_has_tiers_and_policies(shell: Shell) -> None:
    shell.write("plans.py", PLAN)

    plan = shell.json("plan", "plans:steps", "--format", "json")

    assert plan["pipeline"] == "plans:steps"
    assert plan["tiers"] == [["pages"], ["fetch"], ["save"], ["tidy", "join"], ["alert"]]
    save = plan["steps"][2]
    assert save["name"] == "save"
    assert save["tier"] == 3
    assert save["depends_on"] == ["fetch", "pages"]
    assert save["timeout_ms"] == 30_000
    assert save["secret"] is True
    assert [step["fallback"] for step in plan["steps"]] == [True, *[False] * 5]


def test_the_mermaid_plan_has_each_step_and_each_dependency(shell: Shell) -> None:
    text = shell("plan", "etl:failing", "--format", "mermaid").stdout

    assert text.startswith("flowchart LR\n")
    assert text.count("-->") == 2
    assert '["bad"]' in text
