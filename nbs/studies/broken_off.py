"""Kill an extraction with SIGKILL at a random moment, run it again, and look at what is there.

python nbs/studies/broken_off.py --times 100 --out nbs/studies/broken_off.csv

Each line of the table is one kill: when it came, how many rows were in the store then, and
after the second run how many rows are lost, doubled or wrong, and how many images went
through the network twice. Lines that are there are kept, so that it can go on.
"""

import argparse
import multiprocessing
import os
import signal
import tempfile
import time
from functools import partial
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from torch import nn

from topotransfer.datasets import array_set
from topotransfer.embeddings import ModelFacts
from topotransfer.extraction import extract
from topotransfer.rows import store_table
from topotransfer.zoo import ModelSpec

N_IMAGES, SHARD, BATCH = 300, 20, 5
PAUSE = 0.006  # seconds after each batch, so that a kill meets the run at work


class Noting(nn.Module):
    "A network that notes in a file which images it has seen: their first two pixels are their number."

    def __init__(self, log: Path):
        super().__init__()
        torch.manual_seed(0)
        self.head = nn.Linear(48, 4)
        # in a list: words of a network are settings, which its rows hang on
        self.log = [str(log)]

    def forward(self, x):
        flat = x.flatten(1)
        numbers = (flat[:, 0] * 255 + flat[:, 1] * 255 * 256).round().int().tolist()
        with open(self.log[0], "a") as file:
            file.write("".join(f"{number}\n" for number in numbers))
        time.sleep(PAUSE)
        return self.head(flat)


def images():
    "Images of noise that carry their number."
    rng = np.random.default_rng(0)
    pixels = rng.integers(0, 256, (N_IMAGES, 4, 4, 3), dtype=np.uint8)
    numbers = np.arange(N_IMAGES)
    pixels[:, 0, 0, 0], pixels[:, 0, 1, 0] = numbers % 256, numbers // 256
    return array_set("numbered", "ab", pixels, numbers % 2)


def to_tensor(image):
    "Channels first, from 0 to 1."
    array = np.asarray(image, dtype=np.float32).transpose(2, 0, 1)
    return torch.from_numpy(array.copy()) / 255


def run(folder: str):
    "The extraction that is killed, and run again."
    place = Path(folder)
    # multiply-adds that are known aren't counted, which would take one more image
    facts = dict(published=ModelFacts(multiply_adds=192))
    build = partial(Noting, place / "log")
    spec = ModelSpec("noting", build, lambda _: to_tensor, **facts)
    sizes = dict(batch_size=BATCH, shard_size=SHARD, progress=False)
    return extract([spec], images(), place / "store", device="cpu", **sizes)


def in_a_process(folder: str) -> multiprocessing.Process:
    "The extraction in a process of its own."
    process = multiprocessing.get_context("fork").Process(target=run, args=(folder,))
    process.start()
    return process


def seen(folder: str) -> np.ndarray:
    "How often each image went through the network."
    log = Path(folder) / "log"
    numbers = [int(line) for line in log.read_text().split()] if log.exists() else []
    return np.bincount(np.array(numbers, int), minlength=N_IMAGES)


def one_kill(after: float) -> dict:  # seconds
    "A run killed after so many seconds, and what the next run makes of it."
    with tempfile.TemporaryDirectory() as folder:
        process = in_a_process(folder)
        time.sleep(after)
        os.kill(process.pid, signal.SIGKILL)
        process.join()
        kept = store_table(Path(folder) / "store")["images"].sum()
        before = seen(folder)
        (found,) = run(folder).embeddings.values()
        twice = (seen(folder) - 1).clip(0)[before > 0].sum()
        expected = torch.stack([to_tensor(image) for image, _ in images()]).flatten(1)
        wrong = (found.features != expected.numpy()).any(1)
        table = store_table(Path(folder) / "store")
    return dict(
        seconds=round(after, 4),
        kept=int(kept),
        lost=N_IMAGES - len(found.features),
        wrong_or_out_of_order=int(wrong.sum()),
        doubled=int(table["images"].sum()) - N_IMAGES,
        computed_twice=int(twice),
    )


def whole_run() -> float:  # seconds
    "How long a run takes that nobody kills."
    with tempfile.TemporaryDirectory() as folder:
        start = time.time()
        in_a_process(folder).join()
        return time.time() - start


def kills(times: int, seed: int = 0, known: pd.DataFrame | None = None):
    "A table of so many kills at moments drawn at random; it goes on where `known` ends."
    torch.set_num_threads(1)
    rows = [] if known is None else known.to_dict("records")
    moments = np.random.default_rng(seed).random(times) * whole_run()
    for moment in moments[len(rows) :]:
        rows.append(one_kill(moment))
        yield pd.DataFrame(rows)


if __name__ == "__main__":
    arguments = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    arguments.add_argument("--times", type=int, default=100)
    arguments.add_argument("--out", type=Path, required=True)
    options = arguments.parse_args()
    there = pd.read_csv(options.out) if options.out.exists() else None
    for table in kills(options.times, known=there):
        table.to_csv(options.out, index=False)
    print(table.describe().loc[["min", "max"]].to_string())
