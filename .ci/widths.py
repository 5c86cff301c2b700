"""Whether anything on a rendered page is cut off at the side, as headless Chromium draws it.

One browser opens every page in a frame of each width, asks where each text and picture
ends, and sends back what can't be reached by scrolling. Among the pages is one with a
line that is cut off: where that isn't found, the check is blind and says so.
"""

import json
import os
import shutil
import subprocess
import tempfile
import threading
import time
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

WIDTHS = (1300, 400)
BROWSERS = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")
PATIENCE = 600  # seconds for all pages
PROBE = "<body style='margin: 0; white-space: nowrap'><p>{0}</p><p style='overflow-x: auto'>{0}</p>"
SCRIPT = Path(__file__).with_name("widths.js")


def faults(site, limit=PATIENCE):
    "A sentence for each text or picture that a reader can't see whole; without a browser a word, in CI a fault."
    if not browser():
        said = "no Chromium here: whether pages are cut off at the side isn't checked"
        print(said)
        return [said] if os.environ.get("CI") else []
    pages = sorted(str(p.relative_to(site)) for p in Path(site).rglob("*.html"))
    found = measure(site, pages, limit)
    if found is None:
        return [
            f"Chromium ended or ran for {limit} s without an answer on {len(pages)} pages"
        ]
    probes = [fault for fault in found if fault.startswith("probe ")]
    if len(probes) != len(WIDTHS):
        return [f"the check of widths is blind: of its own page it says {probes}"]
    return [fault for fault in found if fault not in probes]


def browser():
    "The path of a Chromium, if there is one."
    return next(filter(None, map(shutil.which, BROWSERS)), None)


def measure(site, pages, limit):
    "What the browser sends back, None where it sends nothing in time."
    answer = {}
    done = threading.Event()
    handler = partial(Handler, pages, answer, done, directory=str(site))
    with ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as profile:
            address = f"http://127.0.0.1:{server.server_port}/widths"
            process = start(profile, address)
            end = time.monotonic() + limit
            while process.poll() is None and time.monotonic() < end:
                if done.wait(0.2):
                    break
            stop(process)
        server.shutdown()
    return answer.get("found")


def start(profile, address):
    "The browser, without a window, with a profile of its own."
    words = ["--headless=new", "--no-sandbox", "--disable-gpu", "--no-first-run"]
    words += [f"--user-data-dir={profile}", "--window-size=1400,1200", address]
    nothing = subprocess.DEVNULL
    return subprocess.Popen([browser(), *words], stdout=nothing, stderr=nothing)


def stop(process):
    "End the browser, by force where it doesn't go."
    process.terminate()
    try:
        process.wait(10)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()


class Handler(SimpleHTTPRequestHandler):
    "The site, a page that measures it, and a place that takes the answer."

    def __init__(self, pages, answer, done, *args, **options):
        self.pages, self.answer, self.done = pages, answer, done
        super().__init__(*args, **options)

    def do_GET(self):
        if self.path == "/probe":
            return self.reply(PROBE.format("x" * 300))
        if self.path != "/widths":
            return super().do_GET()
        script = SCRIPT.read_text(encoding="utf-8")
        asked = f"measure({json.dumps([*self.pages, 'probe'])}, {list(WIDTHS)})"
        self.reply(f"<!doctype html><body><script>{script}\n{asked}</script>")

    def do_POST(self):
        length = int(self.headers["Content-Length"])
        self.answer["found"] = json.loads(self.rfile.read(length))
        self.reply("")
        self.done.set()

    def reply(self, text):
        "A page of text."
        self.send_response(200)
        self.send_header("Content-Type", "text/html; charset=utf-8")
        self.end_headers()
        self.wfile.write(text.encode())

    def log_message(self, *_):
        "Nothing: the server talks to one browser."
