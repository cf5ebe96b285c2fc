"""Plates of every kind, masks, scales and factors."""

from __future__ import annotations

import pyro
import pyro.distributions as dist
import torch

from tests.cases.case import NUM, Case, draws

__all__ = ["PLATES"]


def whole(x):
    with pyro.plate("data", x.shape[0]):
        z = pyro.sample("z", dist.Normal(0.0, 1.0))
        pyro.sample("x", dist.Normal(z, 0.5), obs=x)


def no_size() -> Case:
    def model(x):
        with pyro.plate("data"):
            z = pyro.sample("z", dist.Normal(torch.zeros(x.shape[0]), 1.0))
            pyro.sample("x", dist.Normal(z, 0.5), obs=x)

    return Case(model, draws(NUM))


def subsample() -> Case:
    def model(x):
        with pyro.plate("data", 600, subsample=x):
            z = pyro.sample("z", dist.Normal(0.0, 1.0))
            pyro.sample("x", dist.Normal(z, 0.5), obs=x)

    def guide(x):
        with pyro.plate("data", 600, subsample=x):
            pyro.sample("z", dist.Normal(x, 0.5))

    return Case(model, draws(NUM), guide, divide=600.0)


def indices_of_a_subsample() -> Case:
    """All the data are an argument that every datapoint shares; the datapoints are the indices."""

    def model(x, index):
        with pyro.plate("data", len(x), subsample=index):
            z = pyro.sample("z", dist.Normal(0.0, 1.0))
            pyro.sample("x", dist.Normal(z, 0.5), obs=x[index])

    return Case(
        model,
        (draws(20), torch.tensor([3, 17, 0, 5, 9])),
        options={"shared": "x"},
        row=lambda data, n: ((data[0], data[1][n : n + 1]), {}),
        divide=20.0,
    )


def subsample_size() -> Case:
    def model(x):
        with pyro.plate("data", x.shape[0], subsample_size=3) as index:
            z = pyro.sample("z", dist.Normal(0.0, 1.0))
            pyro.sample("x", dist.Normal(z, 0.5), obs=x[index])

    def guide(x):
        with pyro.plate("data", x.shape[0], subsample_size=3) as index:
            pyro.sample("z", dist.Normal(x[index], 0.5))

    return Case(model, draws(NUM), guide, reference=whole)


def subsample_statement() -> Case:
    def model(x):
        with pyro.plate("data", x.shape[0], subsample_size=2):
            batch = pyro.subsample(x, event_dim=0)
            z = pyro.sample("z", dist.Normal(0.0, 1.0))
            pyro.sample("x", dist.Normal(z, 0.5), obs=batch)

    return Case(model, draws(NUM), reference=whole)


def decorator() -> Case:
    def model(x):
        @pyro.plate("data", x.shape[0])
        def inside():
            z = pyro.sample("z", dist.Normal(0.0, 1.0))
            pyro.sample("x", dist.Normal(z, 0.5), obs=x)

        inside()

    return Case(model, draws(NUM))


def plate_object_used_twice() -> Case:
    def model(x):
        data = pyro.plate("data", x.shape[0])
        with data:
            z = pyro.sample("z", dist.Normal(0.0, 1.0))
        with data:
            pyro.sample("x", dist.Normal(z, 0.5), obs=x)

    return Case(model, draws(NUM))


def pixels_in_front() -> Case:
    def model(x):
        with pyro.plate("pixels", 3, dim=-2), pyro.plate("data", x.shape[0], dim=-1):
            z = pyro.sample("z", dist.Normal(0.0, 1.0))
            pyro.sample("x", dist.Normal(z, 0.5), obs=x.T)

    def guide(x):
        with pyro.plate("pixels", 3, dim=-2), pyro.plate("data", x.shape[0], dim=-1):
            pyro.sample("z", dist.Normal(x.T, 0.5))

    return Case(model, draws(NUM, 3), guide)


def pixels_behind() -> Case:
    def model(x):
        with pyro.plate("data", x.shape[0], dim=-2):
            rate = pyro.sample("rate", dist.Gamma(torch.full((1,), 2.0), 1.0))
            with pyro.plate("pixels", 3, dim=-1):
                z = pyro.sample("z", dist.Normal(0.0, 1.0))
                pyro.sample("x", dist.Normal(z, rate), obs=x)

    def guide(x):
        with pyro.plate("data", x.shape[0], dim=-2):
            pyro.sample("rate", dist.LogNormal(torch.zeros(1), 0.5))
            with pyro.plate("pixels", 3, dim=-1):
                pyro.sample("z", dist.Normal(x, 0.5))

    return Case(model, draws(NUM, 3), guide)


def three_plates() -> Case:
    def model(x):
        with pyro.plate("data", x.shape[0], dim=-1):
            a = pyro.sample("a", dist.Normal(0.0, 1.0))
            with pyro.plate("groups", 2, dim=-2):
                b = pyro.sample("b", dist.Normal(a, 1.0))
                with pyro.plate("members", 3, dim=-3):
                    pyro.sample("x", dist.Normal(b, 0.5), obs=x.permute(2, 1, 0))

    return Case(model, draws(NUM, 2, 3))


