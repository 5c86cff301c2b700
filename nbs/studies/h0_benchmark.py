"""Measure H0 engines: `python nbs/studies/h0_benchmark.py [--only TEXT] [--lock FILE]`.

Each measurement runs in a process of its own and adds one row to `h0_benchmark.csv`
beside this file; what stands there already is skipped, so a run that was cut off goes
on. The peers come with `pip install ".[benchmark]"`.
"""

import argparse
import csv
import fcntl
import json
import os
import platform
import subprocess
import sys
import time
from contextlib import contextmanager
from pathlib import Path

import numpy as np

RESULTS = Path(__file__).with_name("h0_benchmark.csv")
COLUMNS = [
    "cloud",
    "n",
    "d",
    "method",
    "seconds",
    "gram_seconds",
    "half_seconds",
    "peak_bytes",
    "max_relative_error",
    "repeats",
    "cores",
    "cpu",
    "versions",
]


# ---- the clouds
def cloud(name, n, d, seed=0):
    "Float32 points: 100 classes at some spread, or none; or embeddings of real images."
    rng = np.random.default_rng(seed)
    if name.startswith("real "):
        return real_embeddings(name.removeprefix("real "), n)
    x = rng.standard_normal((n, d), dtype=np.float32)
    if name == "unclustered":
        return x
    spread = {"clustered": 0.3, "collapsed": 1e-6, "far": 0.3}[name]
    x *= np.float32(spread)
    x += rng.standard_normal((100, d), dtype=np.float32)[rng.integers(0, 100, n)]
    return x + np.float32(1e4) if name == "far" else x


