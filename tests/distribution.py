"""Checks the distributions in a folder as their users get them: installed alone, in an empty place.

`make dist` builds them and calls this. It prints what it checks, and exits with 1 at the first
difference. With `--release` they also must say where the repository is, and README must lead there.
`--extras cli,web` installs these extras only, each of which takes an environment of its own.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import tarfile
import tempfile
import tomllib
import venv
import zipfile
from argparse import ArgumentParser
from collections.abc import Iterable
from email.message import Message
from email.parser import HeaderParser
from pathlib import Path

from tests.installed_extras import PROGRAMS
from tests.published_readme import broken_on_the_index, published

ROOT = Path(__file__).parents[1]

FIRST_RUN = """
import asyncio, sys
from importlib.metadata import version

from asyncflow import WorkflowStep, __version__, run_pipeline

async def action(): return 1

report = asyncio.run(run_pipeline([WorkflowStep("a", action)]))
assert report["a"].output == 1
assert __version__ == version("asyncflow-tiers"), __version__
loaded = {name.partition(".")[0] for name in sys.modules} - set(sys.stdlib_module_names)
print(*sorted(name for name in loaded if not name.startswith("_")))
"""
TYPED = """
from asyncflow import RunReport, StepStatus, WorkflowStep, run_pipeline

async def action() -> int: return 1

async def main() -> StepStatus:
    report: RunReport = await run_pipeline([WorkflowStep("a", action, max_retries=2)])
    return report["a"].status
