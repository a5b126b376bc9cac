"""The rules of the architecture that `lint-imports` cannot check: purity, names, inheritance.

The contracts in `pyproject.toml` say which package may import which.
"""

from __future__ import annotations

import ast
import json
import re
import subprocess
import sys
import tomllib
from collections import Counter
from collections.abc import Iterator
from itertools import chain
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parents[1] / "asyncflow"
MODULES = {
    ".".join(path.relative_to(PACKAGE.parent).with_suffix("").parts).removesuffix(".__init__"): (
        ast.parse(path.read_text(encoding="utf-8"))
    )
    for path in sorted(PACKAGE.rglob("*.py"))
}
CORE = [name for name in MODULES if name.startswith(("asyncflow._core.", "asyncflow.events"))]
NEEDED = {"anyio", "idna", "sniffio", "typing_extensions", "exceptiongroup"}
"""What ``import asyncflow`` may load beyond the standard library: anyio and its dependencies."""


def calls_in(tree: ast.Module) -> Iterator[ast.Call]:
    return (node for node in ast.walk(tree) if isinstance(node, ast.Call))


def classes() -> Iterator[tuple[str, ast.ClassDef]]:
    for module, tree in MODULES.items():
        for node in ast.walk(tree):
            if isinstance(node, ast.ClassDef):
                yield module, node


def test_the_core_does_no_input_or_output() -> None:
    called = {
        (module, call.func.id)
        for module in CORE
        for call in calls_in(MODULES[module])
        if isinstance(call.func, ast.Name)
    }

    assert not {
        (module, name)
        for module, name in called
        if name in {"print", "open", "input", "eval", "exec"}
    } - {("asyncflow._core.record", "exec")}  # it compiles `__init__`, as dataclasses do


def test_only_the_users_module_is_imported_by_a_string() -> None:
    by_string = {
        (module, ast.unparse(call.args[0]))
        for module, tree in MODULES.items()
        for call in calls_in(tree)
        if ast.unparse(call.func).endswith(("import_module", "__import__"))
    }

    assert by_string == {("asyncflow._cli.loader", "name")}


def test_no_import_is_relative() -> None:
    relative = [
        (module, node.lineno)
        for module, tree in MODULES.items()
        for node in ast.walk(tree)
        if isinstance(node, ast.ImportFrom) and node.level
    ]

    assert not relative


def test_no_private_name_is_imported_from_another_module() -> None:
    private = {
        (module, alias.name)
        for module, tree in MODULES.items()
        for node in ast.walk(tree)
        if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("asyncflow.")
        for alias in node.names
        if alias.name.startswith("_") and f"{node.module}.{alias.name}" not in MODULES
    }

    assert not private


DECIDES_NOTHING = {"action_data", "asyncio_compat", "outcome", "run_scope", "watchdog"}
"""Modules of the kernel with facts of asyncio and words: what an event has, what an error says."""
KERNEL = {
    name
    for name in MODULES
    if name.startswith("asyncflow._kernel.") and name.rpartition(".")[2] not in DECIDES_NOTHING
}

POLICY_WORDS = {
    *("cache", "cached", "checkpointing", "deadline", "drain", "draining", "fallback", "handle"),
    *("heartbeat", "journal", "link", "log", "logs", "nested", "note", "notes", "observer"),
    *("observers", "persistence", "pool", "prints", "resource", "resources", "saved", "secret"),
    *("secrets", "session", "signal", "signals", "slots", "suspend", "tokens", "waits", "when"),
    *("cached", "cleanup", "cleanups", "condition", "conditions", "crash", "crashes", "engine"),
    *("engines", "maps", "mapped", "mapping", "permit", "permits", "process", "remote"),
    *("runs_in", "thread", "threads", "ticket", "turns", "worker", "workers"),
}
"""Words of the names that belong to policies."""


def test_the_kernel_names_no_policy() -> None:
    """A policy hooks into a run (`asyncflow._kernel.policy`): nothing asks for it by name."""
    named = {
        (module, name)
        for module in KERNEL
        for node in ast.walk(MODULES[module])
        for name in names_in(node)
        if POLICY_WORDS & {*name.lower().split("_")}
    }

    assert not named


