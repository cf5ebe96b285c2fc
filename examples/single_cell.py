"""Single-cell counts: a negative-binomial decoder, library sizes as latents, and batches as a covariate.

    z ~ Normal(0, I),    library ~ LogNormal(loc_b, scale_b),    mu = library * softmax(decoder(z, b)),
    x_g ~ NegativeBinomial(mean mu_g, dispersion theta_g),

for a cell of batch b: scVI (Lopez et al., Deep generative modeling for single-cell transcriptomics, 2018) without the
zero inflation. Loc and scale of the library sizes are parameters of each batch.

The data are 3,704 cells of mouse cortex, 158 genes in three batches (STARmap; Wang et al., 2018).

    amortize check examples/single_cell.py:program --data examples/single_cell.py:data
    amortize study examples/single_cell.toml
"""

import numpy as np
import pyro
import pyro.distributions as dist
import torch
from torch import Tensor, nn
from torch.distributions import constraints
from torch.nn.functional import one_hot

import amortize as am

NUM_BATCHES = 3


class SingleCell(nn.Module):
    """A decoder of rates, and encoders of cells and their library sizes."""

    def __init__(self, num_genes: int, latent_dim: int, hidden_dim: int) -> None:
        super().__init__()
        self.num_genes, self.latent_dim = num_genes, latent_dim
        self.decoder = nn.Sequential(
            nn.Linear(latent_dim + NUM_BATCHES, hidden_dim), nn.ReLU(), nn.Linear(hidden_dim, num_genes)
        )
        self.encoder = nn.Sequential(
            nn.Linear(num_genes + NUM_BATCHES, hidden_dim), nn.ReLU(), nn.Linear(hidden_dim, 2 * latent_dim + 1)
        )

    def model(self, x: Tensor, batch: Tensor) -> None:
        """Draw counts x (N, genes) of cells from batches (N,)."""
        pyro.module("decoder", self.decoder)
        theta = pyro.param("theta", torch.ones(self.num_genes), constraint=constraints.positive)
        loc = pyro.param("library_loc", 5.0 * torch.ones(NUM_BATCHES))
        scale = pyro.param("library_scale", torch.ones(NUM_BATCHES), constraint=constraints.positive)
        with pyro.plate("cells", x.shape[0]):
            z = pyro.sample("z", dist.Normal(x.new_zeros(self.latent_dim), x.new_ones(self.latent_dim)).to_event(1))
            library = pyro.sample("library", dist.LogNormal(loc[batch], scale[batch]))
            features = torch.cat([z, one_hot(batch, NUM_BATCHES)], dim=1)
            log_mu = library.log().unsqueeze(1) + self.decoder(features).log_softmax(1)
            counts = dist.NegativeBinomial(total_count=theta, logits=log_mu - theta.log())
            pyro.sample("x", counts.to_event(1), obs=x)

    def guide(self, x: Tensor, batch: Tensor) -> None:
        """q(z | x, b) q(library | x): the library size is near the sum of the counts."""
        pyro.module("encoder", self.encoder)
        scale = pyro.param("library_width", torch.tensor(0.1), constraint=constraints.positive)
        total = x.sum(1, keepdim=True) + 1
        features = torch.cat([(1 + x).log(), one_hot(batch, NUM_BATCHES)], dim=1)
        loc, log_scale, shift = self.encoder(features).split([self.latent_dim, self.latent_dim, 1], dim=1)
        with pyro.plate("cells", x.shape[0]):
            pyro.sample("z", dist.Normal(loc, log_scale.exp()).to_event(1))
            pyro.sample("library", dist.LogNormal((total.log() + shift).squeeze(1), scale))


def data() -> dict[str, np.ndarray]:
    """Counts (3704, 158) and batches (3704,)."""
    cells = am.data.load("starmap")
    return {
        "x": np.concatenate([cells.x_train, cells.x_test]),
        "batch": np.concatenate([cells.covariates_train["batch"], cells.covariates_test["batch"]]),
    }


def program(num_genes: int = 158, latent_dim: int = 8, hidden_dim: int = 128) -> am.Program:
    """The model and its guide, with fresh weights."""
    network = SingleCell(num_genes, latent_dim, hidden_dim)
    return am.Program(network.model, network.guide)
