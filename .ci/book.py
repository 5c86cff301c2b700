"""Test the book, keep package and README in step with it, render the site."""

import argparse
import base64
import hashlib
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

from runner import SKIP_FLAGS, processor_seconds, run_notebooks
from selfcheck import selfcheck
from shell import ROOT, call
from since import changed_files, reached
from structure import structure_checks
from website import docs
from wheelcheck import wheel_check

NBS = ROOT / "nbs"
SLOW_LIMIT = 4 * 3600  # seconds for a page with cells marked slow


def notebooks():
    "Every notebook of the book, in reading order; names that start with `_` or `.` are left out."

    def parts(path):
        return path.relative_to(NBS).parts

    found = [p for p in NBS.rglob("*.ipynb") if not any(n[0] in "_." for n in parts(p))]
    return sorted(found, key=lambda p: (len(parts(p)), p))


def digests(*places):
    "sha256 of every file below folders, or of a file itself."
    files = [p for place in places for p in [place, *place.rglob("*")] if p.is_file()]
    return {
        str(p.relative_to(ROOT)): hashlib.sha256(p.read_bytes()).hexdigest()
        for p in files
        if "__pycache__" not in p.parts
    }


def export():
    "Write the package from the notebooks, formatted like them."
    from nbdev.doclinks import nbdev_export

    nbdev_export.__wrapped__()
    tidy(ROOT / "topotransfer")


def tidy(*places):
    "Sort imports and format."
    places = list(map(str, places))
    call(sys.executable, "-m", "ruff", "check", "--fix", "--select", "I", *places)
    call(sys.executable, "-m", "ruff", "format", *places)


def clean():
    "Strip execution counts and metadata from the notebooks."
    from nbdev.clean import nbdev_clean

    nbdev_clean.__wrapped__()


def readme():
    "Write README.md and its pictures from `nbs/index.ipynb`."
    from execnb.nbio import read_nb

    pictures = ROOT / "README_files"
    shutil.rmtree(pictures, ignore_errors=True)
    parts = [
        "<!-- Written from nbs/index.ipynb by `make sync`: edit that notebook. -->"
    ]
    for cell in read_nb(NBS / "index.ipynb").cells:
        if cell.cell_type == "markdown":
            # README stands beside nbs/, the notebook in it
            text = re.sub(r"\]\((?=[\w/]+\.ipynb)", "](nbs/", cell.source)
            parts.append(text)
        elif cell.cell_type == "code" and not re.search(
            r"^#\|\s*hide\b", cell.source, re.M
        ):
            parts += readme_code(cell.source)
            for output in cell.get("outputs", []):
                parts += readme_output(output, pictures, picture_words(cell.source))
    (ROOT / "README.md").write_text("\n\n".join(parts) + "\n", encoding="utf-8")


def readme_code(source):
    "The source of a cell as Markdown; nothing where the site shows none."
    if re.search(r"^#\|\s*echo: false", source, re.M):
        return []
    lines = [line for line in source.splitlines() if not line.startswith("#|")]
    shown = "\n".join(lines).strip()
    return [f"```python\n{shown}\n```"] if shown else []


def picture_words(source):
    "What a cell says of its picture to those who can't see it."
    found = re.search(r"^#\|\s*fig-alt:\s*(.+)", source, re.M)
    return found[1] if found else ""


def readme_output(output, pictures, words):
    "One output of a cell as Markdown: a picture with its words, or its text."
    data = output.get("data", {})
    if "image/png" in data:
        pictures.mkdir(exist_ok=True)
        png = base64.b64decode(data["image/png"])
        name = f"{len(list(pictures.iterdir())) + 1}.png"
        (pictures / name).write_bytes(png)
        return [f"![{words}]({pictures.name}/{name})"]
    text = "".join(output.get("text") or data.get("text/plain") or "").rstrip()
    return [f"```\n{text}\n```"] if text else []


