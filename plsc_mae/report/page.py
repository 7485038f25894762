"""HTML of the reports: one file without scripts, with its pictures and style inside."""

from __future__ import annotations

import base64
import io
from collections.abc import Iterable, Mapping, Sequence
from html import escape
from pathlib import Path
from typing import Any

from PIL import Image

import plsc_mae
from plsc_mae.errors import DataError
from plsc_mae.files import MARK, result_replacement
from plsc_mae.names import escape_name
from plsc_mae.report.run_folder import is_number

MAX_SIDE = 1200  # pixels of the longer side of an inlined picture
MAX_PNG_BYTES = 60_000  # a larger picture is inlined as JPEG
STYLE = """
body{font:15px/1.5 system-ui,sans-serif;color:#1b2733;background:#fff;max-width:1320px;margin:0 auto;padding:1.2em}
h1{font-size:1.6em;margin:.2em 0}h2{font-size:1.2em;border-bottom:1px solid #d5dde5;margin:1.8em 0 .6em}
h3{font-size:1em;margin:.4em 0}.sub{color:#5a6b7b}nav a{margin-right:1em;color:#2166ac}
.verdict{padding:.7em 1em;border-left:5px solid #8aa1b8;background:#f4f7fa}
.verdict.yes{border-color:#1b7837}.verdict.no{border-color:#b35806}
.charts{display:grid;grid-template-columns:repeat(auto-fit,minmax(400px,1fr));gap:1.2em}
figure{margin:0;max-width:780px}figcaption{color:#5a6b7b;font-size:.9em}
figure>svg{width:100%;height:auto}.grid{stroke:#e3e9ef}.curve{fill:none;stroke-width:1.8}
line.level{stroke:#6a6a6a;stroke-width:1.3}text{font:12px sans-serif;fill:#5a6b7b}
text.y{text-anchor:end}text.x{text-anchor:middle}.cut{paint-order:stroke;stroke:#fff;stroke-width:4px}
.legend{margin:.2em 0 .8em;font-size:.9em}.legend span{margin-right:1.2em;white-space:nowrap}
.legend i{display:inline-block;width:1.2em;height:.25em;margin-right:.4em;vertical-align:middle}
.legend .sample{width:36px;height:6px;margin-right:.4em;vertical-align:middle}
table{border-collapse:collapse;font-size:.92em}th,td{padding:.2em .7em;text-align:left;border-bottom:1px solid #e3e9ef}
td.n,th.n{text-align:right;font-variant-numeric:tabular-nums}.scroll{overflow-x:auto}
td:first-child{white-space:nowrap}
img{max-width:100%}.pictures{display:flex;flex-wrap:wrap;gap:1em}.pictures img{max-height:280px}
.small{image-rendering:pixelated}
summary{cursor:pointer}pre{white-space:pre-wrap;margin:0}
"""


def page(title: str, subtitle: str, sections: Sequence[tuple[str, str]]) -> str:
    """Return the HTML of a whole report.

    Args:
        title: plain text.
        subtitle: plain text.
        sections: (heading as plain text, content as HTML); sections without content are left out.
    """
    shown = [(heading, content) for heading, content in sections if content]
    links = "".join(f'<a href="#s{i}">{escape(heading)}</a>' for i, (heading, _) in enumerate(shown))
    body = "".join(
        f'<section id="s{i}"><h2>{escape(h)}</h2>{content}</section>' for i, (h, content) in enumerate(shown)
    )
    return (
        '<!DOCTYPE html>\n<html lang="en"><head><meta charset="utf-8" />'
        f'<meta name="generator" content="{MARK} {plsc_mae.__version__}" />'
        '<meta name="viewport" content="width=device-width" />'
        f"<title>{escape(title)}</title><style>{STYLE}</style></head>\n"
        f'<body><h1>{escape(title)}</h1><p class="sub">{escape(subtitle)}</p><nav>{links}</nav>\n{body}</body></html>\n'
    )


def write_page(path: Path, text: str) -> None:
    """Write a report; an existing file is replaced only if it is empty or plsc_mae wrote it.

    Raises:
        DataError: the file cannot be written, or exists and must not be replaced.
    """
    try:
        with result_replacement(path) as temporary:
            temporary.write_text(text, encoding="utf-8")
    except OSError as error:
        raise DataError(f"cannot write {path}: {error.strerror}; choose another --save_path") from None


