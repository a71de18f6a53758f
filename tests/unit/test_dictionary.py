from pathlib import Path

from vca.core.errors import ErrorCode
from vca.core.schemas import FEATURES, TABLES, Status
from vca.tables.dictionary import data_dictionary


def test_the_page_is_up_to_date(repository: Path) -> None:
    """docs/tables.md is made, not written: a schema change without it fails here."""
    page = (repository / "docs/tables.md").read_text(encoding="utf-8")
    assert page == data_dictionary(), "run: python -m vca.tables.dictionary > docs/tables.md"


def test_everything_is_there() -> None:
    """Every table, column, state and error code of the contracts has a line with a meaning."""
    page = data_dictionary()
    for table in TABLES.values():
        section = page.split(f"## {table.name}\n")[1].split("\n## ")[0]
        for field in table.schema:
            line = next(line for line in section.splitlines() if line.startswith(f"| `{field.name}` |"))
            cells = [cell.strip() for cell in line.strip("|").split(" | ")]
            assert len(cells) == 4
            assert cells[2] == ("" if field.nullable else "never")
            assert cells[3], field.name
    for name in (*FEATURES.names, *ErrorCode, *Status):
        assert f"| `{name}` |" in page


def test_types_as_people_write_them() -> None:
    """Arrow's inner names (halffloat, element, not null) do not reach the page."""
    page = data_dictionary()
    assert "`list<struct<label: string, score: float32>>`" in page
    assert "`list<list<float16>>`" in page
    assert "`timestamp[us, UTC]`" in page
    assert "element" not in page
    assert "halffloat" not in page
