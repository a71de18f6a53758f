"""What the command line and `jobs/` call: errors become one line on stderr and an exit code."""

import logging
import sys
from collections.abc import Sequence
from pathlib import Path

from vca.core.config import apply_overrides, parse_yaml
from vca.core.errors import ConfigError, VcaError
from vca.tables.manifest import OutputReader, open_output

EXIT_INTERRUPTED = 130


def run_tag(config_path: str, overrides: Sequence[str], dry: bool) -> int:
    """`vca tag` and `python -m jobs.tag`."""
    from vca.pipelines import run
    from vca.pipelines.config import read_config

    _log_to_stderr()
    try:
        config = read_config(config_path, overrides)
        if dry:
            _say(run.dry_run(config))
            return run.EXIT_OK
        return run.tag(config, say=_say)
    except VcaError as error:
        return _fail(error)
    except KeyboardInterrupt:
        sys.stderr.write("vca: stopped; nothing published, the features decoded so far are kept\n")
        return EXIT_INTERRUPTED
    except Exception:  # the last resort: code 1 would claim that the tables are published
        logging.getLogger(__name__).exception("a defect of vca stopped the run; nothing published")
        return run.EXIT_NOT_PUBLISHED


def run_plan(config_path: str, overrides: Sequence[str]) -> int:
    """`vca plan`."""
    from vca.pipelines import run
    from vca.pipelines.config import read_config

    _log_to_stderr()
    try:
        _say(run.plan_only(read_config(config_path, overrides)))
    except VcaError as error:
        return _fail(error)
    return run.EXIT_OK


def make_demo(folder: str, seed: int) -> int:
    """`vca demo`: the generated archive."""
    from vca.media.demo import make_demo_archive

    try:
        files = make_demo_archive(Path(folder), seed)
    except VcaError as error:
        return _fail(error)
    _say(f"{len(files)} files in {folder}")
    return 0


def output_reader(config_path: str, overrides: Sequence[str], output_uri: str | None) -> OutputReader:
    """The published output that `--output` or the configuration names.

    Reads only the `output` section: looking at tables must not need the models to be importable.
    """
    from vca.core.config import build_config
    from vca.media.output import OutputConfig
    from vca.pipelines.config import read_text

    values = {} if output_uri and not overrides else parse_yaml(read_text(config_path, "--config"), config_path)
    section = apply_overrides(values, overrides).get("output") or {}
    if not isinstance(section, dict):
        raise ConfigError(f"{config_path}: output must be a section with a uri")
    if output_uri:
        section = section | {"uri": output_uri}
    config = build_config(OutputConfig, section, f"{config_path}: output")
    return open_output(config.uri, config.storage)


def _fail(error: VcaError) -> int:
    sys.stderr.write(f"vca: {error}\n")
    return error.exit_code


def _say(line: str) -> None:
    sys.stdout.write(line + "\n")
    sys.stdout.flush()  # a job's log is followed while it runs


def _log_to_stderr() -> None:
    logging.basicConfig(level=logging.WARNING, format="%(levelname)s %(name)s: %(message)s")
