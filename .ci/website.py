"""Render the book as a site."""

import ast
import html
import re
import shutil
import sys
from pathlib import Path

from shell import ROOT, call

NBS = ROOT / "nbs"

# nbdev links names in a signature's comments, too, where a link is but text, and
# writes where it evaluated a type
LINK_IN_CODE = re.compile(r"\[(`\w+`)\]\(https://[^)\s]+\)")
EVALUATED_IN = ':__main__<span class="op">.</span>'

# the numbers order the folder; pages go without
NUMBER = re.compile(r"\b\d{2}[a-z]?_(?=\w+\.(?:ipynb|html)|\w+$)")


def docs():
    "Render the book as a site into `_docs/`, offline: nbdev stages the pages, smalldocs renders them."
    import nbdev.doclinks
    import nbdev.serve
    from nbdev.quarto import nbdev_sidebar, refresh_quarto_yml

    nbdev.serve.FilterDefaults = page_filter()
    refresh_quarto_yml()
    nbdev.doclinks._build_modidx()
    nbdev_sidebar.__wrapped__(path=NBS)
    staged = nbdev.serve.proc_nbs(NBS, n_workers=0, force=True)
    shutil.copy(NBS / "styles.css", staged)
    for path in [staged / "sidebar.yml", *staged.rglob("*.ipynb")]:
        path.write_text(
            NUMBER.sub("", path.read_text(encoding="utf-8")), encoding="utf-8"
        )
        path.rename(path.with_name(NUMBER.sub("", path.name)))
    smalldocs = Path(sys.executable).with_name("smalldocs")
    call(str(smalldocs), "render", "--quiet", str(staged))
    shutil.rmtree(ROOT / "_docs", ignore_errors=True)
    shutil.move(staged / "_docs", ROOT / "_docs")
    for path in (ROOT / "_docs").rglob("*.html"):
        path.write_text(finished(path.read_text(encoding="utf-8")), encoding="utf-8")
    print(f"open {ROOT / '_docs' / 'index.html'}")


def page_filter():
    "What nbdev does to a page, and the code of private helpers shown besides."
    from nbdev.processors import FilterDefaults, rm_export

    class PageFilter(FilterDefaults):
        def base_procs(self):
            steps = super().base_procs()
            steps.insert(steps.index(rm_export), fold_helpers)
            return steps

    return PageFilter


def fold_helpers(cell):
    """Show exported code that gets no entry of its own, folded.

    nbdev hides every exported cell and puts an entry in its place for each public
    function or class. A private helper would leave nothing behind its sentence.
    """
    directives = cell.get("directives_") or {}
    if "export" in directives and "hide" not in directives and is_helper(cell.source):
        del directives["export"]
        cell.source = f"#| code-fold: true\n{cell.source}"


def is_helper(source):
    "Whether code does more than import, and defines no public function or class."
    body = ast.parse(source).body
    imports = (ast.Import, ast.ImportFrom)
    public = [getattr(node, "name", "_")[0] != "_" for node in body]
    return not any(public) and not all(isinstance(node, imports) for node in body)


def finished(page):
    "A rendered page with plain signatures and native formulas."
    page = LINK_IN_CODE.sub(r"\1", page)
    return native_math(page.replace(EVALUATED_IN, ":"))


def native_math(page):
    "The page with its formulas as MathML, which browsers draw by themselves: no script from elsewhere."
    from latex2mathml.converter import convert

    page = re.sub(
        r"<(link|script)[^>]*cdn\.jsdelivr\.net/npm/katex[^>]*>(</script>)?", "", page
    )
    drawn = lambda display: lambda m: convert(html.unescape(m[1]), display=display)
    page = re.sub(
        r'<span class="math inline">\\\((.*?)\\\)</span>',
        drawn("inline"),
        page,
        flags=re.S,
    )
    return re.sub(
        r'<span class="math display">\\\[(.*?)\\\]</span>',
        drawn("block"),
        page,
        flags=re.S,
    )
