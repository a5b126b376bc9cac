"""Changes each line of a module in turn, and says which changes no test has noticed.

    python -m tests.mutants asyncflow/_core/running/state.py tests/core/running/test_state.py

mutmut makes the mutants, in a copy of the working tree, and runs the given tests on each; by
default those of the core. Name as few as can notice something: it runs them once for each mutant.
"""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).parents[1]
_SHOWN = 20
"""How many surviving mutants are shown with their change."""


def main(module: str, *tests: str) -> None:
    """Run mutmut on a module, and print the mutants that survive."""
    if not ROOT.joinpath(module).is_file():
        sys.exit(
            f"there is no module {module}; name its file, such as asyncflow/_core/running/state.py"
        )
    with tempfile.TemporaryDirectory(prefix="asyncflow-mutants-") as place:
        copy = Path(place)
        for name in files():
            copy.joinpath(name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(ROOT / name, copy / name)
        select(copy / "pyproject.toml", module, tests or ("tests/core",))
        done = mutmut(copy, "run")
        if done.returncode:
            sys.exit(f"mutmut failed:\n{done.stdout[-5000:]}{done.stderr[-2000:]}")
        told = mutmut(copy, "results", "--all", "true").stdout
        ends = dict(line.strip().split(": ") for line in told.splitlines() if ": " in line)
        survived = [mutant for mutant, end in ends.items() if end == "survived"]
        for mutant in survived[:_SHOWN]:
            print(mutmut(copy, "show", mutant).stdout)
        print(f"{module}: {len(survived)} of {len(ends)} mutants survived")


def files() -> list[str]:
    """Return the files of the working tree that git knows, or would add."""
    command = ["git", "ls-files", "--cached", "--others", "--exclude-standard"]
    listed = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True).stdout
    return [name for name in listed.splitlines() if ROOT.joinpath(name).is_file()]


def select(project: Path, module: str, tests: tuple[str, ...]) -> None:
    """Let mutmut change this module alone, and run these tests."""
    before, heading, rest = project.read_text("utf-8").partition("[tool.mutmut]\n")
    own, end, after = rest.partition("\n[")
    own = re.sub(r"(?m)^(only_mutate|pytest_add_cli_args_test_selection) = .*\n", "", own)
    own += f"only_mutate = {json.dumps([module])}\n"
    own += f"pytest_add_cli_args_test_selection = {json.dumps(tests)}\n"
    project.write_text(before + heading + own + end + after, "utf-8")


def mutmut(copy: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "mutmut", *arguments]
    return subprocess.run(command, cwd=copy, capture_output=True, text=True)


if __name__ == "__main__":
    if len(sys.argv) < 2:
        sys.exit(__doc__)
    main(*sys.argv[1:])
