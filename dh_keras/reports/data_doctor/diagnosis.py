"""All checks of a data set in one go."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from dh_keras.config.schema import Config
from dh_keras.data.formats.coco import load_coco
from dh_keras.data.formats.coco_file import CocoFile, read_coco
from dh_keras.data.formats.findings import Finding
from dh_keras.errors import DataError
from dh_keras.reports.data_doctor.box_checks import anchor_coverage, anchor_findings, unusual_boxes
from dh_keras.reports.data_doctor.checks import (
    annotation_findings,
    boxed_twice,
    duplicate_images,
    file_findings,
    split_differences,
)
from dh_keras.reports.data_doctor.examined import Examined, examine_split
from dh_keras.reports.data_doctor.kinds import KINDS


@dataclass
class Diagnosis:
    """What is known about a data set.

    Args:
        splits: train, and val if it was given.
        findings: everything that was found, in no order.
        coverage: {split: result of `anchor_coverage`}.
        refusal: the line with which training would refuse the data, or None.
    """

    splits: list[Examined]
    findings: list[Finding]
    coverage: dict[str, dict]
    refusal: str | None


def diagnose(
    annotations: str | Path,
    images: str | Path,
    *,
    config: Config,
    val_annotations: str | Path | None = None,
    val_images: str | Path | None = None,
) -> Diagnosis:
    """Decode every image once and look for everything that spoils training or evaluation.

    Args:
        annotations: COCO JSON of the training split.
        images: folder of its images.
        config: input size and anchors to measure the boxes against.
        val_annotations: COCO JSON of the validation split.
        val_images: folder of its images.

    Raises:
        DataError: when a file is no COCO JSON, or a folder is missing or empty.
    """
    given = [("train", annotations, images)]
    if val_annotations is not None:
        given.append(("val", val_annotations, val_images))
    splits = [examine_split(split) for split in [_read_split(*one) for one in given]]
    findings = [finding for examined in splits for finding in examined.split.findings()]
    coverage = {}
    for examined in splits:
        findings += file_findings(examined) + annotation_findings(examined) + boxed_twice(examined)
        found, best_iou = anchor_findings(examined, config)
        findings += found
        coverage[examined.split.name] = anchor_coverage(examined, best_iou)
    findings += split_differences(splits) + duplicate_images(splits) + unusual_boxes(splits)
    refusal = _refusal(given)
    errors = [finding for finding in findings if KINDS[finding.kind].severity == "error"]
    if refusal and not errors:
        findings.append(Finding("refused", "train, val", refusal))
    return Diagnosis(splits, findings, coverage, refusal or (errors[0].message if errors else None))


def _read_split(name: str, annotations: str | Path, images: str | Path) -> CocoFile:
    split = read_coco(annotations, images, name=name)
    if next(split.images_dir.iterdir(), None) is None:
        raise DataError(
            f"images folder {images}: is empty; give the folder that file_name in {annotations} starts from"
        )
    return split


def _refusal(given: Sequence[tuple]) -> str | None:
    """Return the message with which loading the data for training fails."""
    categories = None
    for _, annotations, images in given:
        try:
            categories = load_coco(annotations, images, categories=categories).categories
        except DataError as error:
            return str(error)
    return None
