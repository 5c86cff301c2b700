"""Ratios, bars and pieces of ImageNet backbones on images that they were trained on.

`signature.py --images DIR`: DIR holds train/ and val/, one folder of images per synset
of ImageNet, such as imagenette2-160 of torchvision's Imagenette. Writes signature.csv
and signature_bars.csv. Embeddings are kept in the store (--store), so a second run
takes a minute, and one that was stopped goes on.
"""

import argparse
import warnings
from pathlib import Path

import numpy as np
import pandas as pd

from topotransfer.cloud import value_or_nan
from topotransfer.datasets import animals, image_folder
from topotransfer.extraction import extract
from topotransfer.ratio import pieces_of_tree, ratio_of_bars
from topotransfer.remedies import RATIOS
from topotransfer.scores import cloud_of, compute_score
from topotransfer.source_ratios import head_accuracy
from topotransfer.spanning_tree import minimum_spanning_tree
from topotransfer.zoo import bundled_zoo

PER_CLASS = (10, 20, 30, 40, 50)
CLASSES = (2, 5, 10)
DRAWS = 5  # of classes and images, where there is a choice
OUTLIERS = 0.05  # share of images that lie farthest from their nearest one
HERE = Path(__file__)


def unit(points):
    "Every embedding at length 1."
    return points / np.linalg.norm(points, axis=1, keepdims=True)


def centred_unit(points):
    "Directions from the centre of all images."
    return unit(points - points.mean(axis=0))


def nearest(points):
    "The distance of each point to its nearest one."
    squares = np.einsum("ij,ij->i", points, points)
    distances = squares[:, None] + squares - 2 * points @ points.T
    np.fill_diagonal(distances, np.inf)
    return distances.min(axis=1)


def treated(points, labels):
    "The cloud as it is, and after each treatment: name, points, labels."
    yield "none", points, labels
    yield "unit length", unit(points), labels
    yield "centred, unit length", centred_unit(points), labels
    far = nearest(points)
    kept = far <= np.quantile(far, 1 - OUTLIERS)
    yield "without outliers", points[kept], labels[kept]


def measured(points, labels):
    "What is seen of a cloud, and its bars."
    k = len(np.unique(labels))
    tree = minimum_spanning_tree(points)
    ratio, pieces = ratio_of_bars(tree.lengths, k), pieces_of_tree(tree, labels)
    row = dict(
        ratio=ratio.ratio,
        separation=ratio.separation,
        tightness=ratio.tightness,
        pieces=pieces.adjusted_rand,
        singles=min(pieces.singletons, k - 1),
    )
    return row, tree.lengths


def more(points, labels):
    "The remedies and NC1 of a cloud."
    row = {name: value_or_nan(RATIOS[name], points, labels) for name in RATIOS}
    nc1 = value_or_nan(compute_score, "nc1", cloud_of(points, labels))
    return row | dict(nc1=-nc1)


def drawn(labels, n, k, draw):
    "Images of a draw of k classes, n of each."
    rng = np.random.default_rng(draw)
    classes = rng.permutation(np.unique(labels))[:k]
    rows = [rng.permutation(np.flatnonzero(labels == c))[:n] for c in classes]
    return np.concatenate(rows)


def rows_of(e):
    "The rows of one model on one set of images, and its bars with all of them."
    rows, points = [], e.features.astype(np.float64)
    points /= np.abs(points).max()
    for n in PER_CLASS:
        for k in CLASSES:
            if (n, k) == (max(PER_CLASS), max(CLASSES)):
                continue  # all images: see below
            for draw in range(DRAWS):
                at = drawn(e.labels, n, k, draw)
                row, _ = measured(points[at], e.labels[at])
                rows.append(dict(n=n, k=k, draw=draw, treatment="none") | row)
    whole = dict(n=max(PER_CLASS), k=max(CLASSES), draw=0)
    for name, x, y in treated(points, e.labels):
        row, lengths = measured(x, y)
        rows.append(whole | dict(treatment=name) | row | more(x, y))
        if name == "none":
            bars = np.sort(lengths)[::-1]
    return rows, bars


def main():
    arguments = argparse.ArgumentParser(description=__doc__)
    arguments.add_argument("--images", required=True, type=Path)
    arguments.add_argument("--store")
    options = arguments.parse_args()
    sets = {}
    for split in ("train", "val"):
        images = image_folder(options.images / split, "imagenette", split)
        sets[split] = images.subset(max(PER_CLASS))
    sets["silhouettes"] = animals().subset(max(PER_CLASS))
    table, bars = [], {}
    for words, images in sets.items():
        found = extract(bundled_zoo(), images, options.store).embeddings
        for model, e in found.items():
            rows, bars[f"{words} {model}"] = rows_of(e)
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # the control's head knows nothing
                head = head_accuracy(e, images.classes)
            known = dict(images=words, model=model, head_accuracy=head)
            table += [known | row for row in rows]
            print(words, model, flush=True)
    digits = dict(index=False, float_format="%.5g")
    pd.DataFrame(table).to_csv(HERE.with_suffix(".csv"), **digits)
    pd.DataFrame(bars).to_csv(HERE.with_name("signature_bars.csv"), **digits)


if __name__ == "__main__":
    main()
