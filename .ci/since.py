"""Which pages a change reaches: those that changed, and those that use a changed module, directly or through others."""

import json
import re
import subprocess

# A name of this package where code imports it or runs it: from topotransfer.x, -m topotransfer.x, from .x, from . import a, b
NAMED = re.compile(
    r"(?:\btopotransfer\.|from \.)([a-z]\w*)|from (?:topotransfer|\.) import ([^#\n]+)"
)


def modules_named(source):
    "Names that code takes from the package: of modules, or of what else it holds."
    found = [(m[1] or m[2]) for m in NAMED.finditer(source)]
    return {name for names in found for name in re.findall(r"\w+", names)}


def code_of(notebook):
    "The source of a notebook's code cells."
    cells = json.loads(notebook.read_text(encoding="utf-8"))["cells"]
    return "\n".join("".join(c["source"]) for c in cells if c["cell_type"] == "code")


def reach(names, modules):
    "The modules among the names and all that these use; `modules` holds the source of each module."
    found, waiting = set(), [n for n in names if n in modules]
    while waiting:
        if (name := waiting.pop()) in found:
            continue
        found.add(name)
        waiting += [n for n in modules_named(modules[name]) if n in modules]
    return found


def mentions(text, stem):
    'Whether code names a file: as a whole, or by a beginning that it completes, as in `f"published_{name}.csv"`.'
    beginnings = [stem[: at.end()] + "{" for at in re.finditer("_", stem)]
    return any(name in text for name in [stem, *beginnings])


def changed_files(root, revision):
    "Paths below the root that differ from a revision, new ones included; `ValueError` for an unknown revision."

    def git(*words):
        return subprocess.run(["git", *words], cwd=root, capture_output=True, text=True)

    differ = git("diff", "--name-only", "--no-renames", "-z", revision, "--")
    if differ.returncode:
        raise ValueError(
            f"SINCE must be a revision that git knows; found {revision!r}: {differ.stderr.strip()}"
        )
    return {
        name
        for name in (
            differ.stdout
            + git("ls-files", "--others", "--exclude-standard", "-z").stdout
        ).split("\0")
        if name
    }


def reached(root, pages, changed):
    """The pages that a change of files reaches, in the given order.

    A page is reached through its own file, through a module that it uses directly or through others, and through a file
    beside them (a table, a script) that it or such a module names. A file of the package or of the book that nobody
    names reaches every page, as do the tools: better a page too many than one too few.
    """
    package, book = root / "topotransfer", root / "nbs"
    modules = {
        p.stem: p.read_text(encoding="utf-8")
        for p in package.glob("*.py")
        if p.stem[0] != "_"
    }
    sources = {p: code_of(p) for p in pages}
    through = {
        p: reach(modules_named(source), modules) for p, source in sources.items()
    }
    texts = {
        p: "\n".join([source, *(modules[m] for m in through[p])])
        for p, source in sources.items()
    }
    hit = set()
    for name in changed:
        path = root / name
        if path in sources:
            hit.add(path)
        # a page that is gone or not a test
        elif path.suffix == ".ipynb" or path.name in ("_modidx.py", "styles.css"):
            continue
        # one that is gone is still named
        elif path.parent == package and path.suffix == ".py":
            hit |= {
                p
                for p in pages
                if path.stem in through[p] | modules_named(texts[p])
                or path.stem == "__init__"
            }
        elif book in path.parents or package in path.parents:
            hit |= {p for p in pages if mentions(texts[p], path.stem)} or set(pages)
        elif path.parent == root / ".ci" or name in (
            "settings.ini",
            "setup.py",
            "pyproject.toml",
            "Makefile",
        ):
            hit |= set(pages)
    return [p for p in pages if p in hit]
