"""Strict configuration: frozen pydantic models beside their owners, filled from YAML text and dotted overrides."""

import difflib
from collections.abc import Sequence
from typing import Any, TypeVar

import yaml
from pydantic import BaseModel, ConfigDict, ValidationError

from vca.core.errors import ConfigError


class Config(BaseModel):
    """Base of every configuration section: immutable, unknown keys refused, strings not coerced to numbers."""

    model_config = ConfigDict(
        frozen=True, extra="forbid", str_strip_whitespace=True, validate_default=True, use_attribute_docstrings=True
    )


ConfigT = TypeVar("ConfigT", bound=BaseModel)


def parse_yaml(text: str, source: str) -> dict[str, Any]:
    """One YAML mapping; anything else is a `ConfigError` that names `source` and the line."""
    try:
        value = yaml.safe_load(text)
    except yaml.YAMLError as error:
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
            raise ConfigError(f"--set {override}: expected the form a.b=value")
        try:
            value = yaml.safe_load(raw) if raw else ""
        except yaml.YAMLError as error:
            raise ConfigError(f"--set {path}: value {raw!r} is not valid YAML; quote it") from error
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
    """Validate `values`; every problem becomes one line with the field, the value and the way out."""
    try:
        return model.model_validate(values)
    except ValidationError as error:
        raise ConfigError("\n".join(_explain(model, item, source) for item in error.errors())) from error


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
    return f"{source}: {path} = {item['input']!r}: {message[0].lower()}{message[1:]}"


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
