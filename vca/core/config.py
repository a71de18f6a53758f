"""Strict configuration: frozen pydantic models beside their owners, filled from YAML text and dotted overrides."""

import difflib
import json
import re
from collections.abc import Sequence
from datetime import date
from typing import Any, TypeVar

import yaml
from pydantic import BaseModel, ConfigDict, ValidationError

from vca.core.errors import ConfigError, one_line


class Config(BaseModel):
    """Base of every configuration section: immutable, unknown keys and numbers without an end refused.

    `build_config`, through which files come in, also refuses values of another type. A section made in Python follows
    pydantic's usual rules.
    """

    model_config = ConfigDict(
        frozen=True,
        extra="forbid",
        str_strip_whitespace=True,
        validate_default=True,
        use_attribute_docstrings=True,
        allow_inf_nan=False,
    )


ConfigT = TypeVar("ConfigT", bound=BaseModel)

_USERINFO = re.compile(r"//(?:[^/@\s'\"]+|[^\s'\"]*:[^\s'\"]*)@")
"""Also `//id:key@` with a slash in the key, as secret keys of AWS have."""
_VALUE_LIMIT = 120


def without_secrets(text: str) -> str:
    """Text as it may be shown: user names and passwords in addresses masked."""
    return _USERINFO.sub("//***@", text)


def parse_yaml(text: str, source: str) -> dict[str, Any]:
    """One YAML mapping; anything else is a `ConfigError` that names `source` and the line."""
    try:
        value = yaml.safe_load(text)
    except (yaml.YAMLError, ValueError, RecursionError) as error:  # the last two: a 13th month, absurd nesting
        mark = getattr(error, "problem_mark", None)
        where = f" line {mark.line + 1}" if mark is not None else ""
        problem = getattr(error, "problem", None) or "not valid YAML"
        raise ConfigError(f"{source}{where}: {problem}; fix the YAML") from error
    if value is None:
        return {}
    if not isinstance(value, dict):
        raise ConfigError(f"{source}: expected 'key: value' pairs at the top level, got {type(value).__name__}")
    return value


def apply_overrides(values: dict[str, Any], overrides: Sequence[str]) -> dict[str, Any]:
    """Apply `a.b=c` settings (c is YAML) to a copy of `values`."""
    result = _copy(values)
    for override in overrides:
        path, separator, raw = override.partition("=")
        if not separator or not path.strip():
            raise ConfigError(f"--set {without_secrets(override)}: expected the form a.b=value")
        try:
            value = yaml.safe_load(raw) if raw else ""
        except (yaml.YAMLError, ValueError, RecursionError) as error:
            raise ConfigError(
                f"--set {path}: value {without_secrets(repr(raw))} is not valid YAML; quote it"
            ) from error
        node = result
        *parents, leaf = path.strip().split(".")
        for name in parents:
            child = node.setdefault(name, {})
            if not isinstance(child, dict):
                raise ConfigError(f"--set {path}: {name} is a value, not a section")
            node = child
        node[leaf] = value
    return result


def build_config(model: type[ConfigT], values: dict[str, Any], source: str) -> ConfigT:
    """Validate `values`; every problem becomes one line with the field, the value and the way out.

    Types are strict: '3' or true is no number, 3 is a float but 3.0 no integer. Values are what YAML and JSON share.
    """
    try:
        # As JSON, because pydantic's strict mode takes lists for tuples and texts for enums only there.
        text = json.dumps(values, default=_refuse)
    except (TypeError, ValueError, RecursionError) as error:  # keys that are dates, an anchor inside itself
        raise ConfigError(f"{source}: not plain settings ({one_line(str(error))}); fix the YAML") from error
    try:
        return model.model_validate_json(text, strict=True)
    except ValidationError as error:
        raise ConfigError("\n".join(_explain(model, item, source) for item in error.errors())) from error


def _refuse(value: Any) -> Any:
    """For what YAML has and settings do not: dates, sets, binary."""
    shown = f" {value}" if isinstance(value, date) else ""
    raise TypeError(f"no setting is a {type(value).__name__}{shown}: put text in quotes")


def _explain(model: type[BaseModel], item: Any, source: str) -> str:
    path = ".".join(str(part) for part in item["loc"])
    if item["type"] == "extra_forbidden":
        known = _known_keys(model, item["loc"][:-1])
        name = str(item["loc"][-1])
        close = difflib.get_close_matches(name, known, n=1)
        hint = f"did you mean {close[0]!r}?" if close else f"known: {', '.join(sorted(known)) or 'none'}"
        return f"{source}: unknown key {path!r}; {hint}"
    if item["type"] == "missing":
        return f"{source}: {path} is missing; set it in the file or with --set {path}=..."
    message = item["msg"].removeprefix("Value error, ")
    where = f"{source}: {path}{_shown(item)}" if path else source
    return without_secrets(f"{where}: {message[0].lower()}{message[1:]}")


def _shown(item: Any) -> str:
    """` = value` where a single value was refused. Sections are not shown: they may hold anything, and are long."""
    value = item["input"]
    parts = value if isinstance(value, list) else [value]
    if any(isinstance(part, dict | list) for part in parts):
        return ""
    text = without_secrets(repr(value))  # before it is cut, or the end that tells a secret from a path may be gone
    return f" = {text if len(text) <= _VALUE_LIMIT else text[: _VALUE_LIMIT - 3] + '...'}"


def _known_keys(model: type[BaseModel], path: Sequence[str | int]) -> list[str]:
    schema = model.model_json_schema()
    node: dict[str, Any] = schema
    for part in path:
        node = _resolve(node, schema)
        if isinstance(part, int):
            node = node.get("items", {})
        elif part in node.get("properties", {}):
            node = node["properties"][part]
        elif "anyOf" in node or "oneOf" in node:
            continue  # a union branch tag in the path; the branches are resolved below
        else:
            return []
    node = _resolve(node, schema)
    branches = [node, *(_resolve(b, schema) for b in [*node.get("anyOf", []), *node.get("oneOf", [])])]
    return sorted({name for branch in branches for name in branch.get("properties", {})})


def _resolve(node: dict[str, Any], schema: dict[str, Any]) -> dict[str, Any]:
    while "$ref" in node:
        node = schema["$defs"][node["$ref"].rsplit("/", 1)[-1]]
    return node


def _copy(values: dict[str, Any]) -> dict[str, Any]:
    return {k: _copy(v) if isinstance(v, dict) else v for k, v in values.items()}
