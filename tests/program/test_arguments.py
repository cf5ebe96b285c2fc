"""Arguments of programs: what is shared, how rows are taken, and errors that say what came and the way out."""

from __future__ import annotations

import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import torch
from torch import nn
from torch.nn.utils.rnn import pack_sequence, pad_packed_sequence

import amortize as am
from amortize.errors import ArgumentError, ContractError, DataError, GuideDataError, PlateSizeError
from amortize.program.arguments import Arguments
from amortize.program.data import Data

X = torch.linspace(-1, 1, 10)
TINY = am.ImportanceSampling(num_draws=4)


def model(x):
    with pyro.plate("data", x.shape[0]):
        z = pyro.sample("z", dist.Normal(0.0, 1.0))
        pyro.sample("x", dist.Normal(z, 1.0), obs=x)


def matrix_model(x, weights):
    with pyro.plate("data", x.shape[0]):
        z = pyro.sample("z", dist.Normal(torch.zeros(3), 1.0).to_event(1))
        pyro.sample("x", dist.Normal(z @ weights, 1.0).to_event(1), obs=x)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"shared": 3.5}, "expected names or positions"),
        ({"shared": (None,)}, "expected names or positions"),
        ({"fold": 3}, "expected a dict"),
        ({"fold": {"x": 3}}, "expected a dict"),
        ({"shared": "x", "fold": {"x": len}}, "in shared= too"),
        ({"condition": 3}, "expected a dict of values by site name"),
        ({"condition": {"w": "text"}}, "expected a number or an array for 'w'"),
    ],
)
def test_options_of_another_kind_are_refused(options, message):
    with pytest.raises(ArgumentError, match=message):
        am.Program(model, **options)


def test_an_argument_that_is_not_there_is_named():
    with pytest.raises(ArgumentError, match=r"there is no argument 'weights'.*'x'"):
        am.Program(model, shared="weights").dim(X)


@pytest.mark.parametrize(
    ("x", "message"),
    [
        ([X, X], r"a list of 2 arrays.*tuple \(x, c\)"),
        ((X, (X, X)), "a tuple of 2 arrays"),
        ([[1.0, 2.0], [3.0]], "ragged list.*fold="),
        (np.array(["a", "b"]), "dtype <U1"),
        ((X, X), r"can't be called.*takes 1 positional argument"),
        ({"y": X}, "unexpected keyword argument 'y'"),
    ],
)
def test_data_that_do_not_fit_the_program_are_refused(x, message):
    with pytest.raises(DataError, match=message):
        am.Program(model).dim(x)


def test_data_of_which_all_are_shared_are_refused():
    with pytest.raises(DataError, match="all of them shared"):
        am.Program(matrix_model, shared=(0, 1)).dim((torch.zeros(3, 3), torch.zeros(3, 3)))


def test_data_whose_number_cannot_be_told_are_refused():
    program = am.Program(model, fold={"x": lambda x, rows: x[:, rows]})
    with pytest.raises(DataError, match="number of datapoints can't be told"):
        program.dim(torch.zeros(3, 5))


def test_an_argument_in_front_that_indexes_no_datapoints_is_asked_about():
    def indexed(x, index):
        with pyro.plate("data", len(x), subsample=index):
            z = pyro.sample("z", dist.Normal(0.0, 1.0))
            pyro.sample("x", dist.Normal(z, 1.0), obs=x[index])

    data = (torch.zeros(20), torch.tensor([19, 3, 7]))
    with pytest.raises(PlateSizeError, match=r"argument 0 was taken to index the datapoints.*shared=\(0,\)"):
        am.Program(indexed).dim(data)
    assert am.Program(indexed, shared=0).dim(data) == 1


def test_a_list_of_numbers_is_an_array():
    assert "3 datapoints" in am.Program(model).describe([0.5, 1.0, -1.0])


@pytest.mark.parametrize("num", [1, 3])
def test_a_shared_matrix_that_could_be_the_datapoints_is_asked_about(num):
    x, weights = torch.zeros(num, 3), torch.eye(3)
    if num == 3:
        with pytest.raises(PlateSizeError, match=r"argument 1 was taken to have an entry a datapoint.*shared=\(1,\)"):
            am.Program(matrix_model).dim((x, weights))
    assert am.Program(matrix_model, shared="weights").dim((x, weights)) == 3


