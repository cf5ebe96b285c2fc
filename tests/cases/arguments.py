"""How data reach a program: their kinds, types and names, shared arguments, callables of every sort."""

from __future__ import annotations

import functools

import numpy as np
import pyro
import pyro.distributions as dist
import torch
from torch.nn.utils.rnn import pack_sequence

from tests.cases.case import NUM, Case, draws

__all__ = ["ARGUMENTS"]


def normal_model(x):
    with pyro.plate("data", x.shape[0]):
        z = pyro.sample("z", dist.Normal(0.0, 1.0))
        pyro.sample("x", dist.Normal(z, 0.5), obs=x)


def normal_guide(x):
    with pyro.plate("data", x.shape[0]):
        pyro.sample("z", dist.Normal(0.7 * x, 0.5))


def tensor() -> Case:
    return Case(normal_model, draws(NUM), normal_guide)


def array_and_len() -> Case:
    def model(x):
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(torch.zeros(2), 1.0).to_event(1))
            pyro.sample("x", dist.Normal(z, 0.5).to_event(1), obs=x)

    return Case(model, draws(NUM, 2).double().numpy())


def covariates_in_a_tuple() -> Case:
    def model(x, covariates):
        with pyro.plate("data", x.shape[0]):
            z = pyro.sample("z", dist.Normal(0.0, 1.0))
            pyro.sample("x", dist.Normal(z + covariates.sum(-1), 0.5), obs=x)

    def guide(x, covariates):
        with pyro.plate("data", x.shape[0]):
            pyro.sample("z", dist.Normal(x - covariates.sum(-1), 0.5))

    return Case(model, (draws(NUM), draws(NUM, 3, seed=1)), guide)


def keywords_only() -> Case:
    def model(*, x, dose, offset=0.5):
        with pyro.plate("data", x.shape[0]):
            z = pyro.sample("z", dist.Normal(offset, 1.0))
            pyro.sample("x", dist.Normal(z * dose, 0.5), obs=x)

    return Case(model, {"x": draws(NUM), "dose": draws(NUM, seed=1)})


def shared_matrix() -> Case:
    def model(x, weights):
        with pyro.plate("data", x.shape[0]):
            z = pyro.sample("z", dist.Normal(torch.zeros(2), 1.0).to_event(1))
            pyro.sample("x", dist.Normal(z @ weights, 0.5).to_event(1), obs=x)

    return Case(model, (draws(NUM, 4), draws(2, 4, seed=1)))


def shared_matrix_of_the_datas_size() -> Case:
    def model(x, weights):
        with pyro.plate("data", x.shape[0]):
            z = pyro.sample("z", dist.Normal(torch.zeros(3), 1.0).to_event(1))
            pyro.sample("x", dist.Normal(z @ weights, 0.5).to_event(1), obs=x)

    return Case(
        model,
        (draws(3, 3), draws(3, 3, seed=1)),
        options={"shared": ("weights",)},
        num=3,
        row=lambda data, n: ((data[0][n : n + 1], data[1]), {}),
    )


def shared_argument_in_front() -> Case:
    def model(weights, x):
        with pyro.plate("data", x.shape[0]):
            z = pyro.sample("z", dist.Normal(torch.zeros(2), 1.0).to_event(1))
            pyro.sample("x", dist.Normal(z @ weights, 0.5).to_event(1), obs=x)

    data = (draws(2, 4, seed=1), draws(NUM, 4))
    return Case(model, data, options={"shared": 0}, row=lambda data, n: ((data[0], data[1][n : n + 1]), {}))


def one_datapoint() -> Case:
    def model(x, weights):
        with pyro.plate("data", x.shape[0]):
            z = pyro.sample("z", dist.Normal(torch.zeros(1), 1.0).to_event(1))
            pyro.sample("x", dist.Normal(z @ weights, 0.5).to_event(1), obs=x)

    data = (draws(1, 4), draws(1, 4, seed=1))
    return Case(model, data, options={"shared": ("weights",)}, num=1, row=lambda data, n: (data, {}))


def optional_argument() -> Case:
    def model(x, y=None, scale=1.0):
        with pyro.plate("data", x.shape[0]):
            z = pyro.sample("z", dist.Normal(0.0 if y is None else y, scale))
            pyro.sample("x", dist.Normal(z, 0.5), obs=x)

    return Case(model, {"x": draws(NUM), "y": None, "scale": 2.0})


def labels() -> Case:
    def model(x):
        with pyro.plate("data", x.shape[0]):
            z = pyro.sample("z", dist.Normal(torch.zeros(3), 1.0).to_event(1))
            pyro.sample("x", dist.Categorical(logits=z), obs=x)

    return Case(model, np.array([0, 2, 1, 1, 0]))


def byte_images() -> Case:
    def model(x):
        with pyro.plate("data", x.shape[0]):
            z = pyro.sample("z", dist.Normal(torch.zeros(4), 1.0).to_event(1))
            pyro.sample("x", dist.Binomial(255, logits=z.reshape(-1, 2, 2)).to_event(2), obs=x.float())

    return Case(model, np.arange(NUM * 4, dtype=np.uint8).reshape(NUM, 2, 2) * 12)


def double_precision() -> Case:
    def model(x):
        with pyro.plate("data", x.shape[0]):
            z = pyro.sample("z", dist.Normal(torch.zeros((), dtype=torch.float64), 1.0))
            pyro.sample("x", dist.StudentT(3.0, z, 0.5), obs=x)

    return Case(model, draws(NUM, dtype=torch.float64))


