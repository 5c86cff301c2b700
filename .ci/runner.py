"""Run notebooks, each in a process of its own that a fork server makes, and report what each took.

It is a module, not a script: IPython replaces `__main__` in the processes that run notebooks, and a function of
`__main__` could not be found again there.
"""

import base64
import io
import multiprocessing
import os
import re
import resource
import signal
import time
from contextlib import suppress
from multiprocessing import connection
from typing import NamedTuple

from cells import is_exported

SKIP_FLAGS = {"notest", "slow", "gpu"}
COLOURS = 128
LIMIT = 1800  # seconds after which a page is taken to hang
# What nearly every page imports, loaded once: third-party modules only, and none that starts a thread.
PRELOADED = [
    "execnb.shell",
    "hypothesis",
    "matplotlib.pyplot",
    "matplotlib_inline.backend_inline",
    "nbdev.process",
    "pandas",
    "persim",
    "psutil",
    "ripser",
    "safetensors.torch",
    "scipy.cluster.hierarchy",
    "scipy.optimize",
    "scipy.stats",
    "sklearn.datasets",
    "sklearn.linear_model",
    "sklearn.mixture",
    "sklearn.model_selection",
    "sklearn.pipeline",
    "timm",
    "torch",
    "torchvision",
    "tqdm.auto",
]
# One thread for each page, since there is a page for each core. Freed memory is kept
# (glibc only): to map it anew is slow on busy hosts.
ENVIRONMENT = {
    "OMP_NUM_THREADS": "1",
    "OPENBLAS_NUM_THREADS": "1",
    "MKL_NUM_THREADS": "1",
    "MALLOC_MMAP_THRESHOLD_": str(2**30),
    "MALLOC_TRIM_THRESHOLD_": str(2**30),
}


class Outcome(NamedTuple):
    "What became of a page."

    path: object
    wall: float  # seconds by the clock
    cpu: float  # seconds of processors, children included
    tests: int  # cells that hold tests
    error: str  # or ''


def quantise(png):
    """The PNG (base64) with a palette: small, and the same bytes for the same picture.

    An octree keeps colours that are rare, of single dots for example. A picture that has
    few colours stays as it is.
    """
    from PIL import Image

    image = Image.open(io.BytesIO(base64.b64decode(png))).convert("RGB")
    if image.getcolors(COLOURS):
        return png
    out = io.BytesIO()
    octree = dict(method=Image.Quantize.FASTOCTREE, dither=Image.Dither.NONE)
    image.quantize(COLOURS, **octree).save(out, "PNG", optimize=True)
    return base64.b64encode(out.getvalue()).decode()


def is_bar(output):
    "Whether an output is a progress bar."
    return output.get("name") == "stderr" and "\r" in "".join(output["text"])


def tidy_outputs(nb):
    "Drop progress bars and shrink pictures, so that a second run gives no difference."
    for cell in nb.cells:
        if cell.cell_type != "code":
            continue
        cell.outputs = [o for o in cell.get("outputs", []) if not is_bar(o)]
        for o in cell.outputs:
            if "image/png" in o.get("data", {}):
                o["data"]["image/png"] = quantise(o["data"]["image/png"])


def has_flag(cell, flags):
    "Whether a code cell carries one of the flags, or `#| eval: false`."
    directives = getattr(cell, "directives_", None) or {}
    return cell.cell_type == "code" and (
        directives.get("eval:") == ["false"] or bool(flags & set(directives))
    )


def test_cells(code, flags):
    "The cells that run and hold tests; code that is exported is none."
    words = re.compile(r"\b(test_\w+|assert|ExceptionExpected)\b")
    running = [c for c in code if not is_exported(c.source) and not has_flag(c, flags)]
    return [c for c in running if words.search(c.source)]


