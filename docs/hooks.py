"""What MkDocs runs while it builds: reference pages from the code, and the quickstart from its notebook."""

import json
import sys
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parent))

from reference import ROOT, command_reference, config_reference, findings_reference

GENERATED = {
    "<!-- config reference -->": config_reference,
    "<!-- command reference -->": command_reference,
    "<!-- data findings -->": findings_reference,
}
NOTEBOOK = "<!-- notebook -->"


def on_page_markdown(markdown: str, **_: Any) -> str:
    """Fill in what is generated."""
    for marker, generate in GENERATED.items():
        if marker in markdown:
            markdown = markdown.replace(marker, generate())
    if NOTEBOOK in markdown:
        markdown = markdown.replace(NOTEBOOK, notebook_as_markdown(ROOT / "docs" / "quickstart.ipynb"))
    return markdown


def notebook_as_markdown(path: Path) -> str:
    """The cells of a notebook, with the outputs that are stored in it."""
    parts = []
    for cell in json.loads(path.read_text(encoding="utf-8"))["cells"]:
        source = "".join(cell["source"])
        if cell["cell_type"] == "markdown":
            parts.append(source)
            continue
        parts.append(f"```python\n{source}\n```")
        for output in cell["outputs"]:
            data = output.get("data", {})
            if "image/jpeg" in data:
                parts.append(f"![Output](data:image/jpeg;base64,{data['image/jpeg'].replace(chr(10), '')})")
            elif text := "".join(output.get("text", data.get("text/plain", []))).strip():
                parts.append(f"```text\n{text}\n```")
    return "\n\n".join(parts)
