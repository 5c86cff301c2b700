
#| export
import argparse
import json
import multiprocessing
import os
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import asdict, dataclass
from functools import cache, partial
from importlib import resources
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from scipy.stats import kendalltau
from safetensors.torch import load_file, save_file
from torch import nn
from torch.nn import functional as F

from topotransfer.cloud import check_count
from topotransfer.datasets import ImageSet, animals, digits
from topotransfer.embeddings import Embeddings, EmbeddingKey, digest
from topotransfer.finetuning import Recipe, finetune_network, prepared, write_whole
from topotransfer.packaged import emoji, fashion, fashion_sample, glyphs, icons, mnist_5k, solar_cells, without_twins
from topotransfer.ranking import rank_embeddings
from topotransfer.remedies import RATIOS
from topotransfer.scores import compute_score
from topotransfer.small_nets import ARCHITECTURES, grey_28, small_net
from topotransfer.zoo import Backbone



#| export
@dataclass(frozen=True)
class Plan:
    "How one network of the zoo is trained on its source."
    name: str
    source: str # "fashion" or "glyphs"
    architecture: str
    width: int
    depth: int
    n_images: int # of the source, the sample first
    epochs: int
    label_noise: float # share of the training labels that are replaced by another class
    seed: int

SOURCES = ("fashion", "glyphs")

def plans(
    source:str, # one of `SOURCES`
    n:int=40, # how many networks
) -> list[Plan]:
    "Plans that spread quality: every level of every factor about equally often, in an order of its own, drawn once with a fixed seed."
    if source not in SOURCES: raise ValueError(f"source must be one of {SOURCES}; found {source!r}")
    rng = np.random.default_rng([SOURCES.index(source), 7])
    def spread(*levels): return rng.permutation(np.resize(np.array(levels), check_count(n, "n", 1))).tolist()
    columns = zip([ARCHITECTURES[i % 5] for i in range(n)], spread(6, 8, 12, 16), spread(1, 2, 3), spread(2500, 5000, 10_000),
                  spread(1, 2, 3, 6, 12, 24), spread(0., 0., 0., .2, .4, .6))
    made = []
    for i, (kind, width, depth, images, epochs, noise) in enumerate(columns):
        images = images if images * epochs <= 36_000 else 2500 # many images or many epochs, not both
        made.append(Plan(f"{source}_{i:02d}_{kind}", source, kind, width, depth, images, epochs, noise, i))
    return made



#| export
@cache
def source_images(source:str) -> dict[str, tuple[torch.Tensor, torch.Tensor]]:
    """Images and labels of a source: `train`, whose first part is `sample`, the images that source scores are computed on; and `test`.

    The sample has 200 images of each class of Fashion-MNIST (those that come with this package), 40 of each glyph.
    """
    transform, rng = grey_28(), np.random.default_rng(0)
    if source == "fashion":
        whole, test = fashion("train"), fashion("test").subset(200)
        first = np.concatenate([np.flatnonzero(whole.labels == c)[:200] for c in range(10)])
    else:
        whole, test = glyphs("train"), glyphs("test").subset(40)
        first = np.concatenate([rng.permutation(np.flatnonzero(whole.labels == c))[:40] for c in range(54)])
    rest = rng.permutation(np.setdiff1d(np.arange(len(whole)), first))[:10_000 - len(first)]
    train = prepared(_part(whole, np.concatenate([first, rest])), transform)
    return dict(train=train, sample=tuple(t[:len(first)] for t in train), test=prepared(test, transform))

def _part(dataset:ImageSet, chosen) -> ImageSet:
    "Some images of a dataset."
    return ImageSet(dataset.name, dataset.split, dataset.classes, dataset.labels[chosen], [dataset.items[i] for i in chosen], dataset.open, "")

TARGETS = {"digits": digits, "mnist_5k": mnist_5k, "animals": animals, "icons": icons, "emoji": emoji, "solar_cells": solar_cells}

