"""Studies as TOML with a comment for each key, and validation errors in words."""

from __future__ import annotations

import difflib
import json
import re
import tomllib
from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING, Any, get_args, get_origin

from pydantic import BaseModel, ValidationError

from amortize.errors import SpecError

if TYPE_CHECKING:
    from pydantic_core import ErrorDetails

__all__ = ["describe_validation", "near_matches", "read_settings", "to_toml"]

MOST_ERRORS = 6
MOST_CHARACTERS = 60
_EXPECTED = {
    "int_type": "an integer",
    "int_from_float": "an integer",
    "float_type": "a number",
    "finite_number": "a finite number",
    "string_type": "a string",
    "bool_type": "true or false",
    "literal_error": "{expected}",
    "greater_than": "a number > {gt}",
    "greater_than_equal": "a number >= {ge}",
    "multiple_of": "a multiple of {multiple_of}",
    "less_than": "a number < {lt}",
    "less_than_equal": "a number <= {le}",
    "tuple_type": "a list",
    "too_short": "at least {min_length} of them",
    "dict_type": "a table",
    "model_type": "a table",
}


def read_settings(given: Iterable[str]) -> dict[str, Any]:
    """Settings by dotted key of texts ``KEY=VALUE``; a value that is no TOML is taken as text.

    Raises
    ------
    SpecError
        A text has no ``=``, or no key before it.

    Examples
    --------
    >>> read_settings(["fit.num_steps=500", "local.families=['laplace']", "program.settings.network=conv"])
    {'fit.num_steps': 500, 'local.families': ['laplace'], 'program.settings.network': 'conv'}
    """
    found: dict[str, Any] = {}
    for text in given:
        key, equals, value = (part.strip() for part in text.partition("="))
        if not key or not equals:
            raise SpecError(f"--set: expected KEY=VALUE, such as fit.num_steps=500, got {text!r}")
        try:
            found[key] = tomllib.loads(f"value = {value}")["value"]
        except tomllib.TOMLDecodeError:
            found[key] = value
    return found


def to_toml(model: BaseModel) -> str:
    """A pydantic model as TOML; keys that are not set are written as comments."""
    return "\n".join(_table(model, ())).strip() + "\n"


def _table(model: BaseModel, path: tuple[str, ...]) -> Iterator[str]:
    nested: list[tuple[str, Any]] = []
    for key, field in type(model).model_fields.items():
        value = getattr(model, key)
        if isinstance(value, (BaseModel, dict)) or _table_of_list(field.annotation) is not None:
            nested.append((key, value))
            continue
        yield f"# {field.description}"
        yield f"# {key} =" if value is None else f"{key} = {_value(value)}"
    for key, value in nested:
        yield ""
        inner = (*path, key)
        if isinstance(value, BaseModel):
            yield f"# {(type(value).__doc__ or '').splitlines()[0]}"
            yield f"[{'.'.join(inner)}]"
            yield from _table(value, inner)
        elif isinstance(value, tuple):
            yield f"# {type(model).model_fields[key].description}"
            yield from _tables(value, ".".join(inner))
        else:
            yield f"# {type(model).model_fields[key].description}"
            yield f"[{'.'.join(inner)}]"
            yield from (f"{name} = {_value(item)}" for name, item in value.items())


def _tables(models: tuple[BaseModel, ...], name: str) -> Iterator[str]:
    """Tables of a list; one that holds none is a comment, from which to start."""
    if not models:
        yield f"# [[{name}]]"
    for place, model in enumerate(models):
        yield from ("",) if place else ()
        yield f"[[{name}]]"
        yield from _table(model, (name,))


def _value(value: object) -> str:
    if isinstance(value, dict):
        return f"{{{', '.join(f'{_value(str(key))} = {_value(item)}' for key, item in value.items())}}}"
    if isinstance(value, (list, tuple)):
        return f"[{', '.join(_value(item) for item in value)}]"
    # JSON's numbers, lists and escapes are TOML's too, but for surrogate pairs and the unescaped DEL
    return json.dumps(value, ensure_ascii=False, allow_nan=False).replace("\x7f", "\\u007f")