"""


METADATA_VERSION = "2.4"
"""The newest that the twine of the publishing action in `.github/workflows/release.yml` takes."""


def main(folder: Path, *, is_release: bool, extras: Iterable[str]) -> None:
    (wheel,), (sdist,) = folder.glob("*.whl"), folder.glob("*.tar.gz")
    with tempfile.TemporaryDirectory(prefix="asyncflow-dist-") as place:
        check_as_the_action_does(wheel, sdist, Path(place))
        for distribution in (sdist, wheel):
            metadata = metadata_of(distribution)
            check_metadata(metadata)
            check_readme(metadata, is_release=is_release)
        check_sdist(wheel, sdist)
        check_installed(wheel, Path(place))
        for extra in sorted(extras):
            check_extra(extra, wheel, Path(place) / extra)
    print(f"{wheel.name} and {sdist.name} are what they should be")


def check_as_the_action_does(wheel: Path, sdist: Path, place: Path) -> None:
    """Check what the publishing action of release.yml does, with its versions of what it uses."""
    groups = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["dependency-groups"]
    python = make_environment(place / "action", *groups["publish"])
    told = run(python, "-m", "twine", "check", "--strict", wheel.resolve(), sdist.resolve())
    expect(f"what {', '.join(groups['publish'])} say", told.count("PASSED"), 2)


def metadata_of(distribution: Path) -> Message:
    """Read what the index is told of a wheel or an sdist."""
    if distribution.suffix == ".whl":
        with zipfile.ZipFile(distribution) as wheel:
            (path,) = (name for name in wheel.namelist() if name.endswith(".dist-info/METADATA"))
            return HeaderParser().parsestr(wheel.read(path).decode())
    with tarfile.open(distribution) as sdist:
        (path,) = (name for name in sdist.getnames() if name.endswith("/PKG-INFO"))
        file = sdist.extractfile(path)
        assert file
        return HeaderParser().parsestr(file.read().decode())


def check_metadata(metadata: Message) -> None:
    required = [each for each in metadata.get_all("Requires-Dist", []) if "extra ==" not in each]
    expect("the core needs anyio alone", [each.partition(">")[0] for each in required], ["anyio"])
    expect("the extras", {*metadata.get_all("Provides-Extra", [])}, {*PROGRAMS})
    expect("the version of metadata", metadata["Metadata-Version"], METADATA_VERSION)
    expect("the licence", metadata["License-Expression"], "MIT")


def check_readme(metadata: Message, *, is_release: bool) -> None:
    """Check that the index can show README, and that what it leads to is where it says."""
    from readme_renderer.markdown import render  # as the index renders it

    readme = metadata.get_payload()
    assert isinstance(readme, str)
    page = render(readme, variant="GFM") or ""
    expect("README is a page with a table and code", "<table>" in page and "<pre" in page, True)
    if is_release:
        urls = [url.partition(",")[0] for url in metadata.get_all("Project-URL", [])]
        expect("[project.urls] in pyproject.toml names the Repository", "Repository" in urls, True)
    else:
        readme = published(readme, "https://example.com/asyncflow", "v0")
    broken = [*broken_on_the_index(readme)]
    expect("what README shows or links to, and the index lacks", broken, [])


def check_sdist(wheel: Path, sdist: Path) -> None:
    """Check that the source has whatever the wheel has, and what its tests and pages need."""
    with tarfile.open(sdist) as archive:
        sources = {name.partition("/")[2] for name in archive.getnames()}
    with zipfile.ZipFile(wheel) as archive:
        modules = {name for name in archive.namelist() if ".dist-info/" not in name}
    expect("the sdist lacks", modules - sources, set())
    needed = {"tests/conftest.py", "tests/public_api.txt", "docs/index.md", "mkdocs.yml"}
    expect("what tests and pages need, and the sdist lacks", needed - sources, set())
    left_over = {name for name in sources if "__pycache__" in name or name.endswith(".db-journal")}
    expect("what has no place in the sdist", left_over, set())


def check_installed(wheel: Path, place: Path) -> None:
    python = make_environment(place / "venv", wheel.resolve())
    imported = {*run(python, "-c", FIRST_RUN, at=place).split()}
    imported -= {"typing_extensions", "sitecustomize"}  # Linux distributions have one of the latter
    expect("what a first run imports", imported, {"anyio", "asyncflow"})
    etl = run(python, "-m", "asyncflow.examples.etl", at=place)
    expect("the example passes", "Pipeline PASSED" in etl, True)
    without_extras = subprocess.run(
        [place / "venv" / "bin" / "asyncflow", "runs"], capture_output=True, text=True, cwd=place
    )
    expect("the command names its extra", "asyncflow-tiers[cli]" in without_extras.stderr, True)
    (place / "typed.py").write_text(TYPED, encoding="utf-8")
    mypy: list[str | Path] = [
        sys.executable,
        "-m",
        "mypy",
        "--strict",
        "--python-executable",
        python,
    ]
    run(*mypy, "typed.py", at=place)
    check_types(place / "venv")


def check_extra(extra: str, wheel: Path, place: Path) -> None:
    """Check that an extra brings all that its adapter needs, in the versions of today."""
    python = make_environment(place, f"asyncflow-tiers[{extra}] @ {wheel.resolve().as_uri()}")
    run(python, "-c", PROGRAMS[extra], at=place)
    print(f"the extra {extra} alone does what it is for: as expected")
    shutil.rmtree(place)  # that of Ray is large


def make_environment(place: Path, *packages: str | Path) -> Path:
    """Make an environment with these packages, and what they need, in it; return its Python."""
    python = place / "bin" / "python"
    if shutil.which("uv"):  # as the Makefile does
        run("uv", "--quiet", "venv", "--python", sys.executable, place)
        run("uv", "--quiet", "pip", "install", "--python", python, *packages)
        run("uv", "--quiet", "pip", "check", "--python", python)
    else:
        venv.create(place, with_pip=True)
        pip: list[str | Path] = [python, "-m", "pip", "--quiet", "--disable-pip-version-check"]
        run(*pip, "install", *packages)
        run(*pip, "check")
    return python


def check_types(environment: Path) -> None:
    """Check that what public classes and functions have says its type, so that no checker guesses.

    What their types are made of may be private, and need not say as much.
    """
    command = [sys.executable, "-m", "pyright", "--ignoreexternal", "--outputjson"]
    found = subprocess.run(
        [*command, "--verifytypes", "asyncflow"],
        capture_output=True,
        text=True,
        cwd=environment,
        env=os.environ
        | {
            "VIRTUAL_ENV": str(environment),
            "PATH": f"{environment / 'bin'}{os.pathsep}{os.environ['PATH']}",
        },
    )
    symbols = json.loads(found.stdout)["typeCompleteness"]["symbols"]
    classes = {
        each["name"].rpartition(".")[2]
        for each in symbols
        if each["isExported"] and each["category"] == "class"
    }
    expect("pyright has seen the public classes", len(classes) > 80, True)
    silent = {
        each["name"]
        for each in symbols
        if each["name"].split(".")[-2] in classes
        or (each["isExported"] and each["category"] == "function")
        if any("Type is missing" in told["message"] for told in each["diagnostics"])
    }
    expect("public names that don't say their type", silent, set())


def run(*command: str | Path, at: Path | None = None) -> str:
    environment = {name: value for name, value in os.environ.items() if "PYTHON" not in name}
    done = subprocess.run(
        [*map(str, command)], capture_output=True, text=True, cwd=at, env=environment
    )
    if done.returncode:
        sys.exit(f"{' '.join(map(str, command))}\n{done.stdout}{done.stderr}")
    return done.stdout


def expect(what: str, found: object, expected: object) -> None:
    if found != expected:
        sys.exit(f"{what}: {found}\nnot {expected}")
    print(f"{what}: as expected")


if __name__ == "__main__":
    parser = ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--release", action="store_true")
    parser.add_argument("--extras", default=",".join(PROGRAMS))
    given = parser.parse_args()
    main(given.folder, is_release=given.release, extras=filter(None, given.extras.split(",")))
