"""The pytest plugin, in real pytest processes beside the plugins that users have."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = pytest.mark.process

MARKED = """
import asyncio
import pytest
from asyncflow.testing import VirtualTimeLoop

DAYS = 3 * 86_400


def is_virtual():
    return isinstance(asyncio.get_running_loop(), VirtualTimeLoop)


{fixture}
async def began():
    assert is_virtual()
    yield
    await asyncio.sleep(DAYS)


{mark}
@pytest.mark.virtual_time
async def test_three_days{arguments}:
    assert is_virtual()
    started_s = asyncio.get_running_loop().time()
    await asyncio.sleep(DAYS)
    assert asyncio.get_running_loop().time() - started_s == DAYS


{mark}
@pytest.mark.virtual_time(seed=2)
@pytest.mark.parametrize("delay", [1, 2])
async def test_with_a_seed(delay, tmp_path):
    order = []

    async def work(name):
        order.append(name)

    async with asyncio.TaskGroup() as group:
        for name in "abcdef":
            group.create_task(work(name))
    assert order != sorted(order)
    assert tmp_path.exists()


@pytest.mark.virtual_time
class TestClass:
    {mark}
    async def test_method(self):
        assert is_virtual()

    def test_plain(self):
        pass


{mark_real}
async def test_in_real_time():
    assert not is_virtual()
"""

# Without an option, pytest has the import mode "prepend".
HOSTS = {
    # options, how an async fixture is made, the mark of a marked test, the mark of an async test
    "strict": (["-o", "asyncio_mode=strict"], "pytest_asyncio.fixture", "", "asyncio"),
    "strict and marked": (
        ["-o", "asyncio_mode=strict"],
        "pytest_asyncio.fixture",
        "asyncio(loop_scope='module')",
        "asyncio",
    ),
    "auto": (["-o", "asyncio_mode=auto", "--import-mode=append"], "pytest.fixture", "", ""),
    "anyio": (["-p", "no:asyncio", "--import-mode=importlib"], "pytest.fixture", "anyio", "anyio"),
    "anyio beside asyncio auto": (["-o", "asyncio_mode=auto"], "pytest.fixture", "anyio", "anyio"),
    "none": (["-p", "no:asyncio", "-p", "no:anyio"], "", "", "skip"),
    "xdist": (["-n", "2", "-o", "asyncio_mode=auto"], "pytest.fixture", "", ""),
}


def run_pytest(folder: Path, *options: str) -> subprocess.CompletedProcess[str]:
    """Run the tests of a folder in a process of its own, which prints what it does on a desk."""
    others = ("PYTEST", "COVERAGE", "CI")
    environment = {k: v for k, v in os.environ.items() if not k.startswith(others)}
    return subprocess.run(
        [sys.executable, "-m", "pytest", "-p", "no:cacheprovider", "-p", "no:timeout", *options],
        cwd=folder,
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )


@pytest.mark.parametrize("host", HOSTS)
def test_the_marker_works_beside_the_plugins_that_run_async_tests(tmp_path, host):
    options, fixture, mark, mark_real = HOSTS[host]
    test = MARKED.format(
        fixture=f"import pytest_asyncio\n\n\n@{fixture}" if fixture else "",
        arguments="(began)" if fixture else "()",
        mark=f"@pytest.mark.{mark}" if mark else "",
        mark_real=f"@pytest.mark.{mark_real}" if mark_real else "",
    )
    (tmp_path / "pytest.ini").write_text("[pytest]\nfilterwarnings = error\n")
    (tmp_path / "test_marked.py").write_text(test)

    if "no:asyncio" not in options:
        options = [*options, "-o", "asyncio_default_fixture_loop_scope=function"]

    done = run_pytest(tmp_path, "--strict-markers", *options)

    expected = "5 passed, 1 skipped" if host == "none" else "6 passed"
    assert expected in done.stdout, done.stdout + done.stderr


def test_without_the_plugin_marked_tests_run_in_real_time(tmp_path):
    (tmp_path / "test_marked.py").write_text("""
import asyncio
import pytest


@pytest.mark.virtual_time
async def test_marked():
    assert type(asyncio.get_running_loop()).__name__ != "VirtualTimeLoop"


def test_plain():
    from asyncflow.testing import run_in_virtual_time

    run_in_virtual_time(asyncio.sleep(1_000))
