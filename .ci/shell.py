"""Where the repository lies, and commands run in it."""

import os
import subprocess
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent


def call(*command, cwd=ROOT):
    """What a command prints, run in a clean environment: running notebooks leaves variables behind.

    Where it fails, `CalledProcessError` holds what it printed.
    """
    env = {k: v for k, v in os.environ.items() if k not in ("MPLBACKEND", "PYTHONPATH")}
    done = subprocess.run(
        command,
        cwd=cwd,
        env=env,
        check=True,
        text=True,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
    )
    return done.stdout
