"""The generated dataset: what is drawn is what is annotated, and a folder is complete or not there."""

import json
import shutil

import numpy as np
import pytest
from PIL import Image

from dh_keras import files
from dh_keras.data import shape_drawing, shapes
from dh_keras.data.formats.coco import load_coco
from dh_keras.data.shape_drawing import CATEGORIES, draw_image
from dh_keras.data.shapes import write_shapes
from dh_keras.errors import DataError, WriteError

SETTINGS = {"train_images": 16, "val_images": 3, "seed": 5}


@pytest.fixture(scope="module")
def written(tmp_path_factory):
    return write_shapes(tmp_path_factory.mktemp("shapes") / "made", **SETTINGS)


@pytest.fixture(scope="module")
def pictures():
    return [draw_image(seed=2, split="train", index=index) for index in range(64)]


def contents(folder):
    return {str(p.relative_to(folder)): p.read_bytes() for p in sorted(folder.rglob("*")) if p.is_file()}


def test_the_same_seed_gives_the_same_bytes_and_another_seed_other_images(written, tmp_path):
    first = contents(written.train_images.parent)
    write_shapes(tmp_path / "again", **SETTINGS)
    assert contents(tmp_path / "again") == first
    write_shapes(tmp_path / "other", **{**SETTINGS, "seed": 6})
    other = contents(tmp_path / "other")
    assert other.keys() == first.keys()
    assert all(other[name] != first[name] for name in first)


def test_training_and_validation_images_differ():
    train, val = (draw_image(seed=1, split=split, index=0).pixels for split in ("train", "val"))
    assert train.shape != val.shape or (train != val).any()


def test_a_longer_dataset_starts_with_the_same_images(written, tmp_path):
    longer = write_shapes(tmp_path / "longer", train_images=1, val_images=4, seed=5)
    for name in ("000001.jpg", "000002.jpg", "000003.jpg"):
        assert (longer.val_images / name).read_bytes() == (written.val_images / name).read_bytes()


def test_the_written_dataset_loads_with_all_images_and_boxes(written):
    dataset = load_coco(written.train_annotations, written.train_images)
    assert len(dataset) == 16
    assert [(c.id, c.name) for c in dataset.categories] == [
        (1, "circle"),
        (3, "square"),
        (7, "triangle"),
    ]
    drawn = [draw_image(seed=5, split="train", index=index) for index in range(16)]
    assert dataset.sizes.tolist() == [list(picture.pixels.shape[:2]) for picture in drawn]
    for index, picture in enumerate(drawn):
        single = [shape for shape in picture.shapes if not shape.crowd]
        expected = np.array([shape.box for shape in single]).reshape(-1, 4)
        np.testing.assert_allclose(dataset.boxes_of(index), expected, atol=0.011)
        names = [dataset.class_names[k] for k in dataset.classes_of(index)]
        assert names == [CATEGORIES[shape.category_id] for shape in single]
    assert dataset.counts["crowd"] == 1
    assert {name: dataset.counts[name] for name in ("degenerate", "clipped", "renumbered_annotation_ids")} == {
        "degenerate": 0,
        "clipped": 0,
        "renumbered_annotation_ids": 0,
    }


def test_the_written_jpeg_shows_what_was_drawn(written):
    stored = np.asarray(Image.open(written.train_images / "000001.jpg"), float)
    drawn = draw_image(seed=5, split="train", index=0).pixels
    assert np.abs(stored - drawn).mean() < 8


def test_boxes_fit_the_drawn_outline(pictures):
    compared = 0
    for picture in pictures:
        whole = [one for one in picture.shapes if one.area > 0.999 * one.full_area]  # neither covered nor cut off
        for shape in (one for one in whole if not one.crowd):
            rows, columns = np.nonzero(shape.visible > 0)
            drawn = [rows.min(), columns.min(), rows.max() + 1, columns.max() + 1]
            np.testing.assert_allclose(shape.box, drawn, atol=1.3)
            y1, x1, y2, x2 = np.round(shape.box).astype(int)
            outside = np.ones_like(shape.visible, bool)
            outside[max(y1 - 1, 0) : y2 + 1, max(x1 - 1, 0) : x2 + 1] = False
            assert not shape.visible[outside].any()
            compared += 1
    assert compared > 50


def test_boxes_lie_inside_the_image_and_some_shapes_are_cut_off(pictures):
    at_border = 0
    for picture in pictures:
        height, width = picture.pixels.shape[:2]
        for shape in picture.shapes:
            y1, x1, y2, x2 = shape.box
            assert 0 <= y1 < y2 <= height
            assert 0 <= x1 < x2 <= width
            at_border += y1 == 0 or x1 == 0 or y2 == height or x2 == width
    assert at_border > 10


