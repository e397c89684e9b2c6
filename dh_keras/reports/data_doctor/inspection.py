"""What `dh-keras inspect-data` does: look, say, write the report and the cleaned file."""

import time
from pathlib import Path

from dh_keras.config.schema import Config
from dh_keras.files import new_folder, require_absent
from dh_keras.reports.data_doctor.augmented_batches import augmented_batches
from dh_keras.reports.data_doctor.diagnosis import Diagnosis, diagnose
from dh_keras.reports.data_doctor.fix import CHOOSE_ANOTHER_FIX, write_fixed
from dh_keras.reports.data_doctor.html_report import format_coverage, format_summary, write_html, write_json


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
        _print(diagnosis, time.perf_counter() - start)
        batches = _draw_batches(annotations, images, config, augmented, diagnosis.refusal)
        parts = {"splits": diagnosis.splits, "findings": diagnosis.findings, "coverage": diagnosis.coverage}
        write_json(folder / "report.json", **parts)
        write_html(folder / "report.html", **parts, config=config, augmented=batches)
    print(f"written: {Path(output) / 'report.html'}")
    if fix is not None:
        changes = write_fixed(diagnosis.splits[0], fix)
        print(f"written: {fix}, which training takes as it is" + ("" if changes else "; nothing had to change"))
        print("".join(f"{count:>8}  {what}\n" for what, count in changes.items()), end="")
    return diagnosis


def _draw_batches(
    annotations: str | Path, images: str | Path, config: Config, count: int, refusal: str | None
) -> list[tuple[str, str]]:
    if count and refusal:
        print("no batches are shown, as training would not get any")
    return augmented_batches(annotations, images, config, batches=count) if count and not refusal else []


def _print(diagnosis: Diagnosis, seconds: float) -> None:
    files = sum(len(examined.facts) for examined in diagnosis.splits)
    print(f"{files} images decoded and checked in {seconds:.1f} s, {files / seconds:.0f} images/s\n")
    print(format_summary(diagnosis.findings))
    print("\nshare of boxes that an anchor overlaps")
    print(format_coverage(diagnosis.coverage) + "\n")
