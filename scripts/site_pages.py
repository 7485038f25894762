"""Pages, navigation and links of the site that `bash scripts/site.sh` builds with MkDocs; mkdocs.yml names this file.

- The navigation follows the links of docs/README.md, with its headings as sections; links before the first heading do
  not count. Pages without a link there come after them, by folder.
- Documents outside docs/ that a document links become pages; other linked files of the repository are copied.
- Each room of the package has a page of its API, made of the docstrings.
- Chinese pages have the language zh-CN, and the words of the theme in Chinese.
- After the build, the local links and anchors of every page are checked.
"""

from __future__ import annotations

import ast
import html.parser
import logging
import os
import re
import urllib.parse
from collections.abc import Iterator, Mapping
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from mkdocs.config.defaults import MkDocsConfig
    from mkdocs.structure.files import Files
    from mkdocs.structure.pages import Page

ROOT = Path(__file__).resolve().parents[1]
DOCS, PACKAGE = ROOT / "docs", ROOT / "plsc_mae"
INDEX = DOCS / "README.md"
API, PROJECT, FILES = "api", "project", "files"  # folders of the site
FOLDER_TITLES = {"zh": "中文"}  # other folders of docs/ are sections under their own names
LINK = re.compile(r"""(?P<before>\]\(|\b(?:src|href)=")(?P<target>[^()\s"]+)""")
CODE = re.compile(r"(^ *```.*?^ *```|`[^`\n]+`)", re.MULTILINE | re.DOTALL)
LIST_ITEM = re.compile(r"(?:[-*+]|\d+[.)]) ")
CHINESE = re.compile(r"^zh/|\.zh-cn\.md$")  # pages of the site in Chinese

logger = logging.getLogger("mkdocs.hooks.site_pages")


# ------------------------------------------------------------------------------------------------ documents


def local_targets(text: str, folder: Path) -> Iterator[Path]:
    """Yield the existing files and folders of the repository that a Markdown text in `folder` links."""
    for match in LINK.finditer(CODE.sub("", text)):
        found = _resolve(match["target"], folder)
        if found is not None:
            yield found


def _resolve(target: str, folder: Path) -> Path | None:
    """Return the file or folder of the repository that a link means; None for anchors, addresses and missing files."""
    name = urllib.parse.unquote(target.partition("#")[0])
    if not name or re.match(r"\w+:|//", target):
        return None
    path = Path(os.path.normpath(folder / name))
    return path if path.exists() and path.is_relative_to(ROOT) else None


@cache
def documents() -> Mapping[Path, str]:
    """Return {Markdown file: its page in the site} for those of docs/ and those that they link, also indirectly."""
    pages = {path: path.relative_to(DOCS).as_posix() for path in sorted(DOCS.rglob("*.md"))}
    waiting = list(pages)
    while waiting:
        path = waiting.pop(0)
        for target in local_targets(path.read_text(encoding="utf-8"), path.parent):
            file = target / "README.md" if target.is_dir() else target
            if file.suffix == ".md" and file.exists() and file not in pages:
                pages[file] = f"{PROJECT}/{'-'.join(file.relative_to(ROOT).parts).lower()}"
                waiting.append(file)
    return pages


@cache
def linked_files() -> Mapping[Path, str]:
    """Return {file: its place in the site} for the linked files of the repository that are no documents."""
    found = {}
    for path in documents():
        for target in local_targets(path.read_text(encoding="utf-8"), path.parent):
            if target.is_file() and target.suffix != ".md":
                inside = target.is_relative_to(DOCS)
                found[target] = target.relative_to(DOCS).as_posix() if inside else f"{FILES}/{target.relative_to(ROOT)}"
    return found


def site_markdown(text: str, path: Path) -> str:
    """Return the text of a document with links that hold in the site, and with lists as GitHub reads them.

    Args:
        text: Markdown text.
        path: the file that has it.
    """
    page = documents()[path]
    parts = CODE.split(text)
    parts[::2] = [_relink(part, path.parent, Path(page).parent) for part in parts[::2]]
    return separate_lists("".join(parts))


def _relink(text: str, folder: Path, page_folder: Path) -> str:
    def replaced(match: re.Match[str]) -> str:
        found = _resolve(match["target"], folder)
        if found is None:
            return match[0]
        file = found / "README.md" if found.is_dir() else found
        place = documents().get(file) or linked_files().get(file)
        anchor = match["target"].partition("#")[2] if file.suffix == ".md" else ""
        if place is None:  # a folder, which a site cannot show
            return f"{match['before']}#"
        return f"{match['before']}{os.path.relpath(place, page_folder)}{'#' + anchor if anchor else ''}"

    return LINK.sub(replaced, text)


def separate_lists(text: str) -> str:
    """Insert the blank line that Python-Markdown, unlike GitHub, needs between a paragraph and a list."""
    lines: list[str] = []
    in_code = False
    for line in text.split("\n"):
        in_code ^= line.lstrip().startswith("```")
        before = lines[-1] if lines else ""
        if LIST_ITEM.match(line) and not in_code and before.strip() and not re.match(r"\s", before):
            lines += [] if LIST_ITEM.match(before) else [""]
        lines.append(line)
    return "\n".join(lines)


# ---------------------------------------------------------------------------------------------- API, navigation


