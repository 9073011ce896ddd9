"""The pages beside docs/ (README.md, ARCHITECTURE.md, bench/, ...) become pages of the site, and links to them fit.

In a checkout these pages stand where a reader of the repository looks for them, and link to each other from there.
"""

import posixpath
import re
from pathlib import Path
from typing import Any

from mkdocs.structure.files import File, Files

ROOT = Path(__file__).parents[1]
PAGES = {"README.md": "index.md"}
"""A page of the repository that has another place in the site."""
BESIDE = (
    "README.md",
    "ARCHITECTURE.md",
    "CLAIMS.md",
    "CONTRIBUTING.md",
    "CHANGELOG.md",
    "bench/README.md",
    "bench/LIMITS.md",
)
LINK = re.compile(r"(?<!\!)\]\((?!https?:|#)([^)#\s]+)(#[^)\s]*)?\)")


def place(path: str) -> str:
    """Where a file of the repository is in the site."""
    return PAGES.get(path) or path.removeprefix("docs/")


def on_files(files: Files, config: Any) -> Files:
    texts = {path: (ROOT / path).read_text() for path in BESIDE}
    for path, text in texts.items():
        files.append(File.generated(config, place(path), content=text))
    texts |= {f"docs/{path.name}": path.read_text() for path in (ROOT / "docs").glob("*.md")}
    linked = {
        target for path, text in texts.items() for target in map(lambda m: target_of(path, m), LINK.finditer(text))
    }
    for target in sorted(linked):
        is_elsewhere = target not in texts and not target.startswith("docs/")
        if is_elsewhere and (ROOT / target).is_file():  # a program or a file of settings, as it is
            files.append(File.generated(config, place(target), content=(ROOT / target).read_bytes()))
    return files


def target_of(path: str, link: "re.Match[str]") -> str:
    """The file of the repository that a link on the page ``path`` means."""
    return posixpath.normpath(posixpath.join(posixpath.dirname(path), link[1]))


def on_page_markdown(markdown: str, page: Any, **_: Any) -> str:
    here = page.file.src_uri
    source = next((path for path in BESIDE if place(path) == here), f"docs/{here}")

    def fit(link: "re.Match[str]") -> str:
        target = target_of(source, link)
        if (ROOT / target).is_dir():
            return "]"  # the site has no page for a folder
        return f"]({posixpath.relpath(place(target), posixpath.dirname(here) or '.')}{link[2] or ''})"

    return LINK.sub(fit, markdown)