def test_what_is_annotated_shows_at_least_three_fifths_and_some_of_it_is_covered(pictures):
    shares = np.array([shape.area / shape.full_area for picture in pictures for shape in picture.shapes])
    assert shares.min() >= 0.6
    assert shares.max() == pytest.approx(1.0)
    assert np.mean(shares < 0.95) > 0.1


def test_a_shape_that_is_drawn_over_loses_the_covered_area():
    canvas = shape_drawing._Canvas(np.random.default_rng(0), 20, 20)
    square = np.array([[4.0, 4], [4, 12], [12, 12], [12, 4]])
    window = canvas._clip(*shape_drawing._rasterise([square]))
    canvas._record(3, square, *window, full_area=64.0)
    right_half = square + np.array([0, 4])
    canvas._record(3, right_half, *canvas._clip(*shape_drawing._rasterise([right_half])), full_area=64.0)
    assert canvas.shapes[0].area == pytest.approx(32.0)
    assert canvas.shapes[0].box == (4.0, 4.0, 12.0, 12.0)
    assert canvas.shapes[1].area == pytest.approx(64.0)


def test_coverage_adds_up_to_the_area_of_the_outline():
    outer = np.array([[1.0, 2.5], [1.0, 12.5], [21.0, 12.5], [21.0, 2.5]])
    coverage, top, left = shape_drawing._rasterise([outer])
    assert (top, left) == (1, 2)
    assert coverage.shape == (20, 11)
    assert coverage.sum() == pytest.approx(200, abs=0.15 * 60)  # Pillow draws outlines up to 0.15 pixels wide
    assert coverage[10, 5] == 1.0
    assert coverage[10, 0] == pytest.approx(0.5, abs=0.26)


def test_sizes_span_a_factor_of_ten_in_every_class(pictures):
    sizes = {name: [] for name in CATEGORIES.values()}
    for picture in pictures:
        for shape in (one for one in picture.shapes if not one.crowd):
            y1, x1, y2, x2 = shape.box
            sizes[CATEGORIES[shape.category_id]].append(max(y2 - y1, x2 - x1))
    for of_class in sizes.values():
        assert min(of_class) < 18
        assert max(of_class) > 100
        assert len(of_class) > 40
    everything = np.concatenate(list(sizes.values()))
    assert everything.max() <= 140.001
    assert 38 < np.median(everything) < 50  # log-normal around 44


def test_images_are_landscape_portrait_and_odd(pictures):
    sizes = {picture.pixels.shape[:2] for picture in pictures}
    assert {(192, 256), (256, 192)} < sizes
    assert any(height % 2 and width % 32 for height, width in sizes)


def test_every_sixteen_images_have_one_empty_one_and_one_with_a_crowd(pictures):
    empty = [index for index, picture in enumerate(pictures) if not picture.shapes]
    crowded = [index for index, picture in enumerate(pictures) if any(shape.crowd for shape in picture.shapes)]
    assert empty == [7, 23, 39, 55]
    assert crowded == [11, 27, 43, 59]
    for index in crowded:
        crowds = [shape for shape in pictures[index].shapes if shape.crowd]
        assert len(crowds) == 1
        y1, x1, y2, x2 = crowds[0].box
        assert 0 < crowds[0].area < (y2 - y1) * (x2 - x1)


def test_shapes_stand_out_from_nearly_grey_backgrounds_and_classes_tend_to_a_hue(pictures):
    strongest = {category_id: [] for category_id in CATEGORIES}
    saturations = []
    for picture in pictures:
        background = np.ones(picture.pixels.shape[:2], bool)
        for shape in picture.shapes:
            background &= shape.visible == 0
            if not shape.crowd and shape.area > 60:
                colour = picture.pixels[shape.visible > 0.9].mean(0)
                strongest[shape.category_id].append(int(np.argmax(colour)))
                saturations.append(np.ptp(colour))
        grey = picture.pixels[background].mean(0)
        assert np.ptp(grey) < 70
    assert np.median(saturations) > 90
    for channel, of_class in enumerate(strongest.values()):  # circle red, square green, triangle blue
        share = np.mean(np.array(of_class) == channel)
        assert 0.8 < share <= 1.0


def test_an_existing_dataset_with_the_same_settings_is_used_as_it_is(written, tmp_path):
    folder = tmp_path / "copy"
    shutil.copytree(written.train_images.parent, folder)
    (folder / "train" / "000001.jpg").write_bytes(b"mine")
    paths = write_shapes(folder, **SETTINGS)
    assert (paths.train_images / "000001.jpg").read_bytes() == b"mine"
    assert paths.train_annotations == folder / "annotations" / "instances_train.json"
    assert paths.val_images == folder / "val"


