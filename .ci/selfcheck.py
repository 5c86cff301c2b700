"""The tools of the book, checked on a book of a few lines.

What fails, dies or hangs is said, the rest is run to the end.
"""

import json
import tempfile
import traceback
from pathlib import Path

from release import notes
from runner import run_notebooks
from since import reached
from structure import dead_links, structure_checks

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
BUILT = {  # what a page holds, and words of what is wrong with it
    "00_a": (["#| default_exp a", "#| export\ndef f(x): return x"], []),
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
        ["holds 4", "96 columns"],
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


def check_links(folder):
    "A link to a file that is missing is said; other places and places on the page aren't looked up."
    (folder / "there.md").touch()
    page = folder / "page.md"
    page.write_text(
        "[a](there.md#x) [b](#y) [c](https://example.org/z) [d](gone.ipynb)"
    )
    assert dead_links([page]) == "page.md links to gone.ipynb, which is not there"


def check_release(folder):
    "A tag is released only if it names the version and the changelog has an entry for it."
    settings = "lib_name = x\nversion = 0.2.0\n"
    old = "## 0.1.0\n\n* old\n"
    new = f"# Changelog\n\n## 0.2.0\n\n* new\n\n{old}"
    assert notes("v0.2.0", settings, new) == "* new"
    for tag, changelog, words in [
        ("v0.2.1", new, "the tag must be v0.2.0"),
        ("v0.2.0", old, "must have an entry ## 0.2.0"),
        ("v0.2.0", new.replace("0.2.0", "0.2.0 (unreleased)"), "still calls 0.2.0"),
    ]:
        try:
            said = notes(tag, settings, changelog)
        except ValueError as error:
            said = str(error)
        assert words in said, (tag, words, said)


def selfcheck():
    "Error or ''."
    checks = (
        check_selection,
        check_building,
        check_links,
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
