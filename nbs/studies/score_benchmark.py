"""Time each score at 1,000, 10,000 and 50,000 images.

`score_benchmark.py [--limit SECONDS] [--budget SECONDS] [--n N ...]`: what is in
score_benchmark.csv already is left alone. A measurement is given up after the limit
(60), no new one is begun after the budget. Our scores are timed after the moments that
they share, which have a row of their own.
"""

import argparse
import csv
import gc
import platform
import resource
import signal
import time
from pathlib import Path

import numpy as np

SIZES = (1_000, 10_000, 50_000)
FEATURES = 2_048
CLASSES = 100
TABLE = Path(__file__).with_suffix(".csv")
COLUMNS = [
    "implementation",
    "score",
    "n",
    "d",
    "classes",
    "status",
    "seconds",
    "value",
    "peak_mb",
    "limit",
    "note",
    "machine",
    "libraries",
]


def embeddings_of(n):
    "Class means with noise, float32, with logits of 1,000 source classes."
    from topotransfer.embeddings import EmbeddingKey, Embeddings

    rng = np.random.default_rng(0)
    labels = np.arange(n) % CLASSES
    features = rng.standard_normal((n, FEATURES), dtype=np.float32)
    features += 0.3 * rng.standard_normal((CLASSES, FEATURES), dtype=np.float32)[labels]
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


SLOW = ("pr_target", "pr_pieces", "knn", "nleep", "linear_probe")


PUBLISHED = [
    ("tllib", "leep"),
    ("thuml", "logme"),
    ("tllib", "h_score_plain"),
    ("tllib", "transrate_uniform"),
]


def quick_scores():
    "Our scores, without those that cost nothing and the slow ones."
    from topotransfer.ranking import default_scores
    from topotransfer.scores import registered

    found = [registered(name) for name in default_scores() if name not in SLOW]
    return [s.name for s in found if s.kind != "baseline" and "source" not in s.needs]


def tasks():
    "Every (implementation, score) there is to measure; the slow ones last."
    quick = ["class_moments", *quick_scores(), "h_score_plain", "transrate_uniform"]
    ours = [("topotransfer", name) for name in quick]
    return ours + PUBLISHED + [("topotransfer", name) for name in SLOW]


def published(score, embeddings):
    "The value of a published formula, on float64 features, as published code takes."
    from scipy.special import softmax

    y = embeddings.labels
    if score == "leep":
        return tllib_leep(softmax(embeddings.logits.astype(np.float64), axis=1), y)
    formulas = dict(
        logme=thuml_logme,
        h_score_plain=tllib_h_score,
        transrate_uniform=tllib_transrate,
    )
    return formulas[score](embeddings.features.astype(np.float64), y)


def compute(implementation, score, embeddings):
    "One value."
    from topotransfer import class_scores, evidence_scores, moments, scores

    if implementation != "topotransfer":
        return published(score, embeddings)
    if score == "class_moments":
        return moments.class_moments(embeddings).total[0][0]
    if score == "h_score_plain":
        return class_scores.h_score(embeddings, shrunk=False)
    if score == "transrate_uniform":
        return evidence_scores.transrate(embeddings, uniform=True)
    found = scores.compute_scores(score, [embeddings])[0]
    if isinstance(found, Exception):
        raise found
    return found


def peak_mb():
    "The high-water mark of the process's memory."
    lines = Path("/proc/self/status").read_text().splitlines()
    peak = next(line for line in lines if line.startswith("VmHWM"))
    return round(int(peak.split()[1]) / 1e3)


def measure(implementation, score, embeddings, limit):
    "One row: status, seconds, value, peak memory in MB while it ran."

    def give_up(*_):
        raise TimeoutError

    gc.collect()
    Path("/proc/self/clear_refs").write_text("5")  # the peak starts from here
    signal.signal(signal.SIGALRM, give_up)
    signal.alarm(int(limit))
    start = time.perf_counter()
    row = dict(status="ok", note="")
    try:
        row["value"] = float(compute(implementation, score, embeddings))
        row["seconds"] = round(time.perf_counter() - start, 3)
    except TimeoutError:
        row = dict(status="timeout", note="")
    except (MemoryError, ValueError) as error:
        note = f"{type(error).__name__}: {error}"[:120]
        row = dict(status="out of reach", note=note)
    finally:
        signal.alarm(0)
    return row | dict(peak_mb=peak_mb())


def machine():
    "Processor, threads; versions of what computes."
    import scipy
    import sklearn

    lines = Path("/proc/cpuinfo").read_text().splitlines()
    models = [line for line in lines if line.startswith("model name")]
    names = {line.split(":", 1)[1].strip() for line in models}
    libraries = [
        f"Python {platform.python_version()}",
        f"numpy {np.__version__}",
        f"scipy {scipy.__version__}",
        f"scikit-learn {sklearn.__version__}",
    ]
    return f"{' '.join(names)}, 1 thread", ", ".join(libraries)


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
        csv.DictWriter(file, COLUMNS).writerow(row)
    shown = ("implementation", "score", "n", "status", "seconds", "peak_mb", "note")
    print(*(row.get(column) for column in shown), flush=True)


def measure_all(n, todo, limit, stop):
    "Measure (implementation, score) pairs at n images until `stop`, a time."
    embeddings = embeddings_of(n)
    cpu, libraries = machine()
    # done in an earlier run
    if todo[0][1] != "class_moments":
        compute("topotransfer", "class_moments", embeddings)
    for implementation, score in todo:
        if time.perf_counter() > stop:
            return
        row = dict(implementation=implementation, score=score, n=n, d=FEATURES)
        row |= dict(classes=CLASSES, limit=limit, machine=cpu, libraries=libraries)
        write(row | measure(implementation, score, embeddings, limit))


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--limit", type=float, default=60)
    parser.add_argument("--budget", type=float, default=float("inf"))
    parser.add_argument("--n", type=int, nargs="*", default=SIZES)
    options = parser.parse_args()
    stop = time.perf_counter() + options.budget
    # 4 GB and what libraries reserve
    resource.setrlimit(resource.RLIMIT_DATA, (5 * 10**9,) * 2)
    known = done()
    for n in options.n:
        todo = [task for task in tasks() if (*task, n) not in known]
        if todo and time.perf_counter() <= stop:
            measure_all(n, todo, options.limit, stop)


if __name__ == "__main__":
    main()
