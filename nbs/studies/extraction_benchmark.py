"""Measure extraction: python nbs/studies/extraction_benchmark.py --out nbs/studies/extraction_benchmark.csv

Each line is one measurement in one run on one machine; `ratio` compares with what is named
in `against`, measured in turns with it. A line that is there already is not measured again.
"""

import argparse
import platform
import resource
import statistics
import tempfile
import time
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from PIL import Image
from torch import nn

from topotransfer.backbone import Backbone
from topotransfer.datasets import ImageSet, array_set, image_folder
from topotransfer.devices import memory_kept
from topotransfer.extraction import extract
from topotransfer.zoo import ModelSpec, bundled_zoo

BATCH, REPEATS = 32, 3
COLUMNS = ["what", "against", "ratio", "images_per_s", "detail", "cpu", "cores"]


def photos(folder: Path, n: int) -> ImageSet:
    "JPEG files of 500 × 375 pixels, smooth like photos, in two classes."
    rng = np.random.default_rng(0)
    for i in range(n):
        coarse = rng.integers(0, 256, (24, 32, 3), dtype=np.uint8)
        path = folder / "ab"[i % 2] / f"{i}.jpg"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(coarse).resize((500, 375), Image.Resampling.BICUBIC).save(path)
    return image_folder(folder)


def bare(backbone: Backbone, tensors: torch.Tensor) -> float:  # seconds
    "The forward passes alone, of images that are prepared."
    start = time.perf_counter()
    with torch.inference_mode():
        for part in tensors.split(BATCH):
            backbone.network(part)
    return time.perf_counter() - start


def embedded(zoo: list, data: ImageSet) -> float:  # seconds
    "An extraction into an empty store."
    with tempfile.TemporaryDirectory() as store:
        start = time.perf_counter()
        done = extract(zoo, data, store, "cpu", BATCH, progress=False)
        seconds = time.perf_counter() - start
    assert len(done.embeddings) == len(zoo), done.failures
    return seconds


def again(zoo: list, data: ImageSet) -> float:  # seconds
    "An extraction whose rows are all in the store."
    with tempfile.TemporaryDirectory() as store:
        extract(zoo, data, store, "cpu", BATCH, progress=False)
        start = time.perf_counter()
        extract(zoo, data, store, "cpu", BATCH, progress=False)
        return time.perf_counter() - start


def in_turns(first, second) -> tuple[float, float]:
    "Median seconds of two things that are measured in turns."
    pairs = [(first(), second()) for _ in range(REPEATS)]
    return tuple(statistics.median(times) for times in zip(*pairs))


def bare_kept(backbone: Backbone, tensors: torch.Tensor) -> float:  # seconds
    "The same where freed memory stays with the process, as in an extraction."
    with memory_kept():
        return bare(backbone, tensors)


def against_bare(data: ImageSet, name: str, passes=bare) -> dict:
    "Extraction from files against the bare forward pass of the same network."
    spec = next(spec for spec in bundled_zoo() if spec.name == name)
    backbone = spec.load().to(memory_format=torch.channels_last)
    tensors = torch.stack([backbone.transform(image) for image, _ in data])
    tensors = tensors.contiguous(memory_format=torch.channels_last)
    bare(backbone, tensors[:BATCH])
    ours, theirs = in_turns(
        lambda: embedded([spec], data), lambda: passes(backbone, tensors)
    )
    detail = f"{len(data)} files of 500 x 375, {REPEATS} turns"
    return dict(ratio=theirs / ours, images_per_s=len(data) / ours, detail=detail)


def one_pass(data: ImageSet) -> dict:
    "Five models in one pass against one pass for each."
    zoo, data = bundled_zoo(), data.take(np.arange(48), "48")
    ours, theirs = in_turns(
        lambda: embedded(zoo, data), lambda: sum(embedded([spec], data) for spec in zoo)
    )
    speed = len(data) * len(zoo) / ours
    return dict(ratio=theirs / ours, images_per_s=speed, detail="5 models, 48 files")


