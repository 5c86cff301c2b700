"""How the book is built: which page may use which, what a cell holds, how long lines and functions are.

Each check takes pages (or files) and returns an error, or '' where all is well.
"""

import ast
import re
from functools import cache
from pathlib import Path
from typing import NamedTuple

from cells import cells_of, is_exported, source_of
from docstrings import undocumented
from release import disagreement, read
from shell import ROOT

LONGEST_BODY = 25  # lines of a function, its docstring not counted
TO_DO = "**Replace:**"  # marks in a template what is to be written
WIDEST_CELL = 88  # columns that a reader sees
SINGLE = 0.9  # share of exported cells that hold one function or class
MOST = 3  # functions and classes in one exported cell

# A page tells an idea and its function runs on the machine of a later page; the import
# stands inside the function.
LATER = {
    ("persistence", "spanning_tree"),
    ("ratio", "spanning_tree"),
    ("remedies", "spanning_tree"),
    ("ranking", "shortlist"),
}


class Cell(NamedTuple):
    "A code cell: where it stands, whether it is exported, its source and syntax tree."

    page: Path
    id: str
    exported: bool
    source: str
    tree: ast.Module

    @property
    def place(self):
        return f"{self.page.name} {self.id}"


@cache
def code_cells(page):
    "The code cells of a page that are Python, read once."
    found = []
    for cell in cells_of(page):
        source = "".join(cell["source"])
        if cell["cell_type"] != "code" or source.lstrip().startswith(("%%", "!")):
            continue
        tree = ast.parse(re.sub(r"^\s*[%!].*$", "", source, flags=re.M))
        found.append(Cell(page, cell["id"], is_exported(source), source, tree))
    return found


def module_of(page):
    "The module that a page exports to, or ''."
    found = re.search(r"#\|\s*default_exp\s+(\w+)", page.read_text(encoding="utf-8"))
    return found[1] if found else ""


def names_taken(tree):
    "`(module, name)` for each name that code takes from a module of the package; name is '' for the module itself."
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom):
            yield from from_import(node)
        elif isinstance(node, ast.Import):
            for alias in node.names:
                if alias.name.startswith("topotransfer."):
                    yield alias.name.split(".")[1], ""


def from_import(node):
    "What a `from … import …` takes from the package."
    module = (node.module or "").split(".")
    if node.level:
        module = ["topotransfer", *filter(None, module)]
    if module[0] != "topotransfer":
        return
    for alias in node.names:
        yield (module[1], alias.name) if len(module) > 1 else (alias.name, "")


def definitions(tree):
    "Functions and classes that stand at the top of a cell."
    kinds = (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef)
    return [node for node in tree.body if isinstance(node, kinds)]


def body_lines(function):
    "How many lines the body of a function takes without its docstring."
    body = (
        function.body[1:] if ast.get_docstring(function) is not None else function.body
    )
    return body[-1].end_lineno - body[0].lineno + 1 if body else 0


def private_names(pages):
    "No name with a leading underscore is taken from another page."
    return "\n".join(
        f"{cell.place} takes {name} of {module}: give it a public name or leave it there"
        for page in pages
        for cell in code_cells(page)
        for module, name in names_taken(cell.tree)
        if name.startswith("_") and not name.startswith("__")
    )


def later_pages(pages):
    "A page uses only modules of pages before it; `LATER` names the exceptions."
    place = {module_of(page): i for i, page in enumerate(pages)}
    wrong = []
    for i, page in enumerate(pages):
        for cell in code_cells(page):
            for module, _ in names_taken(cell.tree):
                pair = (module_of(page), module)
                if place.get(module, -1) > i and pair not in LATER:
                    wrong.append(
                        f"{cell.place} uses {module}, which a later page makes"
                    )
    return "\n".join(wrong)


def circles(pages):
    "No module needs itself through others; imports inside functions count, too."
    uses = {}
    for page in pages:
        taken = uses.setdefault(module_of(page), set())
        for cell in code_cells(page):
            if cell.exported:
                taken |= {module for module, _ in names_taken(cell.tree)}
    uses.pop("", None)
    while free := [m for m, taken in uses.items() if not taken & set(uses) - {m}]:
        for module in free:
            del uses[module]
    return f"modules need each other in a circle: {', '.join(uses)}" if uses else ""


