"""What the command line and `jobs/` call: errors become one line on stderr and an exit code."""

import logging
import os
import re
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

from vca.core.config import without_secrets
from vca.core.errors import VcaError
from vca.tables.manifest import OutputReader, open_output

EXIT_DEFECT = 3
EXIT_INTERRUPTED = 130


def run_tag(config_path: str, overrides: Sequence[str], dry: bool) -> int:
    """`vca tag` and `python -m jobs.tag`."""

    def work() -> int:
        from vca.pipelines import run
        from vca.pipelines.config import read_config

        config = read_config(config_path, overrides)
        if dry:
            _say(run.dry_run(config))
            return run.EXIT_OK
        return run.tag(config, say=_say)

    # The last resort is 3: code 1 would claim that the tables are published.
    return _guarded(work, "nothing published; the features decoded so far are kept")


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


def run_finetune(config_path: str, overrides: Sequence[str], dry: bool) -> int:
    """`vca finetune` and `python -m jobs.finetune`."""

    def work() -> int:
        from vca.pipelines.finetune import dry_run, finetune
        from vca.pipelines.finetune_config import read_finetune_config

        config = read_finetune_config(config_path, overrides)
        if dry:
            _say(dry_run(config))
            return 0
        return finetune(config, _say)

    return _guarded(work, "nothing registered; the checkpoints are kept, start it again to go on")


def run_evaluate(config_path: str, overrides: Sequence[str], dry: bool) -> int:
    """`vca evaluate` and `python -m jobs.evaluate`."""

    def work() -> int:
        from vca.pipelines.finetune import dry_run, evaluate_model
        from vca.pipelines.finetune_config import read_finetune_config

        config = read_finetune_config(config_path, overrides)
        if dry:
            _say(dry_run(config))
            return 0
        return evaluate_model(config, _say)

    return _guarded(work, "no report written")


def run_rollback(config_path: str, overrides: Sequence[str], output_uri: str | None, run_id: str) -> int:
    """`vca rollback`."""

    def work() -> int:
        from vca.pipelines.config import read_output_config
        from vca.pipelines.housekeeping import rollback

        return rollback(read_output_config(config_path, overrides, output_uri), run_id, _say)

    return _guarded(work, "`vca status` tells which run is in force")


def run_prune(config_path: str, overrides: Sequence[str], output_uri: str | None, dry: bool) -> int:
    """`vca prune`."""

    def work() -> int:
        from vca.pipelines.config import read_output_config, read_retention
        from vca.pipelines.housekeeping import prune

        retention = read_retention(config_path, overrides)
        return prune(read_output_config(config_path, overrides, output_uri), retention, dry, _say)

    return _guarded(work, "what is left goes with the next `vca prune`")


def make_demo(folder: str, seed: int, clips: int, annotations: str | None) -> int:
    """`vca demo`: the generated archive."""
    from vca.media.demo import make_demo_archive
    from vca.media.demo_labelled import labelled_clips, make_labelled_archive, write_annotations

    try:
        files = make_demo_archive(Path(folder), seed)
        if clips:
            files += make_labelled_archive(Path(folder), clips, seed)
            write_annotations(Path(annotations or f"{folder}.annotations.jsonl"), labelled_clips(clips, seed))
    except VcaError as error:
        return _fail(error)
    _say(f"{len(files)} files in {folder}")
    return 0


def _guarded(work: Callable[[], int], what_is_left: str) -> int:
    """Errors of a user as one line; a defect as a traceback and the code for "not published"."""
    _log_to_stderr()
    try:
        return work()
    except VcaError as error:
        return _fail(error)
    except KeyboardInterrupt:
        sys.stderr.write(f"vca: stopped; {what_is_left}\n")
        return EXIT_INTERRUPTED
    except Exception:  # the last resort
        logging.getLogger(__name__).exception("a defect of vca stopped the run; %s", what_is_left)
        return EXIT_DEFECT


def output_reader(config_path: str, overrides: Sequence[str], output_uri: str | None) -> OutputReader:
    """The published output that `--output` or the configuration names."""
    from vca.pipelines.config import read_output_config

    config = read_output_config(config_path, overrides, output_uri)
    return open_output(config.uri, config.storage)


def _fail(error: VcaError) -> int:
    sys.stderr.write(f"vca: {masked(str(error))}\n")
    return error.exit_code


def _say(line: str) -> None:
    sys.stdout.write(line + "\n")
    sys.stdout.flush()  # a job's log is followed while it runs


def _log_to_stderr() -> None:
    handler = logging.StreamHandler()
    handler.setFormatter(_MaskingFormatter("%(levelname)s %(name)s: %(message)s"))
    logging.basicConfig(level=logging.WARNING, handlers=[handler])


_SECRET_NAME = re.compile(r"SECRET|TOKEN|PASSW|CREDENTIAL|API_?KEY", re.IGNORECASE)
_SHORTEST_SECRET = 8  # shorter values, such as "true", are words of ordinary text


def masked(text: str) -> str:
    """The last look at what is printed: no passwords in addresses, no values of variables that hold secrets.

    Messages are made without them where they are made; this is for those of libraries, and for tracebacks.
    """
    for name, value in os.environ.items():
        if len(value) >= _SHORTEST_SECRET and _SECRET_NAME.search(name) and not name.endswith(("_PATH", "_FILE")):
            text = text.replace(value, "***")
    return without_secrets(text)


class _MaskingFormatter(logging.Formatter):
    def format(self, record: logging.LogRecord) -> str:
        return masked(super().format(record))
