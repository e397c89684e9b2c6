"""The documentation's own code, which is no package, and the code that its pages show."""

import re
import sys
from pathlib import Path

import pytest

DOCS = Path(__file__).resolve().parents[2] / "docs"
sys.path.insert(0, str(DOCS))


@pytest.fixture
def python_blocks():
    """Return a function that gives the Python blocks of a page in their order."""

    def read(page):
        return re.findall(r"^```python\n(.*?)^```", (DOCS / page).read_text(), re.MULTILINE | re.DOTALL)

    return read
