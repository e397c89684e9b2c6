"""What is measured here are tiny models, and no time is compared."""

import pytest


@pytest.fixture(autouse=True, scope="module")
def quick_start(quick_graphs):
    """Leave graphs as they are traced."""
