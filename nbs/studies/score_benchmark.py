"""Measure scores: `score_benchmark.py [--n N ...] [--only TEXT] [--limit SECONDS]`.

Each measurement runs in a process of its own and adds one row to `score_benchmark.csv`
beside this file; what stands there already is skipped, so a run that was cut off goes
on. A measurement is given up after the limit. `--neighbour` measures all scores of one
model beside a busy process instead, and writes `busy_neighbour.csv` anew.
"""

import argparse
import csv
import json
import os
import resource
import subprocess
import sys
import time
from contextlib import contextmanager, nullcontext
from dataclasses import replace
from pathlib import Path

import numpy as np

SIZES = (1_000, 10_000, 50_000)
FEATURES = 2_048
CLASSES = 100
TABLE = Path(__file__).with_suffix(".csv")
NEIGHBOUR = Path(__file__).with_name("busy_neighbour.csv")
COLUMNS = [
    "implementation",
    "score",
    "n",
    "status",
    "seconds",
    "first_seconds",
    "peak_mib",
    "value",
    "limit",
    "note",
    "machine",
    "libraries",
]


# ---- the cloud
def embeddings_of(n, d=FEATURES, k=CLASSES):
    "Class means with noise, float32, with logits of 1,000 source classes."
    from topotransfer.embeddings import EmbeddingKey, Embeddings

    rng = np.random.default_rng(0)
    labels = np.arange(n) % k
    features = rng.standard_normal((n, d), dtype=np.float32)
    features += 0.3 * rng.standard_normal((k, d), dtype=np.float32)[labels]
    logits = rng.standard_normal((n, 1_000), dtype=np.float32)
    logits[np.arange(n), labels] += 3
    return Embeddings(
        features,
        labels,
        EmbeddingKey("made up", "benchmark", "all", "none", "w", f"{n}"),
        logits=logits,
        num_params=1,
        imagenet_top1=1.0,
    )


# ---- published formulas
def singular_values(x):
    "Left singular vectors and singular values, by x.T @ x where that is smaller."
    n, d = x.shape
    if n <= d:
        return np.linalg.svd(x, full_matrices=False)[:2]
    _, s2, vt = np.linalg.svd(x.T @ x)
    s = np.sqrt(s2[s2 > 1e-20])
    return x @ vt[: len(s)].T / s, s


def fixed_point(sigma, z2, outside, n):
    "Alpha and beta in turn, until their ratio stays: both, and two sums of squares."
    a = b = 1.0
    for _ in range(11):
        t = a / b
        m2 = (sigma * z2 / (t + sigma) ** 2).sum()
        res2 = (z2 / (1 + sigma / t) ** 2).sum() + outside
        gamma = (sigma / (sigma + t)).sum()
        a, b = gamma / (m2 + 1e-5), (n - gamma) / (res2 + 1e-5)
        if abs(a / b - t) / t <= 1e-3:
            break
    return a, b, m2, res2


def thuml_logme(x, y):
    "The fixed point of thuml/LogME, re-implemented."
    n, d = x.shape
    u, s = singular_values(x)
    sigma = s**2
    total = []
    for c in range(y.max() + 1):
        target = (y == c).astype(float)
        z2 = (u.T @ target) ** 2
        a, b, m2, res2 = fixed_point(sigma, z2, target.sum() - z2.sum(), n)
        gain = d / 2 * np.log(a) + n / 2 * np.log(b)
        gain -= 0.5 * np.log(a + b * sigma).sum()
        loss = b / 2 * res2 + a / 2 * m2 + n / 2 * np.log(2 * np.pi)
        total.append((gain - loss) / n)
    return np.mean(total)


def tllib_h_score(x, y):
    "tllib's formula, re-implemented: two covariances, and a pseudo-inverse of one."
    g = np.zeros_like(x)
    for c in range(y.max() + 1):
        g[y == c] = x[y == c].mean(axis=0)
    return np.trace(
        np.linalg.pinv(np.cov(x, rowvar=False), rcond=1e-15) @ np.cov(g, rowvar=False)
    )


def tllib_transrate(x, y, epsilon=1e-4):
    """tllib's formula, re-implemented, on features of total variance 1.

    A d x d determinant for each class.
    """

    def rate(z):
        covariance = z.T @ z / (len(z) * epsilon)
        return 0.5 * np.linalg.slogdet(np.eye(z.shape[1]) + covariance)[1]

    x = (x - x.mean(axis=0)) / np.sqrt(x.var(axis=0).sum())
    return rate(x) - np.mean([rate(x[y == c]) for c in range(y.max() + 1)])


def tllib_leep(p, y):
    "tllib's formula, re-implemented: the joint distribution class by class."
    joint = np.array([p[y == c].sum(axis=0) for c in range(y.max() + 1)]) / len(y)
    return np.log(((joint / joint.sum(axis=0))[y] * p).sum(axis=1)).mean()