def test_no_condition_in_the_rest_of_the_kernel_names_a_policy() -> None:
    named = {
        (module, name)
        for module in DECIDES_NOTHING
        for node in ast.walk(MODULES[f"asyncflow._kernel.{module}"])
        if isinstance(node, ast.If | ast.IfExp | ast.While | ast.comprehension)
        for test in (node.ifs if isinstance(node, ast.comprehension) else [node.test])
        for name in chain.from_iterable(map(names_in, ast.walk(test)))
        if POLICY_WORDS & {*name.lower().split("_")}
    }

    assert not named


NEIGHBOURS = {
    ("draining", "resources"),  # it stops those from being opened
    ("draining", "waits"),  # a run that only waits ends its segment
    ("notes", "observers"),  # what is said goes to observers as events do
    ("notes", "run_link"),  # and what is streamed to the readers of a handle
    ("observers", "notes"),  # an observer must not be told what its own log records say
    ("observers", "loop_monitor"),  # no task is blamed for an observer that blocks the loop
    ("pool_needs", "permits"),  # who takes what a node needs
    ("remote_attempt", "worker_steps"),  # an engine may abandon a thread of this process
    ("resources", "waits"),  # they are opened when something has come
    ("run_deadline", "resources"),  # it may pass while they are opened
    ("run_link", "draining"),  # a handle drains its run
    ("run_link", "waits"),  # and sends it signals
    ("waits", "run_deadline"),  # it does not count while a run only waits
    ("worker_steps", "permits"),  # who keeps what an abandoned thread holds
}
"""Which modules of policies know another: the list hands it to them."""


def test_a_policy_knows_no_other_unless_it_is_said_here() -> None:
    modules = {
        module.rpartition(".")[2]: tree
        for module, tree in MODULES.items()
        if module.startswith("asyncflow._policies.")
        and any("Policy" in map(ast.unparse, node.bases) for node in ast.walk(tree)
                if isinstance(node, ast.ClassDef))
    }  # fmt: skip
    imported = {
        (knowing, node.module.rpartition(".")[2])
        for knowing, tree in modules.items()
        for node in ast.walk(tree)
        if isinstance(node, ast.ImportFrom) and node.module
        and node.module.startswith("asyncflow._policies.")
    }  # fmt: skip

    assert {edge for edge in imported if edge[1] in modules} == NEIGHBOURS


def names_in(node: ast.AST) -> Iterator[str]:
    """Return the names that a node of code has by itself."""
    match node:
        case ast.Name(id=name) | ast.arg(arg=name) | ast.Attribute(attr=name):
            yield name
        case ast.keyword(arg=str(name)) | ast.FunctionDef(name=name) | ast.ClassDef(name=name):
            yield name
        case ast.ImportFrom(module=str(module), names=aliases):
            yield module.rpartition(".")[2]
            yield from (alias.name for alias in aliases)


def test_no_class_name_is_defined_twice() -> None:
    names = Counter(node.name.lstrip("_") for _, node in classes())

    assert not {name for name, count in names.items() if count > 1}


def test_no_chain_of_inheritance_has_more_than_two_classes() -> None:
    """Behaviour is composed. Exceptions and protocols are exempt."""
    bases = {node.name: {ast.unparse(base).partition("[")[0] for base in node.bases}
             for _, node in classes()}  # fmt: skip

    def depth(name: str) -> int:
        return 1 + max((depth(base) for base in bases[name] if base in bases), default=0)

    deep = {name for name in bases if depth(name) > 2}

    assert not {name for name in deep if not name.endswith("Error") and not is_protocol(name)}


def is_protocol(name: str) -> bool:
    return any(
        node.name == name and "Protocol" in map(ast.unparse, node.bases) for _, node in classes()
    )


def test_no_method_is_abstract_outside_of_a_protocol() -> None:
    """A class that calls its own abstract method is one object spread over several files."""
    abstract = [
        (module, node.name)
        for module, tree in MODULES.items()
        for node in ast.walk(tree)
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)
        and "abstractmethod" in map(ast.unparse, node.decorator_list)
    ]

    assert not abstract


