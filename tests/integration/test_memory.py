"""A run over real media stays within the memory of a small machine."""

import pytest

from tests.support.media import Figures, MediaRun

pytestmark = [pytest.mark.integration, pytest.mark.media, pytest.mark.slow, pytest.mark.timeout(1800)]

LIMIT_BYTES = 6 << 30


def test_the_whole_job_fits_into_six_gigabytes(media_tagged: MediaRun, figures: Figures) -> None:
    """Driver, Ray, two workers with their decoding children together, at the worst moment."""
    sizes = media_tagged.peak.by_name or {}
    largest = sorted(sizes.items(), key=lambda item: -item[1])[:8]
    lines = [f"  {size / 2**20:6.0f} MiB  {name}" for name, size in largest]
    figures("\n".join([f"memory: {media_tagged.peak.bytes / 2**30:.2f} GiB at the peak", *lines]))
    assert any(name.startswith("ray::") for name in sizes), "the workers must be in the tree that was measured"
    assert media_tagged.peak.bytes < LIMIT_BYTES
