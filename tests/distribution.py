"""Checks the distributions in a folder as their users get them: installed alone, in an empty place.

`make dist` builds them and calls this. It prints what it checks, and exits with 1 at the first
difference. With `--release` they also must say where the repository is, and README must lead there.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tarfile
import tempfile
import venv
import zipfile
from email.message import Message
from email.parser import HeaderParser
from pathlib import Path

from tests.published_readme import broken_on_the_index, published

EXTRAS = {"cli", "cloudpickle", "dask", "journal", "otel", "postgres", "ray", "report", "web"}

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


def main(folder: Path, *, is_release: bool) -> None:
    (wheel,), (sdist,) = folder.glob("*.whl"), folder.glob("*.tar.gz")
    for distribution in (sdist, wheel):
        metadata = metadata_of(distribution)
        check_metadata(metadata)
        check_addresses(metadata, is_release=is_release)
    check_sdist(wheel, sdist)
    with tempfile.TemporaryDirectory(prefix="asyncflow-dist-") as place:
        check_installed(wheel, Path(place))
    print(f"{wheel.name} and {sdist.name} are what they should be")


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
    expect("the extras", {*metadata.get_all("Provides-Extra", [])}, EXTRAS)
    expect("the version of metadata", metadata["Metadata-Version"], METADATA_VERSION)
    expect("the licence", metadata["License-Expression"], "MIT")


def check_addresses(metadata: Message, *, is_release: bool) -> None:
    readme = metadata.get_payload()
    assert isinstance(readme, str)
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
    venv.create(place / "venv", with_pip=True)
    python = place / "venv" / "bin" / "python"
    run(python, "-m", "pip", "--quiet", "--disable-pip-version-check", "install", wheel.resolve())
    run(python, "-m", "pip", "check")
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
    run(
        sys.executable,
        "-m",
        "mypy",
        "--strict",
        "--python-executable",
        python,
        "typed.py",
        at=place,
    )
    check_types(place / "venv")


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
    main(Path(sys.argv[1]), is_release="--release" in sys.argv)
