"""Run the notebooks, keep package and README in step with them, render the site.

It is a module of its own, not a script: each notebook runs in a spawned process, IPython replaces
`__main__` there, and a function of `__main__` could not be found again.
"""
import base64, hashlib, html, io, multiprocessing, os, re, shutil, subprocess, sys, tempfile, time
from concurrent.futures import ProcessPoolExecutor, as_completed
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
NBS = ROOT / "nbs"
SKIP_FLAGS = {"notest", "slow", "gpu"}
COLOURS = 64


def notebooks():
    "Every notebook of the book, in reading order; names that start with `_` or `.` are left out."
    found = (p for p in NBS.rglob("*.ipynb") if not any(part[0] in "_." for part in p.relative_to(NBS).parts))
    return sorted(found, key=lambda p: (len(p.relative_to(NBS).parts), p))


def quantise(png):
    "The PNG (base64) with a palette of 64 colours: small, and the same bytes for the same picture."
    from PIL import Image
    image, out = Image.open(io.BytesIO(base64.b64decode(png))).convert("RGB"), io.BytesIO()
    image.quantize(COLOURS, dither=Image.Dither.NONE).save(out, "PNG", optimize=True)
    return base64.b64encode(out.getvalue()).decode()


def tidy_outputs(nb):
    "Drop progress bars and shrink pictures, so that a second run gives no difference."
    for cell in nb.cells:
        if cell.cell_type != "code": continue
        cell.outputs = [o for o in cell.get("outputs", []) if not (o.get("name") == "stderr" and "\r" in "".join(o["text"]))]
        for o in cell.outputs:
            if "image/png" in o.get("data", {}): o["data"]["image/png"] = quantise(o["data"]["image/png"])


def run_notebook(path, save=False):
    "Run one notebook in this process: `(path, seconds, number of test cells, error or '')`."
    from execnb.nbio import write_nb
    from execnb.shell import CaptureShell
    from nbdev.process import NBProcessor
    os.chdir(path.parent)
    start, processor = time.time(), NBProcessor(path, rm_directives=False)
    nb = processor.nb

    def skipped(cell):
        directives = getattr(cell, "directives_", None) or {}
        return cell.cell_type == "code" and (directives.get("eval:") == ["false"] or bool(SKIP_FLAGS & set(directives)))

    code = [c for c in nb.cells if c.cell_type == "code"]
    exporting = [c for c in code if re.search(r"^#\|\s*exports?\b", c.source, re.M)]
    tests = [c for c in code if c not in exporting and not skipped(c) and re.search(r"\b(test_\w+|assert|ExceptionExpected)\b", c.source)]
    if exporting and not tests: return path, 0., 0, "exports code but holds no test"
    for cell in code: # a cell that now prints nothing would else keep what it printed before
        if not skipped(cell): cell.outputs = []
    shell = CaptureShell(str(path), mpl_format="png")
    try: shell.run_all(nb, exc_stop=True, preproc=skipped)
    except Exception: return path, time.time() - start, len(tests), shell.prettytb(fname=path)
    if save:
        tidy_outputs(nb)
        write_nb(nb, path)
    return path, time.time() - start, len(tests), ""


