"""Scores and fine-tuned accuracies of the bundled backbones on photographs.

`real_photographs.py --images DIR`: DIR holds the folders of torchvision's Caltech101,
CIFAR10, DTD and Imagenette. Writes real_photographs.csv (accuracies) and
real_photographs_scores.csv. What is done is kept in --store, so a run that was stopped
goes on. With --model, --dataset or --seed a part is measured and shown, and no table
written: two seeds can run side by side, and a run without them puts them together.
"""

import argparse
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from torchvision.transforms import CenterCrop, Compose, Normalize, Resize, ToTensor

from topotransfer.benchmarks import benchmark
from topotransfer.datasets import image_folder
from topotransfer.embeddings import Store
from topotransfer.extraction import extract
from topotransfer.finetuning import Recipe, finetune_zoo
from topotransfer.ranking import rank_embeddings
from topotransfer.source_images import add_source_rows
from topotransfer.zoo import bundled_zoo

PIXELS = 128
SEEDS = (0, 1)
PER_CLASS = {  # images to train on, to test on
    "cifar10": (30, 70),
    "dtd10": (30, 90),
    "caltech101": (5, 20),
}
EPOCHS = {"cifar10": 20, "dtd10": 20, "caltech101": 12}  # 300 steps each
HEAD = Recipe("head", (0.01, 0.03, 0.1, 0.3), epochs=30, patience=5)
# the rate that the validation images of a pilot of two networks preferred
FULL = Recipe("full", (0.01,), batch_size=16)
HERE = Path(__file__)


def small(original, network):
    "The model's own normalisation at fewer pixels."
    own = original(network)
    norm = own if hasattr(own, "mean") else own.transforms[-1]
    mean, std = (torch.as_tensor(x).tolist() for x in (norm.mean, norm.std))
    cut = Resize(round(PIXELS / 0.875)), CenterCrop(PIXELS)
    return Compose([*cut, ToTensor(), Normalize(mean, std)])


def channels_last(build):
    "The network in the memory format that is fastest on a CPU."
    return build().to(memory_format=torch.channels_last)


def zoo():
    "The bundled backbones at 128 pixels."
    return [
        replace(
            spec,
            build=partial(channels_last, spec.build),
            transform=partial(small, spec.transform),
            identity=None,
        )
        for spec in bundled_zoo()
    ]


def texture_classes(root):
    "The first ten of DTD's classes, all three splits."
    parts = [benchmark("dtd", root, split) for split in ("train", "val", "test")]
    items = [item for part in parts for item in part.items]
    labels = np.concatenate([part.labels for part in parts])
    whole = replace(parts[0], name="dtd10", split="all", items=items, labels=labels)
    whole = replace(whole, classes=whole.classes[:10])
    return whole.take(np.flatnonzero(labels < 10), "ten classes")


def images_of(root, name):
    "All images of a dataset, from the official layout or from folders of classes."
    if name == "caltech101":
        return benchmark(name, root)
    folder = root / {"cifar10": "cifar10/test", "dtd10": "dtd10/images"}[name]
    if folder.is_dir():
        return image_folder(folder, name)
    return benchmark(name, root, "test") if name == "cifar10" else texture_classes(root)


def parts_of(root, name):
    "Images to train on and to test on, drawn without replacement from each class."
    n_train, n_test = PER_CLASS[name]
    images, rng, train, test = images_of(root, name), np.random.default_rng(0), [], []
    for c in range(len(images.classes)):
        rows = rng.permutation(np.flatnonzero(images.labels == c))
        train.append(np.sort(rows[:n_train]))
        test.append(np.sort(rows[n_train : n_train + n_test]))
    rows = np.concatenate(train), np.concatenate(test)
    return [images.take(r, words) for r, words in zip(rows, ("to train", "to test"))]


def source(root):
    "Fifty images of each of Imagenette's classes that the networks were not trained on."
    for folder in ("imagenette", "imagenette2-160"):
        if (root / folder / "val").is_dir():
            images = image_folder(root / folder / "val", "imagenette", "val")
            return images.subset(50)
    raise FileNotFoundError(f"no imagenette or imagenette2-160 in {root}")


def scores_of(name, train, store):
    "Every score of every model on the images to train on."
    found = extract(zoo(), train, store).embeddings.values()
    table = rank_embeddings(found, store=store, progress=True).table
    table.insert(0, "dataset", name)
    return table.rename_axis("model").reset_index()


def recipes(name):
    "How the head alone and all weights are trained on a dataset."
    epochs = EPOCHS[name]
    return {"head": HEAD, "full": replace(FULL, epochs=epochs, patience=epochs)}


def accuracies(parts, store, models, seed):
    "Both ways of fine-tuning on every dataset; rows that are there stay."
    folder = store.root / "photographs"
    folder.mkdir(parents=True, exist_ok=True)
    tables = []
    for name, images in parts.items():
        for mode, recipe in recipes(name).items():
            path = folder / f"{name}_{mode}_{seed}.csv"
            rows = finetune_zoo(models, *images, path, recipe, (seed,))
            rows.insert(0, "dataset", name)
            rows.insert(1, "mode", mode)
            tables.append(rows)
    return pd.concat(tables)


def measured(chosen):
    "Accuracies of what was asked for."
    store = Store(chosen.store)
    models = [m for m in zoo() if chosen.model in (None, m.name)]
    names = [n for n in PER_CLASS if chosen.dataset in (None, n)]
    parts = {name: parts_of(chosen.images, name) for name in names}
    seeds = SEEDS if chosen.seed is None else (chosen.seed,)
    return pd.concat([accuracies(parts, store, models, seed) for seed in seeds])


def all_scores(root, store):
    "The scores of every model on every dataset."
    add_source_rows(zoo(), source(root), store, only_missing=True)
    return pd.concat([scores_of(n, parts_of(root, n)[0], store) for n in PER_CLASS])


def options():
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--images", required=True, type=Path)
    parser.add_argument("--store")
    parser.add_argument("--model", choices=[spec.name for spec in zoo()])
    parser.add_argument("--dataset", choices=list(PER_CLASS))
    parser.add_argument("--seed", type=int, choices=SEEDS)
    return parser.parse_args()


def main():
    chosen = options()
    truth = measured(chosen)
    if (chosen.model, chosen.dataset, chosen.seed) != (None, None, None):
        return print(truth.to_string(index=False))
    scores = all_scores(chosen.images, Store(chosen.store))
    digits = dict(index=False, float_format="%.6g")
    truth.drop(columns="key").to_csv(HERE.with_suffix(".csv"), **digits)
    scores.to_csv(HERE.with_name("real_photographs_scores.csv"), **digits)


if __name__ == "__main__":
    main()
