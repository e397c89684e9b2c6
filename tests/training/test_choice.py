"""Without --config one is chosen for the photographs, said with its reason, and kept in the run."""

from types import SimpleNamespace

import numpy as np
import pytest
import yaml

from dh_keras.commands.train import main
from dh_keras.config.load import load_config
from dh_keras.config.schema import Config
from dh_keras.modeling.hub_backbone import is_preset_here
from dh_keras.pretrained.published import PUBLISHED
from dh_keras.run.run_folder import write_run
from dh_keras.training import choice
from dh_keras.training.choice import FINETUNE, SCRATCH, choose_config


@pytest.fixture
def choose(monkeypatch, tmp_path):
    """Return a function that chooses for photographs of one size; nothing is in any cache."""
    monkeypatch.setenv("KERAS_HOME", str(tmp_path / "keras"))
    monkeypatch.setenv("KAGGLEHUB_CACHE", str(tmp_path / "kaggle"))

    def choose(images, size, *, gpu=False, overrides=(), init=None):
        sizes = np.tile(np.array(size, np.int32), (images, 1))
        monkeypatch.setattr(choice, "load_splits", lambda data: (SimpleNamespace(sizes=sizes), None))
        monkeypatch.setattr(choice, "find_gpus", lambda: ["a GPU"] * gpu)
        values = {"data.train_annotations": "a.json", "data.train_images": "photographs"}
        chosen = choose_config(values, list(overrides), init=init)
        return chosen, load_config(chosen.config, [*chosen.settings, *overrides], values=values)

    return choose


@pytest.mark.parametrize(
    ("images", "size", "gpu", "expected"),
    [
        (50, (240, 320), False, (100, [75, 90], 256, 320)),
        (292, (480, 640), False, (20, [15, 18], 384, 512)),
        (5000, (3000, 4000), False, (12, [9, 11], 384, 512)),
        (50, (150, 120), True, (100, [75, 90], 256, 320)),
        (300, (480, 640), True, (19, [14, 17], 480, 640)),
        (5000, (4000, 3000), True, (12, [9, 11], 1024, 1344)),
    ],
)
def test_length_and_size_follow_the_photographs_and_the_device(choose, images, size, gpu, expected):
    chosen, config = choose(images, size, gpu=gpu)
    assert chosen.name == chosen.config.stem == SCRATCH
    train, data = config.train, config.data
    assert (train.epochs, train.drops, data.min_size, data.max_size) == expected
    assert (data.batch_size, train.base_batch_size, train.lr) == (4, 4, 0.02)
    assert (
        f"chosen for {images} photographs of about {max(size)}x{min(size)} pixels on a {'GPU' if gpu else 'CPU'}: "
        in (chosen.said)
    )


def test_what_is_typed_is_not_chosen(choose):
    typed = ["train.steps=7", "data.min_size=200", "data.max_size=300", "data.batch_size=2"]
    chosen, config = choose(50, (240, 320), overrides=typed)
    assert (config.train.epochs, config.train.steps, config.train.drops) == (None, 7, [5, 6])
    assert (config.data.min_size, config.data.max_size, config.data.batch_size) == (200, 300, 2)
    assert chosen.settings == []


def test_random_weights_come_with_a_word_of_what_would_be_better(choose, monkeypatch):
    said = choose(50, (240, 320))[0].said.splitlines()
    assert "from random weights, as none are at hand" in said[0]
    assert said[1:] == [f"for better results: type --config {FINETUNE}, which downloads ImageNet weights once"]
    said = choose(50, (240, 320), gpu=True)[0].said.splitlines()
    assert said[1:] == [
        "for better results: type dh-keras fetch mmdetection_r50, which downloads a detector once, and this again"
    ]
    monkeypatch.setattr(choice, "has_keras_hub", lambda: False)
    assert choose(50, (240, 320))[0].said.splitlines()[1].startswith('for better results: pip install "')


