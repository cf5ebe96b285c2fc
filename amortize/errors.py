"""The errors that amortize raises on purpose, each with a name of its own.

Every message says what was expected, what came, and the way out; the command line prints it and exits with status 2.
"""

from __future__ import annotations

import math
from numbers import Integral, Real

__all__ = [
    "AmortizeError",
    "AmortizeWarning",
    "ArgumentError",
    "ComparisonError",
    "ContractError",
    "DataError",
    "DiscreteLatentError",
    "DynamicStructureError",
    "GlobalLatentError",
    "GuideDataError",
    "GuideMismatchError",
    "NoDataPlateError",
    "NotIndependentError",
    "ParameterNameError",
    "PlateSizeError",
    "ReplayError",
    "SpecError",
    "TrainingError",
    "UnboundedDiscreteError",
    "check_count",
    "check_number",
    "shown",
]


class AmortizeError(Exception):
    """Base of every error that amortize raises on purpose."""


class AmortizeWarning(UserWarning):
    """A number was computed but should not be trusted without a look; the message says why."""


class ArgumentError(AmortizeError, ValueError):
    """An argument has a wrong value, type or shape."""


class DataError(ArgumentError):
    """Data that cannot be used: missing file, wrong shape, values that are not finite."""


class SpecError(ArgumentError):
    """A study specification with an unknown key or a wrong value."""


class ComparisonError(ArgumentError):
    """Two runs whose datapoints aren't the same, so that they can't be compared one by one."""


class TrainingError(AmortizeError, RuntimeError):
    """Training cannot go on, for example because the loss stays non-finite."""


class ContractError(AmortizeError, ValueError):
    """A program breaks the contract under which per-datapoint evidence is defined."""


class NoDataPlateError(ContractError):
    """No vectorised plate indexes the data."""


class PlateSizeError(ContractError):
    """The data plate's size does not follow the data."""


class GlobalLatentError(ContractError):
    """A latent site stands outside the data plate and is shared by all datapoints."""


class NotIndependentError(ContractError):
    """The log joint of one datapoint depends on other datapoints."""


class DynamicStructureError(ContractError):
    """Sites or shapes change from one run of the program to the next."""


class DiscreteLatentError(ContractError):
    """A discrete latent site where an algorithm needs continuous ones."""


class UnboundedDiscreteError(DiscreteLatentError):
    """A discrete latent site whose support cannot be enumerated."""


class GuideMismatchError(ContractError):
    """The guide's sites, shapes or supports are not those of the model's latents."""


class GuideDataError(GuideMismatchError):
    """The guide's parameters belong to the datapoints it was made on (an AutoGuide), and these are others."""


class ReplayError(ContractError):
    """Simulated observations can't be drawn, or can't be put back into the program's data."""


class ParameterNameError(ContractError):
    """Two different networks or parameters use one name in one program."""


def check_count(name: str, value: object, least: int = 1) -> int:
    """Return ``value`` as an int of at least ``least``.

    Raises
    ------
    ArgumentError
        Naming the argument, what was expected and what came.
    """
    if isinstance(value, bool) or not isinstance(value, Integral) or value < least:
        raise ArgumentError(f"{name}: expected an integer of at least {least}, got {value!r}")
    return int(value)


def check_number(name: str, value: object, interval: str = "(0, inf)") -> float:
    """Return ``value`` as a float in ``interval``, whose brackets say which of its ends belong to it.

    Raises
    ------
    ArgumentError
        Naming the argument, what was expected and what came.
    """
    low, high = (float(end) for end in interval[1:-1].split(","))
    number = math.nan
    if not isinstance(value, bool) and isinstance(value, Real):
        try:
            number = float(value)
        except OverflowError:  # an integer beyond all floats
            number = math.inf
    at_an_end = (number == low and interval[0] == "[") or (number == high and interval[-1] == "]")
    if not (low < number < high or at_an_end):
        words = "a positive number" if interval == "(0, inf)" else f"a number in {interval}"
        raise ArgumentError(f"{name}: expected {words}, got {value!r}")
    return number


def shown(value: object) -> str:
    """A value as messages show what came, in a line; for a class, that an object of it was meant.

    Examples
    --------
    >>> print(shown(3), shown("name"), shown(complex), sep="; ")
    3; 'name'; the class complex; make an object of it, complex(...)
    """
    if isinstance(value, type):
        return f"the class {value.__name__}; make an object of it, {value.__name__}(...)"
    text = repr(value)
    return text if "\n" not in text else f"an object of class {type(value).__name__}"  # networks, arrays, tables
