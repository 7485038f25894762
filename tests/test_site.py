"""The site of the documents: navigation and links from the documents themselves, and a build without warnings."""

from __future__ import annotations

import runpy
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]


@pytest.fixture(scope="module")
def pages() -> dict:
    """Return the functions of scripts/site_pages.py by name."""
    return runpy.run_path(str(ROOT / "scripts/site_pages.py"))


def leaves(navigation: list) -> list[str]:
    found = []
    for item in navigation:
        found += [item] if isinstance(item, str) else [page for part in item.values() for page in leaves(part)]
    return found


def test_the_navigation_has_every_page_once(pages):
    found = leaves(pages["navigation"]())
    assert len(found) == len(set(found))
    assert set(found) == {*pages["documents"]().values(), *pages["api_pages"]()}
    assert found[0] == "README.md"
    documents = {path.relative_to(ROOT / "docs").as_posix() for path in (ROOT / "docs").rglob("*.md")}
    assert documents <= set(found)


def test_every_room_of_the_package_has_a_page_of_its_api(pages):
    rooms = {path.stem for path in (ROOT / "plsc_mae").iterdir() if path.suffix == ".py" or path.is_dir()}
    rooms = {room for room in rooms if not room.startswith("_")}
    assert {Path(page).stem for page in pages["api_pages"]()} - {"index"} == rooms


def test_links_that_leave_the_documents_lead_to_pages_and_files(pages):
    text = "[a](../CONTRIBUTING.md#style) [c](tour.md) [d](https://a.org) `[f](../CONTRIBUTING.md)` [g](#here)"
    adapted = pages["site_markdown"](text, ROOT / "docs/README.md")
    assert adapted.startswith("[a](project/contributing.md#style)")
    assert adapted.partition(" ")[2] == text.partition(" ")[2]
    nested = pages["site_markdown"]("[a](../../README.md)", ROOT / "docs/benchmarks/gpu.md")
    assert nested in ("[a](../project/readme.md)", "[a](#)")
    assert all(path.is_file() and path.suffix != ".md" for path in pages["linked_files"]())


def test_lists_are_separated_from_paragraphs_outside_of_code(pages):
    text = "text:\n- a\n- b\n  more\n- c\n\n```\nx\n- y\n```\n1. one\n2. two"
    assert pages["separate_lists"](text) == "text:\n\n- a\n- b\n  more\n- c\n\n```\nx\n- y\n```\n\n1. one\n2. two"


def test_dead_links_and_downloads_are_found(pages, tmp_path):
    (tmp_path / "a.html").write_text(
        '<h1 id="top">A</h1><a href="b.html#x">b</a><a href="c.html">c</a><a href="#top">t</a><a href="#no">n</a>'
        '<script src="https://cdn.org/x.js"></script><a href="https://a.org">a</a>'
    )
    (tmp_path / "b.html").write_text('<h1 id="y">B</h1>')
    found = pages["broken_links"](tmp_path)
    assert len(found) == 4
    for text in ("https://cdn.org/x.js", "b.html#x", "c.html", "#no"):
        assert any(text in sentence for sentence in found)


def test_chinese_pages_are_known_by_their_place_in_the_site(pages):
    chinese = {path for path, page in pages["documents"]().items() if pages["CHINESE"].search(page)}
    assert chinese == {ROOT / "README.zh-CN.md", *(ROOT / "docs/zh").glob("*.md")}


@pytest.mark.slow
def test_the_site_is_built_without_warnings(tmp_path):
    pytest.importorskip("material")
    pytest.importorskip("mkdocstrings")
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", str(tmp_path / "site")]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    for page, text in {"index.html": "tour", "tour.html": "photos", "api/api.html": "plsc_mae.api.train"}.items():
        assert text in (tmp_path / "site" / page).read_text(encoding="utf-8"), page
    for page, language in {"tour.html": "en", "zh/tour.html": "zh-CN", "project/readme.zh-cn.html": "zh-CN"}.items():
        assert f'<html lang="{language}"' in (tmp_path / "site" / page).read_text(encoding="utf-8"), page