@cache
def target_images(name:str) -> dict[str, tuple[torch.Tensor, torch.Tensor]]:
    """Images and labels of a target: `train`, 400 images, the same number of each class; `test`, at most 1,200 others.

    Without near-duplicates, but for the solar cells: each is a photograph of its own, though sound ones look alike.
    """
    transform, rng = grey_28(), np.random.default_rng(1)
    whole = TARGETS[name]().subset(1000 if name == "solar_cells" else 250)
    whole = whole if name == "solar_cells" else without_twins(whole)
    n = 400 // len(whole.classes)
    chosen = np.concatenate([rng.permutation(np.flatnonzero(whole.labels == c))[:n] for c in range(len(whole.classes))])
    rest = rng.permutation(np.setdiff1d(np.arange(len(whole)), chosen))[:1200]
    return dict(train=prepared(_part(whole, chosen), transform), test=prepared(_part(whole, rest), transform))



#| export
def noisy_labels(
    labels:torch.Tensor, # `(n,)`
    share:float, # how many of them become wrong, between 0 and 1
    seed:int=0,
) -> torch.Tensor: # `(n,)`
    "Labels of which a share, drawn at random, is replaced by one of the other classes."
    rng, n_classes, labels = np.random.default_rng(seed), int(labels.max()) + 1, labels.clone()
    wrong = torch.as_tensor(rng.permutation(len(labels))[:round(share * len(labels))])
    labels[wrong] = (labels[wrong] + torch.as_tensor(rng.integers(1, n_classes, len(wrong)))) % n_classes
    return labels

def accuracy(network:nn.Module, images:torch.Tensor, labels:torch.Tensor) -> float: # in percent
    network.eval()
    with torch.inference_mode(): outputs = torch.cat([network(part) for part in images.split(500)])
    return 100 * int((outputs.argmax(1) == labels).sum()) / len(labels)



#| export
def train_source(
    plan:Plan,
    folder:Path, # of this network: a checkpoint after every epoch, in the end its weights and its card
    after_epoch=lambda network, epoch: None, # called after every epoch
) -> nn.Module: # with weights rounded to half precision, as they are kept
    "Train one network on its source, from the last whole epoch on, with AdamW and a learning rate that falls from .003 along half a cosine."
    data, n_classes = source_images(plan.source), 10 if plan.source == "fashion" else 54
    network = small_net(plan.architecture, plan.width, plan.depth, n_classes, plan.seed)
    if (folder / "weights.safetensors").exists():
        network.load_state_dict(halved(load_file(folder / "weights.safetensors")), strict=False)
        return network.eval()
    images, clean = (t[:plan.n_images] for t in data["train"])
    labels = noisy_labels(clean, plan.label_noise, plan.seed)
    optimizer = torch.optim.AdamW(network.parameters(), 3e-3, weight_decay=.01)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, plan.epochs)
    state, checkpoint, start = dict(network=network, optimizer=optimizer, schedule=schedule), folder / "checkpoint.pt", 0
    if checkpoint.exists():
        saved = torch.load(checkpoint, weights_only=True)
        start = saved["epoch"]
        for name, part in state.items(): part.load_state_dict(saved[name])
    for epoch in range(start, plan.epochs):
        _one_epoch(network, optimizer, images, labels, seed=1000 * plan.seed + epoch)
        schedule.step()
        after_epoch(network, epoch + 1)
        write_whole(checkpoint, partial(torch.save, {n: s.state_dict() for n, s in state.items()} | {"epoch": epoch + 1}))
    weights = {n: v.half() for n, v in network.state_dict().items() if v.is_floating_point()}
    network.load_state_dict(halved(weights), strict=False)
    card = asdict(plan) | dict(num_params=sum(p.numel() for p in network.parameters()), source_accuracy=accuracy(network, *data["test"]),
                               sample_accuracy=accuracy(network, *data["sample"]), training_accuracy=accuracy(network, images, labels))
    write_whole(folder / "card.json", lambda p: p.write_text(json.dumps(card)))
    write_whole(folder / "weights.safetensors", partial(save_file, weights))
    checkpoint.unlink(missing_ok=True)
    return network.eval()

def halved(weights:dict) -> dict: return {n: v.half().float() for n, v in weights.items()}