def test_no_module_assigns_a_constant_twice() -> None:
    """A renaming can give two constants one name, and then the first value is gone."""
    twice = []
    for module, tree in MODULES.items():
        names = [
            target.id
            for node in tree.body
            if isinstance(node, ast.Assign)
            for target in node.targets
            if isinstance(target, ast.Name) and target.id.isupper()
        ]
        twice += [(module, name) for name, count in Counter(names).items() if count > 1]

    assert not twice


def test_the_first_line_of_every_module_is_a_sentence() -> None:
    def first_line(tree: ast.Module) -> str:
        return (ast.get_docstring(tree) or "").partition("\n")[0]

    assert not [name for name, tree in MODULES.items() if not first_line(tree).endswith((".", ":"))]


def test_every_public_module_lists_its_public_names() -> None:
    wrong = []
    for module, tree in MODULES.items():
        if len(tree.body) == 1 or any(part.startswith("_") for part in module.split(".")):
            continue  # a package without code, or private by its name
        exported = [
            [ast.literal_eval(item) for item in node.value.elts]
            for node in tree.body
            if isinstance(node, ast.Assign)
            and isinstance(node.value, ast.List | ast.Tuple)
            and [ast.unparse(target) for target in node.targets] == ["__all__"]
        ]
        if len(exported) != 1 or not set(exported[0]) <= names_of(tree):
            wrong.append(module)

    assert not wrong


def names_of(tree: ast.Module) -> set[str]:
    names: set[str] = set()
    late = [node for node in tree.body if isinstance(node, ast.If)]  # loaded when asked for
    for node in [*tree.body, *(inner for branch in late for inner in branch.body)]:
        if isinstance(node, ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
            names.add(node.name)
        elif isinstance(node, ast.Assign):
            names.update(target.id for target in node.targets if isinstance(target, ast.Name))
        elif isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name):
            names.add(node.target.id)
        elif isinstance(node, ast.ImportFrom):
            names.update(alias.asname or alias.name for alias in node.names)
    return names


def drawn() -> list[str]:
    """Return the packages and rooms on the map of ARCHITECTURE.md, in its order."""
    page = (PACKAGE.parent / "ARCHITECTURE.md").read_text(encoding="utf-8")
    package, found = "", list[str]()
    for line in page.partition("```text\n")[2].partition("```")[0].splitlines():
        indent, names = re.findall(r"^( *)(\w+(?: · \w+)*)", line)[0]
        if line.startswith("  ground floor "):
            continue
        found += [f"{package}.{name}" if indent else name for name in names.split(" · ")]
        if not indent:
            package = names.partition(" · ")[0]
    return found


def test_the_map_has_each_package_and_each_room() -> None:
    modules = [name.split(".")[1:] for name in MODULES if name != "asyncflow"]
    packages = {".".join(path[:-1]) for path in modules} - {""}
    at_the_top = {path[0] for path in modules if len(path) == 1}

    assert sorted(drawn()) == sorted(packages | at_the_top)


def test_each_private_package_says_what_is_in_it_what_it_may_import_and_what_calls_it() -> None:
    packages = {name.rpartition(".")[0] for name in MODULES} & MODULES.keys()
    texts = {
        name: " ".join((ast.get_docstring(MODULES[name]) or "").split())
        for name in packages
        if "._" in name
    }

    assert not [name for name, text in texts.items() if " may import " not in text]
    assert not [name for name, text in texts.items() if len(re.findall(r"\.(?= |$)", text)) < 3]


def test_the_map_has_the_order_of_the_import_contracts() -> None:
    with (PACKAGE.parent / "pyproject.toml").open("rb") as file:
        contracts = tomllib.load(file)["tool"]["importlinter"]["contracts"]
    for contract in contracts:
        if contract["type"] != "layers":
            continue
        within = contract.get("containers", ["asyncflow"])[0].removeprefix("asyncflow.")
        prefix = "" if within == "asyncflow" else f"{within}."
        layers = [
            {prefix + name.strip().removeprefix("asyncflow.") for name in re.split("[|:]", layer)}
            for layer in contract["layers"]
        ]
        heights = [at for name in drawn() for at, layer in enumerate(layers) if name in layer]

        assert heights == sorted(heights), contract["name"]
        assert len(heights) > 1, contract["name"]