def sklearn_knn(x, y):
    "Leave-one-out accuracy of five nearest neighbours by scikit-learn, in percent."
    from sklearn.neighbors import NearestNeighbors

    index = NearestNeighbors(n_neighbors=5, algorithm="brute").fit(x)
    votes = y[index.kneighbors(return_distance=False)]
    winners = [np.bincount(row).argmax() for row in votes]
    return 100 * np.mean(winners == y)


def sklearn_probe(x, y):
    "Cross-validated accuracy of scikit-learn's logistic regression, in percent."
    from sklearn.linear_model import LogisticRegression
    from sklearn.model_selection import StratifiedKFold, cross_val_predict
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    probe = make_pipeline(StandardScaler(), LogisticRegression(max_iter=1000))
    folds = StratifiedKFold(5, shuffle=True, random_state=0)
    return 100 * np.mean(cross_val_predict(probe, x, y, cv=folds) == y)


PUBLISHED = {
    ("tllib", "leep"): tllib_leep,
    ("thuml", "logme"): thuml_logme,
    ("tllib", "h_score_plain"): tllib_h_score,
    ("tllib", "transrate_uniform"): tllib_transrate,
    ("scikit-learn", "knn"): sklearn_knn,
    ("scikit-learn", "linear_probe"): sklearn_probe,
}


# ---- what is measured
def computed_scores():
    "The default scores that are computed of features or logits."
    from topotransfer.ranking import default_scores
    from topotransfer.scores import registered

    found = [registered(name) for name in default_scores()]
    seen = {"labels", "logits"}
    return [s.name for s in found if s.needs & seen and "source" not in s.needs]


def tasks():
    "Every (implementation, score): all default scores, and what published ones mirror."
    names = ["class_moments", *computed_scores(), "h_score_plain", "transrate_uniform"]
    return [("topotransfer", name) for name in names] + list(PUBLISHED)


def published(implementation, score, embeddings):
    "The value of a published formula, on float64 as published code takes it."
    from scipy.special import softmax

    formula = PUBLISHED[implementation, score]
    if score == "leep":
        p = softmax(embeddings.logits.astype(np.float64), axis=1)
        return formula(p, embeddings.labels)
    return formula(embeddings.features.astype(np.float64), embeddings.labels)


def ours(score, embeddings):
    "A value of this package."
    from topotransfer import class_scores, evidence_scores, moments, scores

    if score == "class_moments":
        return moments.class_moments(embeddings).spectrum.roots[0]
    if score == "h_score_plain":
        return class_scores.h_score(embeddings, shrunk=False)
    if score == "transrate_uniform":
        return evidence_scores.transrate(embeddings, uniform=True)
    found = scores.compute_scores(score, [embeddings])[0]
    if isinstance(found, Exception):
        raise found
    return found


def timed(function, *arguments):
    start = time.perf_counter()
    result = function(*arguments)
    return time.perf_counter() - start, result


def status(word):
    "A number of bytes that the kernel reports of this process."
    lines = Path("/proc/self/status").read_text().splitlines()
    return 1024 * int(next(x for x in lines if x.startswith(word)).split()[1])


def measured(implementation, score, embeddings):
    "Seconds of a score that is asked first, and where what is shared is there; value."
    from topotransfer.moments import class_moments

    if implementation != "topotransfer":
        seconds, value = timed(published, implementation, score, embeddings)
        return seconds, seconds, value
    first, value = timed(ours, score, embeddings)
    if score == "class_moments" or timed(class_moments, embeddings)[0] > 0.01:
        return first, first, value  # it shares nothing with other scores
    again = replace(embeddings)
    ours("class_moments", again)
    return first, timed(ours, score, again)[0], value


def measure(implementation, score, n):
    "One row. Libraries are loaded and have been called before the clock starts."
    try:
        for embeddings in (embeddings_of(200, 32, 4), embeddings_of(n)):
            # the peak starts from here, with the input in memory
            Path("/proc/self/clear_refs").write_text("5")
            before = status("VmRSS")
            first, seconds, value = measured(implementation, score, embeddings)
    except (MemoryError, ValueError) as error:
        note = f"{type(error).__name__}: {error}"[:120]
        refused = isinstance(error, ValueError)
        row = dict(status="refused" if refused else "out of memory", note=note)
    else:
        times = dict(seconds=round(seconds, 3), first_seconds=round(first, 3))
        row = dict(status="ok", value=float(value)) | times
    peak = round((status("VmHWM") - before) / 2**20)
    return row | dict(peak_mib=peak)