def real_embeddings(model, n):
    """Features of a bundled backbone on animal silhouettes at 32 px.

    That is about their own size. Computed once and kept in the store.
    """
    from dataclasses import replace

    from torchvision import transforms

    from topotransfer.datasets import animals
    from topotransfer.extraction import extract
    from topotransfer.zoo import bundled_zoo

    small = transforms.Compose(
        [
            transforms.Resize(32),
            transforms.ToTensor(),
            transforms.Normalize([0.5] * 3, [0.5] * 3),
        ]
    )
    (spec,) = (spec for spec in bundled_zoo() if spec.name == model)
    zoo = [replace(spec, transform=lambda network: small)]
    extraction = extract(zoo, animals().subset(n // 10), batch_size=64)
    return extraction.embeddings[model].features


# ---- the methods
def ours(x):
    from topotransfer.persistence import h0_persistence

    return h0_persistence(x, progress=False)


def ours_single(x):
    "Without numbers of 16 bits."
    from topotransfer.persistence import h0_persistence

    return h0_persistence(x, progress=False, precisions=("float32",))


def ripser(x):
    from ripser import ripser

    return ripser(x, maxdim=0)["dgms"][0][:, 1]


def giotto_ph(x):
    from gph import ripser_parallel

    return ripser_parallel(x, maxdim=0, n_threads=os.cpu_count())["dgms"][0][:, 1]


def scipy(x):
    from scipy.cluster.hierarchy import linkage
    from scipy.spatial.distance import pdist

    return linkage(pdist(x.astype(np.float64)), "single")[:, 2]


def gudhi(x):
    import gudhi

    tree = gudhi.RipsComplex(points=x).create_simplex_tree(max_dimension=1)
    tree.compute_persistence()
    return tree.persistence_intervals_in_dimension(0)[:, 1]


def quitefastmst(x):
    import quitefastmst

    return quitefastmst.mst_euclid(x.astype(np.float64))[0]


def scikit_learn(x):
    from sklearn.cluster import linkage_tree

    return linkage_tree(x, linkage="single", return_distance=True)[4]


def hdbscan(x):
    from hdbscan import HDBSCAN

    tree = HDBSCAN(min_samples=1, gen_min_span_tree=True).fit(x.astype(np.float64))
    return tree.minimum_spanning_tree_.to_numpy()[:, 2]


def half(x):
    "The limit: half the tiles of the float32 product, into one buffer."
    import torch

    tiles = torch.from_numpy(x).split(1024)
    buffer = torch.empty(1024, 1024)
    for i, rows in enumerate(tiles):
        for cols in tiles[i:]:
            torch.mm(rows, cols.T, out=buffer[: len(rows), : len(cols)])
    return float(buffer[0, 0])


def gram(x):
    """The yardstick: one full float32 product X X^T.

    By row tiles into one buffer where the whole would not fit in 2 GiB.
    """
    import torch

    t = torch.from_numpy(x)
    if 4 * len(x) ** 2 <= 2**31:
        return float((t @ t.T)[0, 0])
    buffer = torch.empty(1024, len(x))
    for rows in t.split(1024):
        torch.mm(rows, t.T, out=buffer[: len(rows)])
    return float(buffer[0, 0])


METHODS = dict(
    topotransfer=ours,
    topotransfer_float32=ours_single,
    ripser=ripser,
    giotto_ph=giotto_ph,
    scipy=scipy,
    gudhi=gudhi,
    quitefastmst=quitefastmst,
    scikit_learn=scikit_learn,
    hdbscan=hdbscan,
)
OURS = ["topotransfer", "topotransfer_float32"]


# ---- what is measured
def workloads():
    "(cloud, n, d, methods), the table first, then growth in n and in d."
    yield "clustered", 5_000, 2_048, list(METHODS)
    for name in ("collapsed", "unclustered", "far"):
        yield name, 5_000, 2_048, [*OURS, "ripser", "giotto_ph", "scipy"]
    small = ["ripser", "giotto_ph", "scipy", "scikit_learn", "hdbscan"]
    yield "unclustered", 1_000, 64, [*OURS, *small]
    for name in ("clustered", "collapsed", "unclustered"):
        yield name, 10_000, 2_048, [*OURS, "giotto_ph", "scipy"]
        yield name, 20_000, 512, [*OURS, "scipy"]
    for name in ("clustered", "collapsed", "unclustered"):
        yield name, 50_000, 2_048, OURS
    lite = [f"efficientnet_lite{i}" for i in range(3)]
    for model in (*lite, "mobilenet_v2"):
        yield f"real {model}", 10_000, 1_280, [*OURS, "giotto_ph", "scipy"]
    for n in (500, 1_000, 2_000, 4_000, 8_000, 16_000):
        some = ["ripser", "giotto_ph"] if n <= 8_000 else []
        yield "clustered", n, 256, ["topotransfer", "scipy", *some]
    for d in (16, 64, 256, 1_024, 4_096):
        yield "clustered", 4_000, d, ["topotransfer", "scipy", "ripser", "giotto_ph"]


def measure(name, n, d, method, reference_file):
    "One row: the fastest of the repeats, peak memory, and the largest error of a bar."
    x = np.ascontiguousarray(cloud(name, n, d))
    row, bars = timings(METHODS[method], x)
    bars = np.sort(np.asarray(bars, dtype=np.float64)[np.isfinite(bars)])[::-1]
    # some libraries leave bars of length 0 out
    bars = np.concatenate([bars, np.zeros(n - 1 - len(bars))])
    error = ""
    if method == "scipy" and reference_file:
        np.save(reference_file, bars)
    elif reference_file and Path(reference_file).exists():
        error = relative_error(bars, np.load(reference_file))
    return row | dict(
        cloud=name,
        n=n,
        d=x.shape[1],
        method=method,
        max_relative_error=error,
        cores=os.cpu_count(),
        cpu=cpu_name(),
        versions=versions(method),
    )


def timings(function, x):
    """Seconds of a method and of the Gram products, peak memory, repeats; and the bars.

    These alternate with the method, so that all saw the same machine. The full product of
    more than 20,000 points is left out; it is twice its half.
    """
    # imports and first-call costs
    function(x[:300].copy())
    gram(x[:300])
    half(x[:300])
    seconds, grams, halves, above = [], [], [], []
    while not seconds or (sum(seconds) < 6 and len(seconds) < 7):
        if len(x) <= 20_000:
            grams.append(timed(gram, x)[0])
        halves.append(timed(half, x)[0])
        before = reset_peak()
        took, bars = timed(function, x)
        above.append(peak() - before)
        seconds.append(took)
    row = dict(
        seconds=min(seconds),
        gram_seconds=min(grams, default=""),
        half_seconds=min(halves),
        peak_bytes=max(above),
        repeats=len(seconds),
    )
    return row, bars


def relative_error(bars, true):
    "The largest over the bars; infinite where a bar of length 0 came out longer."
    with np.errstate(divide="ignore", invalid="ignore"):
        relative = np.abs(bars - true) / true
    return float(np.nan_to_num(relative, nan=0, posinf=np.inf).max())


def timed(function, x):
    start = time.perf_counter()
    result = function(x)
    return time.perf_counter() - start, result


def reset_peak():
    "Bytes resident now; the kernel's high-water mark starts again from here."
    Path("/proc/self/clear_refs").write_text("5")
    return peak()


def peak():
    "The high-water mark of the process's memory in bytes."
    lines = Path("/proc/self/status").read_text().splitlines()
    mark = next(line for line in lines if line.startswith("VmHWM"))
    return 1024 * int(mark.split()[1])


def cpu_name():
    found = [
        line.split(":")[1].strip()
        for line in Path("/proc/cpuinfo").read_text().splitlines()
        if line.startswith("model name")
    ]
    return found[0] if found else platform.processor()


def versions(method):
    from importlib.metadata import version

    package = method.removesuffix("_float32").replace("_", "-")
    return " ".join(f"{n}=={version(n)}" for n in [package, "numpy", "torch"])


# ---- the run
@contextmanager
def alone(lock):
    "Hold a lock file meanwhile, for machines on which other work knows of it."
    if not lock:
        return (yield)
    with open(lock, "w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


def done():
    if not RESULTS.exists():
        return set()
    with RESULTS.open() as file:
        return {
            (r["cloud"], int(r["n"]), int(r["d"]), r["method"])
            for r in csv.DictReader(file)
        }


def write(row):
    new = not RESULTS.exists()
    with RESULTS.open("a", newline="") as file:
        writer = csv.DictWriter(file, COLUMNS, lineterminator="\n")
        if new:
            writer.writeheader()
        writer.writerow(row)


def reference_file(name, n, d, methods):
    "Where SciPy's bars of a cloud are kept for the others; empty where it has no turn."
    if "scipy" not in methods:
        return ""
    folder = Path(os.environ.get("TMPDIR", "/tmp"))
    return str(folder / f"h0_{name}_{n}_{d}.npy".replace(" ", "_"))


def measure_apart(*task):
    "The row of a measurement in a process of its own, or None with a word of why."
    command = [sys.executable, __file__, "--one", json.dumps(task)]
    out = subprocess.run(command, capture_output=True, text=True)
    if not out.returncode:
        return json.loads(out.stdout.splitlines()[-1])
    print(*task[:4], "failed:", out.stderr.strip().splitlines()[-1:], flush=True)
    return None


def report(row):
    "Say what was measured."
    print(
        f"{row['cloud']} {row['n']} x {row['d']} {row['method']}: "
        f"{row['seconds']:.3g} s, "
        f"{row['seconds'] / row['half_seconds']:.2f} half ones, "
        f"{row['peak_bytes'] / 2**20:.0f} MiB, error {row['max_relative_error']}",
        flush=True,
    )


def parsed():
    "The options of the command line."
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument(
        "--only",
        default="",
        help="measure workloads whose 'cloud n d method' contains this text",
    )
    parser.add_argument("--lock", help="a lock file to hold during each measurement")
    parser.add_argument("--one", help=argparse.SUPPRESS)
    return parser.parse_args()


def main():
    options = parsed()
    if options.one:
        return print(json.dumps(measure(*json.loads(options.one))))
    for name, n, d, methods in workloads():
        reference = reference_file(name, n, d, methods)
        for method in sorted(methods, key=lambda m: m != "scipy"):
            wanted = options.only in f"{name} {n} {d} {method}"
            if not wanted or (name, n, d, method) in done():
                continue
            with alone(options.lock):
                row = measure_apart(name, n, d, method, reference)
            if row:
                write(row)
                report(row)


if __name__ == "__main__":
    main()
