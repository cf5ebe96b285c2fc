from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest

from amortize.errors import ArgumentError
from amortize.report.attrs import decode_attrs, encode_attrs, plain, strict_json


def test_round_trip_keeps_every_type():
    attrs = {
        "title": '{"not": "json"}',
        "seed": 3,
        "rate": 0.5,
        "nothing": None,
        "flag": True,
        "settings": {"fit": {"clip_norm": None, "names": ["a", "b"]}},
        "shape": (8, 8),
    }
    encoded = encode_attrs(attrs)
    assert all(isinstance(value, str | int | float) and not isinstance(value, bool) for value in encoded.values())
    assert decode_attrs(encoded) == {**attrs, "shape": [8, 8]}


def test_numpy_paths_and_dataclasses_become_plain():
    @dataclass
    class Settings:
        num_chains: np.int64
        path: Path

    assert plain({"a": np.float32(0.5), "b": np.arange(2), 3: Settings(np.int64(4), Path("x"))}) == {
        "a": 0.5,
        "b": [0, 1],
        "3": {"num_chains": 4, "path": "x"},
    }


def test_what_json_cannot_hold_is_named():
    with pytest.raises(ArgumentError, match=r"attrs\['settings'\]\['device'\]: expected .* got object"):
        encode_attrs({"settings": {"device": object()}})


def test_strict_json_has_no_nan():
    text = strict_json({"mean": np.nan, "rows": [1.0, -np.inf], "deep": {"a": [[np.inf, 2]]}, "empty": {}})
    assert json.loads(text, parse_constant=pytest.fail) == {
        "mean": None,
        "rows": [1.0, None],
        "deep": {"a": [[None, 2]]},
        "empty": {},
    }
