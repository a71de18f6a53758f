"""How a worker process ends."""

import subprocess
import sys

ENDS = """
import ctypes, sys
from vca.pipelines.workers import that_ends

class Stage:
    def __init__(self, word):
        print(word, end="")

libc = ctypes.CDLL(None)
libc.__cxa_atexit(libc.pause, None, None)
that_ends(Stage)("made")
sys.exit(0)
"""


def test_a_worker_ends_where_the_end_of_its_libraries_hangs() -> None:
    """Ray's own objects wait for each other at the end of a process, once in a few runs: here something always does."""
    done = subprocess.run([sys.executable, "-c", ENDS], stdout=subprocess.PIPE, text=True, timeout=60, check=True)
    assert done.stdout == "made", "what was written is not lost"
