"""Two nights over a small archive, as the fault tests tag it again and again."""

import shutil
from pathlib import Path

from tests.support.runs import LIGHT

SETTINGS = (
    *LIGHT,  # with one worker a stage, so that what is stored when is the same in every run
    "sampling.segment_s=120",  # one round of workers a night; more segments are test_crash_sweep.py's own matter
    # A part after every segment and a line after every video: the points of a run follow each other closely.
    "run.flush_s=0.001",
    "run.progress_s=0.001",
)
FIRST = {
    "school/lesson-07.mp4": "school/lesson-07.mp4",
    "school/lesson-07.en.srt": "school/lesson-07.en.srt",
    "news/2026-03-01/weather.mkv": "news/2026-03-01/weather.mkv",
    "film/silent-1925.avi": "film/silent-1925.avi",
    "damaged/notes.mp4": "damaged/notes.mp4",
}
"""Key in the archive: file of the demo. Three good videos, a text beside one, and one that is no media."""
SECOND = {
    "school/lesson-07.mp4": "school/lesson-07.mp4",
    "school/lesson-07.en.srt": "school/lesson-07.en.srt",
    "film/silent-1925.avi": "kitchen/onion-soup.webm",
    "film/silent-1925.en.ass": "kitchen/onion-soup.en.ass",
    "news/2026-03-01/evening-news.mp4": "news/2026-03-01/evening-news.mp4",
    "news/2026-03-01/evening-news.srt": "news/2026-03-01/evening-news.srt",
    "damaged/lost-index.mp4": "damaged/lost-index.mp4",
    "damaged/notes.mp4": "damaged/notes.mp4",
}
"""A night later: one is gone, one has other content, two are new, one of which is broken."""


def make_archive(demo: Path, folder: Path, files: dict[str, str]) -> Path:
    for key, name in files.items():
        (folder / key).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy2(demo / name, folder / key)
    return folder