def test_a_parameter_given_as_data_is_shared():
    data = Data.of((torch.zeros(3, 3), nn.Parameter(torch.eye(3))))
    assert data.per_datapoint == (True, False) and data.guessed == ()


def test_rows_repeat_and_keep_their_order():
    packed = pack_sequence([torch.arange(size, dtype=torch.float32) for size in (3, 1, 2)], enforce_sorted=False)
    hook = {"names": lambda names, rows: [names[row] for row in rows.tolist()]}
    arguments = Arguments.of(lambda x, packed, names: None, ("w",), hook)
    names, x = ["a", "b", "c"], torch.tensor([0, 1, 2])
    data = Data.of({"x": x, "packed": packed, "names": names, "w": x}, arguments=arguments)
    rows = torch.tensor([2, 0, 2])
    taken = data.rows(rows).kwargs
    assert taken["x"].tolist() == [2, 0, 2] and taken["names"] == ["c", "a", "c"] and taken["w"] is x
    padded, lengths = pad_packed_sequence(taken["packed"], batch_first=True)
    assert lengths.tolist() == [2, 3, 2] and padded[0, :2].tolist() == [0, 1]
    folded = data.fold(2)
    assert folded.num_datapoints == 6 and folded.kwargs["names"] == names * 2
    assert folded.index.tolist() == [0, 1, 2, 0, 1, 2]
    assert data.head(5).index.tolist() == [0, 1, 2, 0, 1]


def test_numbers_that_a_network_cannot_take_are_named():
    network = nn.Linear(4, 2)

    def images(x):
        with pyro.plate("data", x.shape[0]):
            z = pyro.sample("z", dist.Normal(network(x), 1.0).to_event(1))
            pyro.sample("x", dist.Normal(z.sum(-1), 1.0), obs=x[:, 0])

    with pytest.raises(DataError, match=r"torch.uint8 \(5, 4\).*x.float\(\)"):
        am.Program(images).dim(np.zeros((5, 4), dtype=np.uint8))
    with pytest.raises(DataError, match=r"torch.float64"):
        am.Program(images).dim(torch.zeros(5, 4, dtype=torch.float64))
    assert am.Program(images).dim(np.zeros((5, 4))) == 2


def test_a_latent_of_torchs_own_is_named():
    def latent(x):
        with pyro.plate("data", x.shape[0]):
            z = pyro.sample("z", torch.distributions.Normal(torch.zeros(x.shape[0]), 1.0))
            pyro.sample("x", dist.Normal(z, 1.0), obs=x)

    with pytest.raises(ContractError, match=r"pyro\.distributions\.Normal"):
        am.Program(latent).dim(X)


@pytest.mark.parametrize("width", [2, 3, 7])
def test_a_missing_to_event_is_said(width):
    def latent(x):
        with pyro.plate("data", x.shape[0]):
            z = pyro.sample("z", dist.Normal(torch.zeros(x.shape[1]), 1.0))
            pyro.sample("x", dist.Normal(z, 1.0), obs=x)

    with pytest.raises(ContractError, match=r"site 'z'.*to_event\(1\)"):
        am.Program(latent).dim(torch.zeros(10, width))


def own_parameters(x):
    loc = pyro.param("loc", torch.zeros(x.shape[0]))
    with pyro.plate("data", x.shape[0]):
        pyro.sample("z", dist.Normal(loc, 1.0))


def own_parameters_typed_in(x):
    loc = pyro.param("loc", torch.zeros(10))
    with pyro.plate("data", x.shape[0]):
        pyro.sample("z", dist.Normal(loc, 1.0))


@pytest.mark.parametrize("guide", [own_parameters, own_parameters_typed_in])
def test_a_guide_with_parameters_of_datapoints_trains_and_is_said_not_to_be_amortized(guide):
    program = am.Program(model, guide)
    fitted = am.fit(program, X, num_steps=3, training=am.Training(progress=False))
    loc = next(value for name, value in program.state_dict().items() if name.endswith("loc"))
    assert loc.shape == (10,) and bool((loc != 0).all())
    assert np.isfinite(fitted.history.elbo).all()
    with pytest.raises(GuideDataError, match="'loc' of the guide has an entry a datapoint"):
        am.posterior(program, X, num_draws=2)
    assert np.isfinite(am.evidence(am.Program(model), X, method=TINY).log_evidence).all()


