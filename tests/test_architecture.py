"""The house has four floors and imports only go down; every room is small and says what it is."""

from __future__ import annotations

import ast
import json
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parents[1] / "asyncflow"

FLOORS = [
    floor.split()
    for floor in (
        """
        _errors _record _text _numbers _plain _awaiting _retry _pool _payload _signature _sendable
        _step_checks _step _graph _shape _nesting _declared
        _result _signs _critical_path _diagram _report_json _report events _current
        _hints _fingerprint _story _resume
        _phases _past _queue _units _limits _history _turns _fold _state
        _events_told _step_view _recollection _view _retold
        """,
        """
        _clock _heart _slots _child _workers _engine _watchdog _monitor _items
        _shield _journal _keeper _durable
        _ledger _observers _verdicts _waits _attempts _fanout _run
        _orchestrator _pipeline _recovery
        """,
        """
        testing
        journal _rows _same _codec _thread _owner _store _sqlite _clerk _book _archive _asked
        _stored
        _inquiries _database _postgres _postgres_store
        logs otel _otel_conventions _otel_metrics _otel_spans
        live _cells _look _live_run _live_rows _live_frame _live_screen _live_prints _live_thread
        _live_lines _live_frames _axis _segments _timeline
        html_report _page _sheet _tale _gantt _dag _layout _preview _times
        web _web_site _web_serve _web_guard _web_token _web_login _web_pages
        _web_run _web_feed _web_stream _web_resume _web_actions _web_api _web_journal
        _runs_page _runs_asked _runs_scatter
        """,
        """
        __init__ examples
        __main__ _cli _cli_completion _cli_errors _cli_execution _cli_inputs _cli_journal _cli_load
        _cli_options _cli_output _cli_plan _cli_run _cli_runs _cli_show _cli_signals _cli_svg
        _cli_ui _run_names _tracebacks
        """,
    )
]
CORE, DRIVER, ADAPTERS, FACES = FLOORS
NOT_IN_THE_CORE = {"asyncio", "time", "random", "os", "sqlite3", "logging", "anyio"}
NEEDED = {"anyio", "idna", "sniffio", "typing_extensions", "exceptiongroup"}
"""What ``import asyncflow`` may import beside the standard library: anyio and what that needs."""

LINES_A_FILE, LINES_A_FUNCTION = 400, 40
EXCESSES = {"_step.__init__": 67, "_attempts._attempt": 50}
"""What may be longer: a step has many arguments, and each of them is checked and kept; and a call
costs time in what every attempt goes through."""


def modules() -> dict[str, Path]:
    """The modules of the package by the room they belong to."""
    return {
        ".".join(path.relative_to(PACKAGE).with_suffix("").parts): path
        for path in sorted(PACKAGE.rglob("*.py"))
    }


def room_of(module: str) -> str:
    return module.partition(".")[0]


def floor_of(module: str) -> int:
    return next(floor for floor, rooms in enumerate(FLOORS) if room_of(module) in rooms)


