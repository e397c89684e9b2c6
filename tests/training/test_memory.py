"""What a training step needs is estimated before it, and compared with what the machine has."""

import numpy as np
import pytest

from dh_keras.config.load import load_config
from dh_keras.errors import ConfigError
from dh_keras.training import memory
from dh_keras.training.loop import train

LANDSCAPE = np.zeros(1, int)


def estimate(name, overrides, *, pixels):
    config = load_config(name, ["model.backbone.weights=null", *overrides])
    return memory.step_bytes(config, pixels=pixels, num_classes=3, images=config.data.batch_size)


@pytest.mark.parametrize(
    ("name", "overrides", "pixels", "peak"),
    [  # resident memory after three steps of TensorFlow 2.20 on a CPU
        ("shapes_tiny", "data.batch_size=8", 192 * 256, 1.27e9),
        ("shapes_tiny", "data.batch_size=32", 192 * 256, 1.95e9),
        ("double_head_r50_fpn_1x_coco", "data.batch_size=1 model.roi.batch_size=128", 320 * 512, 1.88e9),
        ("double_head_r50_fpn_1x_coco", "data.batch_size=2 model.roi.batch_size=128", 448 * 640, 2.39e9),
        ("double_head_r50_fpn_1x_coco", "data.batch_size=2", 800 * 1344, 4.07e9),
        ("double_head_ext_r50_fpn_1x_coco", "data.batch_size=2 model.roi.batch_size=256", 320 * 512, 3.90e9),
    ],
)
def test_the_estimate_is_near_what_was_measured(name, overrides, pixels, peak):
    assert peak / 1.7 < estimate(name, overrides.split(), pixels=pixels) < 1.7 * peak


@pytest.mark.parametrize(
    ("change", "least", "most"),
    [
        ("data.batch_size=16", 1.2, 2.0),
        ("model.roi.batch_size=1024", 1.1, 2.0),
        ("model.fpn.channels=1024", 1.5, 6.0),
        ("model.conv_head.channels=4096", 1.5, 8.0),
        ("train.recompute=true", 0.7, 0.99),
        ("train.precision=mixed_bfloat16", 0.5, 0.9),
    ],
)
def test_the_estimate_follows_what_matters(change, least, most):
    usual, changed = (estimate("double_head_r50_fpn_1x_coco", given, pixels=800 * 1344) for given in ([], [change]))
    assert least < changed / usual < most


def test_less_than_the_machine_has_says_nothing_some_more_warns_and_far_more_is_refused(monkeypatch, capsys):
    config = load_config()
    need = memory.step_bytes(config, pixels=192 * 256, num_classes=3, images=8)
    for share, begins in ((1.01, ""), (0.6, "warning: a training step needs about 1.2 GB of memory, and this machine")):
        monkeypatch.setattr(memory, "machine_bytes", lambda share=share: share * need)
        memory.check_memory(config, canvas_index=LANDSCAPE, num_classes=3, images=8)
        printed = capsys.readouterr().out
        assert printed.startswith(begins)
        assert bool(printed) == bool(begins)
    monkeypatch.setattr(memory, "machine_bytes", lambda: 0.4 * need)
    expected = (
        r"about 1\.2 GB .* has 0\.5; lower data\.batch_size \(8\), data\.min_size \(192\) or model\.roi\.batch_size"
    )
    with pytest.raises(ConfigError, match=expected):
        memory.check_memory(config, canvas_index=LANDSCAPE, num_classes=3, images=8)


def test_only_canvases_that_images_have_are_counted(monkeypatch):
    config = load_config(overrides=["data.min_size=256", "data.max_size=16384"])
    monkeypatch.setattr(memory, "machine_bytes", lambda: 4e9)
    memory.check_memory(config, canvas_index=np.array([2, 2]), num_classes=3, images=8)  # square ones
    with pytest.raises(ConfigError, match="of memory, and this machine has 4"):
        memory.check_memory(config, canvas_index=np.array([2, 0]), num_classes=3, images=8)


def test_a_container_has_what_it_is_given(monkeypatch, tmp_path):
    machine = memory.machine_bytes()
    monkeypatch.setattr(memory, "Path", lambda name: tmp_path / name.rpartition("/")[2])
    for text, expected in (("1000000\n", 1000000), ("max\n", None), (f"{2**63 - 4096}\n", None)):
        (tmp_path / "memory.max").write_text(text)
        assert memory.machine_bytes() == expected or (expected is None and memory.machine_bytes() >= machine)


def test_a_training_that_can_never_fit_ends_before_its_model_is_built(tmp_path, tiny_shapes):
    data = [f"data.{key}={getattr(tiny_shapes, key)}" for key in ("train_annotations", "train_images")]
    config = load_config(overrides=[*data, "data.batch_size=4096", "data.min_size=4096", "data.max_size=4096"])
    with pytest.raises(ConfigError, match="a training step needs about"):
        train(config, output=tmp_path / "run")
    assert not (tmp_path / "run").exists()
