"""Which pages a change reaches: those that changed, and those that use a changed module.

A module is used directly or through others.
"""

import re
import subprocess
from typing import NamedTuple

from cells import source_of

# files that no page reads when it runs
UNUSED = {"_modidx.py", "styles.css", "sidebar.yml", "_quarto.yml"}
TOOLS = {"settings.ini", "setup.py", "pyproject.toml", "Makefile"}

# A name of this package where code imports or runs it, or names it in a string: topotransfer.x,
# from .x, from . import a, b (also over several lines)
NAMED = re.compile(
    r"(?:\btopotransfer\.|from \.)([a-z]\w*)"
    r"|from (?:topotransfer|\.) import (\([^)]*\)|[^#\n(]+)"
)


def modules_named(source):
    "Names that code takes from the package: of modules, or of what else it holds."
    found = [m[1] or m[2] for m in NAMED.finditer(source)]
    return {name for names in found for name in re.findall(r"\w+", names)}


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
        found = f"found {revision!r}: {differ.stderr.strip()}"
        raise ValueError(f"SINCE must be a revision that git knows; {found}")
    new = git("ls-files", "--others", "--exclude-standard", "-z")
    return set(filter(None, (differ.stdout + new.stdout).split("\0")))


class Uses(NamedTuple):
    "What a page uses."

    modules: set  # of the package, directly or through others
    names: set  # that its code and theirs take from the package
    text: str  # its code and theirs


def uses_of(page, modules):
    "What a page uses; `modules` holds the source of each module."
    code = source_of(page, "code")
    through = reach(modules_named(code), modules)
    text = "\n".join([code, *(modules[m] for m in through)])
    return Uses(through, modules_named(text), text)


def reached(root, pages, changed):
    """The pages that a change of files reaches, in the given order.

    A page is reached through its own file, through a module that it uses directly or
    through others, and through a file beside them (a table, a script) that it or such a
    module names. A file of the package or of the book that nobody names reaches every
    page, as do the tools: better a page too many than one too few.
    """
    files = [p for p in (root / "topotransfer").glob("*.py") if p.stem[0] != "_"]
    modules = {p.stem: p.read_text(encoding="utf-8") for p in files}
    uses = {page: uses_of(page, modules) for page in pages}
    hit = set().union(*(reached_by(root / name, root, uses) for name in changed))
    return [p for p in pages if p in hit]


def reached_by(path, root, uses):
    "The pages that a change of one file reaches."
    package, book = root / "topotransfer", root / "nbs"
    if path in uses:
        return {path}
    if path.suffix == ".ipynb" or path.name in UNUSED:
        return set()  # a page that is gone or not a test
    if path.name == "__init__.py":
        return set(uses)
    if path.parent == package and path.suffix == ".py":
        # one that is gone is still named
        return {p for p, u in uses.items() if path.stem in u.modules | u.names}
    if path.parent != package and not {book, package} & set(path.parents):
        tools = path.parent == root / ".ci" or str(path.relative_to(root)) in TOOLS
        return set(uses) if tools else set()
    return {p for p, u in uses.items() if mentions(u.text, path.stem)} or set(uses)
