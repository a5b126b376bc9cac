"""The sources of the site."""

from __future__ import annotations

import ast
import importlib.util
import re
from pathlib import Path
from types import ModuleType

import pytest
from public_api import MODULES

ROOT = Path(__file__).parents[2]
PAGES = ROOT / "docs" / "reference" / "api"


def exported(module: str) -> list[str]:
    """Read the ``__all__`` of a module, which needs nothing that the module imports."""
    path = ROOT / module.replace(".", "/")
    source = (path / "__init__.py" if path.is_dir() else path.with_suffix(".py")).read_text("utf-8")
    found = re.search(r"^__all__ = (\[.*?\])", source, re.MULTILINE | re.DOTALL)
    assert found is not None
    return list(ast.literal_eval(found[1]))


@pytest.mark.parametrize("module", [*MODULES, "asyncflow.engines.ray"])
def test_each_public_name_has_one_entry(module: str) -> None:
    page = PAGES / f"{module.removeprefix('asyncflow.')}.md"
    entries = re.findall(r"^::: (\S+)$", page.read_text(encoding="utf-8"), re.MULTILINE)

    assert sorted(entries) == sorted([module, *(f"{module}.{name}" for name in exported(module))])


def test_there_is_no_page_of_another_module() -> None:
    modules = {module.removeprefix("asyncflow.") for module in MODULES} | {"engines.ray", "index"}

    assert {page.stem for page in PAGES.glob("*.md")} == modules


@pytest.fixture(scope="module")
def hooks() -> ModuleType:
    pytest.importorskip("mkdocs")
    pytest.importorskip("griffe")
    spec = importlib.util.spec_from_file_location("site_hooks", ROOT / "docs/site/hooks.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.parametrize(
    ("link", "leads_to"),
    [
        ("../../asyncflow/events.py", "https://git.example/a/blob/main/asyncflow/events.py"),
        ("../../asyncflow/events.py#L3", "https://git.example/a/blob/main/asyncflow/events.py#L3"),
        ("../../examples/service", "https://git.example/a/tree/main/examples/service"),
        ("../../CHANGELOG.md", "../changelog.md"),
        ("../../README.md#two-commands", "../index.md#two-commands"),
        ("web.md", "web.md"),
        ("../reference/command-line.md#run", "../reference/command-line.md#run"),
        ("#here", "#here"),
        ("https://docs.python.org", "https://docs.python.org"),
    ],
)
def test_a_link_leads_to_a_page_or_to_the_repository(
    hooks: ModuleType, link: str, leads_to: str
) -> None:
    source, page = "docs/guides/engines.md", "guides/engines.md"

    assert hooks._site_url(link, source, page, "https://git.example/a/") == leads_to


def test_without_a_repository_a_link_to_it_leads_nowhere(hooks: ModuleType) -> None:
    link = "../../asyncflow/events.py"

    assert hooks._site_url(link, "docs/guides/web.md", "guides/web.md", None) is None
