"""The tools of the book, checked on a book of a few lines: what fails, dies or hangs is said, the rest is run to the end."""

import json
import tempfile
import traceback
from pathlib import Path

from runner import run_notebooks
from since import reached

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


def write_page(path, cells):
    "A notebook of code cells."
    cells = [
        dict(
            cell_type="code",
            id=str(i),
            metadata={},
            outputs=[],
            execution_count=None,
            source=source,
        )
        for i, source in enumerate(cells)
    ]
    path.write_text(
        json.dumps(dict(cells=cells, metadata={}, nbformat=4, nbformat_minor=5))
    )
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
    pages = {
        name: write_page(folder / f"{name}.ipynb", cells)
        for name, cells in (PAGES | HANGING).items()
    }
    found = {
        outcome.path.stem: outcome
        for outcome, _ in run_notebooks([pages[name] for name in PAGES])
    }
    found |= {
        outcome.path.stem: outcome
        for outcome, _ in run_notebooks([pages[name] for name in HANGING], limit=LIMIT)
    }
    assert set(found) == set(pages), found
    assert (
        "Executing Cell #2" in found["fails"].error
        and "AssertionError: arithmetic" in found["fails"].error
    ), found["fails"]
    assert found["dies"].error == "its process died with exit status 3", found["dies"]
    assert (
        found["hangs"].error == f"ended after {LIMIT} s without a result: it hangs"
    ), found["hangs"]
    assert (
        found["orphans"].error == "its process died with exit status 4"
        and found["orphans"].wall < 300
    ), found["orphans"]
    for child in ("child", "orphan"):
        assert ended(int((folder / child).read_text())), (
            "what a page has started must end with it"
        )
    assert found["untested"].error == "exports code but holds no test", found[
        "untested"
    ]
    assert (found["passes"].error, found["passes"].tests, found["waits"].error) == (
        "",
        1,
        "",
    ), found
    ((outcome, _),) = run_notebooks([folder / "waits.ipynb"], flags=set())
    assert "AssertionError" in outcome.error, (
        "a cell marked slow must run when it is asked for"
    )


def check_selection(root):
    "A change reaches the pages that use it, through others too; what nobody names reaches all."
    (
        (root / "nbs").mkdir(),
        (root / "topotransfer" / "data").mkdir(parents=True),
        (root / ".ci").mkdir(),
    )
    modules = dict(
        a="",
        b="from .a import f\nopen('t_one.csv')",
        c="from . import b, d",
        d="name = 't'\nopen(f'p_{name}.csv')",
    )
    for name, source in modules.items():
        (root / "topotransfer" / f"{name}.py").write_text(source)
    uses = dict(
        w="from topotransfer.lost import f",
        x="from topotransfer.a import f",
        y="from topotransfer import c",
        z="!python -m topotransfer.d\nopen('z.csv')",
    )
    pages = [
        write_page(root / "nbs" / f"{name}.ipynb", [source])
        for name, source in uses.items()
    ]
    for changed, hit in {
        "topotransfer/a.py": "xy",
        "topotransfer/b.py": "y",
        "topotransfer/d.py": "yz",
        "nbs/w.ipynb": "w",
        "nbs/z.csv": "z",
        "README.md": "",
        "topotransfer/data/t_one.csv": "y",
        "topotransfer/data/p_t.csv": "yz",
        "topotransfer/data/new.csv": "wxyz",
        ".ci/book.py": "wxyz",
        "settings.ini": "wxyz",
        "topotransfer/_modidx.py": "",
        "nbs/gone.ipynb": "",
        "topotransfer/lost.py": "w",
    }.items():
        assert "".join(p.stem for p in reached(root, pages, {changed})) == hit, (
            changed,
            reached(root, pages, {changed}),
        )


def selfcheck():
    "Error or ''."
    try:
        for check in (check_selection, check_outcomes):
            with tempfile.TemporaryDirectory() as folder:
                check(Path(folder).resolve())
    except Exception:
        return traceback.format_exc()
    return ""
