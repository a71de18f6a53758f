"""`python -m benchmarks [NAME ...]`: measure and print; `docs/performance.md` tells how to read the figures."""

import argparse
import sys
import traceback
from importlib import import_module
from pathlib import Path

from benchmarks.harness import RESULTS, Report, Settings

NAMES = ("start", "plan", "publish", "floor", "keyframes", "long_video", "retag", "peers", "train", "scale_out")
"""Modules of this package with a function `measure(settings) -> list[Report]`."""


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description="Measure vca on this machine.")
    parser.add_argument("names", nargs="*", metavar="NAME", help=f"one or more of {', '.join(NAMES)}; all if left out")
    parser.add_argument("--rounds", type=int, default=3, help="rounds through both sides of each comparison")
    parser.add_argument("--small", action="store_true", help="tiny sizes, to try the programs; nothing is kept")
    parser.add_argument("--work", type=Path, default=Path(".bench"), help="folder for generated archives")
    parser.add_argument("--results", type=Path, default=RESULTS, help="folder for the figures as JSON")
    options = parser.parse_args()
    unknown = set(options.names) - set(NAMES)
    if unknown:
        parser.error(f"no benchmark {', '.join(sorted(unknown))}; there are {', '.join(NAMES)}")
    settings = Settings(options.work.absolute(), max(1, options.rounds), options.small)
    failed = []
    for name in options.names or NAMES:
        try:
            reports: list[Report] = import_module(f"benchmarks.{name}").measure(settings)
        except Exception:  # noqa: BLE001  one that fails must not cost the figures of the others
            traceback.print_exc()
            failed.append(name)
            continue
        for report in reports:
            print(report.text(judged=not settings.small), end="\n\n", flush=True)
            if not settings.small:
                report.save(options.results, settings)
    if failed:
        print(f"failed: {', '.join(failed)}", file=sys.stderr)
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
