
#| export
from functools import partial
from importlib import resources

import pandas as pd
import torch
from safetensors import safe_open
from torch import nn
from torch.nn import functional as F
from torchvision import transforms

from topotransfer.cloud import check_count
from topotransfer.zoo import ModelSpec



#| export
def _conv(n_in:int, n_out:int, size:int=3, stride:int=1, groups:int=1) -> nn.Sequential:
    "Convolution, batch normalisation, ReLU."
    return nn.Sequential(nn.Conv2d(n_in, n_out, size, stride, size // 2, groups=groups, bias=False), nn.BatchNorm2d(n_out), nn.ReLU())

class _Residual(nn.Module):
    def __init__(self, n:int):
        super().__init__()
        self.first, self.second = _conv(n, n), _conv(n, n)[:2]
    def forward(self, x): return F.relu(x + self.second(self.first(x)))

class _Dense(nn.Module):
    def __init__(self, n:int, depth:int):
        super().__init__()
        grown = max(4, n // 2)
        self.layers = nn.ModuleList(_conv(n + i * grown, grown) for i in range(depth))
        self.join = _conv(n + depth * grown, n, 1)
    def forward(self, x):
        for layer in self.layers: x = torch.cat([x, layer(x)], 1)
        return self.join(x)

def _mlp(n:int, hidden:int) -> nn.Sequential: return nn.Sequential(nn.Linear(n, hidden), nn.GELU(), nn.Linear(hidden, n))

class _Mixing(nn.Module):
    def __init__(self, n:int, tokens:int):
        super().__init__()
        self.norms, self.tokens, self.channels = nn.ModuleList([nn.LayerNorm(n), nn.LayerNorm(n)]), _mlp(tokens, n), _mlp(n, 2 * n)
    def forward(self, x): # `(m, tokens, n)`
        x = x + self.tokens(self.norms[0](x).transpose(1, 2)).transpose(1, 2)
        return x + self.channels(self.norms[1](x))

class _Mean(nn.Module):
    "Mean over all positions, channels last or second."
    def __init__(self, dims): super().__init__(); self.dims = dims
    def forward(self, x): return x.mean(self.dims)



#| export
_STAGES = {
    "plain": lambda n, depth: [_conv(n, n) for _ in range(depth)],
    "residual": lambda n, depth: [_Residual(n) for _ in range(depth)],
    "dense": lambda n, depth: [_Dense(n, depth + 1)],
    "depthwise": lambda n, depth: [layer for _ in range(depth + 1) for layer in (_conv(n, n, groups=n), _conv(n, n, 1))],
}
ARCHITECTURES = (*_STAGES, "mixer")

def small_net(
    architecture:str, # one of `ARCHITECTURES`
    width:int, # channels of the first stage
    depth:int, # blocks of a stage
    n_classes:int, # outputs
    seed:int=0, # of the initial weights
) -> nn.Sequential: # `(m, 1, 28, 28)` -> `(m, n_classes)`
    "An untrained network; its penultimate layer is 4 (mixer: 3) times `width` wide. `ValueError` for an unknown architecture."
    if architecture not in ARCHITECTURES: raise ValueError(f"architecture must be one of {ARCHITECTURES}; found {architecture!r}")
    for name, value in (("width", width), ("depth", depth), ("n_classes", n_classes)): check_count(value, name, 1)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        if architecture == "mixer":
            n = 3 * width
            patches = [nn.Conv2d(1, n, 4, 4), nn.Flatten(2), _Swap()]
            return nn.Sequential(*patches, *[_Mixing(n, 49) for _ in range(depth + 1)], nn.LayerNorm(n), _Mean(1), nn.Linear(n, n_classes))
        stages, n = [_conv(1, width, stride=2)], width
        for _ in range(2): # 14 x 14 pixels, then 7 x 7 of twice the width
            stages += [*_STAGES[architecture](n, depth), _conv(n, 2 * n, 1 if architecture == "depthwise" else 3, 2)]
            n *= 2
        return nn.Sequential(*stages, _Mean((2, 3)), nn.Linear(n, n_classes))

class _Swap(nn.Module):
    def forward(self, x): return x.transpose(1, 2)



#| export
def grey_28() -> transforms.Compose: # PIL image -> `(1, 28, 28)` float tensor of about mean 0 and deviation 1
    "What all small networks expect: one grey channel of 28 × 28 pixels."
    return transforms.Compose([transforms.Grayscale(), transforms.Resize((28, 28)), transforms.ToTensor(), transforms.Normalize(.3, .35)])




#| export
def small_zoo_cards() -> pd.DataFrame: # one row per network
    """How each network of the two zoos was trained, and what is known of it.

    `source_accuracy`, `sample_accuracy` and `training_accuracy` are percentages (of held-out source images, of the source
    sample, of the training labels, wrong ones included). `pr` is the negative persistence ratio of the source sample, the
    other `pr_...` are its remedies (module `remedies`), `pr_held_out` is taken on held-out source images; `nc1` and
    `pr_pieces` are those of the source sample, too.
    """
    return pd.read_csv(resources.files("topotransfer") / "data" / "small_zoo_cards.csv", index_col="model")

def _build_small(name:str, card:dict) -> nn.Sequential:
    "One network with the weights that come with this package."
    network = small_net(card["architecture"], int(card["width"]), int(card["depth"]), 10)
    with safe_open(resources.files("topotransfer") / "data" / "small_zoo.safetensors", framework="pt") as file:
        weights = {key: file.get_tensor(f"{name}/{key}").float() for key, value in network.state_dict().items() if value.is_floating_point()}
    network.load_state_dict(weights, strict=False) # what is missing counts batches, and is used by none
    return network

def small_zoo() -> list[ModelSpec]: # forty models
    "The networks trained on Fashion-MNIST that come with this package: no download, no pickle."
    cards = small_zoo_cards().query("source == 'fashion'").to_dict("index")
    return [ModelSpec(name, partial(_build_small, name, card), lambda network: grey_28()) for name, card in cards.items()]