def imports_of(path: Path) -> Iterator[str]:
    """The full names of all that a module imports, wherever in it."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert not node.level, f"{path.name} has a relative import"
            assert node.module is not None
            # "from asyncflow import events" imports that module, and not what is above it.
            names = [f"{node.module}.{alias.name}" for alias in node.names]
            if not all(
                (PACKAGE.parent / f"{name.replace('.', '/')}.py").exists() for name in names
            ):
                yield node.module
            yield from names


def rooms_that(module: str, path: Path) -> set[str]:
    """The rooms of the house from which a module imports."""
    rooms = set()
    for name in imports_of(path):
        package, _, rest = name.partition(".")
        if package != "asyncflow":
            continue
        room = room_of(rest)
        rooms.add(room if any(room in floor for floor in FLOORS) else "__init__")
    return rooms - {room_of(module)}


MODULES = modules()
each_module = pytest.mark.parametrize("module", MODULES)
each_module_of_the_core = pytest.mark.parametrize("module", CORE)


def test_every_module_has_its_floor() -> None:
    assert {room_of(module) for module in MODULES} == {room for floor in FLOORS for room in floor}


def test_the_walk_through_the_house_leads_through_every_room() -> None:
    walk = (PACKAGE.parent / "docs" / "how-it-works.md").read_text(encoding="utf-8")

    named = set(re.findall(r"\(\.\./asyncflow/(\w+)\.py\)", walk))

    assert named == {room_of(module) for module in MODULES} - {"__init__", "examples"}


@each_module
def test_no_import_goes_up(module: str) -> None:
    above = {
        room for room in rooms_that(module, MODULES[module]) if floor_of(room) > floor_of(module)
    }

    assert not above


@pytest.mark.parametrize("module", [m for m in MODULES if room_of(m) in ADAPTERS])
def test_an_adapter_imports_from_the_core_and_from_its_private_rooms_only(module: str) -> None:
    private = {room for room in ADAPTERS if room.startswith("_")}

    assert rooms_that(module, MODULES[module]) <= {*CORE, *private}


@pytest.mark.parametrize("module", [m for m in MODULES if room_of(m) == "examples"])
def test_an_example_imports_what_users_import(module: str) -> None:
    assert not {room for room in rooms_that(module, MODULES[module]) if room.startswith("_")} - {
        "__init__"
    }


def test_the_core_asks_for_what_is_above_it_in_one_place_only() -> None:
    """`RunReport.to_html` is where users look for it, and the page is an adapter with an extra."""
    asked = {
        (module, node.args[0].value)
        for module in CORE
        for node in ast.walk(ast.parse(MODULES[module].read_text(encoding="utf-8")))
        if isinstance(node, ast.Call)
        and ast.unparse(node.func).endswith(("import_module", "__import__"))
        and isinstance(node.args[0], ast.Constant)
    }

    assert asked == {("_report", "asyncflow.html_report")}


def test_no_two_modules_import_each_other() -> None:
    reach = {module: rooms_that(module, MODULES[module]) for module in [*CORE, *DRIVER, *ADAPTERS]}

    for _ in reach:
        for rooms in reach.values():
            rooms.update(*(reach.get(room, ()) for room in tuple(rooms)))

    assert not {module for module, rooms in reach.items() if module in rooms}


@each_module_of_the_core
def test_the_core_has_no_clock_and_no_input_or_output(module: str) -> None:
    imported = {name.partition(".")[0] for name in imports_of(MODULES[module])}

    assert not imported & NOT_IN_THE_CORE
    assert imported - {"asyncflow"} <= sys.stdlib_module_names


@each_module_of_the_core
def test_the_core_does_not_print_read_or_write(module: str) -> None:
    called = {
        node.func.id
        for node in ast.walk(ast.parse(MODULES[module].read_text(encoding="utf-8")))
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name)
    }

    assert not called & {"print", "open", "input", "eval", "exec"}


@each_module
def test_a_module_says_in_one_sentence_what_it_is(module: str) -> None:
    text = ast.get_docstring(ast.parse(MODULES[module].read_text(encoding="utf-8")))

    assert text
    assert text.partition("\n")[0].endswith((".", ":"))


@each_module
def test_a_module_says_what_others_may_use_of_it(module: str) -> None:
    tree = ast.parse(MODULES[module].read_text(encoding="utf-8"))
    if module.endswith("__init__") and not any(
        isinstance(node, ast.stmt) for node in tree.body[1:]
    ):
        return  # a package without anything of its own

    (exported,) = [
        [ast.literal_eval(item) for item in node.value.elts]
        for node in tree.body
        if isinstance(node, ast.Assign)
        and isinstance(node.value, ast.List | ast.Tuple)
        and any(isinstance(target, ast.Name) and target.id == "__all__" for target in node.targets)
    ]

    assert len(set(exported)) == len(exported)
    assert set(exported) <= names_of(tree)


def names_of(tree: ast.Module) -> set[str]:
    names: set[str] = set()
    for node in tree.body:
        if isinstance(node, ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
            names.add(node.name)
        elif isinstance(node, ast.Assign):
            names.update(target.id for target in node.targets if isinstance(target, ast.Name))
        elif isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name):
            names.add(node.target.id)
        elif isinstance(node, ast.ImportFrom):
            names.update(alias.asname or alias.name for alias in node.names)
    return names


@each_module
def test_a_private_name_is_not_imported_from_another_module(module: str) -> None:
    tree = ast.parse(MODULES[module].read_text(encoding="utf-8"))

    private = {
        alias.name
        for node in ast.walk(tree)
        if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("asyncflow.")
        for alias in node.names
        if alias.name.startswith("_")
    }

    assert not private


@each_module
def test_a_file_is_short(module: str) -> None:
    count = len(MODULES[module].read_text(encoding="utf-8").splitlines())

    assert count <= EXCESSES.get(module, LINES_A_FILE)


@each_module
def test_a_function_is_short(module: str) -> None:
    tree = ast.parse(MODULES[module].read_text(encoding="utf-8"))

    long = {
        node.name: lines
        for node in ast.walk(tree)
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)
        and (lines := length_of(node)) > EXCESSES.get(f"{module}.{node.name}", LINES_A_FUNCTION)
    }

    assert not long


def length_of(function: ast.FunctionDef | ast.AsyncFunctionDef) -> int:
    """How many lines a function takes, without its docstring."""
    assert function.end_lineno is not None
    lines = function.end_lineno - function.lineno + 1
    if ast.get_docstring(function) is None:
        return lines
    docstring = function.body[0]
    assert docstring.end_lineno is not None
    return lines - (docstring.end_lineno - docstring.lineno + 1)


def imported_by(statement: str) -> set[str]:
    """The packages beside the standard library that a statement imports in a new interpreter."""
    script = f"""
import json, sys
before = set(sys.modules)
{statement}
print(json.dumps(sorted({{name.partition(".")[0] for name in set(sys.modules) - before}})))
"""
    done = subprocess.run(
        [sys.executable, "-c", script],
        cwd=PACKAGE.parent,
        check=True,
        capture_output=True,
        text=True,
    )
    return set(json.loads(done.stdout)) - sys.stdlib_module_names - {"asyncflow"}


@pytest.mark.parametrize(
    "module", ["asyncflow", "asyncflow.events", "asyncflow.logs", "asyncflow.testing"]
)
def test_an_import_brings_in_anyio_and_nothing_else(module: str) -> None:
    # Whether packages hook into every start of this interpreter is not asked here.
    assert imported_by(f"import {module}") <= NEEDED


def test_an_import_of_the_journal_brings_in_msgspec_too() -> None:
    assert imported_by("import asyncflow.journal") <= NEEDED | {"msgspec"}


def test_the_import_leaves_the_loop_and_the_logging_alone() -> None:
    script = """
import asyncio, logging
policy, handlers = asyncio.get_event_loop_policy(), list(logging.getLogger().handlers)
import asyncflow
assert asyncio.get_event_loop_policy() is policy
assert logging.getLogger().handlers == handlers
assert logging.getLogger("asyncflow").level == logging.NOTSET
"""
    subprocess.run([sys.executable, "-c", script], cwd=PACKAGE.parent, check=True)
