"""The tools of the book, checked on a book of a few lines.

What fails, dies or hangs is said, the rest is run to the end.
"""

import json
import tempfile
import traceback
from pathlib import Path

import sitecheck
from docstrings import undocumented
from release import disagreement, notes
from runner import run_notebooks
from since import reached
from structure import (
    TO_DO,
    code_cells,
    dead_links,
    structure_checks,
    unfinished,
    unplaced,
)

LIMIT = 10  # seconds for pages that hang
# it holds what the page has open
CHILD = "import os, time\nchild = os.fork()\nif child == 0: time.sleep(600)\nopen('{}', 'w').write(str(child))\n"
HANGING = dict(hangs=[CHILD.format("child") + "time.sleep(600)"])
PAGES = dict(
    orphans=[CHILD.format("orphan") + "os._exit(4)"],
    fails=["assert True", "assert 1 + 1 == 3, 'arithmetic'"],
    dies=["import os\nos._exit(3)"],
    passes=["assert 1 + 1 == 2"],
    untested=["#| export\nx = 1"],
    waits=["#| slow\nassert False"],
)


def write_page(path, sources):
    "A notebook of code cells."
    same = dict(cell_type="code", metadata={}, outputs=[], execution_count=None)
    cells = [dict(same, id=str(i), source=source) for i, source in enumerate(sources)]
    page = dict(cells=cells, metadata={}, nbformat=4, nbformat_minor=5)
    path.write_text(json.dumps(page))
    return path


def ended(pid):
    "Whether a process is gone, or waits for nothing but to be forgotten."
    import psutil

    try:
        return psutil.Process(pid).status() == psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return True


def check_outcomes(folder):
    "Each kind of page ends as it should, whatever becomes of the others."
    for name, cells in (PAGES | HANGING).items():
        write_page(folder / f"{name}.ipynb", cells)
    found = outcomes(folder, PAGES) | outcomes(folder, HANGING, limit=LIMIT)
    assert set(found) == set(PAGES | HANGING), found
    error = {name: outcome.error for name, outcome in found.items()}
    assert "Executing Cell #2" in error["fails"], error
    assert "AssertionError: arithmetic" in error["fails"], error
    assert error["dies"] == "its process died with exit status 3", error
    assert error["hangs"] == f"ended after {LIMIT} s without a result: it hangs", error
    assert error["orphans"] == "its process died with exit status 4", error
    assert found["orphans"].wall < 300, "a child must not hold up its page"
    for child in ("child", "orphan"):
        pid = int((folder / child).read_text())
        assert ended(pid), "what a page has started must end with it"
    assert error["untested"] == "exports code but holds no test", error
    assert (error["passes"], found["passes"].tests, error["waits"]) == ("", 1, ""), (
        found
    )
    slow = outcomes(folder, ["waits"], flags=set())["waits"].error
    assert "AssertionError" in slow, "a cell marked slow must run when it is asked for"


def outcomes(folder, names, **options):
    "What became of the pages of these names, by name."
    pages = [folder / f"{name}.ipynb" for name in names]
    return {found.path.stem: found for found, _ in run_notebooks(pages, **options)}


MODULES = dict(
    a="",
    b="from .a import f\nopen('t_one.csv')",
    c="from . import (\n    b,\n    d,\n)",
    d="name = 't'\nopen(f'p_{name}.csv')",
)
USES = dict(
    w="from topotransfer.lost import f",
    x="from topotransfer.a import f",
    y="load('topotransfer.c')",
    z="!python -m topotransfer.d\nopen('z.csv')",
)
REACHED = {
    "topotransfer/a.py": "xy",
    "topotransfer/b.py": "y",
    "topotransfer/d.py": "yz",
    "nbs/w.ipynb": "w",
    "nbs/z.csv": "z",
    "README.md": "",
    "topotransfer/data/t_one.csv": "y",
    "topotransfer/data/p_t.csv": "yz",
    "topotransfer/data/new.csv": "wxyz",
    "topotransfer/__init__.py": "wxyz",
    ".ci/book.py": "wxyz",
    "settings.ini": "wxyz",
    "topotransfer/_modidx.py": "",
    "nbs/gone.ipynb": "",
    "topotransfer/lost.py": "w",
}


