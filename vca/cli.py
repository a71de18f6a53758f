"""`vca`: the doors on a laptop. Every command loads only what it needs, so that `vca --help` answers at once."""

import sys
from collections.abc import Callable
from enum import StrEnum
from typing import Annotated

import typer

app = typer.Typer(
    add_completion=False,
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    help="Tag video archives: pictures, sound and text in, Parquet tables of categories and events out.",
)

features = typer.Typer(no_args_is_help=True, help="Feature sets.")
app.add_typer(features, name="features")

ConfigPath = Annotated[str, typer.Option("--config", help="YAML file with the configuration.")]
Overrides = Annotated[list[str] | None, typer.Option("--set", metavar="A.B=VALUE", help="Override one setting.")]
OutputUri = Annotated[str | None, typer.Option("--output", help="Output to read; default: that of the configuration.")]

DryRun = Annotated[bool, typer.Option("--dry-run", help="Print the resolved configuration and what would be done.")]

Retry = Annotated[
    list[str] | None, typer.Option("--retry", metavar="CODE", help="Try quarantined files with this error code again.")
]

DEFAULT_CONFIG = "configs/local.yaml"
FINETUNE_CONFIG = "configs/finetune.yaml"


class Style(StrEnum):
    TEXT = "text"
    CSV = "csv"
    JSON = "json"


@app.command()
def tag(
    config: ConfigPath = DEFAULT_CONFIG,
    overrides: Overrides = None,
    dry_run: DryRun = False,
    retry: Retry = None,
) -> None:
    """Tag what is new or changed in an archive and publish the tables."""
    from vca.pipelines.door import run_tag

    raise typer.Exit(run_tag(config, _with_retry(overrides, retry), dry_run))


@app.command()
def plan(config: ConfigPath = DEFAULT_CONFIG, overrides: Overrides = None, retry: Retry = None) -> None:
    """Say what `vca tag` would do. Writes nothing."""
    from vca.pipelines.door import run_plan

    raise typer.Exit(run_plan(config, _with_retry(overrides, retry)))


@app.command()
def finetune(config: ConfigPath = FINETUNE_CONFIG, overrides: Overrides = None, dry_run: DryRun = False) -> None:
    """Train a fusion model on stored features and annotations, evaluate and register it."""
    from vca.pipelines.door import run_finetune

    raise typer.Exit(run_finetune(config, overrides or [], dry_run))


@app.command()
def evaluate(config: ConfigPath = FINETUNE_CONFIG, overrides: Overrides = None, dry_run: DryRun = False) -> None:
    """Judge a trained model on the test split, beside zero-shot and a linear probe."""
    from vca.pipelines.door import run_evaluate

    raise typer.Exit(run_evaluate(config, overrides or [], dry_run))


@features.command("import")
def import_features(
    sources: Annotated[list[str], typer.Argument(help="Folders or files: .npz, .parquet.")],
    name: Annotated[str, typer.Option(help="Name of what made the features; part of the set's identity.")],
    description: Annotated[str, typer.Option(help="A line about where they come from.")] = "",
    step_ms: Annotated[int | None, typer.Option(min=1, help="Step of the grid; default: that of the files.")] = None,
    max_file_mb: Annotated[int, typer.Option(min=1, help="Largest .npz, unpacked, or video of a Parquet file.")] = 1024,
    config: ConfigPath = DEFAULT_CONFIG,
    overrides: Overrides = None,
    output: OutputUri = None,
) -> None:
    """Bring features that somebody else computed into an output, as a feature set of their own."""
    from vca.pipelines.foreign import run_import

    settings: dict[str, object] = {"name": name, "description": description}
    settings |= {"step_ms": step_ms, "max_file_mb": max_file_mb}
    raise typer.Exit(run_import(config, overrides or [], output, sources, settings))


@app.command()
def query(
    sql: Annotated[str, typer.Argument(help="One SQL statement over the newest rows, for example: FROM videos")],
    config: ConfigPath = DEFAULT_CONFIG,
    overrides: Overrides = None,
    output: OutputUri = None,
    style: Annotated[Style, typer.Option("--format", help="How to print the rows.")] = Style.TEXT,
    limit: Annotated[int | None, typer.Option(min=1, help="Rows to show; default: all.")] = None,
) -> None:
    """Query the published tables with DuckDB."""
    from vca.pipelines.door import output_reader
    from vca.tables import query as tables_query

    def show() -> str:
        reader = output_reader(config, overrides or [], output)
        return tables_query.format_table(tables_query.query(reader, sql), limit, style.value)

    _print_or_fail(show)


@app.command()
def status(config: ConfigPath = DEFAULT_CONFIG, overrides: Overrides = None, output: OutputUri = None) -> None:
    """Show the last run, the state of the videos and what waits in quarantine."""
    from vca.pipelines.door import output_reader
    from vca.tables import query as tables_query

    _print_or_fail(lambda: tables_query.status(output_reader(config, overrides or [], output)))


@app.command()
def rollback(
    run: Annotated[str, typer.Argument(help="Run to put into force, older or newer; `vca status` lists them.")],
    config: ConfigPath = DEFAULT_CONFIG,
    overrides: Overrides = None,
    output: OutputUri = None,
) -> None:
    """Put a published run into force: readers see the tables as they were after it."""
    from vca.pipelines.door import run_rollback

    raise typer.Exit(run_rollback(config, overrides or [], output, run))


@app.command()
def prune(
    config: ConfigPath = DEFAULT_CONFIG,
    overrides: Overrides = None,
    output: OutputUri = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Print what would go; delete nothing.")] = False,
) -> None:
    """Delete what no kept run needs; `retention` in the configuration says how much stays."""
    from vca.pipelines.door import run_prune

    raise typer.Exit(run_prune(config, overrides or [], output, dry_run))


@app.command()
def verify(config: ConfigPath = DEFAULT_CONFIG, overrides: Overrides = None, output: OutputUri = None) -> None:
    """Re-read an output and check that it is whole. Exit code 1 if it is not."""
    from vca.core.errors import VcaError
    from vca.pipelines.door import masked, output_reader
    from vca.tables.verify import verify as verify_output

    try:
        whole = verify_output(output_reader(config, overrides or [], output), typer.echo)
    except VcaError as error:
        typer.echo(f"vca: {masked(str(error))}", err=True)
        raise typer.Exit(error.exit_code) from error
    raise typer.Exit(0 if whole else 1)


@app.command()
def demo(
    archive: Annotated[str, typer.Option("--archive", help="Folder for the generated archive.")] = "demo/archive",
    seed: Annotated[int, typer.Option(help="Same seed, same archive.")] = 0,
    clips: Annotated[int, typer.Option(min=0, help="Labelled clips besides, to fine-tune on; 0 for none.")] = 0,
    annotations: Annotated[str | None, typer.Option(help="File for their labels; default: beside the archive.")] = None,
) -> None:
    """Generate a small archive of short videos with sound, subtitles and a few broken files."""
    from vca.pipelines.door import make_demo

    raise typer.Exit(make_demo(archive, seed, clips, annotations))


def _with_retry(overrides: list[str] | None, codes: list[str] | None) -> list[str]:
    return [*(overrides or []), *([f"run.retry=[{', '.join(codes)}]"] if codes else [])]


def _print_or_fail(make: Callable[[], str]) -> None:
    from vca.core.errors import VcaError
    from vca.pipelines.door import masked

    try:
        typer.echo(make())
    except VcaError as error:
        typer.echo(f"vca: {masked(str(error))}", err=True)
        raise typer.Exit(error.exit_code) from error


if __name__ == "__main__":
    sys.exit(app())
