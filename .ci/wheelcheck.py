"""The wheel: built, installed into an empty environment, every module imported."""

import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

from shell import ROOT, call

ENV = ROOT / ".venv-wheel"


def wheel_check():
    "Build the wheel, install it with what it asks for into an empty environment, import every module: error or ''."
    with tempfile.TemporaryDirectory() as folder:
        try:
            wheel = build(folder)
            install(wheel)
            try_out(folder)
        except subprocess.CalledProcessError as error:
            return f"{error}\n{error.output}"
    return ""


def build(folder):
    "The wheel of the package as it stands."
    pip = [sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps"]
    call(*pip, "--wheel-dir", folder, str(ROOT))
    return next(Path(folder).glob("*.whl"))


def install(wheel):
    "The wheel and its `cluster` extra, into an environment that is kept while the requirements stay the same."
    stamp = ENV / "requirements"
    wanted = (ROOT / "settings.ini").read_text()
    if not stamp.exists() or stamp.read_text() != wanted:
        shutil.rmtree(ENV, ignore_errors=True)
        without = ["--without-pip"] if uv().exists() else []
        call(sys.executable, "-m", "venv", str(ENV), *without)
        pip("install", f"{wheel}[cluster]")
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
    "Import every module far from the sources, and ask the command line for help."
    modules = (p.stem for p in (ROOT / "topotransfer").glob("*.py"))
    imports = [f"import topotransfer.{m}" for m in sorted(modules) if m != "__init__"]
    call(str(ENV / "bin" / "python"), "-c", "; ".join(imports), cwd=folder)
    call(str(ENV / "bin" / "topotransfer"), "--help", cwd=folder)
