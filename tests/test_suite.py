"""The suite's own safeguards notice what they are there to notice."""

from __future__ import annotations

import pytest

from tests.isolation import require_empty_param_store
from tests.statistics import FALSE_ALARM_RATE, z_value


def test_a_parameter_left_in_the_store_is_noticed_and_removed() -> None:
    pyro = pytest.importorskip("pyro")
    torch = pytest.importorskip("torch")
    pyro.param("left_behind", torch.zeros(2))
    with pytest.raises(pytest.fail.Exception, match="left_behind"):
        require_empty_param_store()
    require_empty_param_store()


@pytest.mark.parametrize("num_checks", [1, 10, 1000])
def test_z_value_keeps_the_rate_of_the_whole_test(num_checks: int) -> None:
    stats = pytest.importorskip("scipy.stats")
    assert num_checks * 2 * stats.norm.sf(z_value(num_checks)) == pytest.approx(FALSE_ALARM_RATE, rel=1e-6)


def test_z_value_refuses_no_checks() -> None:
    with pytest.raises(ValueError, match="num_checks"):
        z_value(0)
