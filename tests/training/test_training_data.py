"""What is said about the images of a run before it trains."""

from dataclasses import replace

import numpy as np

from dh_keras.config.load import load_config
from dh_keras.training import training_data


def test_images_with_more_boxes_than_detections_are_told_for_both_splits(tiny_shapes, capsys):
    data = [
        f"data.{split}_{kind}={getattr(tiny_shapes, f'{split}_{kind}')}"
        for split in ("train", "val")
        for kind in ("annotations", "images")
    ]
    config = load_config(overrides=[*data, "model.max_detections=1"])
    loaded = training_data.load_training_data(config)
    warnings = [line for line in capsys.readouterr().out.splitlines() if line.startswith("warning: ")]
    for name, split, warning in zip(("training", "validation"), (loaded.train, loaded.val), warnings, strict=True):
        boxes = np.diff(split.box_offsets)
        assert warning.startswith(f"warning: {np.sum(boxes > 1)} {name} image(s) have more boxes than model.max_det")
        assert warning.endswith(f"which is 1; no more are found, so AP stays low: raise it up to {boxes.max()}")
    enough = int(max(np.diff(split.box_offsets).max() for split in (loaded.train, loaded.val)))
    training_data.load_training_data(replace(config, model=replace(config.model, max_detections=enough)))
    assert "warning" not in capsys.readouterr().out
