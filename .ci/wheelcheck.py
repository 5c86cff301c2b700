"""What a release hands out: built, compared with the package, installed alone and used.

`python .ci/wheelcheck.py dist/WHEEL` installs and uses a wheel that is there.
"""

import re
import shutil
import subprocess
import sys
import tarfile
import tempfile
import zipfile
from pathlib import Path

from shell import ROOT, call

ENV = ROOT / ".venv-wheel"
BESIDE = "LICENSE README.md settings.ini pyproject.toml setup.py".split()
EXTRA = {"cluster", "cluster_extraction"}  # modules that the extra `cluster` is for

# What a newcomer does first, with nothing but what is inside the wheel.
USE = """
import importlib, socket, sys, warnings

def refuse(*words):
    raise OSError("the package alone must not go online")

warnings.filterwarnings("error", category=DeprecationWarning, module="topotransfer")
socket.socket.connect = socket.getaddrinfo = refuse
for module in sys.argv[1:]:
    importlib.import_module(f"topotransfer.{module}")
from topotransfer.datasets import digits
from topotransfer.ranking import rank
from topotransfer.small_nets import small_zoo

options = dict(scores=["pr_target", "leep"], store="store", progress=False)
table = rank(small_zoo()[:2], digits().subset(5), **options).table
assert table[["pr_target", "leep"]].notna().all(axis=None), table
"""


def wheel_check():
    """Build the source distribution and a wheel from it, install the wheel alone into an empty environment, use it.

    Error or ''.
    """
    with tempfile.TemporaryDirectory() as folder:
        try:
            sdist, wheel = build(folder)
            return compare(sdist, wheel) or use(wheel, folder)
        except subprocess.CalledProcessError as error:
            return f"{error}\n{error.output}"


def use(wheel, folder):
    "Install a wheel alone and use it, in a folder: error or ''."
    install(wheel)
    try_out(folder)
    return without_bundle(folder)


def build(folder):
    "The source distribution of the package as it stands, and the wheel that is built from that."
    installer = ["--installer", "uv"] if uv().exists() else []
    call(sys.executable, "-m", "build", "--outdir", folder, *installer, str(ROOT))
    return next(Path(folder).glob("*.tar.gz")), next(Path(folder).glob("*.whl"))


def held(archive):
    "The content of each file of a source distribution or a wheel, by its path."
    if archive.suffix == ".whl":
        with zipfile.ZipFile(archive) as file:
            return {name: file.read(name) for name in file.namelist()}
    with tarfile.open(archive) as file:
        files = [member for member in file if member.isfile()]
        return {m.name.partition("/")[2]: file.extractfile(m).read() for m in files}


def compare(sdist, wheel):
    "Whether both hold the package as it stands, byte by byte, and the wheel nothing else: error or ''."
    files = [p for p in (ROOT / "topotransfer").rglob("*") if p.is_file()]
    files = [p for p in files if "__pycache__" not in p.parts]
    wanted = {p.relative_to(ROOT).as_posix(): p.read_bytes() for p in files}
    source, built = held(sdist), held(wheel)
    facts = {name for name in built if ".dist-info/" in name}
    wrong = [f"{wheel.name} differs in {n}" for n in differing(wanted, built) - facts]
    wanted |= {name: (ROOT / name).read_bytes() for name in BESIDE}
    lacking = [n for n, content in wanted.items() if source.get(n) != content]
    wrong += [f"{sdist.name} differs in {name}" for name in lacking]
    if not any(name.endswith("/LICENSE") for name in facts):
        wrong.append(f"{wheel.name} lacks LICENSE")
    metadata = next(built[n] for n in facts if n.endswith("/METADATA")).decode()
    links = re.findall(r"\]\((?!https?://|#)([^)]+)\)", metadata)
    wrong += [f"a package index can't follow the link to {link}" for link in links]
    return "\n".join(wrong)


def differing(one, other):
    "The keys under which two dictionaries don't hold the same."
    return {k for k in one.keys() | other.keys() if one.get(k) != other.get(k)}


def install(wheel):
    "The wheel alone, into an environment that is kept while the requirements stay the same."
    stamp = ENV / "requirements"
    wanted = (ROOT / "settings.ini").read_text()
    if not stamp.exists() or stamp.read_text() != wanted:
        shutil.rmtree(ENV, ignore_errors=True)
        without = ["--without-pip"] if uv().exists() else []
        call(sys.executable, "-m", "venv", str(ENV), *without)
        pip("install", str(wheel))
        stamp.write_text(wanted)
    pip("install", "--no-deps", "--force-reinstall", str(wheel))
    pip("check")


def uv():
    "Where uv is, if it could be installed."
    return Path(sys.executable).with_name("uv")


def pip(command, *words):
    "pip's commands in the empty environment, by uv where it is at hand."
    python = str(ENV / "bin" / "python")
    if uv().exists():
        call(str(uv()), "pip", command, "--quiet", "--python", python, *words)
    else:
        call(python, "-m", "pip", command, *words)


def try_out(folder):
    "Import every module far from the sources, and rank networks that travel with the package, offline."
    modules = {p.stem for p in (ROOT / "topotransfer").glob("[!_]*.py")} - EXTRA
    call(str(ENV / "bin" / "python"), "-c", USE, *sorted(modules), cwd=folder)


def without_bundle(folder):
    "Whether the command line names what to install for its default ranking: error or ''."
    try:
        call(str(ENV / "bin" / "topotransfer"), "rank", "--store", "store", cwd=folder)
    except subprocess.CalledProcessError as error:
        told = "run: pip install --no-deps " in error.output
        return "" if told and error.returncode == 2 else error.output
    return "topotransfer rank must name the packages that it lacks; it ran"


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as empty:
        sys.exit(use(Path(sys.argv[1]).resolve(), empty))
