"""Join what the shards of a prediction found into one result, the same as one process would have written."""

import heapq
from collections.abc import Sequence
from operator import itemgetter
from pathlib import Path

from dh_keras.errors import DataError
from dh_keras.files import require_new_folder
from dh_keras.inference.prediction.folder import PredictionFolder, file_digest, find_difference
from dh_keras.inference.prediction.result_files import Summary, write_results
from dh_keras.inference.prediction.sources import Shard
from dh_keras.paths import to_path


def merge_predictions(shards: Sequence[Path], output: str | Path) -> Summary:
    """Write one result from the folders of all shards; the pictures stay where they are.

    Args:
        shards: a folder for each shard, in any order.
        output: folder for the result; must be new or empty.

    Returns:
        What was found by all.

    Raises:
        DataError: when a shard is missing, given twice, not finished, or made with other settings; nothing is written.
    """
    output = to_path(output)
    require_new_folder(output)
    folders = [PredictionFolder.open(to_path(path)) for path in shards]
    _check_settings(folders)
    _check_complete(folders)
    rows = heapq.merge(*(folder.rows() for folder in folders), key=itemgetter("index"))
    return write_results(rows, output, folders[0].settings)


def _check_settings(folders: Sequence[PredictionFolder]) -> None:
    first = folders[0]
    for folder in folders[1:]:
        difference = find_difference(first.settings, folder.settings, ignore=("shard", "pictures", "crops"))
        if difference:
            raise DataError(f"{folder.path}: differs from {first.path} in {difference}; merge shards of one prediction")
    annotations = first.settings["annotations"]
    if annotations is not None:
        path = to_path(annotations)
        if not path.is_file() or file_digest([path]) != first.settings["annotations_digest"]:
            raise DataError(f"{path}: the annotations that gave the ids are gone or changed; bring them back")


def _check_complete(folders: Sequence[PredictionFolder]) -> None:
    """See that the shards are 1..n, each once, and each finished."""
    owners: dict[int, Path] = {}
    for folder in folders:
        shard = Shard.parse(folder.settings["shard"])
        if shard.count == 1:
            raise DataError(f"{folder.path}: is no shard but a whole prediction; there is nothing to merge")
        owner = owners.setdefault(shard.number, folder.path)
        if owner is not folder.path:
            raise DataError(f"{folder.path}: is shard {shard}, which {owner} is as well; give each shard once")
        first = Shard.parse(folders[0].settings["shard"])
        if shard.count != first.count:
            raise DataError(f"{folder.path}: is shard {shard}, but {folders[0].path} is shard {first}")
        missing = len(folder.missing_parts())
        if missing:
            raise DataError(
                f"{folder.path}: shard {shard} is not finished, {missing} of {folder.settings['parts']} parts are "
                "missing; go on with dh-keras predict --resume"
            )
    lacking = [f"{number}/{first.count}" for number in range(1, first.count + 1) if number not in owners]
    if lacking:
        raise DataError(f"shards are missing: {', '.join(lacking)}; give the folders of all {first.count}")
