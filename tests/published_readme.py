"""Writes README.md as the index shows it: its links and pictures lead to the repository.

In the repository they are relative, so that they hold on each branch and in a clone. The index has
no files beside README, so `.github/workflows/release.yml` calls this with the address of the
repository and the tag, before it builds.

    python -m tests.published_readme https://example.com/owner/repository v0.1.0
"""

from __future__ import annotations

import re
import sys
from collections.abc import Iterator
from pathlib import Path

README = Path(__file__).parents[1] / "README.md"
_LINK = re.compile(r"(?P<image>!?)(?P<text>\[(?:[^\[\]`]|`[^`]*`)*\])\((?P<target>[^()\s]+)\)")
_IS_ABSOLUTE = re.compile(r"[a-z]+:|#")


def published(readme: str, repository: str, ref: str) -> str:
    """Return the README with absolute links: a file's to its page, a picture's to its bytes."""

    def absolute(link: re.Match[str]) -> str:
        target = link["target"]
        if not _IS_ABSOLUTE.match(target):
            target = f"{repository}/{'raw' if link['image'] else 'blob'}/{ref}/{target}"
        return f"{link['image']}{link['text']}({target})"

    return _LINK.sub(absolute, readme)


def broken_on_the_index(readme: str) -> Iterator[str]:
    """Yield what the rendered README shows or links to, and the index does not have."""
    from markdown_it import MarkdownIt  # a release writes README before anything is installed

    html = MarkdownIt("commonmark").enable("table").render(readme)
    for attribute, target in re.findall(r'\b(href|src|srcset)="([^"]*)"', html):
        is_page = attribute != "href" and "/blob/" in target
        if is_page or not re.match(r"https?://|#", target):
            yield f"{attribute}={target}"


if __name__ == "__main__":
    README.write_text(published(README.read_text("utf-8"), *sys.argv[1:]), "utf-8")
