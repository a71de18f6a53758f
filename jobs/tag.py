"""Nightly tagging: `ray job submit --working-dir . -- python -m jobs.tag --config configs/nightly.yaml`."""

import argparse
import sys

from vca.pipelines.door import run_tag


def main() -> int:
    parser = argparse.ArgumentParser(prog="jobs.tag", description=__doc__)
    parser.add_argument("--config", default="configs/nightly.yaml", help="YAML file with the configuration")
    parser.add_argument("--set", dest="overrides", action="append", default=[], metavar="A.B=VALUE")
    parser.add_argument("--dry-run", action="store_true", help="print the resolved configuration and the plan")
    arguments = parser.parse_args()
    return run_tag(arguments.config, arguments.overrides, arguments.dry_run)


if __name__ == "__main__":
    sys.exit(main())