""")

    done = run_pytest(
        tmp_path,
        *("-p", "no:asyncflow", "-o", "asyncio_mode=auto"),
        *("-o", "asyncio_default_fixture_loop_scope=function"),
    )

    assert "2 passed, 1 warning" in done.stdout
    assert "Unknown pytest.mark.virtual_time" in done.stdout


FAILING = """
import asyncio
import pytest
from asyncflow import Pipeline, StepStatus, after
from asyncflow.testing import fails, run_in_virtual_time

pipeline = Pipeline("etl")


@pipeline.step
async def fetch():
    await asyncio.sleep(1)
    return ["<row>"]


@pipeline.step(max_retries=3, retry=1_000)
async def load(rows=after(fetch)):
    raise OSError("disk full")


@pipeline.step
async def notify(loaded=after(load)): ...


def test_status():
    report = run_in_virtual_time(pipeline.run())
    assert report["load"].status == StepStatus.SUCCESS


def test_plain():
    assert {"a": 1} == {"a": 2}


@pytest.fixture
def faked(asyncflow_fakes):
    return asyncflow_fakes(pipeline, load=fails(2, then="done"))


@pytest.mark.virtual_time
async def test_fakes(faked, asyncflow_journal):
    report = await pipeline.with_options(journal=asyncflow_journal, run_id="r").run()
    assert report.all_passed
    assert len(faked["load"].calls) == 3
    assert [record.run_id for record in await asyncflow_journal.runs()] == ["r"]


@pytest.mark.virtual_time
async def test_the_fakes_of_another_test_are_gone(asyncflow_fakes):
    asyncflow_fakes(pipeline, fetch=ValueError)
    asyncflow_fakes(pipeline, fetch=KeyError)
    report = await pipeline.run()
    assert isinstance(report["fetch"].error, KeyError)
    report = await pipeline.run()
    assert False
"""


@pytest.mark.parametrize("workers", [[], ["-n", "1"]], ids=["alone", "xdist"])
def test_a_failed_test_shows_its_runs_and_keeps_their_pages(tmp_path, workers):
    (tmp_path / "test_etl.py").write_text(FAILING)

    done = run_pytest(
        tmp_path,
        *("-o", "asyncio_mode=auto", "-o", "asyncio_default_fixture_loop_scope=function"),
        *("--asyncflow-html", "pages", *workers),
    )

    assert "3 failed, 1 passed" in done.stdout, done.stdout
    assert done.stdout.count("- asyncflow runs -") == 2
    assert "Steps that are FAILED:" in done.stdout
    assert "load: 3 attempts, 2.0 s, OSError: disk full" in done.stdout
    assert "      attempt 2: OSError: disk full\n" in done.stdout
    assert "| 1 attempt, 1.0 s" in done.stdout
    assert "etl FAILED in 3.0 s, run " in done.stdout
    assert "  ⊘ SKIPPED   notify |" in done.stdout
    assert sorted(path.name for path in (tmp_path / "pages").iterdir()) == [
        "test_etl.py-test_status-1.html",
        "test_etl.py-test_the_fakes_of_another_test_are_gone-1.html",
        "test_etl.py-test_the_fakes_of_another_test_are_gone-2.html",
    ]
    assert "disk full" in (tmp_path / "pages" / "test_etl.py-test_status-1.html").read_text()


REPEATED = """
from _pytest.runner import runtestprotocol

pytest_plugins = ["pytester"]


def pytest_runtest_protocol(item, nextitem):
    item.ihook.pytest_runtest_logstart(nodeid=item.nodeid, location=item.location)
    runtestprotocol(item, log=False, nextitem=nextitem)
    for report in runtestprotocol(item, log=False, nextitem=nextitem):
        item.ihook.pytest_runtest_logreport(report=report)
    item.ihook.pytest_runtest_logfinish(nodeid=item.nodeid, location=item.location)
    return True
"""

NESTED = """
from asyncflow import WorkflowStep, run_pipeline
from asyncflow.testing import run_in_virtual_time


def run(name):
    async def action(): ...
    run_in_virtual_time(run_pipeline([WorkflowStep(name, action)]))


