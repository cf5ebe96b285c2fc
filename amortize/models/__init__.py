"""The zoo: one Pyro model and its guide a file, with the exact evidence where there is one."""

from __future__ import annotations

from amortize.models.a_mcvae import AnnealedVAE
from amortize.models.autoencoder import Autoencoder
from amortize.models.bayesian_regression import BayesianRegression
from amortize.models.bernoulli_vae import BernoulliVAE
from amortize.models.beta_vae import BetaVAE
from amortize.models.concrete_vae import ConcreteVAE
from amortize.models.contractive_autoencoder import ContractiveAutoencoder
from amortize.models.counting import Counting
from amortize.models.denoising_autoencoder import DenoisingAutoencoder
from amortize.models.dvae import DVAE
from amortize.models.edvae import EdVAE
from amortize.models.factor_analysis import FactorAnalysis
from amortize.models.flow_guide_vae import FlowGuideVAE
from amortize.models.flow_prior_vae import FlowPriorVAE
from amortize.models.gaussian_mixture import GaussianMixture
from amortize.models.gaussian_vae import GaussianVAE
from amortize.models.hidden_markov_model import HiddenMarkovModel
from amortize.models.item_response import ItemResponse
from amortize.models.iwae import ImportanceWeightedVAE
from amortize.models.l_mcvae import LangevinVAE
from amortize.models.latent_diffusion import LatentDiffusion
from amortize.models.linear_autoencoder import LinearAutoencoder
from amortize.models.linear_gaussian import LinearGaussian
from amortize.models.linear_regression import LinearRegression
from amortize.models.masked_autoencoder import MaskedAutoencoder
from amortize.models.mcd_vae import DiffusedVAE
from amortize.models.negative_binomial_factors import NegativeBinomialFactors
from amortize.models.networks import MLP
from amortize.models.one_hot_mixture import OneHotMixture
from amortize.models.poisson_factors import PoissonFactors
from amortize.models.sigmoid_belief_network import SigmoidBeliefNetwork
from amortize.models.sparse_autoencoder import SparseAutoencoder
from amortize.models.unknown_gaussian import NormalInverseGamma, UnknownGaussian
from amortize.models.vae import VAE
from amortize.models.vampprior_vae import VampPriorVAE
from amortize.models.vit_vq import ViTVQ
from amortize.models.vlae import VLAE
from amortize.models.vq_gan import VQGAN
from amortize.models.vq_vae import VQVAE
from amortize.models.vq_vae_2 import VQVAE2
from amortize.models.wae_gan import AdversarialWAE
from amortize.models.wae_mmd import DiscrepancyWAE
from amortize.models.zoo import ModelEntry, ZooModel

__all__ = [
    "DVAE",
    "MLP",
    "MODELS",
    "VAE",
    "VLAE",
    "VQGAN",
    "VQVAE",
    "VQVAE2",
    "AdversarialWAE",
    "AnnealedVAE",
    "Autoencoder",
    "BayesianRegression",
    "BernoulliVAE",
    "BetaVAE",
    "ConcreteVAE",
    "ContractiveAutoencoder",
    "Counting",
    "DenoisingAutoencoder",
    "DiffusedVAE",
    "DiscrepancyWAE",
    "EdVAE",
    "FactorAnalysis",
    "FlowGuideVAE",
    "FlowPriorVAE",
    "GaussianMixture",
    "GaussianVAE",
    "HiddenMarkovModel",
    "ImportanceWeightedVAE",
    "ItemResponse",
    "LangevinVAE",
    "LatentDiffusion",
    "LinearAutoencoder",
    "LinearGaussian",
    "LinearRegression",
    "MaskedAutoencoder",
    "ModelEntry",
    "NegativeBinomialFactors",
    "NormalInverseGamma",
    "OneHotMixture",
    "PoissonFactors",
    "SigmoidBeliefNetwork",
    "SparseAutoencoder",
    "UnknownGaussian",
    "VampPriorVAE",
    "ViTVQ",
    "ZooModel",
]


_BY_WEIGHTS: dict[str, object] = {"method": "importance"}
"""Evidence of grids of codes: annealing sums over all values of each code in turn, which is hours on 7 x 7."""
_OF_NEAREST: dict[str, object] = {**_BY_WEIGHTS, "num_draws": 8}
"""Of guides that are sure of their codes: all draws are alike, and give the bound log p(x, k)."""

