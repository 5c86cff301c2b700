"""Test the book, keep package and README in step with it, render the site."""

import argparse
import base64
import hashlib
import html
import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from runner import SKIP_FLAGS, processor_seconds, run_notebooks
from selfcheck import selfcheck
from since import changed_files, reached

ROOT = Path(__file__).resolve().parent.parent
NBS = ROOT / "nbs"
SLOW_LIMIT = 4 * 3600  # seconds for a page with cells marked slow


def notebooks():
    "Every notebook of the book, in reading order; names that start with `_` or `.` are left out."
    found = (
        p
        for p in NBS.rglob("*.ipynb")
        if not any(part[0] in "_." for part in p.relative_to(NBS).parts)
    )
    return sorted(found, key=lambda p: (len(p.relative_to(NBS).parts), p))


def digests(*folders):
    "sha256 of every file below the folders (or of a file itself)."
    files = (
        p
        for f in folders
        for p in ([f] if f.is_file() else sorted(f.rglob("*")))
        if p.is_file() and "__pycache__" not in p.parts
    )
    return {
        str(p.relative_to(ROOT)): hashlib.sha256(p.read_bytes()).hexdigest()
        for p in files
    }


def export():
    "Write the package from the notebooks."
    from nbdev.doclinks import nbdev_export

    nbdev_export.__wrapped__()


def clean():
    "Strip execution counts and metadata from the notebooks."
    from nbdev.clean import nbdev_clean

    nbdev_clean.__wrapped__()


def readme():
    "Write README.md and its pictures from `nbs/index.ipynb`."
    from execnb.nbio import read_nb

    pictures = ROOT / "README_files"
    shutil.rmtree(pictures, ignore_errors=True)
    parts = []
    for cell in read_nb(NBS / "index.ipynb").cells:
        hidden = re.search(r"^#\|\s*hide\b", cell.source, re.M)
        if cell.cell_type == "markdown":
            parts.append(cell.source)
        if cell.cell_type != "code" or hidden:
            continue
        source = "\n".join(
            line for line in cell.source.splitlines() if not line.startswith("#|")
        ).strip()
        if source and not re.search(r"^#\|\s*echo: false", cell.source, re.M):
            parts.append(f"```python\n{source}\n```")
        for o in cell.get("outputs", []):
            parts += readme_output(o, pictures)
    (ROOT / "README.md").write_text(
        "<!-- Written from nbs/index.ipynb by `make sync`: edit that notebook. -->\n\n"
        + "\n\n".join(parts)
        + "\n",
        encoding="utf-8",
    )


def readme_output(output, pictures):
    "One output of a cell as Markdown: a picture, or its text."
    data = output.get("data", {})
    if "image/png" in data:
        pictures.mkdir(exist_ok=True)
        png = base64.b64decode(data["image/png"])
        name = f"{len(list(pictures.iterdir())) + 1}.png"
        (pictures / name).write_bytes(png)
        return [f"![]({pictures.name}/{name})"]
    text = "".join(output.get("text") or data.get("text/plain") or "").rstrip()
    return [f"```\n{text}\n```"] if text else []


def sync_checks():
    "`(name, error or '')` for each thing that must follow from the notebooks. What was out of step is mended on the way."
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

    return [
        p
        for p in notebooks()
        if any(
            "slow" in (getattr(c, "directives_", None) or {})
            for c in NBProcessor(p, rm_directives=False).nb.cells
        )
    ]


