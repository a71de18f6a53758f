"""docs/querying.md is run as written: every snippet, on a local output and on S3, with one set of answers."""

import json
import os
import re
import shlex
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd
import polars as pl
import pytest
from typer.testing import CliRunner

from tests.support.s3 import environment, s3_server
from tests.support.tables import LATE, RUN_IDS, make_output
from vca.cli import app
from vca.core.storage import StorageConfig
from vca.tables.manifest import open_output
from vca.tables.query import query, status

LOCAL, S3 = "./output", "s3://my-bucket/vca"
QUESTIONS = {
    "Which videos are about sports?": "sports",
    "Where are goals, who takes part, in the first ten minutes?": "goals",
    "What failed last night, and why?": "failed",
    "How did the shares of the categories change between runs?": "shares",
    'Who says "onions", and when?': "lines",
}


@dataclass(frozen=True)
class Block:
    heading: str
    language: str
    code: str


def blocks(page: str) -> list[Block]:
    found = []
    heading = ""
    for match in re.finditer(r"^#+ (?P<heading>[^\n]+)$|^```(?P<language>\w+)\n(?P<code>.*?)^```$", page, re.M | re.S):
        heading = match["heading"] or heading
        if match["code"] is not None:
            found.append(Block(heading, match["language"], match["code"]))
    return found


@dataclass(frozen=True)
class Run:
    """What the page's snippets gave: the namespace, frames by question, and rows of the command line by question."""

    output: str
    page: list[Block]
    names: dict[str, Any]
    frames: dict[str, list[Any]]
    rows: dict[str, list[dict[str, Any]]]
    sql: dict[str, str]


def run_page(text: str, output: str) -> Run:
    page = blocks(text.replace(LOCAL, output))
    names: dict[str, Any] = {}
    result = Run(output, page, names, {}, {}, {})
    for block in page:
        if block.language == "python":
            exec(compile(block.code, f"querying.md: {block.heading}", "exec"), names)
            if block.heading in QUESTIONS:
                result.frames.setdefault(block.heading, []).append(names[QUESTIONS[block.heading]])
        elif block.language == "sh":
            for words in commands(block.code):
                assert words[0] == "vca"
                machine = []
                if block.heading in QUESTIONS:
                    result.sql[block.heading] = words[-1]
                    machine = ["--format", "json"]
                done = CliRunner().invoke(app, [*words[1:], *machine])
                assert done.exit_code == 0, done.output
                if block.heading in QUESTIONS:
                    result.rows[block.heading] = [json.loads(line) for line in done.output.splitlines()]
                else:
                    assert done.output.strip()
        else:
            assert block.language == "sql"
    return result


def commands(code: str) -> list[list[str]]:
    """The commands of a shell block, split as a shell does."""
    words = shlex.split(code)
    starts = [n for n, word in enumerate(words) if word == "vca"]
    return [words[start:end] for start, end in zip(starts, [*starts[1:], len(words)], strict=True)]


@pytest.fixture(scope="module", params=["local", "s3"])
def run(request: pytest.FixtureRequest, repository: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Run]:
    folder = tmp_path_factory.mktemp("analyst")
    make_output(folder / "output")
    text = (repository / "docs/querying.md").read_text(encoding="utf-8")
    before = Path.cwd()
    os.chdir(folder)
    try:
        if request.param == "local":
            yield run_page(text, LOCAL)
            return
        with s3_server("my-bucket") as server:
            server.upload_folder(folder / "output", "my-bucket", "vca")
            with environment({"AWS_ENDPOINT_URL": server.endpoint_url, "AWS_ALLOW_HTTP": "true"}):
                yield run_page(text, S3)
    finally:
        os.chdir(before)


def plain(frame: Any) -> list[dict[str, Any]]:
    """Rows of a pandas or polars frame with Python values and rounded numbers."""
    if isinstance(frame, pd.DataFrame):
        frame = pl.from_pandas(frame)
    return [
        {name: round(value, 3) if isinstance(value, float) else value for name, value in row.items()}
        for row in frame.to_dicts()
    ]


