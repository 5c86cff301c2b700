"""A page as a file: its cells, and which of them go into the package."""

import json
import re


def cells_of(page):
    "The cells of a page."
    return json.loads(page.read_text(encoding="utf-8"))["cells"]


def source_of(page, kind):
    "The source of all cells of a kind, code or markdown."
    sources = ("".join(c["source"]) for c in cells_of(page) if c["cell_type"] == kind)
    return "\n".join(sources)


def is_exported(source):
    "Whether the source of a cell goes into the package."
    return bool(re.search(r"^#\|\s*export[is]?\b", source, re.M))
