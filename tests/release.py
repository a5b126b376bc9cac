"""Does all of a release but the upload: checks what must be true, builds, checks and writes notes.

`.github/workflows/release.yml` calls it with the tag that was pushed and the address of the
repository. It refuses, and names all that is missing, before it builds anything:

    python -m tests.release v0.1.0 https://example.com/owner/repository

`dist` then has the distributions, their SBOM and `notes.md`, the text of the release. The address
is GitHub's: none is written down here, because none is known.

Each week a rehearsal does the same in a copy of the last commit, as if that were released today. It
says what a release would be refused for, and goes on with an address that leads nowhere:

    python -m tests.release --rehearse
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
import tarfile
import tempfile
import tomllib
from argparse import ArgumentParser
from collections.abc import Iterator
from datetime import date
from io import BytesIO
from pathlib import Path
from typing import Any

from tests.published_readme import published

ROOT = Path(__file__).parents[1]
NOT_YET = r"in a checkout, today|(?:once|[Uu]ntil) {version} is released"
"""What pages say of a version before its release."""
PAGES = ("README.md", "docs/index.md", "docs/getting-started.md")
"""The pages that say how to install."""
UNSEEN = "### Changed while it was developed"
"""The heading of what users of a release have never seen otherwise."""
NOWHERE = "https://example.com/owner/repository"
"""The address that a rehearsal has, in a domain that is reserved for examples."""


def missing(root: Path, tag: str) -> Iterator[str]:
    """Yield what must be done before this tag can be released, each with its file."""
    project = project_of(root)
    version = project["version"]
    code = root.joinpath("asyncflow/__init__.py").read_text("utf-8")
    if f'__version__ = "{version}"' not in code:
        yield f"asyncflow/__init__.py: __version__ is not {version}, as in pyproject.toml"
    if tag != f"v{version}":
        yield f"the tag is {tag}, and the version in pyproject.toml {version}"
    if not is_released(root, version):
        yield f"CHANGELOG.md: there is no '## [{version}] - YYYY-MM-DD'; 'Unreleased' becomes that"
    if "Repository" not in project.get("urls", {}):
        yield (
            "pyproject.toml: [project.urls] has no Repository, so the page on the index would lead "
            "nowhere; add the address of the repository"
        )
    for page in PAGES:
        if says_not_yet(root.joinpath(page).read_text("utf-8"), version):
            yield f"{page}: it still says how to install {version} before its release"


def project_of(root: Path) -> dict[str, Any]:
    """Return what pyproject.toml says of the project."""
    project: dict[str, Any] = tomllib.loads(root.joinpath("pyproject.toml").read_text("utf-8"))
    return project["project"]  # type: ignore[no-any-return]


def is_released(root: Path, version: str) -> bool:
    """Whether the changelog has the day on which the version was released."""
    changelog = root.joinpath("CHANGELOG.md").read_text("utf-8")
    heading = rf"^## \[{re.escape(version)}\] - 20\d\d-\d\d-\d\d$"
    return re.search(heading, changelog, re.MULTILINE) is not None


def says_not_yet(page: str, version: str) -> bool:
    """Whether a page says how to install a version that is not released."""
    return re.search(NOT_YET.format(version=re.escape(version)), page) is not None


def notes(root: Path, version: str, repository: str) -> str:
    """Return what the changelog says of a version to its users, with links to the tag's files."""
    changelog = root.joinpath("CHANGELOG.md").read_text("utf-8")
    _, _, rest = changelog.partition(f"\n## [{version}] - ")
    _, _, rest = rest.partition("\n")
    own = rest.partition("\n## [")[0].partition(f"\n{UNSEEN}\n")[0]
    return published(own.strip() + "\n", repository, f"v{version}")


def release(root: Path, tag: str, repository: str, *make: str) -> None:
    """Write README as the index shows it, the distributions, their SBOM and the notes."""
    readme = root / "README.md"
    readme.write_text(published(readme.read_text("utf-8"), repository, tag), "utf-8")
    command = ["make", "dist", "ARGS=--release", *make]
    subprocess.run(command, cwd=root, check=True)
    text = notes(root, tag.removeprefix("v"), repository)
    if len(text) < 200:
        sys.exit(f"CHANGELOG.md says next to nothing of {tag}: {text!r}")
    root.joinpath("dist/notes.md").write_text(text, "utf-8")
    print(f"dist has all of {tag} but the upload")


def rehearse(*make: str) -> None:
    """Release the last commit in a copy, after what is missing has been made up there."""
    version = project_of(ROOT)["version"]
    tag = f"v{version}"
    refused = [*missing(ROOT, tag)]
    committed = subprocess.run(
        ["git", "archive", "HEAD"], cwd=ROOT, check=True, capture_output=True
    )
    with tempfile.TemporaryDirectory(prefix="asyncflow-release-") as place:
        root = Path(place)
        with tarfile.open(fileobj=BytesIO(committed.stdout)) as files:
            files.extractall(root, filter="data")
        pretend_that_nothing_is_missing(root, version)
        still = [*missing(root, tag)]
        if still:
            sys.exit("a rehearsal can't make this up:\n" + "\n".join(still))
        release(root, tag, NOWHERE, *make)
    print(f"today {tag} would be refused:" if refused else f"{tag} can be released")
    for each in refused:
        print(f"- {each}")


def pretend_that_nothing_is_missing(root: Path, version: str) -> None:
    """Do in a copy of the project what whoever releases the version has to do."""
    if not is_released(root, version):
        changelog = root / "CHANGELOG.md"
        text = changelog.read_text("utf-8")
        heading = f"## [{version}] - {date.today()}"
        changelog.write_text(text.replace("## [Unreleased]", heading, 1), "utf-8")
    if "Repository" not in project_of(root).get("urls", {}):
        with root.joinpath("pyproject.toml").open("a", encoding="utf-8") as file:
            file.write(f'\n[project.urls]\nRepository = "{NOWHERE}"\n')
    for page in PAGES:
        path = root / page
        text = path.read_text("utf-8")
        path.write_text(re.sub(NOT_YET.format(version=re.escape(version)), "", text), "utf-8")


def main() -> None:
    parser = ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("tag", nargs="?")
    parser.add_argument("repository", nargs="?", help="the address of the repository")
    parser.add_argument("--rehearse", action="store_true")
    parser.add_argument("--make", action="append", default=[], help="such as VENV=.venv-3.12")
    given = parser.parse_args()
    if given.rehearse:
        rehearse(*given.make)
        return
    if not (given.tag and given.repository):
        parser.error("say the tag and the address of the repository, or --rehearse")
    refused = [*missing(ROOT, given.tag)]
    if refused:
        sys.exit(f"{given.tag} can't be released:\n" + "\n".join(f"- {each}" for each in refused))
    release(ROOT, given.tag, given.repository, *given.make)


if __name__ == "__main__":
    os.environ.setdefault("PYTHONUNBUFFERED", "1")  # what `make` prints comes where it belongs
    main()