def partly_observed() -> Case:
    def model(x, seen):
        with pyro.plate("data", x.shape[0]):
            z = pyro.sample("z", dist.Normal(0.0, 1.0))
            with pyro.poutine.mask(mask=seen):
                pyro.sample("x", dist.Normal(z, 0.5), obs=torch.nan_to_num(x))

    x = draws(NUM)
    x[1] = torch.nan
    return Case(model, (x, ~torch.isnan(x)), options={"allow_nan": True})


def missing_entries_by_obs_mask() -> Case:
    """``obs_mask`` makes a latent of the entries that are missing."""

    def model(x, seen):
        with pyro.plate("data", x.shape[0]):
            z = pyro.sample("z", dist.Normal(0.0, 1.0))
            pyro.sample("x", dist.Normal(z, 0.5), obs=x, obs_mask=seen)

    return Case(model, (draws(NUM), torch.tensor([True, False, True, True, False])))


class Study:
    """A plain object with a model and a guide as methods."""

    def __init__(self, scale: float) -> None:
        self.scale = scale

    def model(self, x):
        with pyro.plate("data", x.shape[0]):
            z = pyro.sample("z", dist.Normal(0.0, self.scale))
            pyro.deterministic("twice", 2 * z)
            pyro.sample("x", dist.Normal(z, 0.5), obs=x)

    def guide(self, x):
        with pyro.plate("data", x.shape[0]):
            pyro.sample("z", dist.Normal(x, self.scale))


def bound_methods() -> Case:
    study = Study(2.0)
    return Case(study.model, draws(NUM), study.guide)


def partial_and_lambda() -> Case:
    def model(scale, x):
        with pyro.plate("data", x.shape[0]):
            z = pyro.sample("z", dist.Normal(0.0, scale))
            pyro.sample("x", dist.Normal(z, 0.5), obs=x)

    return Case(functools.partial(model, 2.0), draws(NUM), lambda x: normal_guide(x + 0.1))


def given_global() -> Case:
    def model(x):
        shift = pyro.sample("shift", dist.Normal(0.0, 1.0))
        with pyro.plate("data", x.shape[0]):
            z = pyro.sample("z", dist.Normal(shift, 1.0))
            pyro.sample("x", dist.Normal(z, 0.5), obs=x)

    return Case(model, draws(NUM), options={"condition": {"shift": 0.7}})


def time_major_by_hook() -> Case:
    """The datapoints are the second index of the sequences."""

    def model(num, x):
        with pyro.plate("data", num.shape[0]):
            z = pyro.sample("z", dist.Normal(0.0, 1.0))
            pyro.sample("x", dist.Normal(z.unsqueeze(-1), 0.5).expand(x.T.shape).to_event(1), obs=x.T)

    return Case(
        model,
        (draws(NUM), draws(3, NUM)),
        options={"fold": {"x": lambda x, rows: x[:, rows]}},
        row=lambda data, n: ((data[0][n : n + 1], data[1][:, n : n + 1]), {}),
    )


def ragged_list_by_hook() -> Case:
    def model(sequences):
        with pyro.plate("data", len(sequences)):
            z = pyro.sample("z", dist.Normal(0.0, 1.0))
            total = torch.stack([(dist.Normal(0.0, 1.0).log_prob(s - z[n])).sum() for n, s in enumerate(sequences)])
            pyro.factor("likelihood", total)

    sequences = [draws(size, seed=size) for size in (3, 1, 4, 2, 5)]
    return Case(
        model,
        (sequences,),
        options={"fold": {"sequences": lambda value, rows: [value[row] for row in rows.tolist()]}},
        row=lambda data, n: (([data[0][n]],), {}),
    )


def packed_sequences() -> Case:
    """A packed batch is understood without a hook."""
    sequences = [draws(size, 2, seed=size) for size in (3, 1, 4, 2, 5)]

    def model(packed):
        padded, lengths = torch.nn.utils.rnn.pad_packed_sequence(packed, batch_first=True)
        seen = torch.arange(padded.shape[1]) < lengths.unsqueeze(-1)
        with pyro.plate("data", len(lengths)):
            z = pyro.sample("z", dist.Normal(torch.zeros(2), 1.0).to_event(1))
            likelihood = dist.Normal(z.unsqueeze(-2), 0.5).expand(padded.shape).to_event(1).mask(seen)
            pyro.sample("x", likelihood.to_event(1), obs=padded)

    return Case(
        model,
        pack_sequence(sequences, enforce_sorted=False),
        row=lambda data, n: ((pack_sequence([sequences[n]]),), {}),
    )


ARGUMENTS = {
    "tensor": tensor,
    "array, len(x)": array_and_len,
    "covariates in a tuple": covariates_in_a_tuple,
    "keywords only": keywords_only,
    "shared matrix": shared_matrix,
    "shared matrix of the data's size": shared_matrix_of_the_datas_size,
    "shared argument in front": shared_argument_in_front,
    "one datapoint": one_datapoint,
    "optional argument": optional_argument,
    "labels": labels,
    "byte images": byte_images,
    "double precision": double_precision,
    "partly observed": partly_observed,
    "missing entries by obs_mask": missing_entries_by_obs_mask,
    "bound methods": bound_methods,
    "partial and lambda": partial_and_lambda,
    "given global": given_global,
    "time-major by hook": time_major_by_hook,
    "ragged list by hook": ragged_list_by_hook,
    "packed sequences": packed_sequences,
}