def test_a_preset_in_the_cache_or_one_that_is_typed_takes_the_config_that_starts_from_it(choose, tmp_path):
    preset = "efficientnet_lite0_ra_imagenet"
    assert not is_preset_here(preset)
    chosen, config = choose(50, (240, 320), overrides=["model.backbone.name=keras_hub:mine"])
    assert (chosen.name, config.model.backbone.name) == (FINETUNE, "keras_hub:mine")
    version = tmp_path / "kaggle" / "models" / "keras" / "efficientnet" / "keras" / preset / "2"
    version.mkdir(parents=True)
    (version / "model.weights.h5").touch()
    assert is_preset_here(preset)
    assert is_preset_here(str(tmp_path))
    assert not is_preset_here("nobodys_preset")
    chosen, config = choose(50, (240, 320))
    assert chosen.name == FINETUNE
    assert f"from ImageNet weights, keras_hub:{preset}; " in chosen.said
    assert "\n" not in chosen.said


def test_weights_of_a_detector_bring_their_config_when_they_are_typed_or_in_the_cache_of_a_gpu(choose, tmp_path):
    name = next(iter(PUBLISHED))
    run = tmp_path / "keras" / "dh_keras" / name
    run.mkdir(parents=True)
    config = Config()
    config.data.val_annotations, config.data.val_images = "old.json", "old"
    config.data.train_annotations, config.data.train_images = "old.json", "old"
    config.model.conv_head.blocks = 3
    write_run(run, config, ())
    assert choose(50, (240, 320))[0].name == SCRATCH
    for options in ({"gpu": True}, {"init": name}, {"init": str(run)}, {"init": str(run / "best.weights.h5")}):
        chosen, config = choose(50, (240, 320), **options)
        assert chosen.name == name
        assert chosen.init == options.get("init", str(run))
        assert config.model.conv_head.blocks == 3
        assert (config.data.train_annotations, config.data.val_annotations) == ("a.json", None)
        train = config.train
        assert (train.epochs, train.steps, train.drops) == (100, None, [67, 89])
        assert (train.lr, train.base_batch_size, config.data.batch_size) == (0.001, 8, 4)
        assert "from its weights, with a tenth of its learning rate; " in chosen.said


def test_the_command_says_its_choice_and_the_run_keeps_it_when_it_goes_on(
    tmp_path, monkeypatch, capsys, tiny_overrides, tiny_shapes
):
    monkeypatch.setenv("KAGGLEHUB_CACHE", str(tmp_path / "kaggle"))
    monkeypatch.setattr(choice, "find_gpus", list)
    run = tmp_path / "run"
    data = ["--train-annotations", str(tiny_shapes.train_annotations), "--train-images", str(tiny_shapes.train_images)]
    small = [text for text in tiny_overrides if text != "data.max_size=128"]
    main([*data, "--output", str(run), *small, "train.steps=1", "train.pictures=0", "data.max_size=128"])
    said = capsys.readouterr().out
    assert said.startswith("config chosen for 12 photographs of about ")
    assert f": {SCRATCH}, from random weights, as none are at hand\n" in said
    written = yaml.safe_load((run / "config.yaml").read_text())
    assert (written["model"]["backbone"]["norm"], written["train"]["clip_norm"]) == ("batch", 10.0)
    main(["--resume", "--output", str(run)])
    said = capsys.readouterr().out
    assert "chosen" not in said
    assert "has finished, after 1 of 1 steps" in said


def test_several_machines_and_missing_files_are_refused_at_once(tmp_path, capsys):
    data = ["--train-annotations", "nowhere.json", "--train-images", str(tmp_path)]
    for words, message in (
        (
            ["--strategy", "multi_worker"],
            "error: --strategy multi_worker: needs --config, as what lies on each machine",
        ),
        ([], "error: nowhere.json: no such file or folder"),
    ):
        with pytest.raises(SystemExit):
            main([*data, *words])
        assert capsys.readouterr().err.startswith(message)
