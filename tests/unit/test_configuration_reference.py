"""docs/configuration.md says what the configuration classes do."""

import re
from pathlib import Path

import pytest
from pydantic import Field

from vca.core.config import Config, build_config, parse_yaml
from vca.pipelines.config import TagConfig
from vca.pipelines.finetune_config import FinetuneConfig
from vca.pipelines.reference import configuration_reference, section_class, sections, type_name

EXAMPLES = re.findall(r"^### (.+?)$.*?^```yaml\n(.*?)^```$", configuration_reference(), re.M | re.S)


def test_the_page_is_up_to_date(repository: Path) -> None:
    """docs/configuration.md is made, not written: a new or changed setting without it fails here."""
    page = (repository / "docs/configuration.md").read_text(encoding="utf-8")
    assert page == configuration_reference(), "run: python -m vca.pipelines.reference > docs/configuration.md"


def test_every_setting_has_a_meaning() -> None:
    """A setting that nobody explains is a setting that nobody can use."""
    assert len(sections()) > 15
    missing = [
        f"{section.model.__name__}.{name}"
        for section in [*sections(), *sections(FinetuneConfig)]
        for name, info in section.model.model_fields.items()
        if not info.description
    ]
    assert missing == []


def test_every_path_of_the_resolved_configuration_is_on_the_page() -> None:
    """What `--dry-run` prints can be looked up, section by section and key by key."""
    page = configuration_reference()
    config = TagConfig.model_validate({"archive": {"uri": "a"}, "output": {"uri": "b"}}).model_dump(mode="json")

    def check(values: dict[str, object], path: str) -> None:
        heading = f"`{path}`" if path else "Top level"
        section = next(part for part in page.split("\n### ")[1:] if heading in part.splitlines()[0])
        for key, value in values.items():
            assert f"\n| `{key}` | " in section, f"{path}.{key}"
            if isinstance(value, dict) and key not in ("thresholds", "activitynet_subsets"):
                check(value, f"{path}.{key}".removeprefix("."))

    check(config, "")
    files = {"annotations": {"files": ["a.jsonl"]}, "output": {"uri": "b"}}
    finetuning = FinetuneConfig.model_validate(files).model_dump(mode="json")
    del finetuning["annotations"]["storage"]  # that of archive and output
    for name in ("train", "fusion", "registry", "evaluation", "annotations"):
        check(finetuning[name], name)


def test_table_rows_have_five_cells() -> None:
    """A bar in a default or a meaning must not shift the cells."""
    rows = [line for line in configuration_reference().split("## All settings")[1].splitlines() if line.startswith("|")]
    assert {len(re.split(r"(?<!\\)\|", row)) - 2 for row in rows} == {5}


@pytest.mark.parametrize(("title", "text"), EXAMPLES, ids=[title for title, _ in EXAMPLES])
def test_examples_are_valid(title: str, text: str) -> None:
    """What people copy is accepted by the real classes; nothing is loaded or downloaded."""
    config = build_config(TagConfig, parse_yaml(text, title), title)
    assert config.archive.uri != config.output.uri


def test_the_three_examples_are_there() -> None:
    """The pattern above must not pass on nothing."""
    assert [title for title, _ in EXAMPLES] == [
        "A laptop",
        "S3 by MinIO",
        "A cluster with GPUs and large encoders",
    ]


def test_types_and_sections() -> None:
    """Types read as in YAML; a section is told from a value."""

    class Inner(Config):
        n: int = 1

    class Outer(Config):
        inner: Inner = Inner()
        rate: float | None = Field(None, gt=0)

    assert section_class(Outer.model_fields["inner"]) is Inner
    assert section_class(Outer.model_fields["rate"]) is None
    assert type_name(Outer.model_fields["rate"].annotation) == "number or null"
    assert type_name(tuple[str, ...]) == "list of text"
    assert type_name(dict[str, float]) == "map of text to number"
