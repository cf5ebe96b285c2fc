r"""How many objects are in an image, and where: a count, that many places, and one shape that all objects have.

.. math:: c_n \sim \mathrm{Categorical}(\pi), \qquad w_{nm} \sim N(\mu, \mathrm{diag}\, \tau^2), \qquad
          p(x_{ni} = 0 \mid c_n, w_n) = (1 - b) \prod_{m \le c_n} (1 - r_i(w_{nm}))

r_i(w) is the shape's ink at pixel i when its middle is at w, bilinear between pixels, and b the ink of an empty image.
The count is a discrete variable and is summed out, places beyond it are drawn from their prior; so every image has as
many latents, and the evidence needs no other trick. Objects are alike, so each image has c! posteriors that differ in
who is first: the guide looks for one object after the other by an attention map, from which it draws, and covers them
all.

Letters: N datapoints, X = H^2 pixels, M objects at most, G side of the shape, S draws. After Eslami et al. (2016),
"Attend, infer, repeat: fast scene understanding with generative models", https://arxiv.org/abs/1603.08575, who give
each object a code of its own, and train by REINFORCE where here the count is summed out.
"""

from __future__ import annotations

import math
from typing import Any

import pyro
import pyro.distributions as dist
import torch
from torch import Tensor, nn

from amortize.errors import ArgumentError, DataError, check_count
from amortize.inference.objective import Objective
from amortize.inference.wake_sleep import WakeSleep
from amortize.models.counting_guide import Seeker
from amortize.models.networks import register
from amortize.models.vae import matrix_of
from amortize.models.zoo import ZooModel
from amortize.random import check_seed, pyro_rng

__all__ = ["Counting"]


class Counting(ZooModel):
    """Sites ``count`` (N,), ``where_1`` ... ``where_M`` (N, 2) in pixels from the middle; observed ``x`` (N, X).

    Parameters
    ----------
    scene
        How objects make an image.
    seeker
        The guide of their places.
    max_objects
        M.

    Examples
    --------
    >>> import torch, amortize as am
    >>> x = torch.eye(16)  # 4 x 4 images of one dot each
    >>> counting = am.models.Counting.from_data(x, max_objects=2, object_size=1)
    >>> counting.counted(x[:3], num_draws=10).shape
    torch.Size([3, 3])
    """

    def __init__(self, scene: Scene, seeker: Seeker, max_objects: int) -> None:
        super().__init__()
        self.scene, self.seeker = scene, seeker
        self.max_objects = check_count("Counting max_objects", max_objects)
        self.count_logits = Counts(max_objects)

    @classmethod
    def from_data(
        cls, x: Any, max_objects: int = 3, *, object_size: int = 5, channels: int = 16, seed: int = 0
    ) -> Counting:
        """A model for square images, its shape begun at the mean of their inkiest patches.

        Parameters
        ----------
        x
            Square images, (N, X) zeros and ones.
        max_objects
            M, the most objects in an image.
        object_size
            G, pixels along a side of the shape.
        channels
            Of the guide's convolutions.
        seed
            Of the guide's weights.

        Raises
        ------
        DataError
            ``x`` is not of zeros and ones, or has no square rows.
        ArgumentError
            A shape larger than the images, or a setting that is no count.
        """
        data = matrix_of(x, binary=True).float()
        side = math.isqrt(data.shape[1])
        if side * side != data.shape[1]:
            raise DataError(f"x: expected square images, got rows of {data.shape[1]} pixels.")
        check_count("max_objects", max_objects)
        check_count("channels", channels)
        if check_count("object_size", object_size) > side:
            raise ArgumentError(f"object_size: expected at most the images' side, {side}, got {object_size}.")
        scene = Scene(side, _inkiest(data.reshape(-1, side, side), object_size))
        return cls(scene, Seeker(side, object_size, channels, seed=seed), max_objects)

    @property
    def objective(self) -> Objective:
        """Reweighted wake-sleep: the guide learns half from images, half from dreams, whose places are known."""
        return WakeSleep(num_particles=8, sleep=0.5)

    def model(self, x: Tensor) -> None:
        """The generative model."""
        register("scene", self.scene)
        register("count_logits", self.count_logits)
        with pyro.plate("data", x.shape[0]):
            count = pyro.sample("count", dist.Categorical(logits=self.count_logits()))
            places = [pyro.sample(f"where_{m + 1}", self.scene.places()) for m in range(self.max_objects)]
            pyro.sample("x", self.scene(count, places), obs=x)

    def guide(self, x: Tensor) -> None:
        """Places one after the other (N, 2), each by what the ones before leave of the image; no count."""
        register("seeker", self.seeker)
        seen = torch.zeros_like(x)
        with pyro.plate("data", x.shape[0]):
            for m in range(self.max_objects):
                where = pyro.sample(f"where_{m + 1}", self.seeker(x, seen))
                seen = torch.maximum(seen, self.seeker.window(where))

    @torch.no_grad()
    def counted(self, x: Any, *, num_draws: int = 50, seed: int = 0) -> Tensor:
        """Posterior probabilities of the count, (N, M + 1): draws of the guide, weighed, the sum over counts exact.

        Raises
        ------
        DataError
            ``x`` is not of zeros and ones, (N, X).
        ArgumentError
            ``num_draws`` is no count.
        """
        data = matrix_of(x, binary=True).to(self.scene.shape)
        if data.shape[1] != self.scene.side**2:
            raise DataError(f"x: expected shape (N, {self.scene.side**2}), got {tuple(data.shape)}.")
        check_count("num_draws", num_draws)
        with pyro_rng(check_seed(seed), "counted"):
            total = torch.stack([self._log_weights(data) for _ in range(num_draws)])
        return total.logsumexp(0).softmax(-1)

    def _log_weights(self, x: Tensor) -> Tensor:
        """Log p(x, places, count) - log q(places | x) of each count, at one draw of places, (N, M + 1)."""
        seen, log_q, places = torch.zeros_like(x), x.new_zeros(len(x)), []
        log_prior = x.new_zeros(len(x))
        for _ in range(self.max_objects):
            fn: Any = self.seeker(x, seen)
            places.append(fn.sample())
            log_q = log_q + fn.log_prob(places[-1])
            prior: Any = self.scene.places()
            log_prior = log_prior + prior.log_prob(places[-1])
            seen = torch.maximum(seen, self.seeker.window(places[-1]))
        counts = torch.arange(self.max_objects + 1, device=x.device)
        likelihood: Any = self.scene(counts[:, None], places)
        joint: Tensor = likelihood.log_prob(x) + self.count_logits().log_softmax(-1)[:, None] + log_prior - log_q
        return joint.T


