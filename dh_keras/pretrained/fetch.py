"""A published checkpoint as a run folder: downloaded once into Keras' cache, checked, converted."""

import difflib
import os
from pathlib import Path

from dh_keras.errors import DataError
from dh_keras.files import require_new_folder
from dh_keras.paths import to_path
from dh_keras.pretrained.download import download, require_hash
from dh_keras.pretrained.importer import import_checkpoint
from dh_keras.pretrained.published import PUBLISHED
from dh_keras.run.run_folder import is_run_folder


def cache_folder() -> Path:
    """The folder of this package in Keras' cache."""
    return Path(os.environ.get("KERAS_HOME") or "~/.keras").expanduser() / "dh_keras"


def fetch(name: str, output: str | Path | None = None) -> Path:
    """Make a run folder of a published checkpoint.

    Args:
        name: a key of `PUBLISHED`.
        output: the run folder to make; None makes it once in Keras' cache.

    Returns:
        The run folder.

    Raises:
        DataError: when there is no such name, the file cannot be had or is not the published one, or output exists.
    """
    run = cache_folder() / name if output is None else to_path(output)
    if output is not None:
        require_new_folder(run)  # before the download
    elif name in PUBLISHED and is_run_folder(run):
        return run
    file = _checkpoint(name)
    try:
        _, imported = import_checkpoint(file, run)
        print(imported.summary())
    except DataError:
        if output is not None or not is_run_folder(run):  # another process may have been faster
            raise
    return run


def published_run(path: str | Path) -> str | Path:
    """Return the path of a run; where nothing is there and it is the name of a published one, fetch that."""
    return fetch(str(path)) if str(path) in PUBLISHED and not os.path.lexists(path) else path


def _checkpoint(name: str) -> Path:
    """Return the file of a published checkpoint, downloading it if it is not there."""
    if name not in PUBLISHED:
        near = difflib.get_close_matches(name, PUBLISHED, n=1)
        advice = f"did you mean {near[0]}?" if near else f"there are {', '.join(PUBLISHED)}"
        raise DataError(f"there are no published weights {name!r}; {advice}")
    published = PUBLISHED[name]
    path = cache_folder() / "downloads" / name / published.file
    if path.is_file():
        advice = "remove it, and it is downloaded again"
        require_hash(path, published.sha256, source=path, advice=advice)
    elif published.address is None:
        raise DataError(
            f"{name}: its owner offers no direct link; download it from {published.page}, and put it at {path}"
        )
    else:
        print(f"downloading {published.address}")
        download(published.address, path, sha256=published.sha256)
    return path