def run_cells(path, save, flags):
    "Run the cells of a notebook without flags: `(number of test cells, error or '')`."
    from execnb.nbio import write_nb
    from execnb.shell import CaptureShell
    from nbdev.process import NBProcessor

    nb = NBProcessor(path, rm_directives=False).nb
    code = [c for c in nb.cells if c.cell_type == "code"]
    tests = test_cells(code, flags)
    if not tests and any(is_exported(c.source) for c in code):
        return 0, "exports code but holds no test"
    # a cell that now prints nothing would else keep what it printed before
    for cell in code:
        if not has_flag(cell, flags):
            cell.outputs = []
    shell = CaptureShell(str(path), mpl_format="png")
    try:
        shell.run_all(nb, exc_stop=True, preproc=lambda cell: has_flag(cell, flags))
    except Exception:
        return len(tests), shell.prettytb(fname=path)
    if save:
        tidy_outputs(nb)
        write_nb(nb, path.with_suffix(".tmp"))  # whole or not at all
        os.replace(path.with_suffix(".tmp"), path)
    return len(tests), ""


def processor_seconds():
    "User and system time of this process and of the children that it has waited for."
    return sum(
        sum(resource.getrusage(who)[:2])
        for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)
    )


def run_page(path, save, flags, sender):
    "What the process of a page does: run it and send `(tests, error, processor seconds, those of the fork server)`."
    import psutil

    os.setsid()  # so that what the page starts can be ended with it
    # a page starts processes as it would anywhere else
    multiprocessing.set_start_method(None, force=True)
    os.chdir(path.parent)
    tests, error = run_cells(path, save, flags)
    server = psutil.Process(os.getppid()).cpu_times()
    sender.send((tests, error, processor_seconds(), server.user + server.system))


class Page:
    "A page under way."

    def __init__(self, context, path, save, flags):
        self.path, self.start = path, time.monotonic()
        self.receiver, sender = context.Pipe(duplex=False)
        self.process = context.Process(
            target=run_page, args=(path, save, flags, sender)
        )
        self.process.start()
        sender.close()

    @property
    def wall(self):
        return time.monotonic() - self.start

    @property
    def ended(self):
        return self.receiver.poll() or not self.process.is_alive()

    def end(self, limit):
        "The outcome of a page that has ended or has had its time, and the fork server's processor seconds."
        wall, late = self.wall, not self.ended
        if not late:
            self.process.join(60)  # time for its last words
        self.kill()  # what is left of it might hold the pipe open
        try:
            tests, error, cpu, server = (
                self.receiver.recv() if self.receiver.poll() else (0, "", 0.0, 0.0)
            )
        except EOFError:
            tests, error, cpu, server = 0, "", 0.0, 0.0
        if late:
            error = f"ended after {limit} s without a result: it hangs"
        return Outcome(self.path, wall, cpu, tests, error or self._death()), server

    def kill(self):
        "End the page and whatever it has started."
        code = self.process.exitcode
        with suppress(ProcessLookupError):
            os.killpg(self.process.pid, signal.SIGKILL)
        # it may not have come to lead a group of its own
        if code is None:
            self.process.kill()
        self.process.join()

    def _death(self):
        "What is wrong with a process that said nothing is wrong."
        code = self.process.exitcode
        return f"its process died with exit status {code}" if code else ""


def loaded_server():
    "A fork server that has loaded what pages import: no page waits for it."
    os.environ.update(ENVIRONMENT)
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(PRELOADED)
    ready = context.Process(target=int)
    ready.start()
    ready.join()
    return context


def wait_for(running, limit):
    "Wait until a page ends or has had its time; the pages that did."
    nearest = limit - max(page.wall for page in running)
    pairs = [(page.receiver, page.process.sentinel) for page in running]
    connection.wait([one for pair in pairs for one in pair], timeout=max(nearest, 0))
    return [page for page in running if page.ended or page.wall >= limit]


def run_notebooks(paths, save=False, flags=SKIP_FLAGS, limit=LIMIT):
    """Run notebooks, as many at a time as there are cores.

    Yields `(outcome, fork server's processor seconds)` as they end.
    """
    context, waiting, running = loaded_server(), list(paths), []
    try:
        while waiting or running:
            while waiting and len(running) < (os.cpu_count() or 1):
                running.append(Page(context, waiting.pop(0), save, flags))
            for page in wait_for(running, limit):
                running.remove(page)
                yield page.end(limit)
    finally:  # Ctrl-C reaches this process, not the pages
        for page in running:
            page.kill()
