"""The config tree: what is refused and how it says so, and that every key is real."""

import copy
import dataclasses
import math
import re
import sys
import types
from operator import attrgetter
from pathlib import Path

import pytest
import yaml

from dh_keras.commands import train
from dh_keras.config.checks import validate_config
from dh_keras.config.load import complete_config, load_config, save_config
from dh_keras.config.options import Limits, flatten, options
from dh_keras.config.schema import Config
from dh_keras.errors import ConfigError
from dh_keras.modeling.variants import VARIANTS

ROOT = Path(__file__).resolve().parents[2]


ALL_KEYS = tuple(flatten(Config()))


@pytest.mark.parametrize("key", ALL_KEYS)
def test_every_key_is_read_by_the_package(key):
    name = key.rpartition(".")[2]
    package = ROOT / "dh_keras"
    files = [p for p in package.rglob("*.py") if p.name != "shapes.py" and package / "config" not in p.parents]
    sources = [p.read_text() for p in files]
    patterns = (rf"\.{name}\b", rf"getattr\(paths?, f\"\{{split\}}_{name.partition('_')[2]}\"")
    reads = [source for source in sources if any(re.search(pattern, source) for pattern in patterns)]
    whole = key.startswith("model.loss_weights.") and any("vars(config.loss_weights)" in source for source in sources)
    assert reads or whole, f"nothing reads {key}"