def exported_cells(pages):
    "Nearly every exported cell holds one function or class, none more than a few."
    cells = [cell for page in pages for cell in code_cells(page) if cell.exported]
    held = [(cell, len(definitions(cell.tree))) for cell in cells]
    held = [(cell, n) for cell, n in held if n]
    full = [f"{cell.place} holds {n}" for cell, n in held if n > MOST]
    single = sum(n == 1 for _, n in held)
    if single < SINGLE * len(held):
        several = ", ".join(cell.place for cell, n in held if n > 1)
        full.append(f"one definition in {single} of {len(held)} cells; more: {several}")
    return "\n".join(full)


def long_bodies(pages, files):
    "No function is longer than a reader can hold in mind, in the tests and the tools neither."
    trees = [(cell.place, cell.tree) for page in pages for cell in code_cells(page)]
    trees += [(f.name, ast.parse(f.read_text(encoding="utf-8"))) for f in files]
    return "\n".join(
        f"{place}: {node.name} has {body_lines(node)} lines, more than {LONGEST_BODY}"
        for place, tree in trees
        for node in ast.walk(tree)
        if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef))
        and body_lines(node) > LONGEST_BODY
    )


def wide_cells(pages):
    "No line that a reader sees is cut off; exported cells may have wider messages."
    return "\n".join(
        f"{cell.place}: {len(line)} columns: {line.strip()[:50]}"
        for page in pages
        for cell in code_cells(page)
        if not cell.exported
        for line in cell.source.splitlines()
        if len(line) > WIDEST_CELL and not line.startswith("#|")
    )


def texts(path):
    "The Markdown of a page, or of a file of text."
    if path.suffix == ".ipynb":
        return source_of(path, "markdown")
    return path.read_text(encoding="utf-8")


def dead_links(paths):
    "A link to a file of the repository leads to one."
    link = re.compile(r"\]\((?!\w+:|#)([^)#\s]+)")
    return "\n".join(
        f"{path.name} links to {target}, which is not there"
        for path in paths
        for target in link.findall(texts(path))
        if not (path.parent / target).exists()
    )


def unplaced(pages):
    "Each page stands once in the sidebar and is linked from the first page, so that a reader finds it."
    index = next((page for page in pages if page.name == "index.ipynb"), None)
    if index is None:
        return ""
    sidebar = (index.parent / "sidebar.yml").read_text(encoding="utf-8")
    listed = re.findall(r"^ *- (\S+\.ipynb)$", sidebar, re.M)
    linked = re.findall(r"\]\(([\w/]+\.ipynb)", texts(index)) + [index.name]
    names = [str(page.relative_to(index.parent)) for page in pages]
    wrong = [
        f"sidebar.yml lists {n} {listed.count(n)} times"
        for n in names
        if listed.count(n) != 1
    ]
    wrong += [f"index.ipynb doesn't link to {n}" for n in names if n not in linked]
    wrong += [
        f"sidebar.yml lists {n}, which is not there" for n in listed if n not in names
    ]
    return "\n".join(wrong)


def unfinished(pages):
    "A page that was copied from a template has nothing left that is to be replaced."
    return "\n".join(
        f"{page.name} still has a passage marked {TO_DO}"
        for page in pages
        if page.parent.name != "templates" and TO_DO in texts(page)
    )


def structure_checks(pages, files):
    "`(name, error or '')` of each check; `files` are scripts beside the pages."
    yield "every file names the same version", disagreement(read())
    yield "each page stands in sidebar and index", unplaced(pages)
    yield "no copied template is unfinished", unfinished(pages)
    yield "no link leads nowhere", dead_links([*pages, *ROOT.glob("*.md")])
    yield "no page takes a private name of another", private_names(pages)
    yield "no page uses a later page", later_pages(pages)
    yield "no circle of modules", circles(pages)
    yield "an exported cell holds one definition", exported_cells(pages)
    yield f"no function has more than {LONGEST_BODY} lines", long_bodies(pages, files)
    exported = [c for page in pages for c in code_cells(page) if c.exported]
    yield "what is exported is documented", undocumented(exported)
    yield f"no cell is wider than {WIDEST_CELL} columns", wide_cells(pages)