class Counts(nn.Module):
    """Free log odds of 0 to M objects."""

    def __init__(self, max_objects: int) -> None:
        super().__init__()
        self.logits = nn.Parameter(torch.zeros(max_objects + 1))

    def forward(self) -> Tensor:
        """(M + 1,)."""
        return self.logits + 0.0


class Scene(nn.Module):
    """Objects of one shape on an empty image; places are normal around the middle, with a learned spread."""

    def __init__(self, side: int, ink: Tensor) -> None:
        super().__init__()
        self.side, self.size = side, len(ink)
        self.shape = nn.Parameter(torch.logit(ink.clamp(0.05, 0.95)))
        self.background = nn.Parameter(torch.tensor(-4.0))
        self.middle = nn.Parameter(torch.zeros(2))
        self.log_spread = nn.Parameter(torch.full((2,), math.log(side / 4)))

    def places(self) -> dist.TorchDistribution:
        """Of one place: event shape (2,), row and column in pixels from the middle of the image."""
        return dist.Independent(dist.Normal(self.middle, self.log_spread.exp()), 1)

    def forward(self, count: Tensor, places: list[Tensor]) -> dist.Distribution:
        """Of x given a count (...) and as many places (..., 2), or more: event shape (X,)."""
        log_blank = nn.functional.logsigmoid(-self.background)
        for m, where in enumerate(places):
            present = (count > m).to(where)[..., None]
            log_blank = log_blank + torch.log1p(-present * self.ink(where))
        # the logit of 1 - exp(log_blank), without a 1 - 1
        return dist.Independent(dist.Bernoulli(logits=torch.log(-torch.expm1(log_blank)) - log_blank), 1)

    def ink(self, where: Tensor) -> Tensor:
        """Of the shape with its middle at (..., 2), on all pixels (..., X), below 1."""
        rows, columns = (self._weights(where[..., axis]) for axis in (0, 1))
        drawn = rows @ (0.999 * self.shape.sigmoid()) @ columns.transpose(-1, -2)
        return drawn.flatten(-2)

    def _weights(self, middle: Tensor) -> Tensor:
        """How much of each line of the shape (G) falls on each line of the image (H), by distance: (..., H, G)."""
        lines = torch.arange(self.side, device=middle.device)[:, None] - (self.side - 1) / 2
        own = torch.arange(self.size, device=middle.device) - (self.size - 1) / 2
        return (1 - (lines - own - middle[..., None, None]).abs()).clamp(min=0)


def _inkiest(images: Tensor, size: int) -> Tensor:
    """Mean of the patches (G, G) with most ink, one an image, of images (N, H, H) that have any."""
    images = images[images.flatten(1).any(1)][:2000]
    if not len(images):
        raise DataError("x: expected images with ink, got zeros alone.")
    patches = images.unfold(1, size, 1).unfold(2, size, 1)
    flat = patches.reshape(len(images), -1, size, size)
    return flat[torch.arange(len(flat)), flat.flatten(2).sum(2).argmax(1)].mean(0)
