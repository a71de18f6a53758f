"""The threat model names the tests that show what it says; they must be there."""

import re
from pathlib import Path
from typing import get_args

from vca.media.confinement import MEASURES
from vca.media.decode_config import DecodeConfig


def test_the_page_follows_the_code(repository: Path) -> None:
    """Test files, the line that a run says, and the choices of `decode.isolation` are those of the code."""
    page = (repository / "docs" / "security.md").read_text(encoding="utf-8")
    named = set(re.findall(r"`(test_\w+\.py)`", page))
    there = {path.name for path in (repository / "tests").rglob("test_*.py")}
    assert len(named) > 10
    assert named <= there, named - there
    assert f"decoding   no {', no '.join(MEASURES)}\n" in page
    for choice in get_args(DecodeConfig.model_fields["isolation"].annotation):
        assert f"`{choice}`" in page or f"isolation: {choice}`" in page, choice
