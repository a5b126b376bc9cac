"""What may run in a thread or a process: a plain function, which the process can import."""

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
    """An object that is called."""

    async def __call__(self) -> None: ...

    def plain(self) -> None: ...


class Large:
    """An object that is not to be pickled only to be looked at."""

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
def test_an_object_that_is_async_when_called_belongs_into_the_loop(
    action: Any, runs_in: Any
) -> None:
    with pytest.raises(TypeError, match="is for plain ones; leave it out"):
        WorkflowStep("a", action, runs_in=runs_in)


@pytest.mark.parametrize("runs_in", ["thread", "process"])
@pytest.mark.parametrize("action", [Caller, Caller().plain, functools.partial(plain), os.getcwd])
def test_what_is_plain_when_called_is_taken(action: Any, runs_in: Any) -> None:
    assert WorkflowStep("a", action, runs_in=runs_in).action is action


@pytest.mark.parametrize("action", [Large().method, Large.of_class])
def test_the_object_of_a_method_is_not_pickled_to_look_at_it(action: Any) -> None:
    assert WorkflowStep("a", action, runs_in="process").action is action


def test_a_method_of_a_class_in_a_function_can_not_be_sent() -> None:
    class Local:
        def method(self) -> None: ...

    with pytest.raises(TypeError, match="defined at the top of a module"):
        WorkflowStep("a", Local().method, runs_in="process")


@pytest.fixture
def shell(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    """A main module that has neither a name nor a file."""
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
    """A method that is defined in a file, of an object that is not."""
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
def test_what_a_shell_defines_can_not_be_sent(take: Any, path: str | None, shell: Any) -> None:
    if path is not None:
        shell.__file__ = path

    with pytest.raises(TypeError, match=r"a notebook or python -c defines; define it in a file"):
        WorkflowStep("a", take(shell), runs_in="process")


@pytest.mark.parametrize("attribute", ["__file__", "__spec__"])
@pytest.mark.parametrize("take", ACTIONS)
def test_what_a_script_defines_can_be_sent(take: Any, attribute: str, shell: Any) -> None:
    setattr(shell, attribute, "script.py")

    assert WorkflowStep("a", take(shell), runs_in="process").runs_in == "process"


def test_a_shell_may_run_its_functions_in_a_thread(shell: Any) -> None:
    assert WorkflowStep("a", shell.function, runs_in="thread").runs_in == "thread"


@pytest.mark.process
@pytest.mark.parametrize("how", ["-c", "-"])
def test_python_itself_is_told_at_once(how: str) -> None:
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
