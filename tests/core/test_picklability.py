"""Threads and processes take plain functions only; a process must be able to import them."""

from __future__ import annotations

import functools
import os
import subprocess
import sys
from pathlib import Path
from types import MethodType, ModuleType
from typing import Any

import pytest

from asyncflow import WorkflowStep

ROOT = Path(__file__).parents[2]


class Caller:
    """An object with an async ``__call__``."""

    async def __call__(self) -> None: ...

    def plain(self) -> None: ...


class Large:
    """An object that must not be pickled for the check."""

    def method(self) -> str:
        return "ran"

    @classmethod
    def of_class(cls) -> None: ...

    def __reduce__(self) -> Any:
        raise AssertionError("pickled")


def plain() -> None: ...


@pytest.mark.parametrize("runs_in", ["thread", "process"])
@pytest.mark.parametrize(
    "action",
    [
        Caller(),
        functools.partial(Caller()),
        MethodType(Caller(), 1),
        functools.partial(Caller().__call__),
    ],
)
def test_an_async_callable_object_is_refused_for_a_thread_or_a_process(
    action: Any, runs_in: Any
) -> None:
    with pytest.raises(TypeError, match="is for plain ones; leave it out"):
        WorkflowStep("a", action, runs_in=runs_in)


@pytest.mark.parametrize("runs_in", ["thread", "process"])
@pytest.mark.parametrize("action", [Caller, Caller().plain, functools.partial(plain), os.getcwd])
def test_a_plain_callable_is_accepted(action: Any, runs_in: Any) -> None:
    assert WorkflowStep("a", action, runs_in=runs_in).action is action


@pytest.mark.parametrize("action", [Large().method, Large.of_class])
def test_the_check_does_not_pickle_the_object_of_a_method(action: Any) -> None:
    assert WorkflowStep("a", action, runs_in="process").action is action


def test_a_method_of_a_local_class_cannot_run_in_a_process() -> None:
    class Local:
        def method(self) -> None: ...

    with pytest.raises(TypeError, match="defined at the top of a module"):
        WorkflowStep("a", Local().method, runs_in="process")


@pytest.fixture
def shell(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    """A main module without a spec and a file, as in a shell."""
    main = ModuleType("__main__")
    monkeypatch.setitem(sys.modules, "__main__", main)
    exec(
        "def function(): ...\n"
        "class Class:\n"
        "    def method(self): ...\n"
        "    def __call__(self): ...\n",
        main.__dict__,
    )
    return main


def derived(main: ModuleType) -> Any:
    """Return a method defined in a file, of an object whose class is not."""
    kind = type("Derived", (Caller,), {"__module__": "__main__"})
    main.__dict__["Derived"] = kind
    return kind().plain


ACTIONS = [
    lambda main: main.function,
    lambda main: functools.partial(main.function),
    lambda main: main.Class(),
    lambda main: main.Class().method,
    derived,
]


@pytest.mark.parametrize("take", ACTIONS)
@pytest.mark.parametrize("path", [None, "<stdin>"])
def test_a_function_defined_in_a_shell_cannot_run_in_a_process(
    take: Any, path: str | None, shell: Any
) -> None:
    if path is not None:
        shell.__file__ = path

    with pytest.raises(TypeError, match=r"a notebook or python -c defines; define it in a file"):
        WorkflowStep("a", take(shell), runs_in="process")


@pytest.mark.parametrize("attribute", ["__file__", "__spec__"])
@pytest.mark.parametrize("take", ACTIONS)
def test_a_function_defined_in_a_script_can_run_in_a_process(
    take: Any, attribute: str, shell: Any
) -> None:
    setattr(shell, attribute, "script.py")

    assert WorkflowStep("a", take(shell), runs_in="process").runs_in == "process"


def test_a_function_defined_in_a_shell_can_run_in_a_thread(shell: Any) -> None:
    assert WorkflowStep("a", shell.function, runs_in="thread").runs_in == "thread"


@pytest.mark.process
@pytest.mark.parametrize("how", ["-c", "-"])
def test_a_function_defined_by_python_c_or_stdin_is_refused_at_construction(how: str) -> None:
    code = (
        "def function(): ...\n"
        "from asyncflow import WorkflowStep\n"
        "WorkflowStep('a', function, runs_in='process')\n"
    )
    command = [sys.executable, how, code] if how == "-c" else [sys.executable, how]

    done = subprocess.run(
        command, cwd=ROOT, input=code, capture_output=True, text=True, check=False
    )

    assert done.returncode == 1
    assert "define it in a file, and import it from there" in done.stderr
