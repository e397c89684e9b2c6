"""What `dh-keras import-data` does: read what another tool wrote, split it if asked, and write COCO JSON."""

import os
import shlex
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np

from dh_keras.data.formats.coco import load_coco
from dh_keras.data.formats.coco_entries import refuse_errors
from dh_keras.data.formats.coco_file import read_coco
from dh_keras.data.formats.foreign.image_files import ImageFiles
from dh_keras.data.formats.foreign.labelled import Labelled, LabelledBox, LabelledImage
from dh_keras.data.formats.foreign.reading import COCO, class_names, coco_tree, describe, read_labelled, recognise
from dh_keras.data.images import upright_frame
from dh_keras.errors import DataError
from dh_keras.files import new_folder, require_new_folder, write_json
from dh_keras.reports.data_doctor.splitting import choose_validation


def import_data(
    source: Path, output: Path, *, images: Path | None = None, val_share: float | None = None, seed: int = 0
) -> list[str]:
    """Write `train.json`, and `val.json` and others where the source or val_share makes parts, and print what was done.

    Args:
        source: a folder or file of one of the formats of `foreign`, or a COCO JSON to split.
        output: folder to make; must be new or empty. Images stay where they are.
        images: folder that the images are somewhere below; None takes the source's, or the one above it.
        val_share: share of the images to validate on; near-duplicates are all on one side.
        seed: of the choice.

    Returns:
        What could not be read and was left out, one line each.

    Raises:
        DataError: when nothing can be read or written, or both val_share is given and the source has parts.
    """
    require_new_folder(output)
    found = _read(source, images)
    _keep_readable(found)
    if val_share is not None:
        if any(image.part for image in found.images):
            raise DataError(
                f"--val-share: {source} has parts of its own, {', '.join(_parts(found))}; leave the option out"
            )
        _split(found, source, val_share, seed)
    print(f"recognised: {describe(found)}")
    root, names = _common_folder(found.images), class_names(found)
    with new_folder(output) as folder:
        for part in _parts(found):
            of_part = replace(found, images=[image for image in found.images if (image.part or "train") == part])
            write_json(folder / f"{part}.json", coco_tree(of_part, root, names=names), indent=None)
            print(f"{part}: {load_coco(folder / f'{part}.json', root).summary()}")
    print(f"written: {output}; the images stay below {root}")
    print(f"next: dh-keras inspect-data {_arguments(found, output, root)}")
    return found.faults


def _read(source: Path, images: Path | None) -> Labelled:
    if recognise(source)[0] == COCO and source.is_file():
        return _read_coco(source, images or source.parent)
    folder = images or (source if source.is_dir() else source.parent)
    if images is None and not ImageFiles(folder).paths:  # VOC's Annotations lie beside JPEGImages
        folder = folder.absolute().parent
    return read_labelled(source, folder)


def _read_coco(source: Path, folder: Path) -> Labelled:
    """Return the usable rows of a COCO JSON, all of it or nothing."""
    file = read_coco(source, folder)
    refuse_errors(source, file.errors())
    found = Labelled(COCO, classes=file.class_names)
    found.images = [LabelledImage(image.path, image.declared, source=str(source)) for image in file.images]
    columns = (file.box_images, file.box_classes, file.xywh, file.crowd, file.area)
    for image, label, xywh, crowd, area in zip(*(column.tolist() for column in columns), strict=True):
        if not np.isfinite(xywh).all():
            found.left_out["annotations without a box"] += 1
            continue
        box = LabelledBox(file.class_names[label], tuple(xywh), crowd, None if np.isnan(area) else area)
        found.images[image].boxes.append(box)
    return found


def _keep_readable(found: Labelled) -> None:
    """Leave out images that training would refuse, and give the others the size of their files."""
    kept = []
    for image in found.images:
        frame = upright_frame(image.path, image.size)
        if isinstance(frame, str):
            found.fault(image.source, None, frame)
        else:
            image.size = frame[0]
            kept.append(image)
    if not kept:
        raise DataError(f"{found.faults[0]}; no other image can be used either")
    found.images = kept


def _split(found: Labelled, source: Path, share: float, seed: int) -> None:
    chosen, alike = choose_validation([image.path for image in found.images], share=share, seed=seed)
    if chosen.all() or not chosen.any():
        raise DataError(f"--val-share: the {len(chosen)} images of {source} are one scene or too few to be parted")
    for image, is_val in zip(found.images, chosen.tolist(), strict=True):
        image.part = "val" if is_val else "train"
    found.notes.append(f"{chosen.sum()} images to validate on, chosen by the seed {seed}")
    if alike:
        found.notes.append(f"{alike} images that look like others are on one side with them")


def _parts(found: Labelled) -> list[str]:
    parts = {image.part or "train" for image in found.images}
    return [part for part in ("train", "val", "test") if part in parts]


def _common_folder(images: Sequence[LabelledImage]) -> str:
    return os.path.commonpath([os.path.dirname(image.path) for image in images])


def _arguments(found: Labelled, output: Path, root: str) -> str:
    given = {"train": ("--annotations", "--images"), "val": ("--val-annotations", "--val-images")}
    words = [(given[part][0], f"{output / part}.json", given[part][1], root) for part in _parts(found) if part in given]
    return shlex.join(word for of_part in words for word in of_part)