def sync_checks():
    """`(name, error or '')` for each thing that must follow from the notebooks.

    What was out of step is mended on the way.
    """
    for name, step, watched in [
        ("export leaves topotransfer/ unchanged", export, [ROOT / "topotransfer"]),
        ("clean leaves nbs/ unchanged", clean, [NBS]),
        (
            "README.md is what nbs/index.ipynb gives",
            readme,
            [ROOT / "README.md", ROOT / "README_files"],
        ),
    ]:
        before = digests(*(w for w in watched if w.exists()))
        step()
        after = digests(*watched)
        changed = sorted(
            k for k in before.keys() | after.keys() if before.get(k) != after.get(k)
        )
        yield name, f"out of step, mended now: {', '.join(changed)}" if changed else ""


def slow_pages():
    "The pages that have cells marked slow."
    from nbdev.process import NBProcessor

    def is_slow(cell):
        return "slow" in (getattr(cell, "directives_", None) or {})

    pages = {p: NBProcessor(p, rm_directives=False).nb.cells for p in notebooks()}
    return [page for page, cells in pages.items() if any(map(is_slow, cells))]


def slow_check():
    "Whether CONTRIBUTING.md lists the pages with slow cells: error or ''."
    marked = {str(p.relative_to(ROOT)) for p in slow_pages()}
    words = (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8")
    listed = set(re.findall(r"^\* `(nbs/\S+\.ipynb)`", words, re.M))
    if marked == listed:
        return ""
    return f"it must list {sorted(marked)}; found {sorted(listed)}"


def scripts():
    "What is Python and not written from the notebooks: the tools, and scripts beside the pages."
    return [*(ROOT / ".ci").glob("*.py"), *NBS.rglob("*.py"), ROOT / "setup.py"]


def ruff(*words):
    "What ruff says of pages, package and scripts: error or ''."
    places = map(str, [NBS, ROOT / "topotransfer", *scripts()])
    try:
        call(sys.executable, "-m", "ruff", *words, *places)
    except subprocess.CalledProcessError as error:
        return error.output
    return ""


def still_checks():
    "`(name, error or '')` for everything that can be said without running a page."
    yield from sync_checks()
    yield "CONTRIBUTING.md lists the slow pages", slow_check()
    yield "ruff check", ruff("check", "--quiet", "--output-format", "concise")
    yield "ruff format (make sync does it)", ruff("format", "--check", "--quiet")
    yield from structure_checks(notebooks(), scripts())


def report(name, error, wall=None, cpu=None, detail=""):
    "One line of the test run; the error, if there is one, below it. Returns whether it failed."
    took = "" if wall is None else f"  {wall:6.1f} s{cpu:8.1f} s CPU"
    print(f"{'FAILED' if error else 'ok':7}{name:44}{took}{detail}", flush=True)
    if error:
        print(error, flush=True)
    return bool(error)


def timed(name, check):
    "Run a check that returns an error or '' and report it with what it took. Returns whether it failed."
    start, before = time.time(), processor_seconds()
    error = check()
    return report(name, error, time.time() - start, processor_seconds() - before)


def report_pages(paths, **options):
    """Run pages and report each, the total and the slowest last.

    Returns whether each failed, and processor seconds, the fork server's included.
    """
    seconds, server, failed = {}, 0.0, []
    for outcome, of_server in run_notebooks(paths, **options):
        name = os.path.relpath(outcome.path, NBS)
        tests = f"  {outcome.tests} test cells"
        failed.append(report(name, outcome.error, outcome.wall, outcome.cpu, tests))
        seconds[name] = outcome.cpu
        server = max(server, of_server)
    total = sum(seconds.values()) + server
    slowest = sorted(seconds, key=seconds.get, reverse=True)[:5]
    slowest = [
        f"{n} {seconds[n]:.1f} s ({seconds[n] / (total or 1):.0%})" for n in slowest
    ]
    print(f"pages: {total:.0f} s CPU, {server:.0f} s of them for what all import")
    print(f"slowest: {'; '.join(slowest)}", flush=True)
    return failed, total


def chosen(names, since):
    "The pages to run: all, those named by their paths, or those that a change reaches."
    paths = [Path(n).resolve() for n in names] or notebooks()
    if missing := [str(p) for p in paths if not p.is_file()]:
        sys.exit(f"no notebook at {', '.join(missing)}")
    if not paths:
        sys.exit(f"no notebook found below {NBS}")
    if not since:
        return paths
    try:
        found = reached(ROOT, paths, changed_files(ROOT, since))
    except ValueError as error:
        sys.exit(str(error))
    left_out = [str(p.relative_to(NBS)) for p in paths if p not in found]
    left_out = ", ".join(left_out) or "none"
    print(f"since {since}: {len(found)} of {len(paths)} pages; left out: {left_out}")
    return found


def close(failed, start, pages=0.0):
    """The totals and the closing line; exit status 1 if anything failed.

    `pages` are processor seconds of processes that are not waited for.
    """
    cpu = processor_seconds() + pages
    print(f"in all: {time.time() - start:.0f} s, {cpu:.0f} s CPU", flush=True)
    print(f"{len(failed) - sum(failed)} passed, {sum(failed)} failed")
    sys.exit(any(failed))


def test(*names, since=""):
    "Everything that must hold; or the steps that cost little and some pages only."
    start = time.time()
    failed = [report(name, error) for name, error in still_checks()]
    some, pages = chosen(names, since), 0.0
    if some:
        outcomes, pages = report_pages(some)
        failed += outcomes
    if not names and not since:
        failed += [
            timed("runner says what fails, dies or hangs", selfcheck),
            timed("wheel builds and imports in an empty venv", wheel_check),
        ]
    close(failed, start, pages)


def test_slow(*names):
    "Run the pages that have cells marked slow, those cells included."
    start, marked, paths = time.time(), slow_pages(), chosen(names, "")
    slow = [p for p in paths if p in marked]
    if names and (plain := [p.name for p in paths if p not in marked]):
        print(f"left out, without a slow cell: {', '.join(plain)}", flush=True)
    failed, pages = [], 0.0
    if slow:
        flags = SKIP_FLAGS - {"slow"}
        failed, pages = report_pages(slow, flags=flags, limit=SLOW_LIMIT)
    close(failed, start, pages)


def sync():
    "Sort imports and format, export, clean, README."
    tidy(NBS, *scripts())
    export()
    clean()
    readme()


def save(*names, slow=False):
    "Run notebooks (all without names) and keep their outputs; then clean and write README."
    start = time.time()
    export()
    flags = SKIP_FLAGS - {"slow"} if slow else SKIP_FLAGS
    pages = chosen(names, "")
    failed, pages = report_pages(pages, save=True, flags=flags, limit=SLOW_LIMIT)
    clean()
    readme()
    close(failed, start, pages)


def arguments():
    "The commands and their options, read from the command line."
    top = argparse.ArgumentParser(prog="python .ci", description=__doc__)
    commands = top.add_subparsers(dest="command", required=True)
    for function in (test, test_slow, sync, save, docs):
        name = function.__name__.replace("_", "-")
        command = commands.add_parser(name, help=function.__doc__)
        if function in (test, test_slow, save):
            words = "paths of notebooks; all without"
            command.add_argument("names", nargs="*", metavar="PAGE", help=words)
        if function is test:
            words = "only pages that a change since this revision reaches"
            command.add_argument("--since", default="", metavar="REV", help=words)
        if function is save:
            words = "run cells marked slow, too"
            command.add_argument("--slow", action="store_true", help=words)
        command.set_defaults(run=function)
    return vars(top.parse_args())


def stop(number, frame):
    "End with a word, so that what is under way is ended, too."
    sys.exit(f"stopped by {signal.Signals(number).name}")


def main():
    options = arguments()
    run, names = options.pop("run"), options.pop("names", [])
    del options["command"]
    os.chdir(ROOT)
    for number in (signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, stop)
    run(*names, **options)
