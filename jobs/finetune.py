"""Fine-tuning: `ray job submit --working-dir . -- python -m jobs.finetune --config configs/finetune.yaml`."""

import argparse
import sys

from vca.pipelines.door import run_finetune


def main() -> int:
    parser = argparse.ArgumentParser(prog="jobs.finetune", description=__doc__)
    parser.add_argument("--config", default="configs/finetune.yaml", help="YAML file with the configuration")
    parser.add_argument("--set", dest="overrides", action="append", default=[], metavar="A.B=VALUE")
    parser.add_argument("--dry-run", action="store_true", help="print the resolved configuration and the material")
    arguments = parser.parse_args()
    return run_finetune(arguments.config, arguments.overrides, arguments.dry_run)


if __name__ == "__main__":
    sys.exit(main())
