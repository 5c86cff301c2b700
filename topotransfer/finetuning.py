
#| export
import copy
import json
import os
from collections.abc import Callable, Iterable
from dataclasses import asdict, dataclass
from pathlib import Path
from uuid import uuid4

import numpy as np
import pandas as pd
import torch
from torch import nn
from torch.nn import functional as F
from tqdm.auto import tqdm

from topotransfer.cloud import check_count, check_labels
from topotransfer.datasets import Dataset
from topotransfer.embeddings import digest
from topotransfer.zoo import Backbone, ModelSpec



#| export
@dataclass(frozen=True)
class Recipe:
    """How to fine-tune. SGD with momentum .9, the learning rate falling along half a cosine.

    Raises `ValueError` for an unknown mode, no learning rate, or numbers that make no sense.
    """
    mode: str = "full" # "full": all weights; "head": only the new last layer, on frozen features
    learning_rates: tuple[float, ...] = (.01, .03, .1) # the grid; the best one on the validation images is taken
    epochs: int = 10 # at most
    patience: int = 4 # epochs without improvement of the validation loss after which to stop
    batch_size: int = 32
    validation: float = .2 # share of the training images, of each class, that the choices are made on
    weight_decay: float = 5e-4

    def __post_init__(self):
        if self.mode not in ("full", "head"): raise ValueError(f"mode must be 'full' or 'head'; found {self.mode!r}")
        if not self.learning_rates or min(self.learning_rates) <= 0: raise ValueError(f"learning_rates must be positive numbers; found {self.learning_rates}")
        if not 0 < self.validation < 1: raise ValueError(f"validation must lie between 0 and 1; found {self.validation}")
        for name in ("epochs", "patience"): check_count(getattr(self, name), name, 1)
        check_count(self.batch_size, "batch_size", 2)

@dataclass(frozen=True)
class FineTuned:
    "The accuracy in percent of a fine-tuned model on the test images, its standard error, and what was chosen on the validation images."
    accuracy: float
    standard_error: float
    n_test: int
    learning_rate: float
    epoch: int # after which the weights were kept, counted from 1
    validation_accuracy: float

    def __repr__(self):
        return f"FineTuned({self.accuracy:.1f} ± {self.standard_error:.1f} % of {self.n_test} test images; learning rate {self.learning_rate:g}, stopped at epoch {self.epoch})"



#| export
def accuracy_error(
    n_right:int, # how many were classified correctly
    n:int, # out of how many
) -> tuple[float, float]: # accuracy and standard error, in percent
    """Accuracy with its standard error from the finite number of test images.

    The error is that of a share after two right and two wrong answers more (Agresti and Coull 1998), so that it isn't 0 for
    0 or 100 percent.
    """
    share = (n_right + 2) / (check_count(n, "n", 1) + 4)
    return 100 * n_right / n, 100 * float(np.sqrt(share * (1 - share) / (n + 4)))



#| export
def prepared(
    dataset:Dataset,
    transform:Callable, # PIL image -> tensor
) -> tuple[torch.Tensor, torch.Tensor]: # images `(n, ...)`, labels `(n,)`
    "All images of a dataset through a transform, in memory, with their labels. Fine-tuning here augments nothing, so once is enough."
    return torch.stack([transform(dataset[i][0]) for i in range(len(dataset))]), torch.as_tensor(np.asarray(dataset.labels, dtype=np.int64))

def validation_split(
    labels, # `(n,)` integers
    share:float, # between 0 and 1
    seed:int=0,
) -> tuple[np.ndarray, np.ndarray]: # indices to train on, indices to validate on; both sorted
    "Split so that of each class `share` of the images, at least one and never all, are for validation. `ValueError` for a class of one image."
    labels, rng, held = np.asarray(labels), np.random.default_rng(seed), []
    for c in np.unique(labels):
        members = rng.permutation(np.flatnonzero(labels == c))
        if len(members) < 2: raise ValueError(f"each class needs at least 2 training images, one of them for validation; found 1 of class {c}")
        held.append(members[:min(max(1, round(share * len(members))), len(members) - 1)])
    held = np.sort(np.concatenate(held))
    return np.setdiff1d(np.arange(len(labels)), held), held



#| export
def with_new_head(
    network:nn.Module, # ends in a linear layer
    n_classes:int,
    seed:int=0, # of the new weights
) -> nn.Module: # a copy; the network itself stays as it is
    "A copy of a network whose last linear layer is a new one for `n_classes`. `ValueError` where there is none."
    network = copy.deepcopy(network)
    names = [name for name, m in network.named_modules() if isinstance(m, nn.Linear)]
    if not names: raise ValueError("network must end in a linear layer; found none")
    old = network.get_submodule(names[-1])
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        new = nn.Linear(old.in_features, check_count(n_classes, "n_classes", 2)).to(old.weight.device)
    parent, _, last = names[-1].rpartition(".")
    if not names[-1]: return new
    setattr(network.get_submodule(parent), last, new)
    return network