def describe_validation(error: ValidationError, root: type[BaseModel]) -> str:
    """What is wrong with which key, what was expected and what came; a line a key."""
    details = error.errors(include_url=False)
    lines = [_describe(detail, root) for detail in details[:MOST_ERRORS]]
    if len(details) > MOST_ERRORS:
        lines.append(f"... and {len(details) - MOST_ERRORS} more")
    return lines[0] if len(lines) == 1 else "\n  ".join(["several keys are wrong", *lines])


def _describe(detail: ErrorDetails, root: type[BaseModel]) -> str:
    location = [str(part) for part in detail["loc"]]
    dotted = ".".join(location)
    if detail["type"] == "extra_forbidden":
        return f"unknown key {dotted}. {_suggest_key(location, root)}"
    if detail["type"] == "missing":
        return f"{dotted} is missing: {_description(location, root)}"
    if detail["type"] == "value_error":
        return f"{dotted}: {detail['msg'].removeprefix('Value error, ')}"
    choices = re.findall(r"'([^']*)'", str(detail.get("ctx", {}).get("expected", "")))
    near = near_matches(str(detail["input"]), choices)
    return f"{dotted}: expected {_expected(detail, location, root)}, got {_short(detail['input'])}{near}"


def _expected(detail: ErrorDetails, location: list[str], root: type[BaseModel]) -> str:
    kind = detail["type"]
    if kind in _EXPECTED:
        return _EXPECTED[kind].format(**detail.get("ctx", {}))
    if kind == "string_pattern_mismatch":
        return _description(location, root)
    return re.sub(r"^Input should be ", "", detail["msg"])


def _suggest_key(location: list[str], root: type[BaseModel]) -> str:
    *parents, key = location
    table = _model_at(parents, root)
    known = list(table.model_fields) if table else []
    elsewhere = [name for name in _all_keys(root) if name.split(".")[-1] == key]
    if elsewhere:
        return f"Did you mean {' or '.join(elsewhere)}?"
    if near := difflib.get_close_matches(key, known, n=3, cutoff=0.6):
        return f"Did you mean {' or '.join('.'.join([*parents, name]) for name in near)}?"
    return f"Known keys here: {', '.join(known)}."


def _model_at(path: list[str], root: type[BaseModel]) -> type[BaseModel] | None:
    model = root
    for part in path:
        if part.isdigit():  # a place in a list of tables
            continue
        annotation = model.model_fields[part].annotation if part in model.model_fields else None
        annotation = _table_of_list(annotation) or annotation
        if not (isinstance(annotation, type) and issubclass(annotation, BaseModel)):
            return None
        model = annotation
    return model


def _table_of_list(annotation: object) -> type[BaseModel] | None:
    """The table whose lists a field holds, if it does."""
    item = get_args(annotation)[0] if get_origin(annotation) is tuple else None
    return item if isinstance(item, type) and issubclass(item, BaseModel) else None


def _all_keys(model: type[BaseModel], prefix: str = "") -> Iterator[str]:
    for key, field in model.model_fields.items():
        if isinstance(field.annotation, type) and issubclass(field.annotation, BaseModel):
            yield from _all_keys(field.annotation, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}"


def _description(location: list[str], root: type[BaseModel]) -> str:
    table = _model_at(location[:-1], root)
    field = table.model_fields.get(location[-1]) if table else None
    if field is None or field.description is None:
        return f"a table [{'.'.join(location)}]"
    return field.description


def _short(value: object) -> str:
    text = repr(value)
    return text if len(text) <= MOST_CHARACTERS else f"{text[:MOST_CHARACTERS]}..."


def near_matches(word: str, known: list[str]) -> str:
    """``" (did you mean ...?)"``, or nothing where no known word is near."""
    near = difflib.get_close_matches(word.lower(), [name.lower() for name in known], n=3, cutoff=0.6)
    names = [name for name in known if name.lower() in near]
    return f" (did you mean {' or '.join(names)}?)" if names else ""