def test_outer(pytester):
    run("outer")
    inner = "from test_nested import run; test_inner = lambda: [run('inner'), 1 / 0]"
    pytester.makepyfile(inner)
    pytester.runpytest_inprocess("-p", "no:asyncio").assert_outcomes(failed=1)
    assert False
"""


def test_a_failed_test_shows_no_runs_of_its_first_attempt_or_of_another_session(tmp_path):
    (tmp_path / "conftest.py").write_text(REPEATED)
    (tmp_path / "test_nested.py").write_text(NESTED)

    done = run_pytest(tmp_path, "-p", "no:asyncio")

    assert "1 failed" in done.stdout
    assert done.stdout.count("SUCCESS   outer |") == 1, done.stdout
    assert done.stdout.count("SUCCESS   inner |") > 1


WRONG = {
    "(7)": "the marker virtual_time takes seed=... and nothing else",
    "(seed=[7])": "test_marked_1.py::test_marked: the marker virtual_time takes an int as its seed",
    "": "remove anyio_backend from the test's parametrize",
}


def test_wrong_uses_of_the_marker_are_reported(tmp_path):
    for number, arguments in enumerate(WRONG):
        (tmp_path / f"test_marked_{number}.py").write_text(f"""
import pytest


@pytest.mark.anyio
@pytest.mark.virtual_time{arguments}
@pytest.mark.parametrize("anyio_backend", ["asyncio", "trio"])
async def test_marked(): ...
""")

    done = run_pytest(tmp_path, "-p", "no:asyncio")

    for error in WRONG.values():
        assert error in done.stdout


@pytest.mark.parametrize("host", ["auto", "anyio"])
def test_a_marker_that_comes_too_late_is_refused(tmp_path, host):
    options, _, mark, _ = HOSTS[host]
    (tmp_path / "conftest.py").write_text("""
def pytest_collection_modifyitems(items):
    for item in items:
        if "late" in item.name:
            item.add_marker("virtual_time")
""")
    (tmp_path / "test_marked.py").write_text(f"""
import asyncio
import pytest

{f"pytestmark = pytest.mark.{mark}" if mark else ""}


async def test_late():
    assert asyncio.get_running_loop().time() == 1_000


@pytest.mark.parametrize("number", [pytest.param(0, marks=pytest.mark.virtual_time)])
async def test_of_a_parameter(number):
    assert asyncio.get_running_loop().time() == 1_000


def test_plain_is_late(): ...
""")

    done = run_pytest(tmp_path, *options, "-o", "asyncio_default_fixture_loop_scope=function")

    assert "1 passed" in done.stdout, done.stdout
    assert "2 errors" in done.stdout
    assert done.stdout.count("after pytest had collected this test") == 2


@pytest.mark.parametrize("mode", ["auto", "strict"])
def test_the_marker_works_where_anyio_only_chooses_the_backend(tmp_path, mode):
    (tmp_path / "test_marked.py").write_text("""
import asyncio
import pytest
from asyncflow.testing import VirtualTimeLoop


@pytest.fixture
def anyio_backend():
    return "asyncio"


@pytest.mark.virtual_time
async def test_marked(anyio_backend):
    assert isinstance(asyncio.get_running_loop(), VirtualTimeLoop)
""")

    done = run_pytest(
        tmp_path,
        *("-o", f"asyncio_mode={mode}", "-o", "asyncio_default_fixture_loop_scope=function"),
    )

    assert "1 passed" in done.stdout, done.stdout


def test_a_marked_async_test_of_unittest_is_refused(tmp_path):
    (tmp_path / "test_case.py").write_text("""
import unittest
import pytest


@pytest.mark.virtual_time
class TestCase(unittest.IsolatedAsyncioTestCase):
    async def test_marked(self): ...

    def test_plain(self): ...
""")

    done = run_pytest(tmp_path)

    assert "1 passed" in done.stdout
    assert "1 error" in done.stdout
    assert "call asyncflow.testing.run_in_virtual_time in a plain one" in done.stdout


def test_a_suite_that_does_not_use_asyncflow_does_not_import_it(tmp_path):
    (tmp_path / "test_plain.py").write_text("""
import sys


def test_plain():
    assert "pytest_asyncflow" in sys.modules
    assert not [name for name in sys.modules if name.partition(".")[0] == "asyncflow"]
""")

    assert "1 passed" in run_pytest(tmp_path).stdout
