"""Every training of these tests is short, and most of it would be the optimisation of its graphs."""

import pytest


@pytest.fixture(autouse=True, scope="module")
def quick_start(quick_graphs):
    """Leave graphs as they are traced."""
