"""Every program of the suite: folded equals one by one, by an evaluation that shares no code with ours."""

from __future__ import annotations

import itertools
import math
import warnings

import numpy as np
import pyro
import pytest
import torch
from pyro import poutine
from pyro.distributions.torch_distribution import MaskedDistribution
from torch.distributions import Independent, biject_to

import amortize as am
from amortize.errors import AmortizeWarning, TrainingError
from amortize.random import pyro_rng
from tests.programs import PROGRAMS

CHAINS = 3


@pytest.fixture(params=PROGRAMS)
def case(request):
    return PROGRAMS[request.param]()


@pytest.fixture(autouse=True)
def _expected_warnings(request):
    """A program that is said to be scaled, and nothing else."""
    with warnings.catch_warnings(record=True) as seen:
        warnings.simplefilter("always", AmortizeWarning)
        yield
    expected = PROGRAMS[request.node.callspec.params["case"]]().warns if "case" in request.fixturenames else ""
    for warning in seen:
        assert expected
        assert expected in str(warning.message)


def read(case, *, guide=False):
    """The program, its data, log joint, and draws of u (C * N, D) from the prior."""
    program = case.program(guide=guide)
    data = program.prepare(case.data)
    with program.evaluating():
        log_joint = program.log_joint(data)
        with pyro_rng(1, "contract"):
            u = log_joint.draw_prior(data.fold(CHAINS)).u
    return program, data, log_joint, u


def density_over_u(node, *, hidden):
    """Log density over u of a latent without its mask; a standard normal where a mask hides it and may."""
    transform = biject_to(node["fn"].support)
    u = transform.inv(node["value"])
    jacobian = transform.log_abs_det_jacobian(u, node["value"])
    if not hidden:
        return float(latent_log_prob(node).sum() + jacobian.sum())
    log_prob = latent_log_prob(node)
    seen = torch.ones_like(log_prob, dtype=torch.bool)
    for mask in (node["mask"], node["fn"]._mask if isinstance(node["fn"], MaskedDistribution) else None):
        seen = seen if mask is None else seen & mask
    each = [
        value.reshape(*log_prob.shape, -1).sum(-1) for value in (jacobian, -0.5 * u**2 - 0.5 * math.log(2 * math.pi))
    ]
    return float(torch.where(seen, log_prob + each[0], each[1]).sum())


def latent_log_prob(node):
    """Log density of a latent without its mask, batch dimensions kept."""
    fn = node["fn"]
    while isinstance(fn, MaskedDistribution):
        fn = fn.base_dist
    if isinstance(fn, Independent) and isinstance(fn.base_dist, MaskedDistribution):
        fn = fn.base_dist.base_dist.to_event(fn.reinterpreted_batch_ndims)
    return fn.log_prob(node["value"])


def one_by_one(case, program, values, n, hidden=()):
    """Log p(x_n, u), discrete sites summed out one choice after another."""
    values = {name: value for name, value in values.items() if name not in case.choices}
    each = [
        one_choice(case, program, {**values, **dict(zip(case.choices, choice, strict=True))}, n, hidden)
        for choice in itertools.product(*case.choices.values())
    ]
    return float(torch.tensor(each, dtype=torch.float64).logsumexp(0))


def one_choice(case, program, values, n, hidden):
    """The same by Pyro's trace of the model on one datapoint, validated, and torch's own bijections."""
    args, kwargs = case.alone(n)
    model = program.model if case.reference is None else case.reference
    conditioned = poutine.condition(model, data=values)
    with pyro.validation_enabled(True), torch.no_grad():
        trace = poutine.trace(conditioned).get_trace(*args, **kwargs)
        trace.compute_log_prob()
    total = 0.0
    for name, node in trace.nodes.items():
        if node["type"] != "sample" or type(node["fn"]).__name__ == "_Subsample" or node["infer"].get("_deterministic"):
            continue
        if name in case.choices:
            total += float(latent_log_prob(node).sum())
        elif name in values:
            total += density_over_u(node, hidden=name in hidden)
        elif name in program.condition or not node["cond_indep_stack"]:
            continue
        else:
            total += float(node["log_prob_sum"]) / case.divide
    return total


