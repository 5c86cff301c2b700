"""Render the book as a site."""

import html
import re
import shutil
import sys
from pathlib import Path

from shell import ROOT, call

NBS = ROOT / "nbs"

# the numbers order the folder; pages go without
NUMBER = re.compile(r"\b\d{2}[a-z]?_(?=\w+\.(?:ipynb|html)|\w+$)")


def docs():
    "Render the book as a site into `_docs/`, offline: nbdev stages the pages, smalldocs renders them."
    import nbdev.doclinks
    from nbdev.quarto import nbdev_sidebar, refresh_quarto_yml
    from nbdev.serve import proc_nbs

    refresh_quarto_yml()
    nbdev.doclinks._build_modidx()
    nbdev_sidebar.__wrapped__(path=NBS)
    staged = proc_nbs(NBS, n_workers=0, force=True)
    shutil.copy(NBS / "styles.css", staged)
    for path in [staged / "sidebar.yml", *staged.rglob("*.ipynb")]:
        path.write_text(
            NUMBER.sub("", path.read_text(encoding="utf-8")), encoding="utf-8"
        )
        path.rename(path.with_name(NUMBER.sub("", path.name)))
    call(
        str(Path(sys.executable).with_name("smalldocs")),
        "render",
        "--quiet",
        str(staged),
    )
    shutil.rmtree(ROOT / "_docs", ignore_errors=True)
    shutil.move(staged / "_docs", ROOT / "_docs")
    for page in (ROOT / "_docs").rglob("*.html"):
        page.write_text(native_math(page.read_text(encoding="utf-8")), encoding="utf-8")
    print(f"open {ROOT / '_docs' / 'index.html'}")


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
