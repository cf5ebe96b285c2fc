"""Small statistical data sets: classification, regression, and latent-variable data with known answers."""

from __future__ import annotations

from functools import partial

import numpy as np

from amortize.data.dataset import Arrays
from amortize.data.entry import WHOLE, Entry, Parts
from amortize.data.formats import parsing, read_german
from amortize.data.images import npz
from amortize.data.places import File, Form

__all__ = ["SMALL"]

_RAW = "measurements as published, not standardised"
_UCI = "CC BY 4.0 (UCI)"
_TABLES = npz("binary_classification.npz", "12ae1f23ed14232a038be192ff90908940d449e6c092dbd139c36d46b2f3e766")
_BAYES = npz("bayes_small.npz", "d26b6593a12520950ef3de41a7749611f90d2ab0d639bf292a447f3cd242f050")
_GERMAN = Form(
    (
        File(
            "german/german.data-numeric",
            "2752b044394958ab6dd193a0b56ca0f0b3a2d8bc7cb8c008e35a5e84bbec02f8",
            ("https://archive.ics.uci.edu/ml/machine-learning-databases/statlog/german/german.data-numeric",),
        ),
    ),
    partial(parsing, read_german),
)


def _sklearn(name: str) -> Form:
    def read() -> Arrays:
        from sklearn import datasets  # slow to import, and only needed here

        # scaled columns are a choice of scikit-learn's own; the raw ones are what others publish
        options = {"scaled": False} if name == "diabetes" else {}
        bundled = getattr(datasets, f"load_{name}")(**options)
        names = np.array([str(key).encode() for key in bundled.feature_names])
        return {"x": np.asarray(bundled.data), "y": np.asarray(bundled.target), "feature_names": names}

    return Form((), read, package="scikit-learn")


def _bundled(arrays: Arrays) -> Parts:
    y = arrays["y"]
    y = y.astype(np.int64) if y.dtype.kind in "iu" else y
    return Parts(arrays["x"].astype(np.float64), y, shared={"feature_names": arrays["feature_names"]})


def _table(arrays: Arrays, name: str) -> Parts:
    return Parts(arrays[f"{name}_x"].astype(np.float64), arrays[f"{name}_y"].astype(np.int64))


def _eight_schools(arrays: Arrays) -> Parts:
    return Parts(
        arrays["eight_schools_y"],
        covariates={"sigma": arrays["eight_schools_sigma"]},
        shared={"ref_draws": arrays["eight_schools_ref_draws"], "ref_names": arrays["eight_schools_ref_names"]},
    )


def _radon(arrays: Arrays) -> Parts:
    return Parts(
        arrays["radon_mn_log_radon"].astype(np.float64),
        covariates={
            "floor": arrays["radon_mn_floor_measure"].astype(np.float64),
            "log_uranium": arrays["radon_mn_log_uppm"].astype(np.float64),
            "county": arrays["radon_mn_county"].astype(np.int64),
        },
    )


def _lynx_hare(arrays: Arrays) -> Parts:
    return Parts(
        arrays["lynx_hare_y"][None],
        covariates={"start": arrays["lynx_hare_y0"][None]},
        shared={"t": arrays["lynx_hare_t"]},
    )


def _pines(arrays: Arrays) -> Parts:
    counts = arrays["pines_counts_40x40"].astype(np.float32)
    return Parts(counts.reshape(1, -1), shared={"points": arrays["pines_xy"]})


def _brownian(arrays: Arrays) -> Parts:
    names = {"scales": "brownian_scales", "ref_mean": "brownian_ref_mean", "ref_sd": "brownian_ref_sd"}
    return Parts(arrays["brownian_observed"][None], shared={key: arrays[name] for key, name in names.items()})


def _penguins(arrays: Arrays) -> Parts:
    """Species, island and sex as codes in alphabetical order; an unknown sex is -1."""
    coded = {key: np.unique(arrays[f"penguins_{key}"], return_inverse=True) for key in ("species", "island", "sex")}
    names = {key: found for key, (found, _) in coded.items()}
    codes = {key: np.asarray(code, dtype=np.int64) for key, (_, code) in coded.items()}
    codes["sex"] -= 1  # the empty text, which stands for missing, comes first
    year = arrays["penguins_num"][:, 4].astype(np.int64)
    return Parts(
        arrays["penguins_num"][:, :4],
        codes["species"],
        covariates={"island": codes["island"], "sex": codes["sex"], "year": year},
        shared={
            "feature_names": np.array([b"bill_length_mm", b"bill_depth_mm", b"flipper_length_mm", b"body_mass_g"]),
            "label_names": names["species"],
            "island_names": names["island"],
            "sex_names": names["sex"][1:],
        },
    )


def _uci(name: str, title: str, description: str, sizes: tuple[int, int], columns: int) -> Entry:
    """A set that scikit-learn carries."""
    return Entry(
        title=title,
        description=description,
        source="scikit-learn's copy",
        licence="BSD-3 (scikit-learn)" if name == "diabetes" else _UCI,
        values=_RAW,
        sizes=(sizes[0], 0, sizes[1]),
        shape=(columns,),
        forms=(_sklearn(name),),
        make=_bundled,
    )


