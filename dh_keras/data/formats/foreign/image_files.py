"""Image files below a folder, found by what annotation files call them."""

import os
from collections import defaultdict
from pathlib import Path

from dh_keras.data.image_opening import IMAGE_SUFFIXES


def files_below(folder: Path) -> list[Path]:
    """Return all files below a folder, in order; those whose names begin with a point are left out."""
    found = []
    for parent, folders, names in os.walk(folder, followlinks=True):
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        found += [Path(parent, name) for name in sorted(names) if not name.startswith(".")]
    return found


class ImageFiles:
    """The image files below a folder.

    Args:
        root: the folder.

    Attributes:
        paths: absolute, in order.
    """

    def __init__(self, root: Path):
        self.root = Path(os.path.abspath(root))
        self.paths = [str(path) for path in files_below(self.root) if path.suffix.lower() in IMAGE_SUFFIXES]
        self._known = set(self.paths)
        self._by_name: dict[str, list[str]] = defaultdict(list)
        self._by_stem: dict[str, list[str]] = defaultdict(list)
        for path in self.paths:
            name = os.path.basename(path)
            self._by_name[name].append(path)
            self._by_stem[os.path.splitext(name)[0]].append(path)

    def find(self, name: str, near: Path) -> str | None:
        """Find the file of this name, with or without the folders before it.

        Args:
            name: as an annotation has it, / or \\ between folders.
            near: the annotation file; of several files of the name the one counts that shares most folders with it.
        """
        name = name.strip().replace("\\", "/")
        for start in (near.parent, self.root):
            path = os.path.abspath(os.path.join(start, name))
            if path in self._known:
                return path
        return _nearest(self._by_name.get(os.path.basename(name), []), near)

    def below(self, folder: Path) -> list[str]:
        """Return those below a folder, which may be called by another name, through a link."""
        inside, root = os.path.join(os.path.realpath(folder), ""), os.path.realpath(self.root)
        own = len(str(self.root).rstrip(os.sep))
        return [path for path in self.paths if (root.rstrip(os.sep) + path[own:]).startswith(inside)]

    def find_stem(self, stem: str, near: Path) -> str | None:
        """Find the file of this name but for its ending; see `find`."""
        return _nearest(self._by_stem.get(stem, []), near)


def _nearest(paths: list[str], near: Path) -> str | None:
    """Return the path that shares most folders with another; None when there is none, or two do."""
    if len(paths) < 2:
        return paths[0] if paths else None
    own = os.path.abspath(near)
    shared = [len(Path(os.path.commonpath([path, own])).parts) for path in paths]
    best = [path for path, count in zip(paths, shared, strict=True) if count == max(shared)]
    return best[0] if len(best) == 1 else None