def second_run(data: ImageSet) -> dict:
    "A run whose rows are all there against the first one."
    zoo, data = bundled_zoo()[3:4], data.take(np.arange(64), "64")
    ours, theirs = in_turns(lambda: again(zoo, data), lambda: embedded(zoo, data))
    return dict(
        ratio=theirs / ours,
        images_per_s=len(data) / ours,
        detail="mobilenet_v2, 64 files",
    )


def memory(data: ImageSet) -> dict:
    "Memory in use after each of ten extractions of new images, the last against the third."
    zoo, used = bundled_zoo()[3:4], []
    for i in range(10):
        part = data.take(np.arange(i, len(data), 10), f"part {i}")
        embedded(zoo, part)
        pages = int(Path("/proc/self/statm").read_text().split()[1])
        used.append(pages * resource.getpagesize() / 2**20)
    words = " ".join(f"{mb:.0f}" for mb in used)
    return dict(ratio=used[-1] / used[2], detail=f"MB: {words}")


class Wide(nn.Module):
    "As many features as a large backbone, for next to no work."

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.widen, self.head = nn.Linear(48, 2048), nn.Linear(2048, 2)

    def forward(self, x):
        return self.head(self.widen(x.flatten(1)).relu())


def to_tensor(image):
    "Channels first, from 0 to 1."
    array = np.asarray(image, dtype=np.float32).transpose(2, 0, 1)
    return torch.from_numpy(array.copy()) / 255


def large(_: ImageSet) -> dict:
    "Peak memory of an extraction of 200,000 rows of 2,048 features, in their size."
    n = 200_000
    pixels = np.random.default_rng(0).integers(0, 256, (n, 4, 4, 3), dtype=np.uint8)
    data = array_set("many", "ab", pixels, np.arange(n) % 2)
    spec = ModelSpec("wide", Wide, lambda _: to_tensor)
    sizes = dict(batch_size=512, shard_size=8192, progress=False)
    start = time.perf_counter()
    with tempfile.TemporaryDirectory() as store:
        (found,) = extract([spec], data, store, "cpu", **sizes).embeddings.values()
        assert found.features.shape == (n, 2048)
    seconds = time.perf_counter() - start
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    detail = f"{peak / 2**30:.1f} GiB at the peak, for {n * 2048 * 4 / 2**30:.1f} GiB"
    return dict(ratio=peak / (n * 2048 * 4), images_per_s=n / seconds, detail=detail)


MEASUREMENTS = {
    ("efficientnet_lite0 at 224 px", "bare forward passes"): lambda d: against_bare(
        d, "efficientnet_lite0"
    ),
    ("efficientnet_lite0 at 224 px", "the same, memory kept"): lambda d: against_bare(
        d, "efficientnet_lite0", bare_kept
    ),
    ("mobilenet_v2 at 224 px", "bare forward passes"): lambda d: against_bare(
        d, "mobilenet_v2"
    ),
    ("five models in one pass", "one pass for each"): one_pass,
    ("second run", "first run"): second_run,
    ("memory after ten runs", "after three"): memory,
    ("peak memory, 200,000 x 2,048", "size of the features"): large,
}


def main() -> None:
    "Measure what isn't there yet."
    arguments = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    arguments.add_argument("--out", type=Path, required=True)
    arguments.add_argument("--images", type=int, default=160)
    options = arguments.parse_args()
    rows = pd.read_csv(options.out).to_dict("records") if options.out.exists() else []
    there = {(row["what"], row["against"]) for row in rows}
    cpu = next(
        (
            line.partition(": ")[2]
            for line in Path("/proc/cpuinfo").read_text().splitlines()
            if line.startswith("model name")
        ),
        platform.processor(),
    )
    with tempfile.TemporaryDirectory() as folder:
        data = photos(Path(folder), options.images)
        for (what, against), measure in MEASUREMENTS.items():
            if (what, against) in there:
                continue
            row = dict(what=what, against=against) | measure(data)
            rows.append(row | dict(cpu=cpu, cores=torch.get_num_threads()))
            pd.DataFrame(rows, columns=COLUMNS).to_csv(options.out, index=False)
            print(row, flush=True)


if __name__ == "__main__":
    main()