def slow_check():
    "Whether CONTRIBUTING.md lists the pages with slow cells: error or ''."
    marked = {str(p.relative_to(ROOT)) for p in slow_pages()}
    listed = set(
        re.findall(
            r"^\* `(nbs/\S+\.ipynb)`",
            (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8"),
            re.M,
        )
    )
    return (
        ""
        if marked == listed
        else f"it must list {sorted(marked)}; found {sorted(listed)}"
    )


def wheel_check():
    "Build the wheel, install it with what it and its `cluster` extra ask for into an empty environment, import every module: error or ''."
    env, stamp = ROOT / ".venv-wheel", ROOT / ".venv-wheel" / "requirements"
    python = env / "bin" / "python"
    wanted = (ROOT / "settings.ini").read_text()
    uv = Path(sys.executable).with_name("uv")
    pip, target = (
        ([str(uv), "pip"], ["--quiet", "--python", str(python)])
        if uv.exists()
        else ([str(python), "-m", "pip"], [])
    )

    def installer(command, *words):
        call(*pip, command, *target, *words)

    modules = sorted(
        p.stem for p in (ROOT / "topotransfer").glob("*.py") if p.stem != "__init__"
    )
    imports = "; ".join(f"import topotransfer.{m}" for m in modules)
    with tempfile.TemporaryDirectory() as tmp:
        try:
            call(
                sys.executable,
                "-m",
                "pip",
                "wheel",
                "--quiet",
                "--no-deps",
                "--wheel-dir",
                tmp,
                str(ROOT),
            )
            wheel = next(Path(tmp).glob("*.whl"))
            if not stamp.exists() or stamp.read_text() != wanted:
                shutil.rmtree(env, ignore_errors=True)
                call(
                    sys.executable,
                    "-m",
                    "venv",
                    str(env),
                    *(["--without-pip"] if uv.exists() else []),
                )
                installer("install", f"{wheel}[cluster]")
                stamp.write_text(wanted)
            installer("install", "--no-deps", "--force-reinstall", str(wheel))
            installer("check")
            call(str(python), "-c", imports, cwd=tmp)
            call(str(env / "bin" / "topotransfer"), "--help", cwd=tmp)
        except subprocess.CalledProcessError as error:
            return f"{error}\n{error.output}"
    return ""


def call(*command, cwd=ROOT):
    "Run a command in a clean environment: running notebooks leaves variables behind. `CalledProcessError` holds what it printed."
    env = {k: v for k, v in os.environ.items() if k not in ("MPLBACKEND", "PYTHONPATH")}
    subprocess.run(
        command,
        cwd=cwd,
        env=env,
        check=True,
        text=True,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
    )


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
    "Run pages and report each, the total and the slowest last: whether each failed, and processor seconds, the fork server's included."
    outcomes, server, failed = [], 0.0, []
    for outcome, seconds in run_notebooks(paths, **options):
        name, server = os.path.relpath(outcome.path, NBS), max(server, seconds)
        failed.append(
            report(
                name,
                outcome.error,
                outcome.wall,
                outcome.cpu,
                f"  {outcome.tests} test cells",
            )
        )
        outcomes.append((outcome.cpu, name))
    total = sum(cpu for cpu, _ in outcomes) + server
    slowest = "; ".join(
        f"{name} {cpu:.1f} s ({cpu / (total or 1):.0%})"
        for cpu, name in sorted(outcomes, reverse=True)[:5]
    )
    print(
        f"pages: {total:.0f} s CPU, {server:.0f} s of them for what all import; slowest: {slowest}",
        flush=True,
    )
    return failed, total


def chosen(names, since):
    "The pages to run: all, those named by their paths, those that a change since a revision reaches."
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
    print(
        f"since {since}: {len(found)} of {len(paths)} pages; left out: {', '.join(left_out) or 'none'}",
        flush=True,
    )
    return found


def close(failed, start, pages=0.0):
    "The totals and the closing line; exit status 1 if anything failed. `pages` are processor seconds of processes that are not waited for."
    print(
        f"in all: {time.time() - start:.0f} s, {processor_seconds() + pages:.0f} s CPU",
        flush=True,
    )
    print(f"{len(failed) - sum(failed)} passed, {sum(failed)} failed")
    sys.exit(any(failed))


def test(*names, since=""):
    "Everything that must hold before a change lands; or the steps that cost little and some pages only. Closes with `N passed, N failed`."
    start = time.time()
    failed = [report(name, error) for name, error in sync_checks()] + [
        report("CONTRIBUTING.md lists the slow pages", slow_check())
    ]
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
    "Run the pages that have cells marked slow, those cells included. Closes with `N passed, N failed`."
    start, marked, paths = time.time(), slow_pages(), chosen(names, "")
    slow = [p for p in paths if p in marked]
    if names and (plain := [p.name for p in paths if p not in marked]):
        print(f"left out, without a slow cell: {', '.join(plain)}", flush=True)
    failed, pages = (
        report_pages(slow, flags=SKIP_FLAGS - {"slow"}, limit=SLOW_LIMIT)
        if slow
        else ([], 0.0)
    )
    close(failed, start, pages)


def sync():
    "Export, clean, README."
    export(), clean(), readme()


def save(*names, slow=False):
    "Run notebooks (all without names) and keep their outputs; then clean and write README."
    start = time.time()
    export()
    failed, pages = report_pages(
        chosen(names, ""),
        save=True,
        flags=SKIP_FLAGS - {"slow"} if slow else SKIP_FLAGS,
        limit=SLOW_LIMIT,
    )
    clean(), readme()
    close(failed, start, pages)


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


def main():
    top = argparse.ArgumentParser(prog="python .ci", description=__doc__)
    commands = top.add_subparsers(dest="command", required=True)
    for function in (test, test_slow, sync, save, docs):
        command = commands.add_parser(
            function.__name__.replace("_", "-"), help=function.__doc__
        )
        if function in (test, test_slow, save):
            command.add_argument(
                "names",
                nargs="*",
                metavar="PAGE",
                help="paths of notebooks; all without",
            )
        if function is test:
            command.add_argument(
                "--since",
                default="",
                metavar="REV",
                help="only pages that a change since this revision reaches",
            )
        if function is save:
            command.add_argument(
                "--slow", action="store_true", help="run cells marked slow, too"
            )
        command.set_defaults(run=function)
    options = vars(top.parse_args())
    run, names = options.pop("run"), options.pop("names", [])
    del options["command"]
    os.chdir(ROOT)
    # and end the pages
    for stop in (signal.SIGTERM, signal.SIGHUP):
        signal.signal(
            stop,
            lambda number, frame: sys.exit(f"stopped by {signal.Signals(number).name}"),
        )
    run(*names, **options)