def run_notebooks(paths, save=False):
    "Run notebooks, each in a fresh process, as many at a time as there are cores; yields results as they come."
    workers = min(os.cpu_count() or 1, len(paths))
    for name in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"):
        os.environ[name] = str(max(1, (os.cpu_count() or 1) // workers))
    with ProcessPoolExecutor(workers, mp_context=multiprocessing.get_context("spawn"), max_tasks_per_child=1) as pool:
        for future in as_completed([pool.submit(run_notebook, p, save) for p in paths]): yield future.result()


def digests(*folders):
    "sha256 of every file below the folders (or of a file itself)."
    files = (p for f in folders for p in ([f] if f.is_file() else sorted(f.rglob("*"))) if p.is_file() and "__pycache__" not in p.parts)
    return {str(p.relative_to(ROOT)): hashlib.sha256(p.read_bytes()).hexdigest() for p in files}


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
        if cell.cell_type == "markdown": parts.append(cell.source)
        if cell.cell_type != "code" or hidden: continue
        source = "\n".join(line for line in cell.source.splitlines() if not line.startswith("#|")).strip()
        if source and not re.search(r"^#\|\s*echo: false", cell.source, re.M): parts.append(f"```python\n{source}\n```")
        for o in cell.get("outputs", []): parts += readme_output(o, pictures)
    (ROOT / "README.md").write_text("<!-- Written from nbs/index.ipynb by `make sync`: edit that notebook. -->\n\n"
                                    + "\n\n".join(parts) + "\n", encoding="utf-8")


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
    for name, step, watched in [("export leaves topotransfer/ unchanged", export, [ROOT / "topotransfer"]),
                                ("clean leaves nbs/ unchanged", clean, [NBS]),
                                ("README.md is what nbs/index.ipynb gives", readme, [ROOT / "README.md", ROOT / "README_files"])]:
        before = digests(*(w for w in watched if w.exists()))
        step()
        after = digests(*watched)
        changed = sorted(k for k in before.keys() | after.keys() if before.get(k) != after.get(k))
        yield name, f"out of step, mended now: {', '.join(changed)}" if changed else ""


def wheel_check():
    "Build the wheel, install it with what it and its `cluster` extra ask for into an empty environment, import every module: error or ''."
    env, stamp = ROOT / ".venv-wheel", ROOT / ".venv-wheel" / "requirements"
    python, wanted = env / "bin" / "python", (ROOT / "settings.ini").read_text()
    modules = sorted(p.stem for p in (ROOT / "topotransfer").glob("*.py") if p.stem != "__init__")
    imports = "; ".join(f"import topotransfer.{m}" for m in modules)
    with tempfile.TemporaryDirectory() as tmp:
        try:
            call(sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "--wheel-dir", tmp, str(ROOT))
            wheel = next(Path(tmp).glob("*.whl"))
            if not stamp.exists() or stamp.read_text() != wanted:
                shutil.rmtree(env, ignore_errors=True)
                call(sys.executable, "-m", "venv", str(env))
                call(str(python), "-m", "pip", "install", "--quiet", f"{wheel}[cluster]")
                stamp.write_text(wanted)
            call(str(python), "-m", "pip", "install", "--quiet", "--no-deps", "--force-reinstall", str(wheel))
            call(str(python), "-m", "pip", "check")
            call(str(python), "-c", imports, cwd=tmp)
            call(str(env / "bin" / "topotransfer"), "--help", cwd=tmp)
        except subprocess.CalledProcessError as error: return f"{error}\n{error.output}"
    return ""


def call(*command, cwd=ROOT):
    "Run a command in a clean environment: running notebooks leaves variables behind. `CalledProcessError` holds what it printed."
    env = {k: v for k, v in os.environ.items() if k not in ("MPLBACKEND", "PYTHONPATH")}
    subprocess.run(command, cwd=cwd, env=env, check=True, text=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT)


def report(name, error, seconds=None, detail=""):
    "One line of the test run; the error, if there is one, below it. Returns whether it failed."
    took = "" if seconds is None else f"  {seconds:5.0f} s"
    print(f"{'FAILED' if error else 'ok':7}{name:44}{took}{detail}", flush=True)
    if error: print(error, flush=True)
    return bool(error)


def test():
    "Everything that must hold before a change lands. Closes with `N passed, N failed`."
    paths = notebooks()
    if not paths: sys.exit(f"no notebook found below {NBS}")
    failed = [report(name, error) for name, error in sync_checks()]
    for path, seconds, tests, error in run_notebooks(paths):
        failed.append(report(str(path.relative_to(NBS)), error, seconds, f"  {tests} test cells"))
    failed.append(report("wheel builds and imports in an empty venv", wheel_check()))
    print(f"{len(failed) - sum(failed)} passed, {sum(failed)} failed")
    sys.exit(any(failed))


def sync():
    "Export, clean, README."
    export(), clean(), readme()


def save(*names):
    "Run notebooks (all without names) and keep their outputs; then clean and write README."
    paths = [Path(n).resolve() for n in names] or notebooks()
    export()
    failed = [report(str(p.relative_to(NBS)), error, seconds) for p, seconds, _, error in run_notebooks(paths, save=True)]
    clean(), readme()
    sys.exit(any(failed))


NUMBER = re.compile(r"\b\d{2}[a-z]?_(?=\w+\.(?:ipynb|html)|\w+$)") # the numbers order the folder; pages go without


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
        path.write_text(NUMBER.sub("", path.read_text(encoding="utf-8")), encoding="utf-8")
        path.rename(path.with_name(NUMBER.sub("", path.name)))
    call(str(Path(sys.executable).with_name("smalldocs")), "render", "--quiet", str(staged))
    shutil.rmtree(ROOT / "_docs", ignore_errors=True)
    shutil.move(staged / "_docs", ROOT / "_docs")
    for page in (ROOT / "_docs").rglob("*.html"): page.write_text(native_math(page.read_text(encoding="utf-8")), encoding="utf-8")
    print(f"open {ROOT / '_docs' / 'index.html'}")


def native_math(page):
    "The page with its formulas as MathML, which browsers draw by themselves: no script from elsewhere."
    from latex2mathml.converter import convert
    page = re.sub(r'<(link|script)[^>]*cdn\.jsdelivr\.net/npm/katex[^>]*>(</script>)?', "", page)
    drawn = lambda display: lambda m: convert(html.unescape(m[1]), display=display)
    page = re.sub(r'<span class="math inline">\\\((.*?)\\\)</span>', drawn("inline"), page, flags=re.S)
    return re.sub(r'<span class="math display">\\\[(.*?)\\\]</span>', drawn("block"), page, flags=re.S)


def main():
    command, *names = sys.argv[1:] or ["help"]
    commands = dict(test=test, sync=sync, save=save, docs=docs)
    if command not in commands: sys.exit(f"usage: python .ci {'|'.join(commands)}")
    os.chdir(ROOT)
    commands[command](*names)
