"""Parts of discrete codes: densities by hand, values in between, and what they start from."""

from __future__ import annotations

import pytest
import torch
from torch.distributions import Bernoulli, Categorical

from amortize.errors import ArgumentError
from amortize.models.discrete_parts import DiscreteEncoder, DiscretePrior, FromCode, codes_from_logits, num_logits


def test_bits_and_categories_have_the_densities_of_their_logits():
    logits = torch.randn(4, 6, generator=torch.Generator().manual_seed(0)).double()
    bits = codes_from_logits(logits, 2)
    z = torch.eye(6)[:4].double()
    assert bits.event_shape == (6,)
    torch.testing.assert_close(bits.log_prob(z), Bernoulli(logits=logits).log_prob(z).sum(-1))
    categories = codes_from_logits(logits, 3)
    chosen = torch.tensor([[0, 1], [2, 2], [1, 0], [0, 0]])
    assert categories.event_shape == (2, 3)
    said = categories.log_prob(torch.nn.functional.one_hot(chosen, 3).double())
    torch.testing.assert_close(said, Categorical(logits=logits.view(4, 2, 3)).log_prob(chosen).sum(-1))
    assert not torch.allclose(said, bits.log_prob(z))


def test_a_learned_prior_begins_even():
    for categories in (2, 5):
        prior = DiscretePrior(3, categories, learned=True)
        value = prior().sample()
        torch.testing.assert_close(prior().log_prob(value), -3 * torch.tensor(float(categories)).log())
        assert prior.logits.requires_grad
        assert len(prior.logits) == num_logits(3, categories)
    assert not DiscretePrior(3, 2, learned=False).logits.requires_grad


def test_an_encoder_reads_what_is_left_of_the_means():
    centre = torch.tensor([0.2, 0.7])
    encoder = DiscreteEncoder(torch.nn.Linear(2, 3, bias=False), centre, 2)
    torch.testing.assert_close(encoder(centre[None]).mean, torch.full((1, 3), 0.5))
    assert "centre" in encoder.state_dict()
    with pytest.raises(ArgumentError, match="categories"):
        DiscreteEncoder(torch.nn.Linear(2, 3), centre, 1)


def test_a_decoder_takes_values_in_between_and_is_linear_there():
    """A bit halfway is worth nothing: +1 and -1 cancel; a one-hot value is the mean of its corners."""
    bits = FromCode(torch.nn.Linear(3, 4), 2)
    torch.testing.assert_close(bits(torch.full((1, 3), 0.5))[0], bits.network.bias)
    categories = FromCode(torch.nn.Linear(6, 4), 3)
    corners = torch.eye(3)[:, None, :].expand(3, 2, 3)
    torch.testing.assert_close(categories(corners.mean(0, keepdim=True))[0], categories(corners).mean(0))