def imported_by(statement: str) -> set[str]:
    """Return the third-party packages that a statement loads in a new interpreter."""
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


@pytest.mark.process
@pytest.mark.parametrize(
    ("modules", "needed"),
    [
        ("asyncflow, asyncflow.events, asyncflow.logs, asyncflow.testing", NEEDED),
        ("asyncflow.journal", NEEDED | {"msgspec"}),
    ],
)
def test_an_import_loads_the_dependencies_of_its_extra_and_nothing_else(
    modules: str, needed: set[str]
) -> None:
    # Packages that every start of this interpreter loads are not counted.
    assert imported_by(f"import {modules}") <= needed


@pytest.mark.process
def test_the_import_changes_neither_the_event_loop_policy_nor_logging() -> None:
    script = """
import asyncio, logging
policy, handlers = asyncio.get_event_loop_policy(), list(logging.getLogger().handlers)
import asyncflow
assert asyncio.get_event_loop_policy() is policy
assert logging.getLogger().handlers == handlers
assert logging.getLogger("asyncflow").level == logging.NOTSET
"""
    subprocess.run([sys.executable, "-c", script], cwd=PACKAGE.parent, check=True)


def printed_by(script: str) -> str:
    """Return what a program prints in a new interpreter."""
    done = subprocess.run(
        [sys.executable, "-c", script],
        cwd=PACKAGE.parent,
        check=True,
        capture_output=True,
        text=True,
    )
    return done.stdout


MOST_MODULES = 39 if sys.version_info >= (3, 12) else 40
"""How many modules of asyncflow a plain run may load: what few runs need is loaded with that.

The `__init__` of a room is a docstring, and not counted.
"""


@pytest.mark.process
def test_a_plain_run_loads_few_modules_and_all_of_them_with_the_import() -> None:
    script = """
import asyncio, json, sys
from asyncflow import WorkflowStep, run_pipeline
loaded = lambda: sorted(name for name in sys.modules if name.partition(".")[0] == "asyncflow")
imported = loaded()

async def action(): await asyncio.sleep(0)

names = [("a", []), ("b", ["a"]), ("c", ["b"])]
report = asyncio.run(run_pipeline([WorkflowStep(n, action, depends_on=on) for n, on in names]))
assert report.status == "PASSED", report
print(json.dumps([imported, loaded()]))
"""
    imported, after_the_run = json.loads(printed_by(script))

    assert after_the_run == imported
    assert len([name for name in imported if len(MODULES[name].body) > 1]) <= MOST_MODULES


ON_DEMAND = {
    ("_core.pools.pool", "asyncflow._core.pools.keys"),  # few pools have keys, or are shared
    ("_core.pools.pool", "asyncflow._core.pools.shares"),
    ("_core.pipeline.signal", "asyncflow.journal._codec.signal_types"),  # it takes an extra
    ("_policies.notes", "asyncflow._policies.attachments"),  # few steps attach anything
    ("_policies.permits", "asyncflow._policies.pool_sharing"),  # few pools are shared
    ("_policies.permits", "asyncflow._policies.workers"),  # most permits are those of a pool
    ("_policies.workers", "multiprocessing"),  # slow, and threads don't need it
    ("_runtime.handle", "asyncflow._core.pipeline.signal"),  # few runs wait for one
    ("journal._database.machine", "ctypes"),  # slow, and needed on a Mac only
    ("journal._postgres", "asyncflow.journal._database.postgres"),  # it takes an extra
}
"""What modules that a plain run does not load import inside a function all the same."""

INSIDE = [["_core"], ["_kernel"], ["_policies"], ["_runtime"], ["_views"], ["events"], ["journal"]]
"""The packages whose modules import at their top."""

STARTS_FAST = {"_policies.attempt_notes", "_policies.worker_process"}
"""Modules of the program of a worker process, whose imports each attempt waits for."""