@pytest.mark.parametrize(
    ("override", "expected"),
    [
        ("model.rpn.nms_treshold=0.7", r"key model\.rpn\.nms_treshold: no such key; expected one of .*nms_iou"),
        ("trian.lr=1", r"key trian: no such key; expected one of data, evaluate, model, train"),
        ("train.lr=fast", r"key train\.lr: .*'fast'"),
        ("data.batch_size=2.5", r"key data\.batch_size: .*2\.5"),
        ("model.variant=triple_head", r"key model\.variant: expected one of single_fc, .*got 'triple_head'"),
        ("model.geometry=pixel", r"key model\.geometry: expected one of continuous, legacy, got 'pixel'"),
        ("model.backbone.depth=34", r"key model\.backbone\.depth: expected one of 18, 50, 101, got 34"),
        ("model.backbone.norm=none", r"key model\.backbone\.norm: expected one of frozen"),
        ("model.backbone.frozen_stages=5", r"key model\.backbone\.frozen_stages: expected 0 to 4, got 5"),
        ("model.rpn.anchor_sizes=[32,64]", r"key model\.rpn\.anchor_sizes: expected five sizes"),
        ("model.rpn.anchor_ratios=[]", r"key model\.rpn\.anchor_ratios: expected at least one ratio"),
        (
            "model.rpn.negative_iou=0.8",
            r"key model\.rpn\.negative_iou: expected at most positive_iou \(0\.7\), got 0\.8",
        ),
        ("model.pixel_std=[1,1]", r"key model\.pixel_std: expected three numbers"),
        ("model.conv_head.channels=30", r"key model\.conv_head\.channels: expected a multiple of 4, got 30"),
        ("model.conv_head.non_local.channels=30", r"non_local\.channels: expected a multiple of groups \(4\), got 30"),
        ("model.loss_weights.fc_box=1", r"loss_weights\.fc_box: expected 0, as variant double_head has no fc_box_loss"),
        ("data.max_size=100", r"key data\.max_size: expected at least min_size \(192\), got 100"),
        ("data.train_images=x", r"key data\.train_images: expected data\.train_annotations and it, or neither"),
        ("data.augmentation=mosaic", r"key data\.augmentation: expected one of none, flip, .*got 'mosaic'"),
        ("data.scale_jitter=[2.0,0.1]", r"key data\.scale_jitter: expected null or two rising factors above 0"),
        ("train.optimizer=adam", r"key train\.optimizer: expected one of sgd, adamw, got 'adam'"),
        (
            "train.optimizer=adamw",
            r"key train\.lr: expected at most 0\.005 with train\.optimizer adamw, such as 0\.0002, got",
        ),
        ("train.schedule=linear", r"key train\.schedule: expected one of steps, cosine, got 'linear'"),
        ("data.scale_jitter=[0.5]", r"key data\.scale_jitter: expected null or two rising factors above 0"),
        ("data.repeat_threshold=2", r"key data\.repeat_threshold: expected a number from 0 to 1, got 2\.0"),
        ("data.val_annotations=x data.val_images=y", r"train_annotations: expected a COCO file \(or data\.train_tfrec"),
        ("train.drops=[3,2]", r"key train\.drops: expected rising numbers"),
        ("train.momentum=1.5", r"key train\.momentum: expected a number from 0 to 1, got 1\.5"),
        ("data.batch_size=0", r"key data\.batch_size: expected a number above 0 and at most \d+, got 0"),
        ("model.roi.sampling_ratio=-1", r"key model\.roi\.sampling_ratio: expected a number from 0 to 64, got -1"),
        ("evaluate.batch_size=0", r"key evaluate\.batch_size: expected a number above 0 and at most \d+, got 0"),
        ("train.accumulate=0", r"key train\.accumulate: expected a number above 0 and at most \d+, got 0"),
        ("train.seed=4294967296", r"key train\.seed: expected a number from 0 to 4294967295, got 4294967296"),
        ("train.steps=0 train.epochs=null", r"key train\.steps: expected a number above 0 and at most \d+, got 0"),
        ("model.pixel_std=[1,1,0]", r"key model\.pixel_std: expected three numbers above 0, got \[1\.0, 1\.0, 0\.0\]"),
        ("model.pixel_mean=[.nan,1,1]", r"key model\.pixel_mean: expected finite numbers, got \[nan, 1\.0, 1\.0\]"),
        ("data.max_size=100000", r"key data\.max_size: expected a number above 0 and at most 16384, got 100000"),
        ("data.min_size=10000000000", r"key data\.min_size: expected a number above 0 and at most 16384"),
        ("model.roi.conv_scale=.inf", r"key model\.roi\.conv_scale: expected a finite number, got inf"),
        ("model.fpn.channels=100000", r"key model\.fpn\.channels: expected a number above 0 and at most 4096"),
        ("data.scale_jitter=[1000000,1000001]", r"key data\.scale_jitter: expected null or two rising factors"),
        ("train.drops=[[1]]", r"key train\.drops: expected a list of numbers, got \[\[1\]\]"),
        ("model.rpn.anchor_ratios=[{}]", r"key model\.rpn\.anchor_ratios: expected a list of numbers, got \[\{\}\]"),
        ("train.epochs.x=1", r"key train\.epochs: Value .* could not be converted to Integer"),
        (f"train.lr=1{'0' * 400}", r"int too large to convert to float"),
        ("train.lr=inf", r"key train\.lr: expected a finite number, got inf"),
        ("train.lr=${data.size}", r"key train\.lr: Interpolation key 'data\.size' not found"),
        ("train.lr=[1]", r"key train\.lr: Value '\[1\]' .*could not be converted to Float"),
        ("train.drops=[a]", r"key train\.drops\[0\]: Value 'a' .*could not be converted to Integer"),
        ("model.rpn=3", r"key model\.rpn: expected keys and their values, got 3"),
        ("model.pixel_mean.x=1", r"override 'model\.pixel_mean\.x=1': Cannot merge"),
        ("train.lr", r"override 'train\.lr': expected key=value"),
    ],
)
def test_a_wrong_override_is_refused_with_its_path_and_what_was_expected(override, expected):
    with pytest.raises(ConfigError, match=expected) as error:
        load_config(overrides=override.split())
    assert "\n" not in str(error.value)


def set_value(config, key, value):
    owner, _, name = key.rpartition(".")
    setattr(attrgetter(owner)(config), name, value)


