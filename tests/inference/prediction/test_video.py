"""Videos: a row for each frame, the drawn video, and files that end too early."""

import struct

import cv2
import numpy as np
import pytest
from inference.prediction.helpers import read_rows, write_video
from PIL import Image

from dh_keras.errors import WriteError
from dh_keras.inference.prediction.folder import PredictionSettings
from dh_keras.inference.prediction.predict_files import predict_files
from dh_keras.inference.prediction.video import VideoReader, VideoWriter


def frames_of(path):
    return [frame.data for frame in VideoReader(path)]


def test_every_frame_has_a_row_with_its_time_and_is_drawn(detector, video, images, tmp_path):
    files = [video, images[0]]
    summary = predict_files(detector, files, tmp_path, PredictionSettings(score=0.0, batch_size=2))
    assert (summary.images, summary.errors) == (6, [])
    rows = read_rows(tmp_path)
    assert [row["file"] for row in rows] == [str(video)] * 5 + [str(images[0])]
    assert [row["frame"] for row in rows[:5]] == [0, 1, 2, 3, 4]
    assert [row["time"] for row in rows[:5]] == pytest.approx([0, 0.1, 0.2, 0.3, 0.4])
    assert {(row["width"], row["height"]) for row in rows} == {(150, 120)}
    frames = frames_of(video)
    for row, frame in zip(rows, frames, strict=False):
        expected = detector(frame)
        np.testing.assert_allclose([one["box"] for one in row["detections"]], expected.boxes, atol=1e-3)
    drawn = VideoReader(tmp_path / "clip.mp4")
    assert (drawn.count, drawn.rate) == (5, 10)
    picture = frames_of(tmp_path / "clip.mp4")[0]
    assert picture.shape == (600, 750, 3)  # enlarged as pictures are
    assert "frame" not in rows[5]
    enlarged = np.asarray(Image.fromarray(frames[0]).resize((750, 600)))
    changed = (np.abs(picture.astype(int) - enlarged) > 60).any(-1)
    assert 0.005 < changed.mean() < 0.5


def test_colours_keep_their_order_and_odd_sides_are_padded(tmp_path):
    picture = np.zeros((121, 161, 3), np.uint8)
    picture[..., 0] = 220
    writer = VideoWriter(tmp_path / "red.mp4", 12.5)
    for _ in range(3):
        writer.write(picture)
    writer.close()
    frames = frames_of(tmp_path / "red.mp4")
    assert [frame.shape for frame in frames] == [(122, 162, 3)] * 3
    assert np.abs(frames[1].mean((0, 1)) - [220, 0, 0]).max() < 8
    assert VideoReader(tmp_path / "red.mp4").rate == 12.5


def test_a_video_that_the_disk_does_not_take_is_named(tmp_path, small_files):
    writer = VideoWriter(tmp_path / "full.mp4", 10)
    small_files(2000)
    for seed in range(3):
        writer.write(np.random.default_rng(seed).integers(0, 255, (120, 160, 3)).astype(np.uint8))
    with pytest.raises(WriteError, match=r"full\.mp4: cannot be written: not all frames could be stored; free some"):
        writer.close()


def test_a_video_that_is_cut_off_keeps_its_frames_and_is_named(detector, images, tmp_path):
    frame = np.random.default_rng(0).integers(0, 255, (120, 150, 3)).astype(np.uint8)
    write_video(tmp_path / "long.avi", [frame] * 20)
    data = (tmp_path / "long.avi").read_bytes()
    cut, text = tmp_path / "cut.avi", tmp_path / "text.mp4"
    cut.write_bytes(data[: len(data) // 4])
    text.write_bytes(b"no video")
    summary = predict_files(detector, [cut, text, images[0]], tmp_path / "out", PredictionSettings(score=0.0))
    rows = read_rows(tmp_path / "out")
    count = sum(row["file"] == str(cut) for row in rows)
    assert 2 <= count <= 8
    assert summary.errors == [
        f"{cut}: the video is cut off: {count} of 20 frames can be decoded",
        f"{text}: not a video that can be decoded; it may be cut off or of an unknown codec",
    ]
    assert rows[-1]["file"] == str(images[0])
    assert len(frames_of(tmp_path / "out" / "cut.mp4")) == count
    assert {path.name for path in (tmp_path / "out").glob(".*")} == set()
    assert not (tmp_path / "out" / "text.mp4").exists()


def test_a_video_in_which_no_frame_can_be_decoded_is_named(detector, video, tmp_path):
    data = video.read_bytes()
    broken = tmp_path / "broken.avi"
    broken.write_bytes(data[: data.index(b"movi") + 4])
    summary = predict_files(detector, [broken], tmp_path / "out", PredictionSettings(score=0.0))
    assert len(summary.errors) == 1
    assert str(broken) in summary.errors[0]
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == [
        *("errors.csv", "predictions.json", "settings.json")
    ]
    assert cv2.VideoCapture(str(video)).isOpened()


def test_frames_of_a_film_that_says_it_is_turned_are_upright(tmp_path):
    frame = np.zeros((96, 128, 3), np.uint8)
    frame[:, :64, 0] = 220  # red left, blue right
    frame[:, 64:, 2] = 220
    plain, turned = tmp_path / "plain.mp4", tmp_path / "turned.mp4"
    writer = cv2.VideoWriter(str(plain), cv2.VideoWriter_fourcc(*"mp4v"), 5, (128, 96))
    for _ in range(3):
        writer.write(frame[..., ::-1])
    writer.release()
    data = bytearray(plain.read_bytes())
    matrix = data.index(b"tkhd") + 44  # nine numbers of 16.16 and 2.30 bits, behind times, layer and volume
    struct.pack_into(">9i", data, matrix, 0, 1 << 16, 0, -1 << 16, 0, 0, 96 << 16, 0, 1 << 30)  # a quarter clockwise
    turned.write_bytes(data)
    pixels, *rest = frames_of(turned)
    assert len(rest) == 2
    assert pixels.shape == (128, 96, 3)
    top, bottom = pixels[16:48].mean(axis=(0, 1)), pixels[80:112].mean(axis=(0, 1))
    np.testing.assert_allclose([top, bottom], [[220, 0, 0], [0, 0, 220]], atol=20)