def plate_of_size_one() -> Case:
    def model(x):
        with pyro.plate("data", x.shape[0], dim=-1), pyro.plate("one", 1, dim=-2):
            z = pyro.sample("z", dist.Normal(torch.zeros(2), 1.0).to_event(1))
            pyro.sample("x", dist.Normal(z, 0.5).to_event(1), obs=x)

    return Case(model, draws(NUM, 2))


def sequential_plate_inside() -> Case:
    def model(x):
        with pyro.plate("data", x.shape[0]):
            z = pyro.sample("z", dist.Normal(0.0, 1.0))
            for column in pyro.plate("columns", x.shape[1]):
                pyro.sample(f"x_{column}", dist.Normal(z, 0.5 + column), obs=x[:, column])

    return Case(model, draws(NUM, 2))


def ragged_by_mask() -> Case:
    def model(x, lengths):
        seen = torch.arange(x.shape[1]) < lengths.unsqueeze(-1)
        with pyro.plate("data", x.shape[0], dim=-2):
            z = pyro.sample("z", dist.Normal(torch.zeros(1), 1.0))
            with pyro.plate("time", x.shape[1], dim=-1), pyro.poutine.mask(mask=seen):
                pyro.sample("x", dist.Normal(z, 0.5), obs=x)

    return Case(model, (draws(NUM, 4), torch.tensor([4, 1, 3, 2, 4])))


def mask_on_the_distribution() -> Case:
    def model(x, seen):
        with pyro.plate("data", x.shape[0]):
            z = pyro.sample("z", dist.Normal(0.0, 1.0))
            pixels = dist.Normal(z.unsqueeze(-1), 0.5).expand(x.shape)
            pyro.sample("x", pixels.mask(seen).to_event(1), obs=x)

    return Case(model, (draws(NUM, 3), draws(NUM, 3, seed=1) > 0))


def factor_as_likelihood() -> Case:
    def model(x):
        with pyro.plate("data", x.shape[0]):
            z = pyro.sample("z", dist.Normal(torch.zeros(2), 1.0).to_event(1))
            pyro.factor("likelihood", -(x - z).abs().sum(-1))

    return Case(model, draws(NUM, 2))


def factor_beside_observations() -> Case:
    def model(x):
        with pyro.plate("data", x.shape[0]):
            z = pyro.sample("z", dist.Normal(0.0, 1.0))
            pyro.factor("soft limit", -z.square().clamp_min(1.0))
            pyro.sample("x", dist.Normal(z, 0.5), obs=x)

    return Case(model, draws(NUM))


def scaled_likelihood() -> Case:
    def model(x):
        with pyro.plate("data", x.shape[0]):
            z = pyro.sample("z", dist.Normal(0.0, 1.0))
            with pyro.poutine.scale(scale=2.0):
                pyro.sample("x", dist.Normal(z, 0.5), obs=x)

    return Case(model, draws(NUM), warns="scaled likelihood")


def scale_over_everything() -> Case:
    """The ELBO divided by a constant, as some programs have it for training, is no other model."""

    def model(x):
        with pyro.plate("data", x.shape[0]), pyro.poutine.scale(scale=0.01):
            whole_inside(x)

    def whole_inside(x):
        z = pyro.sample("z", dist.Normal(0.0, 1.0))
        pyro.sample("x", dist.Normal(z, 0.5), obs=x)

    def guide(x):
        with pyro.plate("data", x.shape[0]), pyro.poutine.scale(scale=0.01):
            pyro.sample("z", dist.Normal(x, 0.5))

    return Case(model, draws(NUM), guide, reference=whole, warns="divided out")


def observation_outside() -> Case:
    """What stands outside the plate and depends on no latent belongs to no datapoint."""

    def model(x, summary):
        pyro.sample("summary", dist.Normal(0.0, 1.0), obs=summary)
        whole(x)

    def inside(x, summary):
        whole(x)

    return Case(model, (draws(NUM), torch.tensor(0.3)), reference=inside)


PLATES = {
    "plate without a size": no_size,
    "subsample=": subsample,
    "indices of a subsample": indices_of_a_subsample,
    "subsample_size=": subsample_size,
    "pyro.subsample": subsample_statement,
    "plate as a decorator": decorator,
    "plate object used twice": plate_object_used_twice,
    "pixel plate in front": pixels_in_front,
    "pixel plate behind": pixels_behind,
    "three plates": three_plates,
    "plate of size one": plate_of_size_one,
    "sequential plate inside": sequential_plate_inside,
    "ragged by mask": ragged_by_mask,
    "mask on the distribution": mask_on_the_distribution,
    "factor as likelihood": factor_as_likelihood,
    "factor beside observations": factor_beside_observations,
    "scaled likelihood": scaled_likelihood,
    "scale over everything": scale_over_everything,
    "observation outside": observation_outside,
}
