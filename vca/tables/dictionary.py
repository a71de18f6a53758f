"""The data dictionary, made from the schemas: `python -m vca.tables.dictionary > docs/tables.md`."""

import sys
from collections.abc import Iterable

import pyarrow as pa

from vca.core.errors import CODES
from vca.core.schemas import FEATURES, TABLES, Status, TextSource
from vca.tables.manifest import CURRENT, FORMAT, manifest_path, table_file_path

_STATES = {
    Status.TAGGED: "decoded and tagged whole",
    Status.PARTIAL: "tagged as far as it could be decoded; `coverage_s` says how much",
    Status.UNCHANGED: "content, features, model and taxonomy are those of an earlier run: no new row",
    Status.QUARANTINED: "could not be tagged; `error_code` says why",
    Status.DEFERRED: "not reached (no `error_code`), or not readable this time; older tags stay, the next run tries",
    Status.GONE: "deleted from the archive",
}
assert set(_STATES) == set(Status)

_SOURCES = {
    TextSource.SUBTITLE: "an embedded subtitle stream",
    TextSource.SIDECAR: "a subtitle file beside the video",
    TextSource.CAPTION: "CEA-608/708 captions inside the picture data",
    TextSource.SPEECH: "somebody speaks here; the words are unknown (`text` is null)",
    TextSource.ASR: "words recognised from speech",
    TextSource.OCR: "words read from the picture",
}
assert set(_SOURCES) == set(TextSource)

_HEAD = f"""# Tables

Made from `vca/core/schemas.py` and `vca/core/errors.py` by `python -m vca.tables.dictionary > docs/tables.md`; do not
edit. How to ask questions: [querying.md](querying.md).

- Files are plain Parquet: `{table_file_path("<table>", "<run>", "part-NNNNN.parquet")}` below the output. `run_id` is
  also a column of every file, so read them without hive partitioning.
- `{CURRENT}` names the run in force, `{manifest_path("<run>")}` lists every live file with rows and bytes
  (format {FORMAT}). A file that it does not name is not published. After a rollback there are newer manifests than
  the one in force: follow the pointer, do not take the newest ([housekeeping.md](housekeeping.md)).
- A run adds rows only for videos that it touched, so a video can have rows of several runs. Its newest row counts:
  that of the largest `run_id`, where a row with status `deferred` counts only if there is no other. Rows of the other
  tables count if their `video_id` and `run_id` are those of the video's newest row. `vca query` and
  `vca.tables.query.connect` offer this as views with the names of the tables; `all_<table>` shows every live row.
- Times inside a video are seconds on its presentation clock, spans are half-open: `start_s` belongs to them, `end_s`
  does not. Dates are UTC.
- Null means unknown or not applicable. A column that cannot be null is marked.
"""

_FEATURES = """## Feature store

`features/<feature_set>/part-*.parquet` below the output, one row per segment of a video. It is not a published table:
parts of unfinished runs may lie here, and a video is complete when all `n_segments` are there. `feature_set.json`
beside the parts names encoders, dimensions and step. Times are microseconds.
"""


def data_dictionary() -> str:
    """Markdown: every table and column with type, nullability and meaning, then states, sources and error codes."""
    parts = [_HEAD]
    for table in TABLES.values():
        sorted_by = ", ".join(f"`{name}`" for name in table.sort_by)
        parts.append(f"## {table.name}\n\nA row is {table.row}. Rows of a run are sorted by {sorted_by}.\n")
        parts.append(_columns(table.schema))
    parts += [_FEATURES, _columns(FEATURES)]
    parts.append("## States\n\nEvery object of the archive ends a run in exactly one of them.\n")
    parts.append(_rows(("status", "meaning"), ((f"`{name}`", text) for name, text in _STATES.items())))
    parts.append("## Sources of text\n")
    parts.append(_rows(("source", "meaning"), ((f"`{name}`", text) for name, text in _SOURCES.items())))
    parts.append(
        "## Error codes\n\nThe codes never change their meaning. A transient error is tried again by the next\n"
        "runs, up to a limit; any other waits until the file changes.\n"
    )
    codes = ((f"`{code}`", info.meaning, "transient" if info.transient else "") for code, info in CODES.items())
    parts.append(_rows(("error_code", "meaning", ""), codes))
    return "\n".join(parts)


def _columns(schema: pa.Schema) -> str:
    rows = []
    for field in schema:
        description = (field.metadata or {}).get(b"description", b"").decode()
        rows.append((f"`{field.name}`", f"`{type_name(field.type)}`", "" if field.nullable else "never", description))
    return _rows(("column", "type", "null", "meaning"), rows)


def type_name(kind: pa.DataType) -> str:
    """A type as people write it: `list<struct<label: string, score: float32>>`."""
    if pa.types.is_list(kind):
        return f"list<{type_name(kind.value_type)}>"
    if pa.types.is_struct(kind):
        return "struct<" + ", ".join(f"{field.name}: {type_name(field.type)}" for field in kind) + ">"
    if pa.types.is_timestamp(kind):
        return f"timestamp[{kind.unit}, {kind.tz}]"
    plain = {"halffloat": "float16", "float": "float32", "double": "float64"}
    return plain.get(str(kind), str(kind))


def _rows(heads: tuple[str, ...], rows: Iterable[tuple[str, ...]]) -> str:
    lines = [heads, tuple("---" for _ in heads), *rows]
    return "".join("| " + " | ".join(cell.replace("|", "\\|") for cell in line) + " |\n" for line in lines)


if __name__ == "__main__":
    sys.stdout.write(data_dictionary())
