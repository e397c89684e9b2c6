"""The files in configs/: they say what is published, nothing in them is idle, they are found and installed."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
from omegaconf import OmegaConf

from dh_keras.config.load import CONFIGS, DEFAULT_CONFIG, find_config, load_config
from dh_keras.config.options import flatten
from dh_keras.errors import ConfigError

ROOT = Path(__file__).resolve().parents[2]
NAMES = sorted(file.stem for file in CONFIGS.glob("*.yaml"))
COCO = [name for name in NAMES if name.endswith("coco")]

# The 1x recipe of the paper, section 5, as in the authors' release.
RECIPE = {
    "data.min_size": 800,
    "data.max_size": 1333,
    "data.augmentation": "flip",
    "data.flip_probability": 0.5,
    "model.backbone.width": 64,
    "model.backbone.frozen_stages": 1,
    "model.backbone.norm": "frozen",
    "model.fpn.channels": 256,
    "model.rpn.anchor_sizes": [32.0, 64.0, 128.0, 256.0, 512.0],
    "model.rpn.anchor_ratios": [0.5, 1.0, 2.0],
    "model.rpn.positive_iou": 0.7,
    "model.rpn.negative_iou": 0.3,
    "model.rpn.batch_size": 256,
    "model.rpn.positive_fraction": 0.5,
    "model.rpn.nms_iou": 0.7,
    "model.rpn.pre_nms_train": 2000,
    "model.rpn.post_nms_test": 1000,
    "model.roi.fc_scale": 1.0,
    "model.roi.conv_scale": 1.3,
    "model.roi.batch_size": 512,
    "model.roi.foreground_fraction": 0.25,
    "model.roi.foreground_iou": 0.5,
    "model.fc_head.channels": 1024,
    "model.conv_head.channels": 1024,
    "model.conv_head.norm": "batch",
    "model.score_threshold": 0.05,
    "model.nms_iou": 0.5,
    "model.max_detections": 100,
    "train.momentum": 0.9,
    "train.l2": 1e-4,
    "train.warmup_steps": 500,
    "train.drop_factor": 0.1,
}
AUTHORS = {
    "data.batch_size": 8,
    "train.base_batch_size": 8,
    "train.lr": 0.01,
    "train.steps": 180_000,
    "train.epochs": None,
    "train.drops": [120_000, 160_000],
    "train.warmup_factor": 1 / 3,
    "train.bias_lr_factor": 2.0,
    "train.bias_l2": 0.0,
    "model.rpn.post_nms_train": 2000,
    "model.rpn.ignore_border": True,
    "model.rpn.low_quality_iou": 0.0,
    "model.rpn.low_quality_own_box": False,
    "model.rpn.box_loss_beta": 1 / 9,
    "model.roi.sampling_ratio": 2,
    "model.backbone.stride_in_1x1": True,
    "model.backbone.weights": "imagenet",
    "model.channel_order": "bgr",
    "model.pixel_std": [1.0, 1.0, 1.0],
}
EXT = {
    **AUTHORS,
    "model.variant": "double_head_ext",
    "model.geometry": "legacy",
    "model.pixel_mean": [102.9801, 115.9465, 122.7717],
    "model.conv_head.blocks": 2,
    "model.conv_head.non_local.channels": 512,
    "model.conv_head.non_local.groups": 4,
    "model.conv_head.non_local.mode": "dot_product",
    "model.loss_weights.fc_class": 1.4,
    "model.loss_weights.fc_box": 0.6,
    "model.loss_weights.conv_class": 0.5,
    "model.loss_weights.conv_box": 2.0,
}
PLAIN = {
    "model.geometry": "continuous",
    "model.backbone.depth": 50,
    "model.conv_head.blocks": 4,
    "model.conv_head.non_local.channels": 0,
}
PUBLISHED = {
    "double_head_ext_r50_fpn_1x_coco": {**EXT, "model.backbone.depth": 50},
    "double_head_ext_r101_fpn_1x_coco": {**EXT, "model.backbone.depth": 101},
    "double_head_r50_fpn_1x_coco": {
        **AUTHORS,
        **PLAIN,
        "model.variant": "double_head",
        "model.pixel_mean": [103.939, 116.779, 123.68],
        "model.loss_weights.fc_class": 2.0,
        "model.loss_weights.fc_box": 0.0,
        "model.loss_weights.conv_class": 0.0,
        "model.loss_weights.conv_box": 2.5,
    },
    "single_fc_r50_fpn_1x_coco": {
        **AUTHORS,
        **PLAIN,
        "model.variant": "single_fc",
        "model.pixel_mean": [103.939, 116.779, 123.68],
        "model.loss_weights.fc_class": 1.0,
        "model.loss_weights.fc_box": 1.0,
    },
    "mmdetection_double_head_r50_fpn_1x_coco": {
        **PLAIN,
        "model.variant": "double_head",
        "model.channel_order": "rgb",
        "model.pixel_mean": [123.675, 116.28, 103.53],
        "model.pixel_std": [58.395, 57.12, 57.375],
        "model.backbone.stride_in_1x1": False,
        "model.rpn.low_quality_iou": 0.3,
        "model.rpn.low_quality_own_box": True,
        "model.rpn.ignore_border": False,
        "model.rpn.post_nms_train": 1000,
        "model.rpn.box_loss_beta": 0.0,
        "model.roi.sampling_ratio": 0,
        "model.loss_weights.fc_class": 2.0,
        "model.loss_weights.fc_box": 0.0,
        "model.loss_weights.conv_class": 0.0,
        "model.loss_weights.conv_box": 2.0,
        "data.batch_size": 16,
        "train.base_batch_size": 16,
        "train.lr": 0.02,
        "train.epochs": 12,
        "train.steps": None,
        "train.drops": [8, 11],
        "train.warmup_factor": 0.001,
        "train.bias_lr_factor": 1.0,
        "train.bias_l2": None,
    },
}


@pytest.mark.parametrize("name", COCO)
def test_the_published_recipes_are_as_published(name):
    values = flatten(load_config(name))
    expected = RECIPE | PUBLISHED[name]
    assert {key: values[key] for key in expected} == expected


def test_the_small_recipes_are_small():
    shapes, hub, cells = (
        load_config(name) for name in ("shapes_tiny", "shapes_keras_hub", "double_head_r50w24_scratch")
    )
    assert (shapes.model.backbone.depth, shapes.model.backbone.width, shapes.data.max_size) == (18, 32, 256)
    assert (shapes.train.epochs, shapes.train.drops, shapes.train.lr) == (14, [11, 13], 0.02)
    assert hub.model.backbone.name == "keras_hub:EfficientNetBackbone"
    assert (hub.train.epochs, hub.train.drops) == (12, [9, 11])
    assert (cells.model.backbone.depth, cells.model.backbone.width, cells.data.max_size) == (50, 24, 320)
    assert (cells.train.epochs, cells.train.drops, cells.train.base_batch_size) == (20, [15, 18], 4)
    for config in (shapes, hub, cells):
        assert config.train.steps is None
        assert config.train.clip_norm == 10.0
        assert (config.model.backbone.weights, config.model.backbone.norm) == (None, "batch")
    ours, theirs = flatten(shapes), flatten(hub)
    schedule = {"train.epochs", "train.drops", "train.evaluate_every"}
    backbone = {"model.backbone.name", "model.backbone.hub_arguments", "model.pixel_mean", "model.pixel_std"}
    assert {key for key in ours if ours[key] != theirs[key]} == schedule | backbone


def test_the_recipe_from_a_preset_is_that_from_random_weights_with_another_backbone():
    fine, scratch = (
        flatten(load_config(f"double_head_{name}")) for name in ("efficientnet_lite0_finetune", "r50w24_scratch")
    )
    assert fine["model.backbone.name"] == "keras_hub:efficientnet_lite0_ra_imagenet"
    differing = {key for key in fine if fine[key] != scratch[key]}
    backbone = {"model.backbone.name", "model.backbone.width", "model.backbone.stride_in_1x1"}
    assert differing == backbone | {"model.pixel_mean", "model.pixel_std"}


@pytest.mark.parametrize("name", NAMES)
def test_no_key_of_a_file_is_idle(name, tmp_path):
    """Every key makes the config another one than the defaults of its variant."""
    file = tmp_path / "default.yaml"
    file.write_text("")
    config = load_config(name)
    given = OmegaConf.load(CONFIGS / f"{name}.yaml")
    defaults = flatten(load_config(file, [f"model.variant={config.model.variant}"]))
    defaults["model.variant"] = load_config(file).model.variant
    values = flatten(config)
    keys = [key for key in values if OmegaConf.select(given, key, default="absent") != "absent"]
    assert keys
    assert [key for key in keys if values[key] == defaults[key]] == []


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("", (None, 180_000, [120_000, 160_000])),
        ("train: {lr: 0.1}", (None, 180_000, [120_000, 160_000])),
        ("train: {drops: [5]}", (None, 180_000, [5])),
        ("train: {epochs: 3}", (3, None, [])),
        ("train: {epochs: 3, drops: [2]}", (3, None, [2])),
        ("train: {steps: 90000}", (None, 90_000, [])),
        ("train: {epochs: null, steps: 9, drops: [1]}", (None, 9, [1])),
    ],
)
def test_a_file_that_says_how_long_to_train_takes_no_default_for_it(tmp_path, text, expected):
    file = tmp_path / "short.yaml"
    file.write_text(text)
    train = load_config(file).train
    assert (train.epochs, train.steps, train.drops) == expected


@pytest.mark.parametrize(
    ("name", "overrides", "expected"),
    [
        ("double_head_r50_fpn_1x_coco", ["train.steps=4", "train.epochs=null", "train.drops=[]"], (None, 4, [])),
        ("double_head_r50_fpn_1x_coco", ["train.epochs=12"], (12, None, [8, 11])),
        ("double_head_r50_fpn_1x_coco", ["train.steps=90000"], (None, 90_000, [60_000, 80_000])),
        ("shapes_tiny", ["train.epochs=28"], (28, None, [22, 26])),
        ("shapes_tiny", ["train.epochs=28", "train.lr=1"], (28, None, [22, 26])),
        ("shapes_tiny", ["train.epochs=1"], (1, None, [])),
        ("shapes_tiny", ["train.epochs=2"], (2, None, [])),
        ("shapes_tiny", ["train.epochs=3"], (3, None, [2])),
        ("shapes_tiny", ["train.steps=60"], (None, 60, [47, 56])),
        ("shapes_tiny", ["train.steps=60", "train.drops=[7]"], (None, 60, [7])),
        ("shapes_tiny", ["train.drops=[7]"], (14, None, [7])),
        ("shapes_tiny", ["train.lr=1"], (14, None, [11, 13])),
    ],
)
def test_an_override_of_the_length_takes_the_place_of_the_other_and_moves_the_drops(name, overrides, expected):
    train = load_config(name, overrides).train
    assert (train.epochs, train.steps, train.drops) == expected


def test_a_cosine_takes_the_place_of_drops_that_are_not_given(tmp_path):
    for overrides in (["train.schedule=cosine"], ["train.schedule=cosine", "train.epochs=9"]):
        assert load_config("shapes_tiny", overrides).train.drops == []
    file = tmp_path / "a.yaml"
    file.write_text("train: {schedule: cosine}")
    assert (load_config(file).train.steps, load_config(file).train.drops) == (180_000, [])
    for overrides in (["train.schedule=cosine", "train.drops=[3]"], ["train.drops=[3]", "train.schedule=cosine"]):
        with pytest.raises(
            ConfigError, match=r"key train\.drops: expected none with train\.schedule cosine, got \[3\]"
        ):
            load_config("shapes_tiny", overrides)
    with pytest.raises(
        ConfigError, match=r"key train\.momentum: expected a number below 1 with train\.optimizer adamw"
    ):
        load_config("shapes_tiny", ["train.optimizer=adamw", "train.lr=0.0001", "train.momentum=1"])


def test_two_lengths_or_none_are_refused():
    with pytest.raises(ConfigError, match=r"key train\.epochs: expected it or train\.steps, one of the two, got 3"):
        load_config(overrides=["train.epochs=3", "train.steps=9"])
    with pytest.raises(ConfigError, match=r"key train\.epochs: expected it or train\.steps, one of the two, got None"):
        load_config(overrides=["train.epochs=null"])


def test_a_ready_config_is_found_by_name_from_any_folder_and_a_file_goes_first(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for name in ("shapes_tiny", "shapes_tiny.yaml", "configs/shapes_tiny", "configs/shapes_tiny.yaml", DEFAULT_CONFIG):
        assert find_config(name) == DEFAULT_CONFIG
    assert load_config("configs/shapes_tiny.yaml") == load_config()
    (tmp_path / "configs").mkdir()
    (tmp_path / "configs" / "shapes_tiny.yaml").write_text("train: {lr: 0.7}")
    assert load_config("configs/shapes_tiny.yaml").train.lr == 0.7
    assert load_config("shapes_tiny").train.lr == 0.02


@pytest.mark.parametrize(
    "path", ["shapes", "configs/shapes.yaml", "elsewhere/shapes_tiny.yaml", "/shapes_tiny", "runs/x/"]
)
def test_an_unknown_config_is_one_line_with_the_ready_ones(path, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ConfigError) as error:
        load_config(path)
    assert str(error.value) == f"config {Path(path)}: no such file; the ready ones are {', '.join(NAMES)}"


def test_every_file_is_installed_with_the_package_and_read_from_there(tmp_path):
    command = [sys.executable, "setup.py", "--quiet", "build_py", "--build-lib", str(tmp_path)]
    subprocess.run(command, cwd=ROOT, capture_output=True, check=True)
    installed = tmp_path / "dh_keras" / "configs"
    assert {file.name for file in installed.iterdir()} == {file.name for file in (ROOT / "configs").iterdir()}
    code = """
from dh_keras.config.load import CONFIGS, load_config
print(CONFIGS, load_config().train.epochs, load_config("single_fc_r50_fpn_1x_coco").train.steps)
"""
    environment = {**os.environ, "PYTHONPATH": str(tmp_path)}
    run = subprocess.run(
        [sys.executable, "-c", code], cwd=tmp_path, env=environment, capture_output=True, text=True, check=True
    )
    assert run.stdout.split() == [str(installed), "14", "180000"]
