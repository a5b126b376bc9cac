"""The built site, once for all tests and all of their processes."""

from __future__ import annotations

import fcntl
import importlib.util
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

# The same browser as that of the tests of the run pages.
from browser.conftest import browser  # noqa: F401

ROOT = Path(__file__).parents[2]


def build(config: Path, site: Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "mkdocs", "build", "--strict", "-f", config, "-d", site],
        cwd=ROOT,
        env={**os.environ, "NO_MKDOCS_2_WARNING": "1", "PYTHONWARNINGS": ""},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=240,
    )


@pytest.fixture(scope="session")
def needs_mkdocs() -> None:
    for module in ("mkdocs", "mkdocstrings"):
        if importlib.util.find_spec(module) is None:
            pytest.skip("these tests need what builds the documentation: make test-all WITH=docs")
    if shutil.which("npm") is None:
        pytest.skip("these tests need npm, which downloads scripts of the site")


@pytest.fixture(scope="session")
def built_site(needs_mkdocs: None, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return the folder of the site."""
    folder = tmp_path_factory.getbasetemp()
    if "PYTEST_XDIST_WORKER" in os.environ:
        folder = folder.parent
    with (folder / "site.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not (folder / "built").exists():
            built = build(ROOT / "mkdocs.yml", folder / "site")
            assert built.returncode == 0, built.stdout
            (folder / "built").touch()
    return folder / "site"