def annotation(key):
    owner, _, name = key.rpartition(".")
    return str(type(attrgetter(owner)(Config())).__annotations__[name])


FLOATS = [key for key in ALL_KEYS if "float" in annotation(key)]


@pytest.mark.parametrize("number", [math.nan, math.inf, -math.inf])
def test_no_number_may_be_infinite_or_missing(number):
    assert len(FLOATS) > 25
    good = load_config()
    for key in [*FLOATS, "model.backbone.hub_arguments"]:
        config = copy.deepcopy(good)
        lists = {"list[float]": [number, 1.0, 1.0], "dict[str, typing.Any] | None": {"rates": [number]}}
        set_value(config, key, lists.get(annotation(key).removesuffix(" | None"), number))
        with pytest.raises(ConfigError, match=rf"key {key}: expected "):
            validate_config(config)


def test_every_number_has_both_limits_or_is_checked_beside_others():
    numbers = [(key, limits) for key, _, limits in options(Config()) if re.search("int|float", annotation(key))]
    open_ended = {
        key
        for key, limits in numbers
        if not limits.choices and (limits.most is None or (limits.above is None and limits.least is None))
    }
    assert open_ended == {"data.multi_scale_sizes", "data.scale_jitter", "train.drops"}


def test_every_default_is_within_its_limits_and_no_two_configs_share_a_list():
    assert all(limits.allow(value) for _, value, limits in options(Config()))
    Config().model.rpn.anchor_ratios.append(0.0)
    assert len(Config().model.rpn.anchor_ratios) == 3
    load_config().model.pixel_mean.append(0.0)
    assert load_config().model.pixel_mean == [123.675, 116.28, 103.53]


@pytest.mark.parametrize(
    ("limits", "words", "good", "bad"),
    [
        (Limits(choices=("a", "b")), "one of a, b", ["a", "b", None], ["c", ""]),
        (Limits(above=0, most=9), "a number above 0 and at most 9", [0.1, 7, [1, 9], []], [0, -1, 10, [1, 0], [1, 10]]),
        (Limits(least=0, most=1), "a number from 0 to 1", [0, 1, 0.5], [-0.1, 1.1]),
        (Limits(length=2, wording="two numbers"), "two numbers", [[-1, 5]], [[], [1], [1, 2, 3]]),
        (Limits(filled=True, wording="numbers"), "numbers", [[0]], [[]]),
        (Limits(), "", [0, "x", [], {}], []),
    ],
)
def test_limits_say_what_they_allow(limits, words, good, bad):
    assert limits.expected == words
    assert [limits.allow(value) for value in good] == [True] * len(good)
    assert [limits.allow(value) for value in bad] == [False] * len(bad)


def test_a_config_is_completed_without_a_file_and_the_given_one_stays_as_it_is():
    config = Config()
    config.model.variant = "double_head_ext"
    done = complete_config(config, ["train.lr=0.5", "model.loss_weights.fc_box=0.25"])
    assert (done.train.lr, config.train.lr) == (0.5, 0.01)
    assert vars(done.model.loss_weights) == {"fc_class": 1.4, "fc_box": 0.25, "conv_class": 0.5, "conv_box": 2.0}
    assert config.model.loss_weights.fc_class is None
    config.model.backbone.depth = 34
    with pytest.raises(ConfigError, match=r"key model\.backbone\.depth: expected one of 18, 50, 101, got 34"):
        complete_config(config)


@pytest.mark.parametrize("sizes", ["[]", "[0]", "[160,300]"])
def test_sizes_of_multi_scale_training_are_checked_where_they_are_used(sizes):
    overrides = [f"data.multi_scale_sizes={sizes}", "data.max_size=256"]
    assert load_config(overrides=overrides).data.augmentation == "flip"
    with pytest.raises(
        ConfigError, match=r"key data\.multi_scale_sizes: expected at least one size, each from 1 to max"
    ):
        load_config(overrides=[*overrides, "data.augmentation=multi_scale"])


