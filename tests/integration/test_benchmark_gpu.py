"""The GPU benchmark runs on any machine with tiny models."""

import json
from pathlib import Path

import pytest

from benchmarks import gpu

pytestmark = pytest.mark.integration


def test_tiny_models(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Every part gives figures, and no utilisation where the peak of the machine is not known."""
    out = tmp_path / "gpu.json"
    gpu.main(["--tiny", "--rounds", "2", "--device", "cpu", "--out", str(out)])
    report = json.loads(out.read_text())
    assert report["machine"]["device"] == "cpu"
    for part, unit in (("vision", "frames"), ("audio", "windows")):
        rates, shares = report[part][f"{unit}_per_s"], report[part]["share_of_ceiling"]
        assert set(rates) == {"ceiling", *shares}
        assert len(shares) >= 2
        assert min(*rates.values(), *shares.values()) > 0
        assert not report[part]["halved"]
    rows = report["fusion"]
    kinds = [(t, p, n) for t in ("lora", "full") for n in gpu.TINY.tokens for p in ("bfloat16", "float32")]
    assert [(row["tune"], row["precision"], row["window_tokens"]) for row in rows] == kinds
    for row in rows:
        assert row["tokens_per_s"] > 0
        assert row["flops_per_step"] > 0
        assert row["mfu"] is None
        assert not row["halved"]
    printed = capsys.readouterr().out
    assert "of the ceiling" in printed
    assert "tokens/s" in printed
    assert "MFU" not in printed
