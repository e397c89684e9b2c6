"""What the data doctor can find: a kind for every fault, how bad it is, and what to do about it."""

from collections.abc import Sequence
from dataclasses import dataclass

from dh_keras.data.formats.findings import Finding

SEVERITIES = ("error", "warning", "info")


@dataclass(frozen=True)
class Kind:
    """A kind of fault.

    Args:
        severity: "error" stops training, "warning" spoils it, "info" is worth knowing.
        title: what is wrong, as a heading.
        advice: what to do about it.
    """

    severity: str
    title: str
    advice: str


_MEND = "mend the file, or let --fix do it"

KINDS = {
    "missing_file": Kind("error", "image file is missing", "check --images; --fix leaves the image out"),
    "unreadable_file": Kind("error", "image file cannot be decoded", "replace the file; --fix leaves the image out"),
    "unsupported_format": Kind("error", "file is neither JPEG nor PNG", "convert it; --fix leaves the image out"),
    "wrong_size": Kind("error", "size differs from the JSON", "correct the size, look at the boxes; or --fix"),
    "bad_image_entry": Kind("error", "entry of an image is unusable", "mend the entry; --fix leaves the image out"),
    "duplicate_image_id": Kind("error", "two images have one id", "give each its own; --fix numbers the second anew"),
    "duplicate_category": Kind("error", "two categories have one id or name", _MEND),
    "bad_category": Kind("error", "category without an integer id or a name", _MEND),
    "large_category_id": Kind(
        "error", "category id that does not fit 32 bits", "number anew from 1, or let --fix do it"
    ),
    "bad_reference": Kind(
        "error", "annotation of no image or no category, or of a strange iscrowd", "correct it; --fix leaves it out"
    ),
    "long_boxes": Kind("error", "boxes of more than four numbers", "write x, y, width and height"),
    "boxes_as_shares": Kind("error", "boxes are shares of the image", "multiply by width and height"),
    "boxes_as_corners": Kind("error", "boxes are corners", "subtract the first corner from the second"),
    "category_in_one_split": Kind("error", "category in one split only", "use the same category names in both files"),
    "no_boxes": Kind("error", "no box to train on", "check that this is the right file"),
    "refused": Kind("error", "training refuses the data", "see the message"),
    "near_duplicate_across": Kind(
        "warning", "nearly the same image in train and val", "keep it in one of them; AP is too high otherwise"
    ),
    "boxed_twice": Kind("warning", "object boxed twice", "remove one; --fix removes exact copies only"),
    "boxed_as_two_classes": Kind("warning", "object boxed as two classes", "decide for one class"),
    "more_boxes_than_detections": Kind(
        "warning", "more boxes than a detector gives", "raise model.max_detections; AP is too low otherwise"
    ),
    "degenerate_box": Kind("warning", "box without area", "training drops it; so does --fix"),
    "box_outside": Kind("warning", "box reaches out of the image", "training clips it; so does --fix"),
    "boxes_not_upright": Kind(
        "warning",
        "boxes fit the stored, not the upright image",
        "turn the boxes, or --fix, which takes the stored size",
    ),
    "no_anchor": Kind("warning", "box that no anchor learns", "change anchor_sizes, anchor_ratios or data.min_size"),
    "tiny_box": Kind("warning", "box is tiny after resizing", "raise data.min_size and data.max_size"),
    "unused_category": Kind("warning", "category without a box", "remove it, or label some"),
    "file_listed_twice": Kind("warning", "image file listed twice", "merge the two entries"),
    "duplicate_annotation_id": Kind(
        "warning", "annotation id missing or used before", "training renumbers; so does --fix"
    ),
    "id_as_text": Kind("info", "ids as text or with a point", "nothing: training takes the numbers; so does --fix"),
    "box_from_polygon": Kind(
        "info", "polygon without a bbox", "nothing: training takes the box around it; so does --fix"
    ),
    "near_duplicate_within": Kind("info", "nearly the same image twice in a split", "keep one, unless it is a video"),
    "unusual_box": Kind("info", "unusual for its class", "look at it: a wrong class, a wrong box, or just rare"),
    "image_without_boxes": Kind("info", "image without boxes", "fine for background; otherwise label it"),
    "exif_rotated": Kind("info", "turned by its EXIF orientation", "nothing: training applies what the size tells"),
    "wrong_extension": Kind("info", "content is not what the name says", "nothing: training goes by the content"),
    "cmyk": Kind("info", "CMYK image", "convert to RGB if the colours matter"),
    "sixteen_bit": Kind("info", "16 bits per channel", "nothing: training reads 8 bits"),
    "crowd": Kind("info", "crowd annotation", "nothing: never a target, ignored in evaluation"),
}


def worst_first(findings: Sequence[Finding]) -> dict[str, list[Finding]]:
    """Group findings by kind, in the order of `KINDS`."""
    grouped = {kind: [finding for finding in findings if finding.kind == kind] for kind in KINDS}
    return {kind: members for kind, members in grouped.items() if members}