@pytest.mark.process
def test_an_import_inside_a_function_is_of_what_a_plain_run_does_not_need() -> None:
    """Only the modules that each run loads put imports off: the others are not loaded in vain.

    A command or an adapter may, since its users have asked for what it loads.
    """
    script = "import sys, asyncflow; print(*sys.modules)"
    plain = set(printed_by(script).split())
    late = {
        (module.removeprefix("asyncflow."), imported)
        for module in MODULES
        if module.split(".")[1:2] in INSIDE
        for imported in imported_late_by(MODULES[module])
        if imported.partition(".")[0] in {"asyncflow"} | sys.stdlib_module_names
        if imported in plain or module not in plain
    }

    assert {edge for edge in late if edge[0] not in STARTS_FAST} == ON_DEMAND


def imported_late_by(tree: ast.Module) -> Iterator[str]:
    """Return the modules that functions import."""
    for function in ast.walk(tree):
        if not isinstance(function, ast.FunctionDef | ast.AsyncFunctionDef):
            continue
        for node in ast.walk(function):
            if isinstance(node, ast.Import):
                yield from (alias.name for alias in node.names)
            elif isinstance(node, ast.ImportFrom):
                assert node.module is not None
                inner = [f"{node.module}.{alias.name}" for alias in node.names]
                yield from (name if name in MODULES else node.module for name in inner)


@pytest.mark.process
def test_a_run_imports_nothing_once_its_first_action_is_called() -> None:
    """An import would count as the time of a step, and hold up all others."""
    script = """
import asyncio, json, sys
from asyncflow import Pool, Retry, WorkflowStep, current_step, run_pipeline
loaded = lambda: {name for name in sys.modules if name.partition(".")[0] == "asyncflow"}
before, found = [], []

async def fail():
    before.append(loaded())
    raise OSError

async def numbers():
    before.append(loaded())
    return iter([1, 2])

async def take(numbers): return numbers
async def double(take): return 2 * take
async def clean(): current_step().results["a"].error
def compute(): before.append(loaded())

async def wait():
    before.append(loaded())
    await asyncio.sleep(1)

kinds = {
    "timeout": [WorkflowStep("a", wait, timeout_ms=1)],
    "deadline": [WorkflowStep("a", wait, deadline_ms=1)],
    "until": [WorkflowStep("a", numbers, retry=Retry(until=callable), max_retries=2)],
    "fallback": [WorkflowStep("a", fail, fallback=lambda error: repr(error))],
    "when": [WorkflowStep("a", fail), WorkflowStep("b", numbers, when=lambda: True)],
    "secret": [WorkflowStep("a", numbers, secret=True)],
    "retry": [WorkflowStep("a", fail, max_retries=2)],
    "clean-up": [
        WorkflowStep("a", fail), WorkflowStep("b", clean, depends_on=["a"], run_if="always")
    ],
    "iterator": [
        WorkflowStep("numbers", numbers), WorkflowStep("take", take, depends_on=["numbers"])
    ],
    "pool": [WorkflowStep("a", fail, pool=Pool(1), max_retries=2)],
    "map": [
        WorkflowStep("numbers", numbers),
        WorkflowStep("take", take, depends_on=["numbers"], map_over="numbers"),
        WorkflowStep("double", double, depends_on=["take"], map_over="take"),
    ],
    "thread": [WorkflowStep("a", compute, runs_in="thread")],
}
for kind, steps in kinds.items():
    before.clear()
    asyncio.run(run_pipeline(steps, False))
    found += [[kind, sorted(loaded() - before[0])]] if loaded() - before[0] else []
print(json.dumps(found))
"""

    assert json.loads(printed_by(script)) == []


@pytest.mark.process
def test_a_pool_has_a_clock_whoever_asks_for_it_first() -> None:
    """The driver gives pools their clock, and a program may make one before any run."""
    script = """
from asyncflow import Pool
pool = Pool(1)
pool.pause(60_000)
assert 0 < pool.stats().paused_ms <= 60_000
"""
    printed_by(script)


@pytest.mark.process
def test_the_import_does_not_load_slow_modules_that_few_users_need() -> None:
    """These take longest to import; `make bench` limits the total time."""
    script = """
import sys, anyio, asyncio
before = set(sys.modules)
import asyncflow
rare = {"dataclasses", "difflib", "json", "pathlib", "pickle", "random"}
print(*rare & set(sys.modules) - before)
"""
    assert printed_by(script) == "\n"
