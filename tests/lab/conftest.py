"""What the laboratory's tests share."""

import pytest

from rmsnorm_lab.experiments import norms


@pytest.fixture(autouse=True)
def _own_registry(monkeypatch):
    """A normaliser that a test registers is gone afterwards."""
    monkeypatch.setattr(norms, "REGISTRY", dict(norms.REGISTRY))