@pytest.mark.integration
@pytest.mark.parametrize("question", QUESTIONS)
def test_all_ways_agree(run: Run, question: str) -> None:
    """`vca query`, both DuckDB connections, pandas and polars give the same answer, and it is not empty."""
    rows = run.rows[question]
    assert rows
    for connection in (run.names["con"], run.names["duck"]):
        assert plain(connection.sql(run.sql[question]).pl()) == plain(pl.DataFrame(rows))
    pandas, polars = run.frames[question]
    assert isinstance(pandas, pd.DataFrame)
    assert isinstance(polars, pl.DataFrame)
    if QUESTIONS[question] == "shares":
        shares = {(row["label"], row["run_id"]): row["share"] for row in rows}
        assert {(row["label"], row["run_id"]): row["share"] for row in plain(polars)} == shares
        assert {(label, night): round(pandas.loc[label, night], 3) for label, night in shares} == shares
        assert len({night for _, night in shares}) == 3
        return
    shared = [name for name in rows[0] if name in pandas.columns and name in polars.columns]
    assert "key" in shared
    expected = [{name: row[name] for name in shared} for row in plain(pl.DataFrame(rows))]
    assert [{name: row[name] for name in shared} for row in plain(pandas)] == expected
    assert [{name: row[name] for name in shared} for row in plain(polars)] == expected


@pytest.mark.integration
def test_answers_are_the_right_ones(run: Run) -> None:
    """The questions find what was planted: only sports, only stadiums, last night's failure, the line with onions."""
    assert {row["key"].split("/")[1] for row in run.rows["Which videos are about sports?"]} >= {"sports"}
    goals = run.rows["Where are goals, who takes part, in the first ten minutes?"]
    assert {row["place"] for row in goals} == {"stadium"}
    assert all("athlete" in row["who"] and row["start_s"] < 600 for row in goals)
    assert [row["key"] for row in run.rows["What failed last night, and why?"]] == list(LATE)
    for row in run.rows['Who says "onions", and when?']:
        assert row["text"] == "Chop the onions finely."
        assert row["at"] == "00:00:01"


@pytest.mark.integration
def test_newest_rows_by_hand(run: Run) -> None:
    """The rule in SQL on the page is the rule of the views, `gone` aside; so are those in pandas and polars."""
    by_hand = next(block.code for block in run.page if block.language == "sql")
    expected = set(run.names["con"].sql("SELECT video_id, run_id FROM videos").pl().rows())
    for connection in (run.names["con"], run.names["duck"]):
        rows = connection.sql(by_hand).pl().filter(pl.col("status") != "gone")
        assert set(rows.select("video_id", "run_id").rows()) == expected
    assert set(run.names["videos"][["video_id", "run_id"]].itertuples(index=False, name=None)) == expected
    assert set(run.names["newest"].collect().rows()) == expected
    for name in ("event_spans", "video_categories", "transcripts"):
        ((count,),) = run.names["con"].sql(f"SELECT count(*) FROM {name}").fetchall()
        assert len(run.names["newest_pandas"](name)) == count
        assert len(run.names["newest_polars"](name).collect()) == count


@pytest.mark.integration
def test_s3_output_costs_few_requests(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Opening an output and one query: the manifest, then one request for each small file that the query needs."""
    from s3fs import S3FileSystem

    make_output(tmp_path)
    called: list[str] = []
    call = S3FileSystem._call_s3

    async def counted(self: Any, method: str, *args: Any, **kwargs: Any) -> Any:
        called.append(f"{method} {kwargs.get('Key')}")
        return await call(self, method, *args, **kwargs)

    with s3_server("my-bucket") as server:
        server.upload_folder(tmp_path, "my-bucket", "it's [odd]/vca")
        monkeypatch.setattr(S3FileSystem, "_call_s3", counted)
        reader = open_output("s3://my-bucket/it's [odd]/vca", StorageConfig(endpoint_url=server.endpoint_url))
        assert query(reader, "SELECT count(*) AS n FROM all_runs").to_pylist() == [{"n": len(RUN_IDS)}]
        tables = [name for name in called if "/tables/" in name]
        assert all(name.startswith("get_object ") for name in tables)
        # One file of each table for its columns, then the files of the one table: each once.
        assert len(tables) <= 9 + len(RUN_IDS)
        assert "quarantine     4" in status(reader)
        assert reader.runs() == RUN_IDS
