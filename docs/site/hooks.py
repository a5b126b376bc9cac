"""What MkDocs does not do by itself, as its hooks.

- The changelog and the contributors' pages, which stay in the root of the repository, are pages.
- A link to a file of the repository leads there, if `[project.urls]` in pyproject.toml says where
  that is; else its text stays. One to a file that does not exist is an error.
- Comments don't reach a page. The version is in the name of the site.
- The options of each command of the command line are a table, made from the command itself.
- The search leaves common words out of a query, and prefers whole words to prefixes.
- The scripts that the theme would load from another server are in the site.
- Each page has a twin in Markdown, `llms.txt` lists these, and `llms-full.txt` has all of them.
"""

from __future__ import annotations

import logging
import os.path
import re
import shutil
import subprocess
import sys
import tarfile
import tomllib
from pathlib import Path
from typing import Any

import click
import griffe
from mkdocs.plugins import event_priority
from mkdocs.structure.files import File

from asyncflow._cli import commands

ROOT = Path(__file__).parents[2]
SCRIPTS = {
    # Of the major version that the theme is made for.
    "assets/mermaid.min.js": ("mermaid@11.17.2", "dist/mermaid.min.js"),
    # Lets the search work in a page that is opened as a file, where browsers start no worker.
    "assets/iframe-worker.js": ("iframe-worker@1.0.4", "shim/index.js"),
}
"""What the theme would load from another server: its path on the site, its package and its file."""
ALSO_PAGES = {
    "ARCHITECTURE.md": "architecture.md",
    "CHANGELOG.md": "changelog.md",
    "CONTRIBUTING.md": "contributing.md",
    "SECURITY.md": "security.md",
}
"""Files of the repository that are pages of the site, by their path there."""
SAME_AS = {**ALSO_PAGES, "README.md": "index.md"}
COMMON_WORDS = (
    "a|an|and|are|at|by|do|does|for|from|how|i|in|is|it|my|of|on|or|the|to|what|with"
    "|pipelines?|runs?|steps?"
)

_FENCE = re.compile(r"^( *)(`{3,}|~{3,}).*?^\1\2 *$", re.MULTILINE | re.DOTALL)
_CODE_OR_LINK = re.compile(
    r"(?P<code>(?P<ticks>`+)(?!`).+?(?<!`)(?P=ticks)(?!`))"
    r"|(?P<image>!?)\[(?P<text>(?:[^\[\]`]|`[^`]*`)*)\]\((?P<url>[^()\s]+)\)",
    re.DOTALL,
)
_COMMENT = re.compile(r"^ *<!--.*?-->\n*", re.MULTILINE | re.DOTALL)  # not one in code
_OPTIONS = re.compile(r"<!-- options of (\w+) -->")
_TESTS = re.compile(r"<ul>\n(?:<li><code>[\w/]+(?:::\w+)+</code></li>\n)+</ul>")
_ENTRY = re.compile(r"^::: (\S+)\n(?:(?:    .*)?\n)*", re.MULTILINE)

log = logging.getLogger("mkdocs.hooks.asyncflow")
_twins: dict[str, tuple[str, str]] = {}
"""The title and the Markdown of each page by its path."""
_sections: list[Any] = []


