"""What the benchmark's tests share."""

import gc

import pytest


@pytest.fixture(autouse=True)
def _keep_imports_at_once():
    """The benchmark collects garbage in every case: 0.15 s with what earlier tests imported, most of a case's time."""
    gc.freeze()