def _one_epoch(network:nn.Module, optimizer, images, labels, seed:int) -> None:
    "One pass over the images in batches of 64, in an order of its own."
    network.train()
    for rows in torch.randperm(len(images), generator=torch.Generator().manual_seed(seed)).split(64):
        optimizer.zero_grad()
        F.cross_entropy(network(images[rows]), labels[rows]).backward()
        optimizer.step()



#| export
RECIPE = Recipe(learning_rates=(.02, .1), epochs=8, patience=3)
SEEDS = (0, 1)

def run_plan(
    plan:Plan,
    out:Path,
) -> str: # the plan's name
    "Train one network and fine-tune it on every target with every seed; what is there already isn't done again."
    torch.set_num_threads(1)
    folder = out / plan.name
    network = train_source(plan, folder)
    for target in TARGETS:
        for seed in SEEDS:
            path = folder / f"{target}-{seed}.json"
            if path.exists(): continue
            found = finetune_network(network, *(target_images(target)[part] for part in ("train", "test")), RECIPE, seed)
            write_whole(path, lambda p: p.write_text(json.dumps(dict(model=plan.name, source=plan.source, target=target, seed=seed) | asdict(found))))
    return plan.name

def train(
    out:Path, # results of every network, kept as they come
    workers:int=2, # processes, one thread each
) -> None:
    "Train and fine-tune the zoo of both sources."
    jobs = [plan for pair in zip(*(plans(source) for source in SOURCES)) for plan in pair]
    with ProcessPoolExecutor(workers, mp_context=multiprocessing.get_context("spawn")) as pool:
        for future in as_completed([pool.submit(run_plan, plan, out) for plan in jobs]): print(future.result(), flush=True)



#| export
def embed(
    network:nn.Module, # ends in a linear layer
    images:torch.Tensor,
    labels:torch.Tensor,
    model:str, # its name
    dataset:str, # the name of the images
) -> Embeddings:
    "Embeddings of images that are tensors already."
    backbone = Backbone(model, network, None)
    with torch.inference_mode(): parts = [tuple(t.clone() for t in backbone(part)) for part in images.split(500)]
    features, logits = (torch.cat(part).numpy() for part in zip(*parts))
    key = EmbeddingKey(model, dataset, "train", "grey_28", backbone.fingerprint, digest(images.numpy(), labels.numpy()))
    return Embeddings(features, labels.numpy(), key, logits, backbone.num_params)

def source_values(
    network:nn.Module, # trained on the source
    source:str, # one of `SOURCES`
) -> dict[str, float]:
    "What the topology of source embeddings says about a network: `pr` and its remedies on the sample, `pr` on held-out images, NC1 and pieces. NaN where one isn't defined."
    e, held_out = (embed(network, *source_images(source)[part], "", source) for part in ("sample", "test"))
    values = dict(pr=partial(compute_score, "pr_target", e), pr_held_out=partial(compute_score, "pr_target", held_out), nc1=partial(compute_score, "nc1", e),
                  pr_pieces=partial(compute_score, "pr_pieces", e)) | {name: partial(_negative, ratio, e) for name, ratio in RATIOS.items()}
    return {name: _or_nan(value) for name, value in values.items()}

def _negative(ratio, e:Embeddings) -> float: return -ratio(e.features, e.labels)

def _or_nan(value) -> float:
    try: return value()
    except ValueError: return np.nan



#| export
DATA = Path(str(resources.files("topotransfer"))) / "data"

def finished(out:Path, source:str) -> list[Plan]:
    "The plans of a source whose network is trained and fine-tuned everywhere."
    return [p for p in plans(source) if (out / p.name / "weights.safetensors").exists() and all((out / p.name / f"{t}-{s}.json").exists() for t in TARGETS for s in SEEDS)]

def score_task(
    out:Path,
    source:str,
    target:str, # a target's name; "" for the source itself
) -> pd.DataFrame: # one row per network
    "Every registered score of every network on the training images of a target; or, for the source, the cards."
    torch.set_num_threads(1)
    networks = {p.name: train_source(p, out / p.name) for p in finished(out, source)}
    if not target:
        rows = [json.loads((out / name / "card.json").read_text()) | source_values(network, source) for name, network in networks.items()]
        return pd.DataFrame(rows).rename(columns={"name": "model"})
    table = rank_embeddings([embed(network, *target_images(target)["train"], name, target) for name, network in networks.items()]).table
    return table.dropna(axis=1, how="all").loc[list(networks)].reset_index().assign(source=source, target=target)