def on_config(config: Any) -> Any:
    """Take the version, and the address of the repository if it is there, from pyproject.toml."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["project"]
    config.site_name = f"asyncflow {project['version']}"
    urls = {label.lower(): url for label, url in project.get("urls", {}).items()}
    config.repo_url = urls.get("repository") or urls.get("source")
    config.site_url = urls.get("documentation")
    if config.repo_url:
        config.edit_uri = "edit/main/docs/"
        config.repo_name = config.repo_url.rstrip("/").rpartition("github.com/")[2]
    else:
        config.edit_uri = None
    _twins.clear()
    return config


def on_files(files: Any, config: Any) -> Any:
    """Add the pages that are not in docs/, and the scripts."""
    for here, there in ALSO_PAGES.items():
        files.append(File.generated(config, there, content=(ROOT / here).read_text("utf-8")))
    for there, (package, member) in SCRIPTS.items():
        script = _from_npm(package, member)
        if script is not None:
            files.append(File.generated(config, there, abs_src_path=str(script)))
    return files


def on_nav(nav: Any, config: Any, files: Any) -> None:
    """Keep the sections for `llms.txt`."""
    _sections[:] = nav.items


def on_page_markdown(markdown: str, page: Any, config: Any, files: Any) -> str:
    """Mend the links, and take out what is not for readers of the site."""
    also = {there: here for here, there in ALSO_PAGES.items()}
    source = also.get(page.file.src_uri, f"docs/{page.file.src_uri}")

    def mend(match: re.Match[str]) -> str:
        if match["code"]:
            return match[0]
        url = _site_url(match["url"], source, page.file.src_uri, config.repo_url)
        return match["text"] if url is None else f"{match['image']}[{match['text']}]({url})"

    markdown = _OPTIONS.sub(lambda m: _options(m[1]), markdown)

    def outside_fences(text: str) -> str:
        return _CODE_OR_LINK.sub(mend, _COMMENT.sub("", text))

    if page.parent is None:
        page.meta["hide"] = ["navigation"]  # it would be this page alone
    if page.file.src_uri.startswith("reference/api/"):
        page.meta["search"] = {"boost": 0.2}  # what explains comes before what lists
    elif not page.file.src_uri.startswith(("getting-started", "guides/", "concepts/", "recipes/")):
        page.meta["search"] = {"boost": 0.5}
    markdown = _between_fences(markdown, outside_fences)
    title = re.search(r"^# (.+)", markdown, re.MULTILINE)
    _twins[page.file.src_uri] = (title[1].replace("`", "") if title else page.title, markdown)
    return markdown


def on_page_content(html: str, page: Any, config: Any, files: Any) -> str:
    """Let references to a module lead to its page, fold tests, make no empty cell a header."""
    if page.file.src_uri.startswith("reference/api/") and page.toc.items:
        config.plugins["autorefs"].register_anchor(
            page, page.toc.items[0].title, page.toc.items[0].id
        )
    html = _TESTS.sub(lambda m: f"<details><summary>{_tests(m[0])}</summary>{m[0]}</details>", html)
    return re.sub(r"<th[^>]*></th>", "<td></td>", html)


def on_post_page(output: str, page: Any, config: Any) -> str:
    """Name the dialog of the search, and let the link to the repository ask for no stars."""
    unnamed = '<div class="md-search" data-md-component="search" role="dialog">'
    output = output.replace(unnamed, unnamed[:-1] + ' aria-label="Search">')
    return output.replace(' data-md-component="source"', "")


@event_priority(100)  # before mkdocstrings forgets what it has read
def on_post_build(config: Any) -> None:
    """Mend the search, and write the twins, `llms.txt` and `llms-full.txt`."""
    site = Path(config.site_dir)
    _mend_search(site)
    handler = config.plugins["mkdocstrings"].get_handler("python")
    options = handler.get_options({})
    texts = {}
    for path, (_, markdown) in _twins.items():
        texts[path] = _ENTRY.sub(lambda m: _entry(handler.collect(m[1], options)), markdown)
        (site / path).parent.mkdir(parents=True, exist_ok=True)
        (site / path).write_text(texts[path], "utf-8")
    base = config.site_url or ""
    lines = [f"# {config.site_name}", "", f"> {config.site_description}"]
    order = []
    for section in _sections:
        lines += ["", f"## {section.title}", ""]
        for path in _paths(section):
            lines.append(f"- [{_twins[path][0]}]({base}{path}): {_first_sentence(texts[path])}")
            order.append(path)
    (site / "llms.txt").write_text("\n".join(lines) + "\n", "utf-8")
    whole = "\n".join(f"<!-- {path} -->\n\n{texts[path].strip()}\n" for path in order)
    (site / "llms-full.txt").write_text(whole, "utf-8")


def _mend_search(site: Path) -> None:
    """Change how the worker of the theme's search reads what is not in quotation marks.

    Common words don't count, because as prefixes they match on every page. A hyphen before a word
    forbids it no more, so that `kill -9` is found. A whole word counts more than a prefix.
    """
    (worker,) = site.glob("assets/javascripts/workers/search.*.min.js")
    script = worker.read_text("utf-8")
    words = rf"""/"[^"]*"?|(?<!\S)(?:(?:{COMMON_WORDS})(?!\S)|-+(?=\w))/gi"""
    for old, new in (
        ("search(e){", f"""search(e){{e=e.replace({words},w=>w[0]=='"'?w:"").trim()||e;"""),
        (":`${r}*`)", ":`${r}^4 ${r}*`)"),
    ):
        if script.count(old) != 1:
            log.warning("the search of the theme has changed: %s has no %s", worker.name, old)
        script = script.replace(old, new)
    worker.write_text(script, "utf-8")