def check_selection(root):
    "A change reaches the pages that use it, through others too; what nobody names reaches all."
    for place in ("nbs", "topotransfer/data", ".ci"):
        (root / place).mkdir(parents=True)
    for name, source in MODULES.items():
        (root / "topotransfer" / f"{name}.py").write_text(source)
    pages = [
        write_page(root / "nbs" / f"{name}.ipynb", [s]) for name, s in USES.items()
    ]
    for changed, hit in REACHED.items():
        found = "".join(p.stem for p in reached(root, pages, {changed}))
        assert found == hit, (changed, found)


LONG = "def f(x):\n" + "    x += 1\n" * 26
SAME = "def f(x):\n    'The same.'\n    return x"
BUILT = {  # what a page holds, and words of what is wrong with it
    "00_a": (["#| default_exp a", f"#| export\n{SAME}"], []),
    "01_b": (
        ["#| default_exp b", "#| export\nfrom topotransfer.a import f, _g"],
        ["takes _g of a"],
    ),
    "02_c": (
        ["#| default_exp c", "#| export\ndef g():\n    from topotransfer import d"],
        ["uses d, which a later page makes", "in a circle: c, d"],
    ),
    "03_d": (
        [
            "#| default_exp d",
            "#| export\nfrom topotransfer.c import g",
            f"#| hide\n{LONG}",
        ],
        ["f has 26 lines"],
    ),
    "04_e": (
        [
            "#| default_exp e",
            "#| export\n" + "class A: pass\n" * 4,
            f"x = '{'x' * 90}'",
        ],
        ["holds 4", "96 columns", "A has no docstring"],
    ),
}


def check_building(folder):
    "Each way to build a page badly is said, and what is built well passes."
    pages = [write_page(folder / f"{name}.ipynb", s) for name, (s, _) in BUILT.items()]
    said = "\n".join(error for _, error in structure_checks(pages, []))
    for name, (_, words) in BUILT.items():
        for word in words:
            assert word in said, (name, word, said)
    assert "00_a" not in said, said
    assert not any(error for _, error in structure_checks(pages[:1], [])), said


DOCUMENTED = """
def f(
    x: np.ndarray,  # `(n,)`
):
    "The same; `ValueError` for nothing."
    check_count(len(x), "x", 1)
    return x


def g(x: np.ndarray) -> int:
    "How many rows `(n, d)` has."
    try:
        raise ValueError
    except ValueError:
        return len(x)


class Box:
    "What is refused and why."

    def __init__(self):
        raise ValueError

    def _hidden(self):
        return 1


@register_score(reference="Somebody 2020, equation 1")
def score(embeddings):
    "A number."
    return 1.0
"""
BARE = """
def total(x: np.ndarray):
    "The sum."
    if not len(x):
        raise ValueError
    return x.sum()


class Bag:
    "Things."

    def __len__(self):
        return check_count(self.size, "size", 1)

    @property
    def size(self):
        return 1


@register_score(cost="1")
def score(embeddings):
    "A number."
    return 1.0
"""
UNSAID = [  # of `BARE`, in its order
    "total raises errors and doesn't say which",
    "total doesn't say what x must look like",
    "Bag.__len__ raises errors and doesn't say which",
    "Bag.size has no docstring",
    "score is a score whose reference names no paper with its year (`page my score` for an idea of one's own)",
]


def check_docstrings(folder):
    "Each word that a docstring lacks is said, and nothing of what is documented or private."
    page = write_page(folder / "page.ipynb", [f"#| export\n{DOCUMENTED}"])
    assert undocumented(code_cells(page)) == ""
    page = write_page(folder / "bare.ipynb", [f"#| export\n{BARE}"])
    said = undocumented(code_cells(page)).splitlines()
    assert said == [f"bare.ipynb 0: {words}" for words in UNSAID], said


def check_links(folder):
    "A link to a file that is missing is said; other places and places on the page aren't looked up."
    (folder / "there.md").touch()
    page = folder / "page.md"
    page.write_text(
        "[a](there.md#x) [b](#y) [c](https://example.org/z) [d](gone.ipynb)"
    )
    assert dead_links([page]) == "page.md links to gone.ipynb, which is not there"