def tables(
    out:Path, # what `train` has left
    data:Path=DATA, # where the tables and the bundled weights go
    workers:int=2, # processes, one thread each
) -> None:
    "Write the cards, the truth, every score, and the weights of the Fashion-MNIST zoo in one file, from finished networks."
    rows = [json.loads((out / p.name / f"{t}-{s}.json").read_text()) for source in SOURCES for p in finished(out, source) for t in TARGETS for s in SEEDS]
    pd.DataFrame(rows).round(6).to_csv(data / "small_zoo_truth.csv", index=False)
    with ProcessPoolExecutor(workers, mp_context=multiprocessing.get_context("spawn")) as pool:
        jobs = {(source, target): pool.submit(score_task, out, source, target) for source in SOURCES for target in ("", *TARGETS)}
        found = {task: job.result() for task, job in jobs.items()}
    pd.concat([found[source, ""] for source in SOURCES]).to_csv(data / "small_zoo_cards.csv", index=False)
    pd.concat([table for (_, target), table in found.items() if target]).to_csv(data / "small_zoo_scores.csv", index=False, float_format="%.9g")
    weights = {f"{p.name}/{key}": value for p in finished(out, "fashion") for key, value in load_file(out / p.name / "weights.safetensors").items()}
    save_file(weights, data / "small_zoo.safetensors")



#| export
def small_zoo_truth() -> pd.DataFrame: # one row per network, target and seed
    "Fine-tuned accuracies, as committed: `model`, `source`, `target`, `seed`, and the fields of `FineTuned`."
    return pd.read_csv(DATA / "small_zoo_truth.csv")

def small_zoo_scores() -> pd.DataFrame: # one row per network and target
    "Every score of every network on the 400 training images of every target, as committed."
    return pd.read_csv(DATA / "small_zoo_scores.csv")

def mean_accuracies(
    truth:pd.DataFrame, # as `small_zoo_truth` returns it
) -> pd.DataFrame: # one row per source, target and network: `accuracy`, `standard_error`, in percent
    "The mean over seeds with its standard error: of the choice of test images and of the seeds, the latter pooled over the networks of a source on a target."
    seeds = truth.groupby(["source", "target", "model"]).accuracy
    pooled = seeds.var().groupby(["source", "target"]).transform("mean") / seeds.size()
    of_test = (truth.standard_error ** 2).groupby([truth.source, truth.target, truth.model]).mean()
    return pd.DataFrame(dict(accuracy=seeds.mean(), standard_error=np.sqrt(of_test + pooled)))

def noise_ceiling(
    truth:pd.DataFrame, # of one source and target
) -> float:
    """The mean tau-b that a score would reach with the mean over seeds if it knew each network's expected accuracy, estimated by simulation.

    Expected accuracies are taken to be normal, with the variance between networks that is left when that of the errors is
    taken off; 400 draws with a fixed seed. 1 where there is no noise, 0 where the noise explains all differences.
    """
    means = mean_accuracies(truth)
    noise = (means.standard_error ** 2).mean()
    spread, rng = np.sqrt(max(means.accuracy.var() - noise, 0)), np.random.default_rng(0)
    if spread == 0: return 0.
    expected = rng.normal(0, spread, (400, len(means)))
    return float(np.mean([kendalltau(e, e + rng.normal(0, np.sqrt(noise), len(e))).statistic for e in expected]))



#| export
def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m topotransfer.small_zoo", description="Train, fine-tune and score the zoo of small networks.")
    parser.add_argument("command", choices=["train", "tables"], help="train and fine-tune; or write the tables of what is finished")
    parser.add_argument("--out", type=Path, required=True, help="folder of the results; a run that was stopped goes on from there")
    parser.add_argument("--workers", type=int, default=2)
    given = parser.parse_args()
    dict(train=train, tables=tables)[given.command](given.out, workers=given.workers)

if __name__ == "__main__" and "__file__" in globals(): main()

