"""Data sets of images: where they come from, and how each becomes rows of grey values with its published split."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from amortize.data.dataset import Arrays
from amortize.data.digits import DIGITS
from amortize.data.entry import PUBLISHED, Entry, Parts
from amortize.data.formats import parsing, read_amat, read_idx, read_npz, unpacked
from amortize.data.omniglot import read_omniglot
from amortize.data.places import File, Form
from amortize.data.scattered import SCATTERED

__all__ = ["IMAGES"]

_IDX_NAMES = (
    "train-images-idx3-ubyte.gz",
    "train-labels-idx1-ubyte.gz",
    "t10k-images-idx3-ubyte.gz",
    "t10k-labels-idx1-ubyte.gz",
)
_MNIST_BASES = (
    "https://ossci-datasets.s3.amazonaws.com/mnist/",
    "https://storage.googleapis.com/cvdf-datasets/mnist/",
)
_MNIST_SHA = (
    "440fcabf73cc546fa21475e81ea370265605f56be210a4024d2ca8f203523609",
    "3552534a0a558bbed6aed32b30c495cca23d567ec52cac8be1a0730e8010255c",
    "8d422c7b0a1c1c79245a5bcf07fe86e33eeafee792b84584aec276f5a2dbc4e6",
    "f7ae60f92e00ec6debd23a6088c31dbd2371eca3ffa0defaefb259924204aec6",
)
_FASHION_BASES = ("http://fashion-mnist.s3-website.eu-central-1.amazonaws.com/",)
_FASHION_SHA = (
    "3aede38d61863908ad78613f6a32ed271626dd12800ba2636569512369268a84",
    "a04f17134ac03560a47e3764e11b92fc97de4d1bfaf8ba1a3aa29af54cc90845",
    "346e55b948d973a97e58d2351dde16a484bd415d4595297633bb08f03db6a073",
    "67da17c76eaffca5446c3361aaab5c3cd6d1c2608764d35dfb1850b086bf8dd5",
)
_AMAT_BASES = ("http://www.cs.toronto.edu/~larocheh/public/datasets/binarized_mnist/",)
_AMAT_SHA = {
    "train": "ad693b29f94c14277b095f5238ddefbbdaaae0939789dd2f4f0205278cee3e4d",
    "valid": "1de3d397c40fe8eeb33dafd4099a1f665ec01e96d9be234aaeeac8a34930e2e2",
    "test": "e6687bfea3f820c174f33b7865140b2a2dd2930ef786f35d45795fc193b5ab2c",
}
_OMNIGLOT_BASES = ("https://raw.githubusercontent.com/brendenlake/omniglot/master/python/",)
_OMNIGLOT_SHA = {
    "images_background.zip": "ad41ab679c8b5d90b271ef46be6987cc81211774a695c29dcc5367b2b26ee640",
    "images_evaluation.zip": "1f61a8f3366785b057fc117d9228e78a16e3d976c8953b2a10fcc74cf0609cee",
}
_OMNIGLOT_SIZES = (24345, 8070)  # of the split that published numbers use; ours is another one of these sizes


def npz(path: str, sha256: str) -> Form:
    """A form that is one ``.npz`` of the arrays themselves."""
    return Form((File(path, sha256),), partial(parsing, read_npz))


def _files(folder: str, names: tuple[str, ...], hashes: tuple[str, ...], bases: tuple[str, ...]) -> tuple[File, ...]:
    return tuple(
        File(f"{folder}/{name}", sha256, tuple(f"{base}{name}" for base in bases))
        for name, sha256 in zip(names, hashes, strict=True)
    )


def _read_idx_set(*paths: Path) -> Arrays:
    arrays = [parsing(read_idx, path) for path in paths]
    return dict(zip(("x_train", "y_train", "x_test", "y_test"), arrays, strict=True))


def _read_amat_set(*paths: Path) -> Arrays:
    """Bit-packed, as in the ``.npz``: an eighth of the memory until the rows are used."""
    parts = ("train", "valid", "test")
    return {part: np.packbits(parsing(read_amat, path), axis=1) for part, path in zip(parts, paths, strict=True)}


def _flat(x: NDArray[Any]) -> NDArray[Any]:
    return x.reshape(len(x), -1)


def _train_and_test(arrays: Arrays, num_train: int | None = None) -> Parts:
    """Both parts one after the other; ``num_train`` keeps the first images of the training part."""
    x, y = arrays["x_train"][:num_train], arrays["y_train"][:num_train]
    shared = {key: arrays[key] for key in ("classnames",) if key in arrays}
    return Parts(
        np.concatenate([_flat(x), _flat(arrays["x_test"])]),
        np.concatenate([y, arrays["y_test"]]).astype(np.int64),
        shared=shared,
        split={"train": slice(0, len(x)), "test": slice(len(x), len(x) + len(arrays["x_test"]))},
    )


def _binarised_mnist(arrays: Arrays) -> Parts:
    parts = [unpacked(arrays[part]) for part in ("train", "valid", "test")]
    ends = np.cumsum([0, *map(len, parts)])
    split = {part: slice(ends[k], ends[k + 1]) for k, part in enumerate(("train", "valid", "test"))}
    return Parts(np.concatenate(parts).astype(np.float32), split=split)


def _omniglot(arrays: Arrays) -> Parts:
    order = np.random.RandomState(0).permutation(len(arrays["x"]))
    num_train, num_test = _OMNIGLOT_SIZES
    split = {"train": np.sort(order[:num_train]), "test": np.sort(order[num_train : num_train + num_test])}
    return Parts(
        _flat(arrays["x"]),
        arrays["alphabet"].astype(np.int64),
        covariates={key: arrays[key].astype(np.int64) for key in ("character", "drawer")},
        shared={"alphabet_names": arrays["alphabet_names"]},
        split=split,
    )


_GREY_MODES = ("grey", "threshold", "static", "dynamic")
_FASHION_NPZ = npz("fashion_mnist_20k.npz", "9e2449a2497c8c3eec6e6b6dc4f5bdd3b5260647008adb3fb6cb4aeff1ebc550")
_FASHION_IDX = Form(_files("fashion-mnist", _IDX_NAMES, _FASHION_SHA, _FASHION_BASES), _read_idx_set)

IMAGES: dict[str, Entry] = {
    "digits": DIGITS,
    "mnist": Entry(
        title="MNIST",
        description="70,000 handwritten digits, 28 x 28 grey values, in the published order",
        source="the four IDX files of LeCun and Cortes",
        licence="CC BY-SA 3.0 (as the Keras documentation states)",
        citation="LeCun, Bottou, Bengio and Haffner, Gradient-based learning applied to document recognition, 1998",
        sizes=(60000, 0, 10000),
        shape=(784,),
        forms=(
            npz("mnist.npz", "37ac4434c24aa2360e2a8ddfd357ba4cdcf48919961b2b780a6d3040894d1a02"),
            Form(_files("mnist", _IDX_NAMES, _MNIST_SHA, _MNIST_BASES), _read_idx_set),
        ),
        make=_train_and_test,
        modes=_GREY_MODES,
        image_shape=(28, 28),
        split=PUBLISHED,
        caveat="No binarisation of it is the published static one; that is binarized-mnist",
    ),
    "binarized-mnist": Entry(
        title="static binarised MNIST",
        description="70,000 binary digits, 28 x 28: THE static binarised MNIST of published numbers; no labels",
        source="the three .amat files of Larochelle and Murray 2011, sampled by Salakhutdinov and Murray 2008",
        licence="derived from MNIST (CC BY-SA 3.0)",
        citation="Salakhutdinov and Murray, On the quantitative analysis of deep belief networks, 2008; Larochelle and"
        " Murray, The neural autoregressive distribution estimator, 2011",
        sizes=(50000, 10000, 10000),
        shape=(784,),
        forms=(
            npz("binarized_mnist_static.npz", "9b2c0033bf45ac2989529e8d8c2d17c2d6327c722677d6a3ce01cf361b7fe308"),
            Form(
                _files(
                    "binarized-mnist",
                    tuple(f"binarized_mnist_{part}.amat" for part in _AMAT_SHA),
                    tuple(_AMAT_SHA.values()),
                    _AMAT_BASES,
                ),
                _read_amat_set,
            ),
        ),
        make=_binarised_mnist,
        values="the published static binarisation",
        modes=("static",),
        top=1,
        image_shape=(28, 28),
        split=PUBLISHED,
    ),
    "fashion-mnist": Entry(
        title="Fashion-MNIST, the first 10,000 of the 60,000 training images",
        description="20,000 of the 70,000 pictures of clothes, 28 x 28 grey values: a cut; fashion-mnist-full is whole",
        source="Zalando Research's four IDX files",
        licence="MIT",
        citation="Xiao, Rasul and Vollgraf, Fashion-MNIST, 2017",
        sizes=(10000, 0, 10000),
        shape=(784,),
        forms=(_FASHION_NPZ, _FASHION_IDX),
        make=partial(_train_and_test, num_train=10000),
        modes=_GREY_MODES,
        image_shape=(28, 28),
        split=PUBLISHED,
        caveat="Trained on a sixth of the set: not comparable with published numbers",
    ),
    "fashion-mnist-full": Entry(
        title="Fashion-MNIST",
        description="70,000 pictures of clothes, 28 x 28 grey values",
        source="Zalando Research's four IDX files",
        licence="MIT",
        citation="Xiao, Rasul and Vollgraf, Fashion-MNIST, 2017",
        sizes=(60000, 0, 10000),
        shape=(784,),
        forms=(_FASHION_IDX,),
        make=_train_and_test,
        modes=_GREY_MODES,
        image_shape=(28, 28),
        split=PUBLISHED,
    ),
    "omniglot": Entry(
        title="OMNIGLOT at 28 x 28",
        description="32,415 of the 32,460 handwritten characters of 50 alphabets, 28 x 28 grey values, ink bright",
        source="Brenden Lake's drawings (105 x 105), averaged over boxes",
        licence="MIT",
        citation="Lake, Salakhutdinov and Tenenbaum, Human-level concept learning, 2015",
        sizes=(24345, 0, 8070),
        shape=(784,),
        forms=(
            npz("omniglot_28.npz", "b3f1d6ecce61b8851f156759dd7e3e8fef6ac7e805e840dc10fb1de00a0d62cc"),
            Form(
                _files("omniglot", tuple(_OMNIGLOT_SHA), tuple(_OMNIGLOT_SHA.values()), _OMNIGLOT_BASES),
                read_omniglot,
            ),
        ),
        make=_omniglot,
        modes=_GREY_MODES,
        image_shape=(28, 28),
        split=PUBLISHED,
        split_words="a fixed random split with the sizes of the IWAE split",
        caveat="Resampled and split otherwise than the 28 x 28 OMNIGLOT of published numbers (chardata.mat): not"
        " comparable with them",
    ),
    "cifar10-subset": Entry(
        title="2,500 images of CIFAR-10 from JPEG copies",
        description="200 + 50 colour images of each of 10 classes, 32 x 32 x 3, not bit-exact",
        source="JPEG copies of CIFAR-10, the first files of each class",
        licence="none stated (Krizhevsky 2009); cite",
        citation="Krizhevsky, Learning multiple layers of features from tiny images, 2009",
        sizes=(2000, 0, 500),
        shape=(3072,),
        forms=(npz("cifar10_jpeg_2500.npz", "236a5602ef5717a944194e7aa53650933e36de874362d8b4980565acd9fdf355"),),
        make=_train_and_test,
        modes=("grey",),
        image_shape=(32, 32, 3),
        split=PUBLISHED,
        split_words="of the published parts",
        caveat="A subset that went through JPEG, not CIFAR-10 itself: not comparable with published numbers",
    ),
    "scattered-crosses": SCATTERED,
}
"""Images by name."""