def _site_url(url: str, source: str, page: str, repository: str | None) -> str | None:
    """Return where a link of a file of the repository leads on the site; None for nowhere."""
    path, hash_sign, anchor = url.partition("#")
    if not path or re.match(r"[a-z]+:", path):
        return url
    target = os.path.normpath(os.path.join(os.path.dirname(source), path))
    if target in SAME_AS or target.startswith("docs/"):
        there = SAME_AS.get(target) or target.removeprefix("docs/")
        return os.path.relpath(there, os.path.dirname(page) or ".") + hash_sign + anchor
    if not (ROOT / target).exists():
        log.warning("%s links to %s, which does not exist", source, target)
    if repository is None:
        return None
    kind = "tree" if (ROOT / target).is_dir() else "blob"
    return f"{repository.rstrip('/')}/{kind}/main/{target}{hash_sign}{anchor}"


def _options(name: str) -> str:
    """Return the options of a command as a table, with what its ``--help`` says of them."""
    context = click.Context(commands)
    rows = ["| option | meaning |", "|---|---|"]
    for option in commands.get_command(context, name).params:
        record = option.get_help_record(context)
        if isinstance(option, click.Option) and record is not None:
            names, meaning = (text.replace("|", r"\|") for text in record)
            rows.append(f"| `{names}` | {meaning} |")
    return "\n".join(rows)


def _tests(listed: str) -> str:
    count = listed.count("<li>")
    return f"{count} tests" if count > 1 else "1 test"


def _between_fences(text: str, change: Any) -> str:
    parts, at = [], 0
    for fence in _FENCE.finditer(text):
        parts += [change(text[at : fence.start()]), fence[0]]
        at = fence.end()
    return "".join([*parts, change(text[at:])])


def _from_npm(package: str, member: str) -> Path | None:
    """Return the path of a file of a package, which npm downloads once for each environment."""
    script = Path(sys.prefix, "share", "docs", package, Path(member).name)
    if script.exists():
        return script
    npm = shutil.which("npm")
    if npm is None:
        log.warning("npm, which downloads %s, is not installed", package)
        return None
    script.parent.mkdir(parents=True, exist_ok=True)
    command = [npm, "pack", package, "--silent", "--pack-destination", str(script.parent)]
    packed = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True).stdout
    archive = script.parent / packed.split()[-1]
    with tarfile.open(archive) as tar:
        file = tar.extractfile(f"package/{member}")
        assert file is not None
        script.with_suffix(".part").write_bytes(file.read())
    script.with_suffix(".part").replace(script)
    archive.unlink()
    return script


def _paths(item: Any) -> list[str]:
    if item.is_page:
        return [item.file.src_uri]
    return [path for each in item.children or () for path in _paths(each)]


def _first_sentence(markdown: str) -> str:
    """Return the first sentence of a page, without its links."""
    for paragraph in markdown.split("\n\n"):
        if not re.match(r"\s*(#|!|<|```|$)", paragraph):
            words = re.sub(r"\[([^\]]*)\]\([^)]*\)", r"\1", " ".join(paragraph.split()))
            return re.split(r"(?<=[.!?:])\s", words)[0].rstrip(":")
    return ""


def _entry(shown: Any, level: int = 3) -> str:
    """Return the entry of an object of the API in Markdown."""
    name = shown.path if level == 3 else ".".join(shown.path.split(".")[-2:])
    shown = shown.final_target if shown.is_alias else shown
    lines = [] if shown.is_module else [f"{'#' * level} `{name}`", ""]
    signature = _signature(shown)
    if signature:
        lines += ["```python", signature, "```", ""]
    if shown.docstring is not None:
        lines += [re.sub(r"\[(`[^`]+`)\]\[[\w.]+\]", r"\1", shown.docstring.value), ""]
    if isinstance(shown, griffe.Class):
        members = shown.all_members.values()
        lines += [_entry(each, level + 1) for each in members if not each.name.startswith("_")]
    return "\n".join(lines) + "\n"


def _signature(shown: Any) -> str:
    if isinstance(shown, griffe.Function) and "property" not in shown.labels:
        prefix = "async def " if "async" in shown.labels else "def "
        return prefix + shown.signature()
    if isinstance(shown, griffe.Class):
        init = shown.all_members.get("__init__")
        return f"class {shown.name}" if init is None else f"class {shown.signature()}"
    annotation = getattr(shown, "annotation", None)
    value = getattr(shown, "value", None)
    if annotation is None and value is None:
        return ""
    typed = f"{shown.name}: {annotation}" if annotation is not None else f"{shown.name}"
    return typed if value is None or "property" in shown.labels else f"{typed} = {value}"