# ---- beside a neighbour
def all_scores(n, d, k):
    "Seconds and processor seconds of all scores of one model, one after the other."
    names = computed_scores()
    for e in (embeddings_of(200, 32, 4), embeddings_of(n, d, k)):
        processor = time.process_time()
        seconds, _ = timed(list, map(found, names, [e] * len(names)))
        processor = time.process_time() - processor
    return dict(seconds=seconds, processor=processor, scores=len(names))


def found(name, embeddings):
    "A score's value, or the exception that says why there is none."
    from topotransfer.scores import compute_scores

    return compute_scores(name, [embeddings])[0]


@contextmanager
def busy_core():
    "Something else runs on core 1."
    loop = ["taskset", "-c", "1", sys.executable, "-c", "while True: pass"]
    neighbour = subprocess.Popen(loop)
    try:
        yield
    finally:
        neighbour.kill()
        neighbour.wait()


def beside_a_neighbour(repeats=3, size=(3_000, 1_024, 20)):
    "The fastest of some runs in each of three settings, in turns."
    command = [sys.executable, __file__, "--one", json.dumps(["all", *size])]
    settings = {
        "two cores": (command, nullcontext),
        "one core": (["taskset", "-c", "0", *command], nullcontext),
        "two cores, one of them busy": (command, busy_core),
    }
    rows = {name: [] for name in settings}
    for _ in range(repeats):
        for name, (words, around) in settings.items():
            with around():
                out = subprocess.run(words, capture_output=True, text=True, check=True)
            rows[name].append(json.loads(out.stdout.splitlines()[-1]))
            print(name, rows[name][-1], flush=True)
    with NEIGHBOUR.open("w", newline="") as file:
        columns = ["setting", "seconds", "processor", "scores", *"ndk", "machine"]
        writer = csv.DictWriter(file, columns, lineterminator="\n")
        writer.writeheader()
        for name, runs in rows.items():
            row = {key: min(run[key] for run in runs) for key in runs[0]}
            row |= dict(zip("ndk", size), setting=name, machine=machine()[0])
            writer.writerow(row)


def machine():
    "Processor and cores; versions of what computes."
    from importlib.metadata import version

    lines = Path("/proc/cpuinfo").read_text().splitlines()
    names = {x.split(":", 1)[1].strip() for x in lines if x.startswith("model name")}
    names = f"{' '.join(names)}, {os.cpu_count()} cores"
    libraries = ("numpy", "scipy", "scikit-learn", "torch")
    return names, ", ".join(f"{name} {version(name)}" for name in libraries)


# ---- the run
def done():
    "What is in the table already; an empty table is begun where there is none."
    if not TABLE.exists():
        TABLE.write_text(",".join(COLUMNS) + "\n")
    with TABLE.open() as file:
        rows = list(csv.DictReader(file))
    return {(r["implementation"], r["score"], int(r["n"])) for r in rows}


def write(row):
    "Append a row to the table, and say what was measured."
    with TABLE.open("a", newline="") as file:
        csv.DictWriter(file, COLUMNS, lineterminator="\n").writerow(row)
    shown = COLUMNS[:7] + ["note"]
    print(*(row.get(column, "") for column in shown), flush=True)


def measure_apart(task, limit):
    "The row of a measurement in a process of its own."
    command = [sys.executable, __file__, "--one", json.dumps(task)]
    # making the data takes a while as well
    patience = limit + 60
    try:
        out = subprocess.run(command, capture_output=True, text=True, timeout=patience)
    except subprocess.TimeoutExpired:
        return dict(status="timeout")
    if out.returncode:
        last = out.stderr.strip().splitlines()[-1:] or [f"exit {out.returncode}"]
        return dict(status="failed", note=last[0][:120])
    return json.loads(out.stdout.splitlines()[-1])


def parsed():
    "The options of the command line."
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--n", type=int, nargs="*", default=SIZES)
    parser.add_argument(
        "--only",
        default="",
        help="measure what has this text in its 'implementation score n'",
    )
    parser.add_argument("--limit", type=float, default=300, help="in seconds")
    parser.add_argument("--neighbour", action="store_true")
    parser.add_argument("--one", help=argparse.SUPPRESS)
    return parser.parse_args()


def main():
    options = parsed()
    # a mistake must not take the machine with it
    resource.setrlimit(resource.RLIMIT_DATA, (12 * 2**30,) * 2)
    if options.one:
        what, *size = json.loads(options.one)
        row = all_scores(*size) if what == "all" else measure(what, *size)
        return print(json.dumps(row))
    if options.neighbour:
        return beside_a_neighbour()
    cpu, libraries = machine()
    known = done()
    for n in options.n:
        for task in [(*task, n) for task in tasks()]:
            if task in known or options.only not in " ".join(map(str, task)):
                continue
            row = dict(zip(COLUMNS, task), limit=options.limit)
            row |= dict(machine=cpu, libraries=libraries)
            write(row | measure_apart(task, options.limit))


if __name__ == "__main__":
    main()
