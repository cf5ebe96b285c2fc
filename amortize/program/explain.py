"""Errors of Pyro and torch that have a usual cause, said again with that cause and the way out."""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager

from torch import Tensor, distributions

from amortize.errors import AmortizeError, ContractError, DataError
from amortize.program.blame import line_of
from amortize.program.data import Data

__all__ = ["explained"]

PLATE = re.compile(
    r"Shape mismatch inside plate\('(?P<plate>.*?)'\) at site (?P<site>\S+) dim (?P<dim>-\d+), (?P<sizes>.*)"
)
DTYPE = re.compile(
    r"same dtype|expected scalar type|should be the same|not implemented for '(Byte|Char|Short|Int|Long|Bool)'|"
    r"can't be cast to the desired output type|only Tensors of floating point"
)
SHAPES = re.compile(
    r"shapes cannot be multiplied|[Ss]ize mismatch|The size of tensor a \(|is invalid for input of size|"
    r"Sizes of tensors must match|must be equal to input_size|to have \d+ channels|normalized_shape="
)
TORCH = re.compile(r"^'(?P<kind>\w+)' object is not callable$")
CALL = re.compile(r"\(\) (missing|takes|got an unexpected keyword|got multiple values)")


@contextmanager
def explained(name: str, data: Data) -> Iterator[None]:
    """Run the user's program ``name`` inside; errors with a usual cause come out as ones that name it.

    Raises
    ------
    ContractError, DataError
        In place of what Pyro or torch raised, which is their ``__cause__``. Other errors pass as they are.
    """
    try:
        yield
    except AmortizeError:
        raise
    except Exception as error:
        better = _better(name, data, " ".join(str(error).split()), line_of(error))
        if better is None:
            raise
        raise better from error


def _better(name: str, data: Data, message: str, line: str) -> AmortizeError | None:
    plate = PLATE.search(message)
    if plate:
        return ContractError(
            f"site {plate['site']!r} does not fit into plate {plate['plate']!r} at dimension {plate['dim']} (sizes "
            f"{plate['sizes']}). If what stands there belongs to one datapoint (pixels, latent dimensions), declare "
            f"it, dist.Normal(...).to_event(1), or give it a plate of its own{data.hint()}"
        )
    if DTYPE.search(message):
        return DataError(
            f"{name} fails on the data's types ({message}). The data are {_types(data)}; numbers other than floats are "
            "passed as they are. Convert them in the model (x.float()) or before (x.astype('float32'))"
        )
    torch_made = TORCH.match(message)
    if torch_made and issubclass(getattr(distributions, torch_made["kind"], type), distributions.Distribution):
        kind = torch_made["kind"]
        return ContractError(
            f"a site draws from torch.distributions.{kind}, which Pyro can't call; latents need its own, "
            f"pyro.distributions.{kind} (torch's objects do at observed sites)"
        )
    if SHAPES.search(message):
        where = f", at {line}" if line else ""
        return DataError(
            f"{name} does not fit the sizes of the data ({message}{where}). The data are {_types(data)}, a row a "
            f"datapoint. Compare the sizes that its layers and distributions expect{data.hint()}"
        )
    if CALL.search(message):
        return DataError(
            f"{name} can't be called with these data ({message}). The data are {_types(data)}: a tuple gives "
            "positional arguments, a dict keyword arguments, anything else is the one argument"
        )
    return None


def _types(data: Data) -> str:
    parts = []
    for key, leaf in zip(data.keys, data.leaves, strict=True):
        label = f"argument {key}" if isinstance(key, int) else repr(key)
        kind = f"{leaf.dtype} {tuple(leaf.shape)}" if isinstance(leaf, Tensor) else type(leaf).__name__
        parts.append(f"{label}: {kind}")
    return ", ".join(parts)
