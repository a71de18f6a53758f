"""Marking tests that need a GPU."""

from collections.abc import Callable
from typing import Any, TypeVar

import pytest
import torch

Test = TypeVar("Test", bound=Callable[..., Any])


def requires_gpu(test: Test) -> Test:
    """The marker `gpu`, and a skip with its reason where there is none: one without the other would lie."""
    reason = f"needs a CUDA GPU: torch {torch.__version__} sees none here"
    marked: Test = pytest.mark.gpu(pytest.mark.skipif(not torch.cuda.is_available(), reason=reason)(test))
    return marked
