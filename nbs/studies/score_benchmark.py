"""Time each score at 1,000, 10,000 and 50,000 images; what is in score_benchmark.csv already is left alone.

`score_benchmark.py [--limit SECONDS] [--budget SECONDS] [--n N ...]`: a measurement is given up after the limit (60),
no new one is begun after the budget. Our scores are timed after the moments that they share, which have a row of their own.
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

SIZES, FEATURES, CLASSES = (1_000, 10_000, 50_000), 2_048, 100
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


def thuml_logme(x, y):
    "The fixed point of thuml/LogME, re-implemented: a decomposition of x.T @ x, then alpha and beta in turn."
    n, d = x.shape
    if n > d:
        _, s2, vt = np.linalg.svd(x.T @ x)
        s = np.sqrt(s2[s2 > 1e-20])
        u = x @ vt[: len(s)].T / s
    else:
        u, s, _ = np.linalg.svd(x, full_matrices=False)
    sigma, total = s**2, []
    for c in range(y.max() + 1):
        target = (y == c).astype(float)
        z2, a, b = (u.T @ target) ** 2, 1.0, 1.0
        outside = target.sum() - z2.sum()
        for _ in range(11):
            t = a / b
            m2 = (sigma * z2 / (t + sigma) ** 2).sum()
            res2 = (z2 / (1 + sigma / t) ** 2).sum() + outside
            gamma = (sigma / (sigma + t)).sum()
            a, b = gamma / (m2 + 1e-5), (n - gamma) / (res2 + 1e-5)
            if abs(a / b - t) / t <= 1e-3:
                break
        total.append(
            (
                d / 2 * np.log(a)
                + n / 2 * np.log(b)
                - 0.5 * np.log(a + b * sigma).sum()
                - b / 2 * res2
                - a / 2 * m2
                - n / 2 * np.log(2 * np.pi)
            )
            / n
        )
    return np.mean(total)


def tllib_h_score(x, y):
    "tllib's formula, re-implemented: covariances of the features and of their class means, and a pseudo-inverse."
    g = np.zeros_like(x)
    for c in range(y.max() + 1):
        g[y == c] = x[y == c].mean(axis=0)
    return np.trace(
        np.linalg.pinv(np.cov(x, rowvar=False), rcond=1e-15) @ np.cov(g, rowvar=False)
    )


def tllib_transrate(x, y, epsilon=1e-4):
    "tllib's formula, re-implemented, on features of total variance 1: a d x d determinant for each class."

    def rate(z):
        return (
            0.5
            * np.linalg.slogdet(np.eye(z.shape[1]) + z.T @ z / (len(z) * epsilon))[1]
        )

    x = (x - x.mean(axis=0)) / np.sqrt(x.var(axis=0).sum())
    return rate(x) - np.mean([rate(x[y == c]) for c in range(y.max() + 1)])


def tllib_leep(p, y):
    "tllib's formula, re-implemented: the joint distribution class by class."
    joint = np.array([p[y == c].sum(axis=0) for c in range(y.max() + 1)]) / len(y)
    return np.log(((joint / joint.sum(axis=0))[y] * p).sum(axis=1)).mean()


SLOW = ("pr_target", "pr_pieces", "knn", "nleep", "linear_probe")


def tasks():
    "Every (implementation, score) there is to measure, ours under the registry's names; the slow ones last."
    from topotransfer.ranking import default_scores
    from topotransfer.scores import SCORES

    ours = [
        name
        for name in default_scores()
        if SCORES[name].kind != "baseline"
        and "source" not in SCORES[name].needs
        and name not in SLOW
    ]
    quick = [
        ("topotransfer", name)
        for name in ["class_moments", *ours, "h_score_plain", "transrate_uniform"]
    ]
    published = [
        ("tllib", "leep"),
        ("thuml", "logme"),
        ("tllib", "h_score_plain"),
        ("tllib", "transrate_uniform"),
    ]
    return quick + published + [("topotransfer", name) for name in SLOW]


def compute(implementation, score, embeddings):
    "One value. Published formulas get float64 features, as their own code makes them."
    from scipy.special import softmax

    from topotransfer import class_scores, evidence_scores, ranking, scores

    x, y = embeddings.features, embeddings.labels
    if implementation == "thuml":
        return thuml_logme(x.astype(np.float64), y)
    if implementation == "tllib":
        if score == "leep":
            return tllib_leep(softmax(embeddings.logits.astype(np.float64), axis=1), y)
        return dict(h_score_plain=tllib_h_score, transrate_uniform=tllib_transrate)[
            score
        ](x.astype(np.float64), y)
    if score == "class_moments":
        return scores.class_moments(embeddings).total[0][0]
    if score == "h_score_plain":
        return class_scores.h_score(embeddings, shrunk=False)
    if score == "transrate_uniform":
        return evidence_scores.transrate(embeddings, uniform=True)
    found = scores.compute_scores(score, [embeddings])[0]
    if isinstance(found, Exception):
        raise found
    return found


def measure(implementation, score, embeddings, limit):
    "One row: status, seconds, value, peak memory of the process in MB while it ran."

    def give_up(*_):
        raise TimeoutError

    gc.collect()
    Path("/proc/self/clear_refs").write_text("5")  # the peak starts from here
    signal.signal(signal.SIGALRM, give_up)
    signal.alarm(int(limit))
    start, row = time.perf_counter(), dict(status="ok", note="")
    try:
        row |= dict(
            value=float(compute(implementation, score, embeddings)),
            seconds=round(time.perf_counter() - start, 3),
        )
    except TimeoutError:
        row["status"] = "timeout"
    except (MemoryError, ValueError) as error:
        row |= dict(
            status="out of reach", note=f"{type(error).__name__}: {error}"[:120]
        )
    finally:
        signal.alarm(0)
    peak = next(
        line
        for line in Path("/proc/self/status").read_text().splitlines()
        if line.startswith("VmHWM")
    )
    return row | dict(peak_mb=round(int(peak.split()[1]) / 1e3))


def machine():
    "Processor, threads; versions of what computes."
    import scipy
    import sklearn

    names = {
        line.split(":", 1)[1].strip()
        for line in Path("/proc/cpuinfo").read_text().splitlines()
        if line.startswith("model name")
    }
    return (
        f"{' '.join(names)}, 1 thread",
        f"Python {platform.python_version()}, numpy {np.__version__}, scipy {scipy.__version__}, scikit-learn {sklearn.__version__}",
    )


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--limit", type=float, default=60)
    parser.add_argument("--budget", type=float, default=float("inf"))
    parser.add_argument("--n", type=int, nargs="*", default=SIZES)
    options, begun = parser.parse_args(), time.perf_counter()
    # 4 GB and what libraries reserve
    resource.setrlimit(resource.RLIMIT_DATA, (5 * 10**9,) * 2)
    if not TABLE.exists():
        TABLE.write_text(",".join(COLUMNS) + "\n")
    done = {
        (r["implementation"], r["score"], int(r["n"]))
        for r in csv.DictReader(TABLE.open())
    }
    cpu, libraries = machine()
    for n in options.n:
        todo = [t for t in tasks() if (*t, n) not in done]
        embeddings = embeddings_of(n) if todo else None
        # done in an earlier run
        if todo and todo[0][1] != "class_moments":
            compute("topotransfer", "class_moments", embeddings)
        for implementation, score in todo:
            if time.perf_counter() - begun > options.budget:
                return
            row = dict(
                implementation=implementation,
                score=score,
                n=n,
                d=FEATURES,
                classes=CLASSES,
                limit=options.limit,
                machine=cpu,
                libraries=libraries,
            )
            row |= measure(implementation, score, embeddings, options.limit)
            with TABLE.open("a", newline="") as file:
                csv.DictWriter(file, COLUMNS).writerow(row)
            print(
                *(
                    row.get(c)
                    for c in (
                        "implementation",
                        "score",
                        "n",
                        "status",
                        "seconds",
                        "peak_mb",
                        "note",
                    )
                ),
                flush=True,
            )


if __name__ == "__main__":
    main()