def test_other_settings_are_refused_in_one_line_and_nothing_is_overwritten(written):
    folder = written.train_images.parent
    before = contents(folder)
    with pytest.raises(DataError, match=r"seed 5 \(wanted 6\).*set data\.shapes\.directory") as error:
        write_shapes(folder, **{**SETTINGS, "seed": 6})
    assert str(folder) in str(error.value)
    assert "\n" not in str(error.value)
    with pytest.raises(DataError, match=r"val_images 3 \(wanted 4\)"):
        write_shapes(folder, **{**SETTINGS, "val_images": 4})
    assert contents(folder) == before


def test_a_dataset_of_another_generator_version_is_refused(written, tmp_path, monkeypatch):
    monkeypatch.setattr(shapes, "GENERATOR_VERSION", shapes.GENERATOR_VERSION + 1)
    with pytest.raises(DataError, match=r"version 1 \(wanted 2\)"):
        write_shapes(written.train_images.parent, **SETTINGS)


def test_a_folder_with_other_files_is_refused_and_left_alone(tmp_path):
    (tmp_path / "holiday.jpg").write_bytes(b"picture")
    with pytest.raises(DataError, match=r"holds other files \(holiday\.jpg\).*data\.shapes\.directory"):
        write_shapes(tmp_path, **SETTINGS)
    assert contents(tmp_path) == {"holiday.jpg": b"picture"}
    with pytest.raises(DataError, match="expected a folder, found a file"):
        write_shapes(tmp_path / "holiday.jpg", **SETTINGS)


def test_a_dataset_that_lost_a_part_is_refused(written, tmp_path):
    folder = tmp_path / "copy"
    shutil.copytree(written.train_images.parent, folder)
    (folder / "annotations" / "instances_val.json").unlink()
    with pytest.raises(DataError, match=r"annotations/instances_val\.json is missing"):
        write_shapes(folder, **SETTINGS)
    (folder / "shapes.json").write_text("not json")
    with pytest.raises(DataError, match=r"cannot read shapes\.json"):
        write_shapes(folder, **SETTINGS)


@pytest.mark.parametrize("interruption", [KeyboardInterrupt, OSError("no space left on device")])
def test_an_interrupted_generation_leaves_nothing_behind(tmp_path, monkeypatch, interruption):
    draw = shapes.draw_image

    def stop_in_validation(**arguments):
        if arguments["split"] == "val":
            raise interruption
        return draw(**arguments)

    monkeypatch.setattr(shapes, "draw_image", stop_in_validation)
    with pytest.raises((KeyboardInterrupt, WriteError)):
        write_shapes(tmp_path / "made", **SETTINGS)
    assert list(tmp_path.iterdir()) == []


def test_a_disk_that_is_full_is_one_line_that_says_where_else_to_go(tmp_path, small_files):
    small_files()
    with pytest.raises(WriteError) as error:
        write_shapes(tmp_path / "made", **SETTINGS)
    assert str(error.value).startswith(f"shapes folder {tmp_path}/made/train/00000")
    assert "jpg: cannot be written: File too large; " in str(error.value)
    assert str(error.value).endswith("; set data.shapes.directory to another folder")
    assert list(tmp_path.iterdir()) == []


def test_a_killed_generation_does_not_look_complete(tmp_path, monkeypatch):
    monkeypatch.setattr(files, "remove_folder", lambda path: None)  # a killed process cleans nothing up
    monkeypatch.setattr(shapes, "draw_image", lambda **_: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        write_shapes(tmp_path / "made", **SETTINGS)
    assert not (tmp_path / "made").exists()
    monkeypatch.undo()
    assert write_shapes(tmp_path / "made", train_images=1, val_images=1, seed=0).train_annotations.is_file()


def test_a_process_that_finds_the_dataset_just_written_uses_it(tmp_path, monkeypatch):
    write_split = shapes._write_split

    def let_another_finish_first(root, split, count, seed):
        if split == "val" and not (tmp_path / "made").exists():
            monkeypatch.setattr(shapes, "_write_split", write_split)
            write_shapes(tmp_path / "made", train_images=1, val_images=1, seed=0)
        write_split(root, split, count, seed)

    monkeypatch.setattr(shapes, "_write_split", let_another_finish_first)
    paths = write_shapes(tmp_path / "made", train_images=1, val_images=1, seed=0)
    assert json.loads(paths.val_annotations.read_text())["images"][0]["file_name"] == "000001.jpg"
    assert [path.name for path in tmp_path.iterdir()] == ["made"]


def test_an_empty_folder_is_filled(tmp_path):
    paths = write_shapes(tmp_path, train_images=1, val_images=2, seed=0)
    assert len(list(paths.val_images.iterdir())) == 2


@pytest.mark.parametrize(("name", "value"), [("train_images", 0), ("val_images", -1), ("seed", -1)])
def test_numbers_out_of_range_are_refused_by_name(tmp_path, name, value):
    with pytest.raises(ValueError, match=f"{name}: expected an integer of at least .*, got {value}"):
        write_shapes(tmp_path / "made", **{**SETTINGS, name: value})
