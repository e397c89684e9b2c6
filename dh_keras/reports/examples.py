"""The images a detector does worst and best on: ground truth beside predictions, coloured by what each box came to."""

import math
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from dh_keras.data.dataset import CocoDataset
from dh_keras.data.pipeline import image_dataset
from dh_keras.files import make_folder, replaced_file
from dh_keras.inference.drawing import Color, draw_boxes, save_picture, side_by_side
from dh_keras.reports.matches import ImageMatches
from dh_keras.run.classes import class_labels

COUNT = 6
MAX_SIDE = 1000  # pixels of a picture's long side; larger photographs are shrunk

# Told apart by people who see red and green alike.
FOUND: Color = (0, 158, 115)
CONFUSED: Color = (204, 121, 167)
MISSED: Color = (240, 228, 66)
FALSE: Color = (213, 94, 0)
LEGEND = ((FOUND, "found, class right"), (CONFUSED, "found, class wrong"), (MISSED, "missed"), (FALSE, "false"))


def rank_images(matches: Sequence[ImageMatches]) -> tuple[list[int], list[int]]:
    """Choose the images to look at.

    Images are ordered by F1, and by the number of missed and false boxes where F1 is equal (of faultless images the
    one with the most boxes is the best). Images with nothing to find and nothing found are left out.

    Args:
        matches: one entry per image.

    Returns:
        Indices of at most six images each, the worst first and the best first; none is in both.
    """
    rated = [index for index, of_image in enumerate(matches) if of_image.f1 is not None]

    def goodness(index: int) -> tuple[float, int, int]:
        of_image = matches[index]
        return of_image.f1, -(of_image.missed_count + of_image.false_count), len(of_image.gt_boxes)

    rated.sort(key=goodness)
    worst = rated[: min(COUNT, math.ceil(len(rated) / 2))]
    return worst, rated[len(worst) :][::-1][:COUNT]


def write_ranked(
    folder: Path, indices: Sequence[int], dataset: CocoDataset, matches: Sequence[ImageMatches], *, score: float
) -> None:
    """Write 1.png, 2.png, ... into a folder, in the place of those that may be there; other files are left alone.

    Args:
        folder: made if needed.
        indices: at most six images, in the order of their numbers.
        dataset: gives the images.
        matches: one entry per image.
        score: what the predictions scored more than, for the title.
    """
    make_folder(folder)
    place = {index: number for number, index in enumerate(indices, start=1)}
    for index, image in image_dataset(dataset, np.array(indices, np.int64)).as_numpy_iterator():
        picture = draw_comparison(image, matches[index], dataset, index, score=score)
        with replaced_file(folder / f"{place[int(index)]}.png") as partial:
            save_picture(picture, partial)
    for number in range(len(indices) + 1, COUNT + 1):
        (folder / f"{number}.png").unlink(missing_ok=True)


def draw_comparison(
    image: np.ndarray, matches: ImageMatches, dataset: CocoDataset, index: int, *, score: float
) -> np.ndarray:
    """Draw predictions and ground truth side by side with a title and a legend, uint8 [H, W, 3].

    Args:
        image: uint8 [H, W, 3], the upright image.
        matches: of this image.
        dataset: gives the names.
        index: of the image in it.
        score: for the title.
    """
    names = class_labels(dataset.class_names)
    factor = min(1.0, MAX_SIDE / max(image.shape[:2]))
    if factor < 1:
        height, width = (max(1, round(side * factor)) for side in image.shape[:2])
        image = np.asarray(Image.fromarray(image).resize((width, height), Image.Resampling.LANCZOS))
    finder = matches.finder
    right = np.append(matches.correct, False)[finder]
    states = [FOUND if ok else MISSED if by < 0 else CONFUSED for ok, by in zip(right, finder, strict=True)]
    truth = draw_boxes(image, matches.gt_boxes * factor, [names[k] for k in matches.gt_classes], colors=states)
    order = np.arange(len(matches.boxes))[::-1]  # the best on top
    states = [
        FOUND if ok else CONFUSED if wrong else FALSE
        for ok, wrong in zip(matches.correct[order], matches.confused[order], strict=True)
    ]
    labels = [f"{names[matches.classes[d]]} {matches.scores[d]:.2f}" for d in order]
    predictions = draw_boxes(image, matches.boxes[order] * factor, labels, colors=states)
    found, boxes = int(matches.correct.sum()), len(matches.gt_boxes)
    summary = f"{found} of {boxes} boxes found" if boxes else "no box"
    titles = (
        f"predictions above {score:g}: F1 {matches.f1:.2f}, {matches.missed_count} missed, {matches.false_count} false",
        f"annotated in {Path(dataset.paths[index]).name}: {summary}",
    )
    return _with_legend(side_by_side(predictions, truth, titles))


def _with_legend(picture: np.ndarray) -> np.ndarray:
    """Add a strip below that names the colours."""
    height, width = picture.shape[:2]
    font = ImageFont.load_default(size=max(13, round(width / 80)))
    line = sum(font.getmetrics())
    sheet = Image.new("RGB", (width, height + 2 * line), "white")
    sheet.paste(Image.fromarray(picture), (0, 0))
    pen = ImageDraw.Draw(sheet)
    x = 8.0
    for color, text in LEGEND:
        pen.rectangle((x, height + line / 2, x + line, height + 1.5 * line), fill=color, outline=(60, 60, 60))
        pen.text((x + 1.4 * line, height + line), text, fill="black", font=font, anchor="lm")
        x += 1.4 * line + font.getlength(text) + 1.5 * line
    return np.asarray(sheet)
