"""Render the book as a site."""

import ast
import html
import re
import shutil
import sys
import warnings
from pathlib import Path

import sitecheck
import widths
from shell import ROOT, call

NBS = ROOT / "nbs"

# nbdev links names in a signature's comments, too, where a link is but text, and
# writes where it evaluated a type
LINK_IN_CODE = re.compile(r"\[(`[^`\]]+`)\]\(https://[^)\s]+\)")
EVALUATED_IN = ':__main__<span class="op">.</span>'

# the numbers order the folder; pages go without
NUMBER = re.compile(r"\b\d{2}[a-z]?_(?=\w+\.(?:ipynb|html)|\w+$)")

# a page is written under its own name
OUTPUT_FILE = re.compile(r'^ *"output-file: .*\n', re.M)

# a theme would ask a server of fonts for its own
FONTS = re.compile(r"@import\s*url\(\s*[\"']?https?:[^)]*\)[^;]*;")

# a chapter of the sidebar: its name, and what it is about
CHAPTER = re.compile(r'(<span class="menu-text">[^<]+?) – ([^<]+</span>)')
CRUMB = re.compile(r'(class="breadcrumb-item">(?:<a [^>]*>)?[^<]+?) – [^<]+')


def docs():
    "Render the book as a site into `_docs/`, offline, and end with what is wrong with it, if anything is."
    site = ROOT / "_docs"
    staged, warned = stage()
    smalldocs = Path(sys.executable).with_name("smalldocs")
    warned += call(str(smalldocs), "render", "--quiet", str(staged)).splitlines()
    shutil.rmtree(site, ignore_errors=True)
    shutil.move(staged / "_docs", site)
    paths = sorted(site.rglob("*.html"))
    pages = {str(p.relative_to(site)): p.read_text(encoding="utf-8") for p in paths}
    places = {name: sitecheck.Page(text).places for name, text in pages.items()}
    hints = summaries(pages)
    for style in (site / "site_libs").rglob("*.css"):
        text = style.read_text(encoding="utf-8")
        style.write_text(FONTS.sub("", text), encoding="utf-8")
    for name, text in pages.items():
        text = finished(hinted(local(text, name, places), hints))
        (site / name).write_text(text, encoding="utf-8")
    faults = [*warned, *sitecheck.faults(site), *widths.faults(site)]
    print(f"open {site / 'index.html'}")
    if faults:
        sys.exit("\n".join([*faults, f"{len(faults)} faults of the site"]))


def stage():
    "The folder of pages as nbdev prepares them, without their numbers, and what nbdev warns of."
    import nbdev.doclinks
    import nbdev.serve
    from nbdev.quarto import refresh_quarto_yml

    nbdev.serve.FilterDefaults = page_filter()
    refresh_quarto_yml()
    nbdev.doclinks._build_modidx()
    with warnings.catch_warnings(record=True) as warned:
        warnings.simplefilter("always", UserWarning)
        staged = nbdev.serve.proc_nbs(NBS, n_workers=0, force=True)
    shutil.copy(NBS / "styles.css", staged)
    for path in [staged / "sidebar.yml", *staged.rglob("*.ipynb")]:
        text = OUTPUT_FILE.sub("", path.read_text(encoding="utf-8"))
        path.write_text(NUMBER.sub("", text), encoding="utf-8")
        path.rename(path.with_name(NUMBER.sub("", path.name)))
    return staged, [str(warning.message) for warning in warned]


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


def summaries(pages):
    "What each page of a site is about, by its address in it."
    said = re.compile(r'<div class="description">(.*?)</div>', re.S)
    found = {name: said.search(text) for name, text in pages.items()}
    return {
        name: re.sub(r"<[^>]+>", "", about[1]).strip()
        for name, about in found.items()
        if about
    }


def local(page, name, places):
    """The page with links to names of the package that stay in this copy of the site.

    nbdev writes the site's public address, also for a method or a private helper
    that has no entry: such a link leads to the class, or is but a name.
    """
    up = "../" * name.count("/")

    def link(found):
        target, place, text = found.groups()
        there = places.get(target, ())
        while place and place not in there:
            place = place.rpartition(".")[0]
        return f'<a href="{up}{target}#{place}">{text}</a>' if place else text

    address = re.escape(sitecheck.OURS) + r'([^"#]+)#([^"]+)'
    return re.sub(rf'<a href="{address}">(.*?)</a>', link, page, flags=re.S)


def finished(page):
    "A rendered page with plain signatures, native formulas and a sidebar that says what is where."
    page = LINK_IN_CODE.sub(r"\1", page)
    page = CHAPTER.sub(r'\1</span> <span class="chapter-about">\2', page)
    page = CRUMB.sub(r"\1", page)
    return native_math(page.replace(EVALUATED_IN, ":"))


def hinted(page, hints):
    "The page with a tooltip on each link of its sidebar: what that page is about."

    def with_title(link):
        about = hints.get(re.sub(r"^(\.\./|\./)+", "", link[1]))
        words = html.escape(html.unescape(about or ""), quote=True)
        return f'{link[0]} title="{words}"' if about else link[0]

    entry = r'<a href="([^"]+)"(?= [^>]*class="sidebar-item-text)'
    return re.sub(entry, with_title, page)


def native_math(page):
    "The page with its formulas as MathML, which browsers draw by themselves: no script from elsewhere."
    from latex2mathml.converter import convert

    page = re.sub(
        r"<(link|script)[^>]*cdn\.jsdelivr\.net/npm/katex[^>]*>(</script>)?", "", page
    )
    inline = lambda m: convert(html.unescape(m[1]))
    page = re.sub(
        r'(?<=<span class="math inline">)\\\((.*?)\\\)(?=</span>)',
        inline,
        page,
        flags=re.S,
    )
    block = lambda m: convert(html.unescape(m[1]), display="block")
    return re.sub(
        r'(?<=<span class="math display">)\\\[(.*?)\\\](?=</span>)',
        block,
        page,
        flags=re.S,
    )
