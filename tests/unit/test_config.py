"""Reading settings: what is refused, and what a refusal may show."""

import pytest

from vca.core.config import Config, apply_overrides, build_config, parse_yaml
from vca.core.errors import ConfigError
from vca.pipelines.config import TagConfig

VALID = {"archive": {"uri": "films"}, "output": {"uri": "out"}}


def refusal(*overrides: str) -> str:
    with pytest.raises(ConfigError) as caught:
        build_config(TagConfig, apply_overrides(VALID, overrides), "x.yaml")
    return str(caught.value)


@pytest.mark.parametrize(
    ("override", "field"),
    [
        ("archive.uri=s3://AKIA:SECRET@b/x", "archive.uri"),
        ("archive.uri=s3://AKIA:SEC/SECRET@b/x", None),
        ("archive.uri={a: s3://AKIA:SECRET@b}", "archive.uri"),
        ("archive.include=s3://AKIA:SECRET@b", "archive.include"),
        ("archive.include=[{a: SECRET}]", "archive.include"),
        ("archive.storage={endpoint_url: http://AKIA:SECRET@h}", "archive.storage"),
        ("archive.storage={endpoint_url: http://AKIA:SECRET@h, profile: 7}", "archive.storage"),
        ("archive.storage={secret_key: SECRET}", "archive.storage"),
        ("archive=s3://AKIA:SECRET@b", "archive"),
        ("tracking.uri=http://u:SECRET@h", "tracking"),
        ("tracking.uri='http://u:SECRET@h", "tracking.uri"),
        ('tracking.uri="\\ud800 http://u:SECRET@h"', ""),
        ("archive.uri 's3://u:SECRET@h'", ""),
    ],
)
def test_secrets_are_not_repeated(override: str, field: str | None) -> None:
    """An address with a password in the wrong place must not go on into terminals and logs."""
    if field is None:  # not told from a bucket: the address itself is accepted
        assert "SECRET" not in refusal(override, "archive.include=s3://AKIA:SEC/SECRET@b")
        return
    message = refusal(override)
    assert "SECRET" not in message
    assert "\n" not in message
    assert field in message


def test_a_refused_value_is_shown_and_a_section_is_not() -> None:
    """A value helps to find the typo; a section would fill the screen."""
    assert refusal("run.max_attempts=0").startswith("x.yaml: run.max_attempts = 0: ")
    assert refusal("resources.autoscaling=true").startswith("x.yaml: resources: autoscaling needs ")
    assert len(refusal(f"run.max_attempts={'9' * 500}a")) < 250


@pytest.mark.parametrize(
    "override",
    [
        "run.max_attempts='3'",
        "run.max_attempts=true",
        "run.max_attempts=3.0",
        "run.failure_budget=true",
        "run.failure_budget='0.1'",
        "run.flush_s=.inf",
        "run.flush_s=.nan",
        "predict.thresholds.content=.nan",
        "decode.wall_limit_s=.inf",
        "archive.sidecars=1",
        "archive.sidecars='yes'",
        "archive.uri=7",
        "archive.exclude='**/a'",
    ],
)
def test_values_of_another_type_are_refused(override: str) -> None:
    """A text that looks like a number, or a yes where a share belongs, is a mistake and not a setting."""
    message = refusal(override)
    assert message.startswith(f"x.yaml: {override.partition('=')[0]} = ")
    assert "\n" not in message


def test_values_of_the_right_type_stay() -> None:
    """Lists for tuples, names for enumerations and whole numbers for shares are what YAML offers."""
    overrides = ["run.failure_budget=1", "archive.exclude=['a/**', '*.tmp']", "encoders.vision.kind=none"]
    config = build_config(TagConfig, apply_overrides(VALID, overrides), "x.yaml")
    assert (config.run.failure_budget, config.archive.exclude) == (1.0, ("a/**", "*.tmp"))
    assert config.encoders.vision.kind == "none"


@pytest.mark.parametrize(
    "text",
    ["a: 2026-01-01", "a: 2026-13-01", "2026-01-01: a", "a: !!binary YQ==", "a: &x [*x]", "a: " + "[" * 5000],
    ids=["date", "no date", "date as key", "binary", "endless", "deep"],
)
def test_what_yaml_has_and_settings_do_not(text: str) -> None:
    """Dates, bytes and circles are refused in one line, not with a traceback."""

    class Section(Config):
        a: str = ""

    with pytest.raises(ConfigError, match=r"^x\.yaml") as caught:
        build_config(Section, parse_yaml(text, "x.yaml"), "x.yaml")
    assert "\n" not in str(caught.value)
