"""What `dh-keras inspect-data` does: look, say, write the report and the cleaned file."""

import time
from collections.abc import Sequence
from pathlib import Path

from dh_keras.config.schema import Config
from dh_keras.data.formats.coco import load_coco
from dh_keras.data.formats.coco_file import read_coco
from dh_keras.data.formats.findings import Finding
from dh_keras.errors import DataError
from dh_keras.files import new_folder, require_absent
from dh_keras.paths import to_path
from dh_keras.reports.data_doctor.box_checks import anchor_coverage, anchor_findings, unusual_boxes
from dh_keras.reports.data_doctor.data_checks import (
    annotation_findings,
    boxed_twice,
    duplicate_images,
    file_findings,
    split_differences,
)
from dh_keras.reports.data_doctor.examined import Diagnosis, examine_split
from dh_keras.reports.data_doctor.fix import CHOOSE_ANOTHER_FIX, write_fixed
from dh_keras.reports.data_doctor.html_report import format_coverage, format_summary, write_html, write_json
from dh_keras.reports.data_doctor.kinds import KINDS
from dh_keras.reports.data_doctor.sheets import augmented_batches


def inspect_data(
    annotations: str | Path,
    images: str | Path,
    *,
    config: Config,
    output: str | Path,
    val_annotations: str | Path | None = None,
    val_images: str | Path | None = None,
    fix: str | Path | None = None,
    augmented: int = 0,
) -> Diagnosis:
    """Inspect a data set, print what was found, and write a folder with `report.html` and `report.json`.

    Args:
        annotations, images, val_annotations, val_images: see `diagnose`.
        config: input size, anchors and augmentation.
        output: report folder to make; must not exist.
        fix: JSON file to write a cleaned copy of `annotations` to; must not exist.
        augmented: batches to show as training gets them; needs TensorFlow.

    Returns:
        What was found; its `refusal` says why training would fail, if it would.

    Raises:
        DataError: one line, for input that cannot be looked at and for output that exists.
        WriteError: one line, for output that cannot be written.
    """
    if fix is not None:
        require_absent(fix, CHOOSE_ANOTHER_FIX)
    require_absent(output)
    with new_folder(output) as folder:
        start = time.perf_counter()
        diagnosis = diagnose(annotations, images, config=config, val_annotations=val_annotations, val_images=val_images)
        seconds = time.perf_counter() - start
        files = sum(len(examined.facts) for examined in diagnosis.splits)
        print(f"{files} images decoded and checked in {seconds:.1f} s, {files / seconds:.0f} images/s\n")
        print(format_summary(diagnosis.findings))
        print("\nshare of boxes that an anchor overlaps")
        print(format_coverage(diagnosis.coverage) + "\n")
        batches = []
        if augmented and diagnosis.refusal:
            print("no batches are shown, as training would not get any")
        elif augmented:
            batches = augmented_batches(annotations, images, config, batches=augmented)
        write_json(folder / "report.json", diagnosis)
        write_html(folder / "report.html", diagnosis, config=config, augmented=batches)
    print(f"written: {to_path(output) / 'report.html'}")
    if fix is not None:
        changes = write_fixed(diagnosis.splits[0], fix)
        print(f"written: {fix}, which training takes as it is" + ("" if changes else "; nothing had to change"))
        print("".join(f"{count:>8}  {what}\n" for what, count in changes.items()), end="")
    return diagnosis


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
    files = []
    for name, path, folder in given:
        known = files[0].class_names if files else ()
        files.append(read_coco(path, folder, name=name, known=known))
        if next(files[-1].images_dir.iterdir(), None) is None:
            raise DataError(f"images folder {folder}: is empty; give the folder that file_name in {path} starts from")
    splits = [examine_split(file) for file in files]
    findings = [finding for file in files for finding in file.findings()]
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


def _refusal(given: Sequence[tuple]) -> str | None:
    """Return the message with which loading the data for training fails."""
    categories = None
    for _, annotations, images in given:
        try:
            categories = load_coco(annotations, images, categories=categories).categories
        except DataError as error:
            return str(error)
    return None