def test_tfrecords_take_the_place_of_training_annotations_and_may_have_a_validation_split():
    overrides = ["data.train_tfrecords=a-*", "data.val_annotations=v.json", "data.val_images=v"]
    assert load_config(overrides=overrides).data.train_tfrecords == "a-*"
    with pytest.raises(
        ConfigError, match=r"train_tfrecords: expected it or data\.train_annotations, not both, got 'a-"
    ):
        load_config(overrides=[*overrides, "data.train_annotations=t.json", "data.train_images=t"])


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("model: {varaint: double_head}", r"bad\.yaml: key model\.varaint: no such key; expected one of .*variant"),
        ("model: [1, 2]", r"bad\.yaml: key model: expected keys and their values, got \[1, 2\]"),
        ("just words", r"bad\.yaml: "),
        ("model: {a: [", r"bad\.yaml: not valid YAML"),
    ],
)
def test_a_wrong_file_is_named(tmp_path, text, expected):
    file = tmp_path / "bad.yaml"
    file.write_text(text)
    with pytest.raises(ConfigError, match=expected):
        load_config(file)
    with pytest.raises(ConfigError, match=r"nothing\.yaml: no such file"):
        load_config(tmp_path / "nothing.yaml")


@pytest.mark.parametrize("variant", VARIANTS)
def test_loss_weights_default_to_those_of_the_variant_and_can_be_changed(variant):
    published = VARIANTS[variant].loss_weights
    weights = vars(load_config(overrides=[f"model.variant={variant}"]).model.loss_weights)
    assert weights == {name: published.get(name, 0.0) for name in weights}
    name = next(iter(published))
    changed = load_config(overrides=[f"model.variant={variant}", f"model.loss_weights.{name}=0.125"])
    assert getattr(changed.model.loss_weights, name) == 0.125


def test_the_weights_of_the_ext_variant_are_the_papers():
    weights = load_config(overrides=["model.variant=double_head_ext"]).model.loss_weights
    assert weights.conv_class == pytest.approx(2.5 * (1 - 0.8))
    assert weights.conv_box == pytest.approx(2.5 * 0.8)
    assert weights.fc_class == pytest.approx(2.0 * 0.7)
    assert weights.fc_box == pytest.approx(2.0 * (1 - 0.7))


def test_a_saved_config_is_complete_and_loads_as_the_same_tree(tmp_path):
    config = load_config(overrides=["model.variant=double_head_ext", "train.lr=0.123", "data.min_size=100"])
    save_config(config, tmp_path / "config.yaml")
    assert yaml.safe_load((tmp_path / "config.yaml").read_text()) == dataclasses.asdict(config)
    assert load_config(tmp_path / "config.yaml") == config


TYPED = [
    *("photos #2", "007", "no", "2024_01_05", "1e3", "null", "[new] cells", "a: b", "@cells", "train-*", "it's", '"q"'),
    *(
        "${run}",
        "a\\${run}",
        "c:\\x\\\\${run}${",
        "~",
        " led ",
        "l\nm",
        "café",
        "-",
        "{a: 1}",
        "!t",
        "&a",
        "%x",
        "0x10",
    ),
]


@pytest.mark.parametrize("text", TYPED)
def test_a_typed_path_is_used_as_it_is_and_comes_back_from_the_runs_config(tmp_path, text):
    values = {"data.train_annotations": f"{text}/train.json", "data.train_images": text}
    config = load_config(values=values, overrides=["data.val_images=v", "data.val_annotations=${data.train_images}"])
    assert (config.data.train_annotations, config.data.train_images) == (f"{text}/train.json", text)
    assert config.data.val_annotations == text
    save_config(config, tmp_path / "config.yaml")
    assert load_config(tmp_path / "config.yaml") == complete_config(config) == config