#| export
def _predict(network:nn.Module, images:torch.Tensor, device, batch_size:int=256) -> torch.Tensor:
    "Outputs in evaluation mode, on the CPU."
    network.eval()
    with torch.inference_mode(): return torch.cat([network(part.to(device)).float().cpu() for part in images.split(batch_size)])

def _train(network:nn.Module, train, valid, rate:float, recipe:Recipe, seed:int, device) -> tuple:
    "Train with one learning rate: (validation accuracy, -validation loss), epoch and state at the epoch of the least validation loss."
    optimizer = torch.optim.SGD(network.parameters(), rate, momentum=.9, weight_decay=recipe.weight_decay)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, recipe.epochs)
    best = ((-1., -np.inf), 0, None)
    order = torch.Generator().manual_seed(seed)
    for epoch in range(1, recipe.epochs + 1):
        network.train()
        for rows in torch.randperm(len(train[1]), generator=order).split(recipe.batch_size):
            if len(rows) < 2: continue # batch normalisation has no statistics of one image
            optimizer.zero_grad()
            F.cross_entropy(network(train[0][rows].to(device)), train[1][rows].to(device)).backward()
            optimizer.step()
        schedule.step()
        outputs = _predict(network, valid[0], device)
        loss, right = float(F.cross_entropy(outputs, valid[1])), float((outputs.argmax(1) == valid[1]).float().mean())
        if np.isfinite(loss) and -loss > best[0][1]: best = (right, -loss), epoch, copy.deepcopy(network.state_dict())
        if epoch - best[1] >= recipe.patience: break
    return best



#| export
def finetune_network(
    network:nn.Module, # pretrained, ends in a linear layer; stays as it is
    train:tuple[torch.Tensor, torch.Tensor], # images and labels 0..C-1, as `prepared` returns them
    test:tuple[torch.Tensor, torch.Tensor], # the same of other images: looked at once, at the end
    recipe:Recipe=Recipe(),
    seed:int=0, # of the split, the new head and the order of images
    device:str|torch.device="cpu",
) -> FineTuned:
    """Fine-tune with every learning rate of the grid and test the one that the validation images prefer.

    The weights kept are those of the epoch with the least validation loss; between learning rates validation accuracy
    decides, then loss. Raises `ValueError` where test labels don't occur in training, where every learning rate diverges,
    and what `validation_split` and `with_new_head` raise.
    """
    n_classes = int(train[1].max()) + 1
    if len(test[1]) == 0 or not set(test[1].tolist()) <= set(train[1].tolist()): raise ValueError("test images must be of classes that were trained on")
    new = with_new_head(network, n_classes, seed).to(device)
    if recipe.mode == "head": new, train, test = _frozen(new, train, test, device)
    fit, held = validation_split(train[1], recipe.validation, seed)
    parts = tuple(t[fit] for t in train), tuple(t[held] for t in train)
    trials = [(rate, *_train(trial := copy.deepcopy(new), *parts, rate, recipe, seed, device), trial) for rate in recipe.learning_rates]
    rate, (right, _), epoch, state, chosen = max(trials, key=lambda t: t[1])
    if state is None: raise ValueError(f"training diverged with every learning rate of {recipe.learning_rates}")
    chosen.load_state_dict(state)
    n_right = int((_predict(chosen, test[0], device).argmax(1) == test[1]).sum())
    return FineTuned(*accuracy_error(n_right, len(test[1])), len(test[1]), rate, epoch, 100 * right)

def _frozen(network:nn.Module, train, test, device) -> tuple:
    "The head alone, with the features of the images in place of the images."
    body, taken = network.eval(), []
    head = [m for m in body.modules() if isinstance(m, nn.Linear)][-1]
    hook = head.register_forward_hook(lambda layer, inputs, output: taken.append(inputs[0].detach().float().cpu()))
    out = []
    for images, labels in (train, test):
        taken.clear()
        _predict(body, images, device)
        out.append((torch.cat(taken), labels))
    hook.remove()
    return copy.deepcopy(head), *out



#| export
def finetune(
    spec:ModelSpec,
    train:Dataset, # labelled images to learn and to choose from
    test:Dataset, # other images of the same classes
    recipe:Recipe=Recipe(),
    seed:int=0, # of the split, the new head and the order of images
    device:str|torch.device="cpu",
) -> FineTuned:
    "Fine-tune a pretrained model on a dataset, with the model's own transform. Raises what `finetune_network` raises."
    if tuple(train.classes) != tuple(test.classes): raise ValueError(f"train and test must have the same classes; found {train.classes[:3]}... and {test.classes[:3]}...")
    if train.fingerprint == test.fingerprint: raise ValueError("train and test must be different images; found the same fingerprint")
    backbone = spec.load()
    return finetune_network(backbone.network, prepared(train, backbone.transform), prepared(test, backbone.transform), recipe, seed, device)
