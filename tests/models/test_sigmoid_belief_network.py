"""The sigmoid belief network: exact evidence by two roads, sampled ones that meet it, and training that raises it."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch.distributions import Bernoulli

import amortize as am
from amortize.errors import ArgumentError, DataError
from amortize.models import SigmoidBeliefNetwork
from amortize.models.sigmoid_belief_network import all_codes
from tests.statistics import z_value
from tests.vaes import digits

LAYERS = {"one layer": (5,), "two layers": (4, 3), "three layers": (3, 2, 2)}
SETTINGS = am.Training(learning_rate=1e-2, schedule="cosine", batch_size=100)


@pytest.fixture(scope="module")
def x() -> torch.Tensor:
    return (torch.rand(30, 12, generator=torch.Generator().manual_seed(0)) < 0.4).double()


def shaken(x: torch.Tensor, units: tuple[int, ...]) -> SigmoidBeliefNetwork:
    """A network whose model has moved away from its guide, in float64."""
    network = SigmoidBeliefNetwork.from_data(x, units=units).double()
    stream = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in (*network.prior.parameters(), *network.down.parameters()):
            parameter.add_(0.3 * torch.randn(parameter.shape, generator=stream, dtype=torch.float64))
    return network


@pytest.mark.parametrize("layers", LAYERS)
def test_evidence_is_the_sum_over_all_bits(layers, x):
    """Layer by layer, in the package's enumeration, and over all layers at once by hand."""
    units = LAYERS[layers]
    network = shaken(x, units)
    exact = network.log_evidence(x).numpy()
    found = am.evidence(network.program(), x)
    np.testing.assert_allclose(found.log_evidence, exact, rtol=1e-10)
    assert (found.se == 0).all()
    bits = all_codes(sum(units)).split(units, dim=1)
    with torch.no_grad():
        joint = network.prior().log_prob(bits[-1])
        for below, above, down in zip(bits[:-1], bits[1:], network.down[1:], strict=True):
            joint = joint + Bernoulli(logits=down(above)).log_prob(below).sum(-1)
        likelihood = Bernoulli(logits=network.down[0](bits[0])[:, None]).log_prob(x).sum(-1)
    np.testing.assert_allclose(exact, (joint[:, None] + likelihood).logsumexp(0).numpy(), rtol=1e-10)
    uneven = joint.roll(1)  # bits of one configuration with the prior of another
    assert not np.allclose(exact, (uneven[:, None] + likelihood).logsumexp(0).numpy(), atol=1e-3)


@pytest.mark.parametrize("layers", ["one layer", "two layers"])
def test_annealing_and_importance_sampling_meet_the_sum(layers, x):
    network = shaken(x, LAYERS[layers])
    rows = x[:20]
    exact = network.log_evidence(rows).numpy()
    for method in (am.AIS(num_chains=64, num_temperatures=25), am.ImportanceSampling(num_draws=4000)):
        found = am.evidence(network.program(), rows, method=method, discrete="sample", seed=2)
        away = float((found.log_evidence - exact).mean())
        se = float(np.sqrt(np.square(found.se).sum()) / len(rows))
        assert abs(away) < z_value() * se, type(method).__name__
        assert se < 0.02


TRAININGS = {
    "vimco": ((6,), am.VIMCO(num_particles=4)),
    "leave-one-out": ((6, 3), am.LeaveOneOut(num_particles=4)),
    "concrete": ((6, 3), am.ConcreteELBO()),
}


@pytest.mark.parametrize("how", TRAININGS)
def test_training_raises_the_exact_evidence(how):
    x, held_out = digits()
    units, objective = TRAININGS[how]
    network = SigmoidBeliefNetwork.from_data(x, units=units, objective=objective)
    before = float(network.log_evidence(held_out).mean())
    am.fit(network.program(), x, objective=network.objective, num_steps=200, training=SETTINGS)
    assert float(network.log_evidence(held_out).mean()) > before + 1.5


def test_the_elbo_lies_below_the_evidence_by_what_the_guide_loses(x):
    """Exactly: log p(x) less the ELBO is the divergence of q from the posterior, both as sums over 5 bits."""
    network = shaken(x, (5,))
    codes = all_codes(5)
    with torch.no_grad():
        likelihood = Bernoulli(logits=network.down[0](codes)[:, None]).log_prob(x).sum(-1)
        log_joint = network.prior().log_prob(codes)[:, None] + likelihood
        log_q = network.up[0](x).log_prob(codes[:, None].expand(32, len(x), 5))
    exact = network.log_evidence(x)
    divergence = (log_q.exp() * (log_q - log_joint + exact)).sum(0)
    sampled = am.ImportanceSampling(num_draws=4000)
    found = am.evidence(network.program(), x, method=sampled, discrete="sample")
    gap = exact.numpy() - found.log_weights.mean(0)
    se = found.log_weights.std(0, ddof=1) / np.sqrt(4000)
    assert np.all(np.abs(gap - divergence.numpy()) < z_value(len(x)) * se)
    assert not np.all(np.abs(gap - 0.5 * divergence.numpy()) < z_value(len(x)) * se)


@pytest.mark.parametrize("layers", LAYERS)
def test_the_contract_holds(layers, x):
    report = SigmoidBeliefNetwork.from_data(x, units=LAYERS[layers]).program().check(x.float())
    assert report.ok, str(report)


def test_it_begins_at_the_data_s_means(x):
    network = SigmoidBeliefNetwork.from_data(x, units=(4, 3), hidden=(6,))
    torch.testing.assert_close(network.down[0].network.last_bias.sigmoid(), ((x.sum(0) + 0.5) / 31).float())
    assert [len(up.network.layers) for up in network.up] == [3, 3]


def test_what_does_not_fit_is_named(x):
    with pytest.raises(DataError, match="zeros and ones"):
        SigmoidBeliefNetwork.from_data(x + 0.5)
    for wrong in ((), (0,), 5, "5"):
        with pytest.raises(ArgumentError, match="units"):
            SigmoidBeliefNetwork.from_data(x, units=wrong)
    network = SigmoidBeliefNetwork.from_data(x, units=(4, 3))
    with pytest.raises(ArgumentError, match="down"):
        SigmoidBeliefNetwork(prior=network.prior, down=network.down, up=network.up[:1])
    for units in ((21,), (11, 10)):
        with pytest.raises(ArgumentError, match=r"at most 20 bits.*am.evidence"):
            SigmoidBeliefNetwork.from_data(x, units=units).log_evidence(x)