def test_what_everybody_changes_has_short_options_and_an_override_goes_before_them(monkeypatch, tmp_path):
    def stop(config, **options):
        train, data = config.train, config.data
        raise ConfigError(repr((train.epochs, train.drops, data.batch_size, data.min_size, data.max_size, train.lr)))

    training = types.ModuleType("training")
    training.train = stop
    monkeypatch.setitem(sys.modules, "dh_keras.reports.training", training)
    words = ["--epochs", "28", "--batch", "6", "--size", "320", "--lr", "0.5", "--output", str(tmp_path / "run")]
    with pytest.raises(ConfigError, match=r"^\(28, \[22, 26\], 6, 320, 320, 0\.5\)$"):
        train.run(train.make_parser().parse(words))
    with pytest.raises(ConfigError, match=r"^\(28, \[22, 26\], 6, 240, 320, 0\.5\)$"):
        train.run(train.make_parser().parse([*words, "data.min_size=240"]))


def test_the_train_command_gives_its_paths_as_they_are(monkeypatch, tmp_path):
    def stop(config, **options):
        raise ConfigError(repr(config.data.train_images) + repr(config.data.train_tfrecords))

    training = types.ModuleType("training")
    training.train = stop
    monkeypatch.setitem(sys.modules, "dh_keras.reports.training", training)
    always = ["--config", "shapes_tiny", "--output", str(tmp_path / "run")]
    args = ["--train-annotations", "a.json", "--train-images", "photos #2", *always]
    with pytest.raises(ConfigError, match=r"^'photos #2'None$"):
        train.run(train.make_parser().parse(args))
    with pytest.raises(ConfigError, match=r"^None'\$\{x\}-\*'$"):
        train.run(train.make_parser().parse(["--tfrecords", "${x}-*", *always]))


@pytest.mark.parametrize("text", ["???", "photos\udcff"])
def test_a_path_that_no_config_can_hold_is_refused_in_one_line(text):
    with pytest.raises(ConfigError, match=r"key data\.train_images: expected UTF-8 text other than \?\?\?") as error:
        load_config(values={"data.train_annotations": "a.json", "data.train_images": text})
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("text", "path"),
    [
        *((text, text) for text in ("photos #2", "007", "no", "2024_01_05", "[new] cells", "it's", "a=b")),
        *(('"a b"', "a b"), ("'007'", "007"), ("${data.train_annotations}", "a.json")),
    ],
)
def test_an_override_of_a_path_is_text_unless_it_is_quoted_or_refers_to_a_key(text, path):
    assert (
        load_config(overrides=["data.train_annotations=a.json", f"data.train_images={text}"]).data.train_images == path
    )


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("train:\n\tlr: 0.01\n", "not valid YAML: line 2: found character that cannot start any token"),
        ("train:\n  lr: 1\n  epochs: 1\n  lr: 2\n", "not valid YAML: line 4: found duplicate key lr"),
        ("train:\n  lr 0.01\n  epochs: 1\n", "not valid YAML: line 3: mapping values are not allowed"),
        ("data:\n  train_images: 2024_01_05\n", r"key data\.train_images: expected a path, got 20240105, as YAML"),
        ("data:\n  train_images: no\n", r"key data\.train_images: expected a path, got False, as YAML reads it"),
        ("data:\n  train_images: ${HOME}/x\n", r"key data\.train_images: Interpolation key 'HOME' not found"),
        ("\ud800", "not valid YAML: it is not UTF-8 text; save it as such"),
    ],
)
def test_a_fault_of_a_file_is_named_with_its_line_or_key(tmp_path, text, expected):
    file = tmp_path / "bad.yaml"
    file.write_bytes(text.encode("utf-8", "surrogatepass"))
    with pytest.raises(ConfigError, match=expected) as error:
        load_config(file)
    assert "\n" not in str(error.value)