def test_folded_equals_one_by_one(case):
    program, data, log_joint, u = read(case)
    with program.evaluating(), torch.no_grad():
        terms = log_joint.terms(data.fold(CHAINS), u=u)
        assert len(terms.joint) == CHAINS * case.num
        for row in range(CHAINS * case.num):
            values = {
                name: value.index_select(log_joint.structure.sites[name].front, torch.tensor([row]))
                for name, value in terms.values.items()
            }
            alone = one_by_one(case, program, values, row % case.num, log_joint.structure.hidden)
            assert float(terms.joint[row]) == pytest.approx(alone, rel=1e-4, abs=1e-4)


def test_permuted(case):
    program, data, log_joint, u = read(case)
    order = torch.randperm(len(u), generator=torch.Generator().manual_seed(0))
    with program.evaluating(), torch.no_grad():
        before = log_joint.terms(data.fold(CHAINS), u=u).joint
        after = log_joint.terms(data.fold(CHAINS).rows(order), u=u[order]).joint
    torch.testing.assert_close(before[order], after, rtol=1e-4, atol=1e-4)


def test_gradients_are_finite(case):
    program, data, log_joint, u = read(case)
    with program.evaluating():
        u = u.requires_grad_()
        value = log_joint.terms(data.fold(CHAINS), u=u).joint
        (gradient,) = torch.autograd.grad(value.sum(), u)
    assert bool(torch.isfinite(value).all()) and bool(torch.isfinite(gradient).all())


def test_evidence_from_the_prior(case):
    result = am.evidence(case.program(guide=False), case.data, method=am.ImportanceSampling(num_draws=20))
    assert result.log_evidence.shape == (case.num,) and np.isfinite(result.log_evidence).all()


def test_annealing(case):
    method = am.AIS(num_chains=2, num_temperatures=3, pilot=False)
    result = am.evidence(case.program(guide=False), case.data, method=method)
    assert np.isfinite(result.log_evidence).all()


GUIDED = [name for name, make in PROGRAMS.items() if make().guide is not None]


@pytest.mark.parametrize("name", GUIDED)
def test_guides_density_folded_equals_one_by_one(name):
    case = PROGRAMS[name]()
    program = case.program()
    data = program.prepare(case.data)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", AmortizeWarning)
        with program.evaluating():
            guide = program.guide_density(data)
    with program.evaluating(), torch.no_grad(), pyro_rng(2, "guide"):
        values, log_q = guide.sample(data.fold(CHAINS))
        for row in range(CHAINS * case.num):
            sites = guide.log_joint.structure.sites
            given = {
                key: value.index_select(sites[key].front, torch.tensor([row]))
                for key, value in values.items()
                if key in sites
            }
            alone = one_by_one_guide(case, program, given, row % case.num, guide.hides)
            assert float(log_q[row]) == pytest.approx(alone, rel=1e-4, abs=1e-4)


def one_by_one_guide(case, program, values, n, hides):
    """Log q(z | x_n) by Pyro's trace of the guide on one datapoint, discrete sites summed, hidden ones left out."""
    args, kwargs = case.alone(n)
    each = []
    for choice in itertools.product(*case.choices.values()):
        given = {**values, **dict(zip(case.choices, choice, strict=True))}
        with pyro.validation_enabled(True):
            trace = poutine.trace(poutine.condition(program.guide, data=given)).get_trace(*args, **kwargs)
        trace.compute_log_prob()
        each.append(
            sum(
                float(trace.nodes[name]["log_prob_sum"] if name in hides else latent_log_prob(trace.nodes[name]).sum())
                for name in given
            )
        )
    return float(torch.tensor(each, dtype=torch.float64).logsumexp(0))


@pytest.mark.parametrize("name", GUIDED)
def test_guides_train(name):
    case = PROGRAMS[name]()
    program = case.program()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", AmortizeWarning)
        program.prepare(case.data)
        if not [parameter for parameter in program.parameters() if parameter.requires_grad]:
            with pytest.raises(TrainingError, match="no parameters to train"):
                am.fit(program, case.data, num_steps=2)
            return
        history = am.fit(program, case.data, num_steps=2, training=am.Training(progress=False)).history
    assert np.isfinite(history.elbo).all()