MODELS: dict[str, ModelEntry] = {
    "factor-analysis": ModelEntry(
        "Factor analysis or probabilistic PCA with a linear encoder; every gap in closed form",
        FactorAnalysis,
        data="real",
    ),
    "bernoulli-vae": ModelEntry("Variational autoencoder for binary data", BernoulliVAE),
    "beta-vae": ModelEntry("Bernoulli VAE at another price of its code, with KL annealing and free bits", BetaVAE),
    "linear-autoencoder": ModelEntry(
        "Linear autoencoder with a point guide: principal components by gradient descent",
        LinearAutoencoder,
        data="real",
        fit={"learning_rate": 1e-2, "schedule": "exponential"},
    ),
    "autoencoder": ModelEntry(
        "Autoencoder of three or five non-linear layers with a point guide",
        Autoencoder,
        data="real",
        fit={"learning_rate": 5e-3, "schedule": "exponential"},
    ),
    "sparse-autoencoder": ModelEntry(
        "Sparse autoencoder: a Laplace prior under a point guide, with or without rectifiers",
        SparseAutoencoder,
        data="real",
        fit={"learning_rate": 1e-2, "schedule": "exponential"},
    ),
    "denoising-autoencoder": ModelEntry(
        "Denoising autoencoder: the encoder sees corrupted data in training; it learns the score",
        DenoisingAutoencoder,
        data="real",
        fit={"learning_rate": 5e-3, "schedule": "exponential"},
    ),
    "contractive-autoencoder": ModelEntry(
        "Contractive autoencoder: a penalty on the Jacobian of the code flattens it across the data",
        ContractiveAutoencoder,
        data="real",
        fit={"learning_rate": 5e-3, "schedule": "exponential"},
    ),
    "iwae": ModelEntry("Importance-weighted autoencoder: a bound of K weighed draws", ImportanceWeightedVAE),
    "l-mcvae": ModelEntry(
        "Langevin Monte Carlo VAE: the encoder's draws carried on by Langevin steps",
        LangevinVAE,
        fit={"clip_norm": 20.0},
    ),
    "a-mcvae": ModelEntry(
        "Annealed Monte Carlo VAE: annealed importance sampling, trained", AnnealedVAE, fit={"clip_norm": 20.0}
    ),
    "mcd-vae": ModelEntry(
        "Monte Carlo diffusion VAE: Langevin steps whose way back is learned", DiffusedVAE, fit={"clip_norm": 20.0}
    ),
    "gaussian-vae": ModelEntry("Variational autoencoder for real data, with a learned scale", GaussianVAE, data="real"),
    "gaussian-mixture": ModelEntry(
        "Mixture of Gaussians, its component summed out; exact evidence",
        GaussianMixture,
        data="real",
        fit={"learning_rate": 1e-2, "schedule": "cosine"},
    ),
    "one-hot-mixture": ModelEntry(
        "Mixture of Gaussians whose component is a one-hot latent with an encoder",
        OneHotMixture,
        data="real",
        fit={"learning_rate": 1e-2, "schedule": "cosine"},
    ),
    "hidden-markov-model": ModelEntry(
        "Hidden Markov model: a chain of states, summed out; exact evidence",
        HiddenMarkovModel,
        fit={"learning_rate": 1e-2, "schedule": "cosine"},
    ),
    "counting": ModelEntry(
        "Objects of one shape in an image: how many, summed out, and where (after AIR)",
        Counting,
        fit={"learning_rate": 5e-3, "schedule": "cosine"},
    ),
    "item-response": ModelEntry(
        "Two-parameter logistic item response: one ability; evidence by quadrature",
        ItemResponse,
        fit={"learning_rate": 1e-2, "schedule": "cosine"},
    ),
    "poisson-factors": ModelEntry(
        "Log-linear factors of counts, Poisson noise",
        PoissonFactors,
        data="counts",
        fit={"learning_rate": 3e-3, "schedule": "cosine", "clip_norm": 100.0},
    ),
    "negative-binomial-factors": ModelEntry(
        "Log-linear factors of counts that vary more than Poisson's",
        NegativeBinomialFactors,
        data="counts",
        fit={"learning_rate": 3e-3, "schedule": "cosine", "clip_norm": 100.0},
    ),
    "linear-regression": ModelEntry(
        "Bayesian linear regression, a data set as one datapoint; exact evidence",
        BayesianRegression,
        data="labelled",
        fit={"learning_rate": 3e-2, "schedule": "cosine", "num_steps": 500},
    ),
    "concrete-vae": ModelEntry(
        "VAE with a discrete code, bits or categories, relaxed in training alone",
        ConcreteVAE,
        fit={"learning_rate": 3e-3, "schedule": "cosine"},
    ),
    "sigmoid-belief-network": ModelEntry(
        "Sigmoid belief network: layers of bits, each regressed on the next; exact evidence",
        SigmoidBeliefNetwork,
        fit={"learning_rate": 1e-2, "schedule": "cosine"},
    ),
    "flow-guide-vae": ModelEntry("Bernoulli VAE whose guide is a flow, or has a full covariance", FlowGuideVAE),
    "vampprior-vae": ModelEntry("VAE whose prior is a mixture of its encoder's posteriors", VampPriorVAE),
    "flow-prior-vae": ModelEntry("Bernoulli VAE with a normalizing flow as its prior", FlowPriorVAE),
    "vlae": ModelEntry(
        "Variational lossy autoencoder: a PixelCNN decoder of limited sight, a flow as prior",
        VLAE,
        fit={"learning_rate": 3e-3, "schedule": "cosine"},
    ),
    "latent-diffusion": ModelEntry(
        "Latent diffusion: a VAE, then a diffusion as the prior of its codes",
        LatentDiffusion,
        fit={"learning_rate": 3e-3, "schedule": "cosine"},
    ),
    "vq-vae": ModelEntry(
        "VQ-VAE: a grid of codes, rounded to a codebook's vectors, and a prior learned afterwards",
        VQVAE,
        fit={"learning_rate": 3e-3, "schedule": "cosine"},
        evidence=_OF_NEAREST,
    ),
    "dvae": ModelEntry(
        "Discrete VAE: a softmax over a codebook at each position, Gumbel-softmax in training",
        DVAE,
        fit={"learning_rate": 3e-3, "schedule": "cosine"},
        evidence=_BY_WEIGHTS,
    ),
    "edvae": ModelEntry(
        "Evidential discrete VAE: Dirichlets over the codebook's probabilities",
        EdVAE,
        fit={"learning_rate": 3e-3, "schedule": "cosine"},
        evidence=_BY_WEIGHTS,
    ),
    "vq-vae-2": ModelEntry(
        "VQ-VAE-2: codes on grids from coarse to fine, priors that hear the codes above",
        VQVAE2,
        fit={"learning_rate": 3e-3, "schedule": "cosine"},
        evidence=_OF_NEAREST,
    ),
    "vq-gan": ModelEntry(
        "VQ-GAN: a VQ-VAE sharpened by a critic of patches, a transformer as prior of its codes",
        VQGAN,
        data="real",
        fit={"learning_rate": 2e-3, "schedule": "cosine"},
        evidence=_OF_NEAREST,
    ),
    "vit-vq": ModelEntry(
        "ViT-VQ: transformers from patches to short codes on a sphere and back, and as their prior",
        ViTVQ,
        fit={"learning_rate": 3e-3, "schedule": "cosine"},
        evidence=_OF_NEAREST,
    ),
    "wae-mmd": ModelEntry(
        "Wasserstein autoencoder: all codes together drawn to the prior by a discrepancy",
        DiscrepancyWAE,
        fit={"schedule": "cosine"},
    ),
    "wae-gan": ModelEntry(
        "Wasserstein autoencoder: all codes together made to pass for the prior by an adversary",
        AdversarialWAE,
        fit={"schedule": "cosine"},
    ),
    "masked-autoencoder": ModelEntry(
        "Masked autoencoder: a transformer that fills in three quarters of the patches",
        MaskedAutoencoder,
        data="real",
        fit={"learning_rate": 5e-3, "schedule": "cosine", "clip_norm": 5.0},
    ),
}
"""The models by name; adding one is adding a line."""
