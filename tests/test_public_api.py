"""The public API: its names, their module, their documentation and their types."""

from __future__ import annotations

import importlib
import inspect
import pickle
import subprocess
import sys
import tarfile
import zipfile
from importlib import metadata, resources
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
from public_api import MODULES, SNAPSHOT, public_api

import asyncflow
import asyncflow.events
import asyncflow.service
import asyncflow.testing

PUBLIC = asyncflow.__all__
ALIASES = {"Event", "NoteEvent", "RunEvent", "StepEvent"}


def test_the_public_api_is_what_the_snapshot_says() -> None:
    advice = "if the change is meant: python -m tests.public_api, and a line in CHANGELOG.md"
    assert public_api() == SNAPSHOT.read_text(encoding="utf-8"), advice


@pytest.mark.parametrize("name", MODULES)
def test_the_public_names_of_a_module_are_sorted(name: str) -> None:
    names = importlib.import_module(name).__all__

    assert names == sorted(names)


def test_nothing_else_is_visible_in_the_package() -> None:
    seen = {name for name in dir(asyncflow) if not name.startswith("_")}

    modules = {name for name in seen if isinstance(getattr(asyncflow, name), ModuleType)}
    assert seen - modules == set(PUBLIC)
    public = {
        "engines",
        "events",
        "examples",
        "github",
        "html_report",
        "journal",
        "live",
        "logs",
        "notebook",
        "otel",
        "service",
        "testing",
        "web",
    }
    assert modules <= public


def test_a_name_that_the_package_does_not_have_is_refused() -> None:
    with pytest.raises(AttributeError, match=r"^module 'asyncflow' has no attribute 'Pipelines'$"):
        asyncflow.Pipelines  # type: ignore[attr-defined]  # noqa: B018


@pytest.mark.parametrize("name", PUBLIC)
def test_a_public_name_has_asyncflow_as_its_module(name: str) -> None:
    assert getattr(asyncflow, name).__module__ == "asyncflow"


@pytest.mark.parametrize("name", [name for name in PUBLIC if name != "Observer"])
def test_a_public_name_can_be_pickled_by_its_name(name: str) -> None:
    public = getattr(asyncflow, name)

    assert pickle.loads(pickle.dumps(public)) is public


@pytest.mark.parametrize(
    "module", [asyncflow, asyncflow.events, asyncflow.service, asyncflow.testing]
)
def test_a_public_name_has_its_own_docstring(module: ModuleType) -> None:
    for name in module.__all__:
        if name in ALIASES:
            continue
        public = getattr(module, name)
        assert has_own_docstring(public), name
        if inspect.isclass(public):
            for member, value in vars(public).items():
                if not member.startswith("_") and (inspect.isfunction(value) or is_property(value)):
                    assert has_own_docstring(value), f"{name}.{member}"


def has_own_docstring(thing: Any) -> bool:
    text = thing.__doc__
    # ``dataclass`` sets its signature if there is none.
    return (
        bool(text and text.strip()) and not text.startswith(f"{thing.__name__}(")
        if (hasattr(thing, "__name__"))
        else bool(text and text.strip())
    )


def is_property(value: object) -> bool:
    return isinstance(value, property | classmethod | staticmethod)


def test_the_version_is_the_one_of_the_distribution() -> None:
    assert asyncflow.__version__.count(".") == 2
    try:
        installed = metadata.version("asyncflow-tiers")
    except metadata.PackageNotFoundError:
        pytest.skip("the distribution is not installed here, only its source is on the path")
    assert asyncflow.__version__ == installed


def test_the_package_has_the_marker_of_typed_packages() -> None:
    assert resources.files("asyncflow").joinpath("py.typed").is_file()


@pytest.mark.process
def test_the_distributions_hold_the_package_and_its_pytest_plugin(tmp_path: Path) -> None:
    subprocess.run(
        [sys.executable, "-m", "hatchling", "build", "-d", str(tmp_path)],
        cwd=Path(__file__).parents[1],
        check=True,
        capture_output=True,
    )

    (wheel,), (sdist,) = tmp_path.glob("*.whl"), tmp_path.glob("*.tar.gz")
    with zipfile.ZipFile(wheel) as archive:
        names = archive.namelist()
        (metadata_file,) = (name for name in names if name.endswith(".dist-info/METADATA"))
        # The twine that publishes takes no newer one.
        assert archive.read(metadata_file).startswith(b"Metadata-Version: 2.4\n")
    assert "asyncflow/py.typed" in names
    for package in ("html_report", "web"):
        assets = resources.files(f"asyncflow.{package}").joinpath("assets").iterdir()
        assert {f"asyncflow/{package}/assets/{asset.name}" for asset in assets} <= set(names)
    assert {name.partition("/")[0].partition("-")[0] for name in names} == {
        "asyncflow",
        "asyncflow_tiers",
        "pytest_asyncflow.py",
    }
    with tarfile.open(sdist) as archive:
        sources = {name.partition("/")[2] for name in archive.getnames()}
    assert {name for name in names if not name.startswith("asyncflow_tiers-")} <= sources


@pytest.mark.parametrize("module", ["asyncflow.events", "asyncflow.testing"])
def test_a_public_module_has_a_docstring(module: str) -> None:
    assert importlib.import_module(module).__doc__