def number(value: Any) -> str:
    """Return a value of a record as HTML; None becomes "".

    A finite float is shown with four significant digits; an attribute `value` has all digits.
    """
    if is_number(value):
        text = str(value) if isinstance(value, int) else f"{value:.4g}"
        return f'<data value="{value!r}">{text}</data>'
    return _lines("" if value is None else str(value))


def _lines(text: str) -> str:
    """Return plain text as HTML that keeps its line ends; `escape_name` replaces other control characters."""
    return "<br />".join(escape(escape_name(line)) for line in text.strip().split("\n"))


def table(head: Sequence[str], rows: Iterable[Sequence[Any]]) -> str:
    """Return a table as HTML; texts are escaped, numbers are aligned at the right and formatted by `number`."""
    lines = []
    numeric: set[int] = set()
    for row in rows:
        numeric |= {i for i, value in enumerate(row) if is_number(value)}
        cells = (f'<td class="n">{number(x)}</td>' if is_number(x) else f"<td>{number(_joined(x))}</td>" for x in row)
        lines.append(f"<tr>{''.join(cells)}</tr>")
    kinds = (' class="n"' if i in numeric else "" for i in range(len(head)))
    # A long name such as test_balanced_acc can break after each "_", so that more columns fit.
    heads = "".join(
        f"<th{kind}>{escape(name).replace('_', '_<wbr />')}</th>" for name, kind in zip(head, kinds, strict=True)
    )
    return f'<div class="scroll"><table><thead><tr>{heads}</tr></thead><tbody>{"".join(lines)}</tbody></table></div>'


def pairs(values: Mapping[str, Any]) -> str:
    """Return names and values as an HTML table of two columns with empty headings."""
    return table(("", ""), values.items())


def paragraph(text: str, style: str = "") -> str:
    """Return a paragraph of plain text as HTML; `style` is a class of the style sheet, "" for none."""
    kind = f' class="{style}"' if style else ""
    return f"<p{kind}>{escape(text)}</p>"


def reference(text: str, documents: Sequence[str]) -> str:
    """Return a paragraph of plain text and the names of documents, which are links if the files exist here."""
    return f'<p class="sub">{escape(text)} {", ".join(map(_link, documents))}</p>'


def _link(document: str) -> str:
    """Return the name of a document as HTML, which is a link if that file exists here."""
    file = Path(plsc_mae.__file__).parents[1] / document
    return f'<a href="{escape(file.as_uri())}">{escape(document)}</a>' if file.is_file() else escape(document)


def bullets(texts: Sequence[str]) -> str:
    """Return plain texts as an HTML list; "" if `texts` is empty."""
    return f"<ul>{''.join(f'<li>{_lines(text)}</li>' for text in texts)}</ul>" if texts else ""


def folded(summary: str, content: str) -> str:
    """Return `content` as HTML that is hidden below `summary` until the reader unfolds it."""
    return f"<details><summary>{escape(summary)}</summary>{content}</details>"


def figure(caption: str, content: str) -> str:
    """Return `content` as HTML with a caption, which is plain text."""
    return f"<figure><figcaption>{escape(caption)}</figcaption>{content}</figure>"


def picture(image: Image.Image, alternative: str, min_height: int = 0) -> str:
    """Return HTML that contains a picture, reduced to MAX_SIDE and, if a PNG exceeds MAX_PNG_BYTES, encoded as JPEG.

    Args:
        image: the picture.
        alternative: text for readers without pictures.
        min_height: height in CSS pixels to which a smaller picture is enlarged.
    """
    if max(image.size) > MAX_SIDE:
        image = image.copy()
        image.thumbnail((MAX_SIDE, MAX_SIDE))
    data, kind = _encoded(image, "PNG"), "png"
    if len(data) > MAX_PNG_BYTES:
        data, kind = _encoded(image, "JPEG", quality=88), "jpeg"
    size = f' class="small" style="height:{min_height}px"' if image.height < min_height else ""
    source = base64.b64encode(data).decode()
    return f'<img alt="{escape(alternative)}"{size} src="data:image/{kind};base64,{source}" />'


def _encoded(image: Image.Image, kind: str, **options: Any) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def _joined(value: Any) -> Any:
    return " ".join(map(str, value)) if isinstance(value, (list, tuple)) else value