def _classes(name: str, title: str, description: str, num: int, columns: int) -> Entry:
    """A binary classification set; y is 0 or 1."""
    held_out = round(0.2 * num)
    return Entry(
        title=title,
        description=description,
        source="UCI Machine Learning Repository, by way of published copies",
        licence="withdrawn from UCI; generally treated as public domain" if name == "pima" else _UCI,
        values=_RAW,
        sizes=(num - held_out, 0, held_out),
        shape=(columns,),
        forms=(_TABLES, _GERMAN) if name == "german" else (_TABLES,),
        make=partial(_table, name=name),
    )


SMALL: dict[str, Entry] = {
    "wine": _uci("wine", "UCI wine", "178 wines of 3 cultivars, 13 measurements", (142, 36), 13),
    "breast-cancer": _uci(
        "breast_cancer", "Wisconsin breast cancer", "569 tumours, benign or malignant, 30 measurements", (455, 114), 30
    ),
    "diabetes": _uci(
        "diabetes", "diabetes", "442 patients, 10 measurements, disease progression (y, a number)", (354, 88), 10
    ),
    "iris": _uci("iris", "Fisher's iris", "150 flowers of 3 species, 4 measurements", (120, 30), 4),
    "sonar": _classes("sonar", "sonar", "208 sonar returns, 60 energies; y = 1 rock", 208, 60),
    "ionosphere": _classes("ionosphere", "ionosphere", "351 radar returns, 34 values; y = 1 good", 351, 34),
    "australian": _classes(
        "australian", "Australian credit", "690 applications, 14 attributes scaled to [-1, 1]", 690, 14
    ),
    "a1a": _classes("a1a", "a1a (adult)", "1605 persons, 119 binary attributes; y = 1 high income", 1605, 119),
    "german": _classes("german", "German credit, numeric", "1000 applicants, 24 integers; y = 1 bad", 1000, 24),
    "pima": _classes(
        "pima", "Pima diabetes", "768 women, 8 measurements (0 means missing in columns 1 to 5); y = 1 diabetes", 768, 8
    ),
    "eight-schools": Entry(
        title="eight schools",
        description="8 effects of coaching with their standard errors; 10,000 reference draws",
        source="posteriordb",
        licence="BSD-3 (posteriordb)",
        citation="Rubin 1981; Gelman et al., Bayesian Data Analysis",
        values="effects in points, standard errors as covariate sigma",
        sizes=(8, 0, 0),
        shape=(),
        forms=(_BAYES,),
        make=_eight_schools,
        split=WHOLE,
    ),
    "radon": Entry(
        title="radon in Minnesota",
        description="log radon of 919 houses in 85 counties, with floor and log uranium",
        source="posteriordb",
        licence="BSD-3 (posteriordb)",
        citation="Gelman and Hill 2006",
        values="log radon, as published",
        sizes=(919, 0, 0),
        shape=(),
        forms=(_BAYES,),
        make=_radon,
        split=WHOLE,
    ),
    "lynx-hare": Entry(
        title="lynx and hare, 1901 to 1920",
        description="pelts of hare and lynx in thousands, 20 years; one datapoint, the first year beside it",
        source="posteriordb (Hudson's Bay Company)",
        licence="BSD-3 (posteriordb)",
        citation="Howard 2009; Carpenter 2018",
        values="pelts in thousands, column 0 hare, column 1 lynx",
        sizes=(1, 0, 0),
        shape=(20, 2),
        forms=(_BAYES,),
        make=_lynx_hare,
        split=WHOLE,
    ),
    "pines": Entry(
        title="Finnish pines",
        description="126 trees in the unit square as counts on a grid of 40 x 40; one datapoint",
        source="the grid of Finnish pines that annealed flow transport uses",
        licence="facts, as in R's spatstat (finpines)",
        citation="Moller and Waagepetersen 2007",
        values="counts; a row of the grid is a step of the first coordinate",
        sizes=(1, 0, 0),
        shape=(1600,),
        forms=(_BAYES,),
        make=_pines,
        image_shape=(40, 40),
        split=WHOLE,
    ),
    "brownian": Entry(
        title="Brownian motion, unknown middle",
        description="30 noisy steps of a random walk, the middle 10 missing (NaN); log p(x) = 5.613043490773801",
        source="inference-gym",
        licence="Apache-2.0 (inference-gym)",
        values="positions with NaN where missing; x_1 ~ N(0, 0.1^2), x_t ~ N(x_(t-1), 0.1^2), y_t ~ N(x_t, 0.15^2)",
        sizes=(1, 0, 0),
        shape=(30,),
        forms=(_BAYES,),
        make=_brownian,
        split=WHOLE,
    ),
    "penguins": Entry(
        title="Palmer penguins",
        description="344 penguins of 3 species, 4 measurements (NaN where missing), with island, sex and year",
        source="palmerpenguins",
        licence="CC0",
        citation="Horst, Hill and Gorman 2020",
        values="measurements as published, NaN where missing",
        sizes=(275, 0, 69),
        shape=(4,),
        forms=(_BAYES,),
        make=_penguins,
    ),
}
"""Small sets by name."""