def test_a_model_with_parameters_of_datapoints_is_refused():
    def offsets(x):
        loc = pyro.param("loc", torch.zeros(x.shape[0]))
        with pyro.plate("data", x.shape[0]):
            z = pyro.sample("z", dist.Normal(loc, 1.0))
            pyro.sample("x", dist.Normal(z, 1.0), obs=x)

    with pytest.raises(ContractError, match="'loc' of the model has an entry a datapoint"):
        am.evidence(am.Program(offsets), X, method=TINY)


def test_plates_that_subsample_do_so_in_training_and_not_in_evaluation():
    seen = []

    def subsampled(x):
        with pyro.plate("data", x.shape[0], subsample_size=4) as index:
            seen.append(len(index))
            z = pyro.sample("z", dist.Normal(0.0, 1.0))
            pyro.sample("x", dist.Normal(z, 1.0), obs=x[index])

    def guide(x):
        loc = pyro.param("loc", torch.tensor(0.0))
        with pyro.plate("data", x.shape[0], subsample_size=4) as index:
            pyro.sample("z", dist.Normal(0.5 * x[index] + loc, 0.7))

    program = am.Program(subsampled, guide)
    am.evidence(program, X, method=TINY)
    assert seen[-1] == 40  # all of ten datapoints, four draws of each
    seen.clear()
    fitted = am.fit(program, X, num_steps=3, training=am.Training(progress=False))
    assert seen[-1] == 4  # the last run is a step's
    assert fitted.history.elbo.between(-6, 0).all()  # nats a datapoint, the subsample's scale divided out


@pytest.mark.parametrize("scale", [0.1, torch.tensor(0.1), 1 / 49])
def test_a_scale_over_the_model_alone_is_divided_out_and_the_guide_left_as_it_is(scale):
    def scaled(x):
        with pyro.poutine.scale(scale=scale):
            model(x)

    def guide(x):
        with pyro.plate("data", x.shape[0]):
            pyro.sample("z", dist.Normal(x / 2, 0.5**0.5))

    program = am.Program(scaled, guide)
    with pytest.warns(am.errors.AmortizeWarning, match=r"poutine.scale\(0\.\d+\); it is divided out"):
        result = am.evidence(program, X, method=TINY)
    np.testing.assert_allclose(result.log_evidence, dist.Normal(0.0, 2**0.5).log_prob(X), atol=1e-5)


def test_minibatches_are_taken_where_no_argument_is_a_tensor():
    def of_list(xs):
        total = torch.stack([x.sum() for x in xs])
        with pyro.plate("data", len(xs)):
            z = pyro.sample("z", dist.Normal(0.0, 1.0))
            pyro.sample("x", dist.Normal(z, 1.0), obs=total)

    def guide(xs):
        loc = pyro.param("loc", torch.tensor(0.0))
        with pyro.plate("data", len(xs)):
            pyro.sample("z", dist.Normal(loc, 0.7).expand([len(xs)]))

    ragged = [torch.ones(1 + number % 3) for number in range(9)]
    program = am.Program(of_list, guide, fold={"xs": lambda xs, rows: [xs[int(row)] for row in rows]})
    fitted = am.fit(program, (ragged,), num_steps=3, training=am.Training(batch_size=4, progress=False))
    assert np.isfinite(fitted.history.elbo).all()


def test_data_of_another_width_are_named_with_their_shape():
    decoder, encoder = torch.nn.Linear(2, 5), torch.nn.Linear(5, 4)

    def model(x):
        pyro.module("decoder", decoder)
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(torch.zeros(2), 1.0).to_event(1))
            pyro.sample("x", dist.Normal(decoder(z), 1.0).to_event(1), obs=x)

    def guide(x):
        pyro.module("encoder", encoder)
        loc, log_scale = encoder(x).chunk(2, -1)
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Normal(loc, log_scale.exp()).to_event(1))

    for call in (am.evidence, am.fit, am.gaps, am.posterior):
        with pytest.raises(DataError, match=r"does not fit the sizes of the data .*float32 \(\d, 6\)"):
            call(am.Program(model, guide), torch.zeros(8, 6))


def test_so_do_they_where_the_program_has_run_on_others_before():
    model = am.models.FactorAnalysis.random(latent_dim=2, data_dim=3)
    program = model.program()
    program.prepare(model.simulate(4))
    with pytest.raises(DataError, match=r"the guide does not fit the sizes of the data .*float32 \(6, 5\)"):
        am.gaps(program, torch.zeros(6, 5))