@cache
def api_pages() -> Mapping[str, str]:
    """Return {page in the site: its Markdown text}: an index, and a page per folder and module of the package."""
    pages, rows = {}, []
    for path in sorted(PACKAGE.iterdir()):
        source = path / "__init__.py" if path.is_dir() else path
        if path.name.startswith("_") or source.suffix != ".py" or not source.exists():
            continue
        name = f"{PACKAGE.name}.{path.stem}"
        docstring = ast.get_docstring(ast.parse(source.read_text(encoding="utf-8"))) or ""
        rows.append(f"| [`{name}`]({path.stem}.md) | {docstring.partition(chr(10))[0]} |")
        pages[f"{API}/{path.stem}.md"] = f"# {name}\n\n::: {name}\n    options:\n      show_root_heading: false\n"
    table = "\n".join(["| module | content |", "|---|---|", *rows])
    start = f"`{PACKAGE.name}.train`, `embed` and `export` are in [`{PACKAGE.name}.api`](api.md)."
    return {f"{API}/index.md": f"# API reference\n\n{start}\n\n{table}\n", **pages}


def navigation() -> list[Any]:
    """Return the navigation of the site, see the module; titles of pages are their first headings."""
    pages = documents()
    sections: dict[str, list[str]] = {"": [pages[INDEX]]}
    title, seen = "", {INDEX}
    text = INDEX.read_text(encoding="utf-8")
    for line in text[max(text.find("\n## "), 0) :].splitlines():
        if line.startswith("## "):
            title = line.removeprefix("## ").strip()
        for path in local_targets(line, DOCS):
            if path in pages and path.is_relative_to(DOCS) and path not in seen:
                seen.add(path)
                sections.setdefault(title, []).append(pages[path])
    for path in pages:
        if path not in seen:
            folder = path.parent.name if path.is_relative_to(DOCS) and path.parent != DOCS else ""
            heading = FOLDER_TITLES.get(folder, folder) or ("Other pages" if path.is_relative_to(DOCS) else "Project")
            sections.setdefault(heading, []).append(pages[path])
    return [*sections.pop(""), *({name: items} for name, items in sections.items()), {"API reference": [*api_pages()]}]


# ------------------------------------------------------------------------------------------------------ links


class PageLinks(html.parser.HTMLParser):
    """Links and anchors of an HTML page.

    Attributes:
        targets: values of `href` and `src`.
        anchors: values of `id` and `name`.
        loaded: addresses of scripts, styles, fonts and pictures that a browser fetches with the page.
    """

    def __init__(self, text: str) -> None:
        super().__init__()
        self.targets: list[str] = []
        self.anchors: set[str] = set()
        self.loaded: list[str] = []
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        """Collect the attributes of an element."""
        values = {name: value for name, value in attrs if value}
        self.anchors |= {values[name] for name in ("id", "name") if name in values}
        self.targets += [values[name] for name in ("href", "src") if name in values]
        if tag in ("script", "img", "iframe") or (tag == "link" and values.get("rel") != "canonical"):
            self.loaded += [values[name] for name in ("href", "src") if name in values]


def broken_links(site: Path) -> list[str]:
    """Return a sentence for each local link without a target and for each file that a page loads from elsewhere."""
    pages = {path: PageLinks(path.read_text(encoding="utf-8")) for path in sorted(site.rglob("*.html"))}
    found = []
    for path, links in pages.items():
        name = path.relative_to(site)
        found += [f"{name} loads {address}" for address in links.loaded if re.match(r"https?:|//", address)]
        for target in dict.fromkeys(links.targets):
            file, _, anchor = urllib.parse.unquote(target).partition("#")
            if re.match(r"\w+:|//", target) or path.name == "404.html":
                continue
            place = Path(os.path.normpath(path.parent / file.partition("?")[0])) if file else path
            if not place.exists():
                found.append(f"{name} links to {target}, which does not exist")
            elif anchor and place in pages and anchor not in pages[place].anchors:
                found.append(f"{name} links to {target}, a page without this anchor")
    return found


# ---------------------------------------------------------------------------------------------- events of MkDocs


def on_config(config: MkDocsConfig) -> None:
    """Set the navigation."""
    config.nav = navigation()


def on_files(files: Files, config: MkDocsConfig) -> None:
    """Add the pages of the API, the documents outside docs/, and the files that documents link."""
    from mkdocs.structure.files import File

    for page, text in api_pages().items():
        files.append(File.generated(config, page, content=text))
    for path, page in documents().items():
        if not path.is_relative_to(DOCS):
            files.append(File.generated(config, page, content=path.read_text(encoding="utf-8")))
    for path, place in linked_files().items():
        if not path.is_relative_to(DOCS):
            files.append(File.generated(config, place, abs_src_path=str(path)))


def on_page_markdown(markdown: str, page: Page, config: MkDocsConfig, files: Files) -> str:
    """Adapt the links of a document."""
    sources = {place: path for path, place in documents().items()}
    path = sources.get(page.file.src_uri)
    return markdown if path is None else site_markdown(markdown, path)


def on_page_context(context: Any, page: Page, config: MkDocsConfig, nav: Any) -> None:
    """Set the language of the theme's own words."""
    config.theme["language"] = "zh" if CHINESE.search(page.file.src_uri) else "en"


def on_post_page(output: str, page: Page, config: MkDocsConfig) -> str:
    """Name the script of a Chinese page, so that browsers choose simplified characters."""
    return output.replace('<html lang="zh"', '<html lang="zh-CN"', 1)


def on_post_build(config: MkDocsConfig) -> None:
    """Warn of broken links; with `--strict`, a warning fails the build."""
    for sentence in broken_links(Path(config.site_dir)):
        logger.warning("%s", sentence)