RELEASED = {  # files of a version that can be released
    "settings.ini": "lib_name = x\nversion = 0.2.0\n",
    "topotransfer/__init__.py": '__version__ = "0.2.0"\n',
    "CITATION.cff": "cff-version: 1.2.0\nversion: 0.2.0\n",
    "CHANGELOG.md": "# Changelog\n\n## 0.2.0\n\n* new\n\n## 0.1.0\n\n* old\n",
}


def check_release(folder):
    "A tag is released only if it and every file name the version, and the changelog doesn't call it unreleased."
    assert disagreement(RELEASED) == ""
    assert notes("v0.2.0", RELEASED) == "* new"
    for tag, file, old, new, words in [
        ("v0.2.1", "CHANGELOG.md", "", "", "the tag must be v0.2.0"),
        ("v0.2.0", "CHANGELOG.md", "## 0.2.0", "## 0.2.0 (unreleased)", "still calls"),
        ("v0.2.0", "CHANGELOG.md", "## 0.2.0\n\n* new", "", "found 0.1.0"),
        ("v0.2.0", "CHANGELOG.md", "## ", "", "found none"),
        ("v0.2.0", "CITATION.cff", "0.2.0", "0.1.9", "CITATION.cff must name version"),
        ("v0.2.0", "topotransfer/__init__.py", "0.2.0", "0.3.0", "found 0.3.0"),
    ]:
        try:
            said = notes(tag, RELEASED | {file: RELEASED[file].replace(old, new)})
        except ValueError as error:
            said = str(error)
        assert words in said, (tag, file, words, said)


def write_site(folder, words):
    "A site of two pages, the second one with these words."
    menu = '<a class="sidebar-link" href="index.html">one</a> <a class="sidebar-link" href="two.html">two</a>'
    (folder / "index.html").write_text(f"<body>{menu}<h1 id='top'>one</h1>")
    (folder / "two.html").write_text(f"<body>{words}")
    return folder


def check_site(folder):
    "A dead link, a place that isn't there, a page that nothing lists and a picture from elsewhere are found."
    assert sitecheck.faults(write_site(folder, "<a href='index.html#top'>up</a>")) == []
    words = (
        "<a href='index.html#no'>a</a> <a href='three.html'>b</a> <a href='..'>c</a>"
    )
    words += "<img srcset='https://x.org/y.png 2x'><style>@import 'https://x.org/z.css';</style>"
    write_site(folder, words)
    (folder / "lost.html").write_text("<body>")
    (folder / "own.css").write_text(
        "@import url(https://x.org/font.css); a { color: red; }"
    )
    assert sitecheck.faults(folder) == [
        "two.html: index.html#no is not there",
        "two.html: three.html is not there",
        "two.html: .. is not there",
        "lost.html: stands in no chapter of nbs/sidebar.yml",
        "two.html: loads https://x.org/y.png from elsewhere",
        "own.css: loads https://x.org/font.css from elsewhere",
        "two.html: loads https://x.org/z.css from elsewhere",
    ]


def check_places(folder):
    "A page that sidebar or index forgets, one that isn't there and a template's copy that isn't finished are named."
    pages = [write_page(folder / f"{name}.ipynb", []) for name in ("index", "a", "b")]
    (folder / "sidebar.yml").write_text("- index.ipynb\n- a.ipynb\n- c.ipynb\n")
    assert unplaced(pages).splitlines() == [
        "sidebar.yml lists b.ipynb 0 times",
        "index.ipynb doesn't link to a.ipynb",
        "index.ipynb doesn't link to b.ipynb",
        "sidebar.yml lists c.ipynb, which is not there",
    ]
    (folder / "templates").mkdir()
    marked = [folder / "copy.md", folder / "templates" / "score.md"]
    for page in marked:
        page.write_text(f"{TO_DO} by your idea")
    said = f"copy.md still has a passage marked {TO_DO}"
    assert unfinished([*pages, *marked]) == said


def selfcheck():
    "Error or ''."
    checks = (
        check_selection,
        check_building,
        check_docstrings,
        check_links,
        check_places,
        check_site,
        check_release,
        check_outcomes,
    )
    try:
        for check in checks:
            with tempfile.TemporaryDirectory() as folder:
                check(Path(folder).resolve())
    except Exception:
        return traceback.format_exc()
    return ""
