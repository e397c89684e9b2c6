"""What `dh-keras convert-checkpoint` accepts, writes and refuses."""

import collections
import json
import os
from pathlib import Path

import numpy as np
import published
import pytest

from dh_keras.commands.convert_checkpoint import main
from dh_keras.config.load import load_config
from dh_keras.errors import DataError, WriteError
from dh_keras.inference.detector import Detector
from dh_keras.modeling.builder import assemble_detector
from dh_keras.modeling.variables import variables_by_path
from dh_keras.pretrained import authors, mmdetection
from dh_keras.pretrained.class_names import COCO_IDS, COCO_NAMES, name_classes
from dh_keras.pretrained.importer import convert_checkpoint, import_checkpoint
from dh_keras.run.run_folder import open_run
from dh_keras.run.weights import load_weights

torch = pytest.importorskip("torch", reason="torch is needed to write and read checkpoints")

ROOT = Path(__file__).resolve().parents[2]
TRAINING_STATE = {
    "optimizer": {"state": {0: {"momentum_buffer": torch.zeros(3)}}, "param_groups": [{"lr": 0.01, "params": [0]}]},
    "scheduler": {"milestones": [120000, 160000], "gamma": 0.1, "last_epoch": 180000},
    "iteration": 180000,
}


def narrow_authors(**changes):
    return published.make_tensors(published.authors_shapes(**{**published.NARROW, **changes}))


def narrow_mmdetection(**changes):
    return published.make_tensors(published.mmdetection_shapes(**{**published.NARROW, **changes}))


def save(path, tensors, *, key="model", extras=None, zipped=True):
    network = collections.OrderedDict((name, torch.from_numpy(np.array(value))) for name, value in tensors.items())
    content = {key: network, **(extras or {})} if key else network
    torch.save(content, path, _use_new_zipfile_serialization=zipped)
    return path


def weights_of(model):
    return {path: variable.numpy() for path, variable in variables_by_path(model).items()}


@pytest.fixture(scope="module")
def authors_file(tmp_path_factory):
    return save(tmp_path_factory.mktemp("files") / "authors.pth", narrow_authors())


@pytest.fixture(scope="module")
def authors_import(authors_file):
    return convert_checkpoint(authors_file)


def test_old_and_new_format_training_state_and_a_bare_dict_give_the_same_weights(tmp_path, authors_import):
    tensors = narrow_authors()
    old = convert_checkpoint(save(tmp_path / "old.pth", tensors, extras=TRAINING_STATE, zipped=False))
    assert (tmp_path / "old.pth").read_bytes()[:2] != b"PK"
    assert old.extras == ("optimizer", "scheduler", "iteration")
    assert "optimizer, scheduler, iteration" in old.summary()
    bare = {name.removeprefix("module."): value for name, value in tensors.items()}
    expected = weights_of(authors_import.model)
    for other in (old, convert_checkpoint(save(tmp_path / "bare.pth", bare, key=None))):
        found = weights_of(other.model)
        assert found.keys() == expected.keys()
        for path, value in expected.items():
            np.testing.assert_array_equal(found[path], value)


def test_every_tensor_is_used_or_listed(authors_import):
    assert len(authors_import.unused) == 11
    assert all(name.endswith(published.COUNTER) for name in authors_import.unused)
    shapes = published.authors_shapes(**published.NARROW)
    numbers = sum(int(np.prod(s)) for name, s in shapes.items() if not name.endswith(published.COUNTER))
    background_deltas = 4 * (published.NARROW["fc"] + 1) + 4 * (published.NARROW["conv"] + 1)
    assert sum(value.size for value in weights_of(authors_import.model).values()) == numbers - background_deltas


@pytest.mark.parametrize("depth", [50, 101])
def test_depth_widths_blocks_and_classes_are_inferred(depth):
    widths = {"depth": depth, "width": 2, "fpn": 4, "fc": 6, "conv": 8, "classes": 7}
    tensors = published.make_tensors(published.authors_shapes(**widths, blocks=3, prefix=""))
    config, num_classes = authors.infer_config(tensors, "a.pth")
    model = config.model
    assert (model.backbone.depth, model.backbone.width, model.fpn.channels) == (depth, 2, 4)
    assert (model.fc_head.channels, model.conv_head.channels, model.conv_head.blocks) == (6, 8, 3)
    assert (model.conv_head.non_local.channels, model.variant, model.geometry) == (4, "double_head_ext", "legacy")
    assert num_classes == 7
    tensors = narrow_mmdetection(**widths, blocks=1)
    config, num_classes = mmdetection.infer_config(tensors, "m.pth")
    model = config.model
    assert (model.backbone.depth, model.conv_head.blocks, model.conv_head.non_local.channels) == (depth, 1, 0)
    assert (model.variant, model.geometry, model.roi.sampling_ratio) == ("double_head", "continuous", 0)
    assert num_classes == 7


@pytest.mark.parametrize(
    ("module", "depth", "name"),
    [
        (authors, 50, "double_head_ext_r50_fpn_1x_coco"),
        (authors, 101, "double_head_ext_r101_fpn_1x_coco"),
        (mmdetection, 50, "mmdetection_double_head_r50_fpn_1x_coco"),
    ],
)
def test_the_published_models_have_the_settings_of_their_config_files(module, depth, name):
    sizes = {**published.PUBLISHED, "depth": depth}
    shapes = (
        published.authors_shapes(**sizes, prefix="") if module is authors else published.mmdetection_shapes(**sizes)
    )
    tensors = {name: np.broadcast_to(np.float32(0), shape) for name, shape in shapes.items()}
    config, num_classes = module.infer_config(tensors, name)
    expected = load_config(ROOT / "configs" / f"{name}.yaml")
    expected.model.backbone.weights = None
    assert config == expected
    assert num_classes == 80


def test_a_run_folder_is_written_and_can_be_loaded(tmp_path, authors_file):
    names = tmp_path / "names.txt"
    names.write_text("cat\n\ndog\nfish\n")
    run, imported = import_checkpoint(
        authors_file, tmp_path / "run", class_names=names, overrides=["model.score_threshold=0.2"]
    )
    assert sorted(path.name for path in run.path.iterdir()) == sorted(
        ["best.weights.h5", "classes.json", "config.yaml", "last.weights.h5", "origin.json"]
    )
    assert [category.name for category in open_run(run.path).categories] == ["cat", "dog", "fish"]
    assert open_run(run.path).config == imported.config
    assert run.config.model.score_threshold == 0.2
    assert json.loads((run.path / "origin.json").read_text())["file"] == "authors.pth"
    assert len(Detector.load(run.path).categories) == 3
    loaded = assemble_detector(run.config.model, num_classes=3, seed=1)
    load_weights(loaded, open_run(run.path).weights)
    for path, value in weights_of(imported.model).items():
        np.testing.assert_array_equal(weights_of(loaded)[path], value)


def test_class_names_come_from_the_file_the_checkpoint_or_coco(tmp_path):
    tensors = narrow_mmdetection()
    path = save(tmp_path / "m.pth", tensors, key="state_dict", extras={"meta": {"CLASSES": ("x", "y", "z")}})
    assert [(c.id, c.name) for c in convert_checkpoint(path).categories] == [(1, "x"), (2, "y"), (3, "z")]
    assert [c.name for c in name_classes(3, own_names=["x", "y"])] == ["class_1", "class_2", "class_3"]
    listed = tmp_path / "names.json"
    listed.write_text('[{"id": 7, "name": "a"}, {"id": 9, "name": "b"}, {"id": 12, "name": "c"}]')
    assert [c.id for c in name_classes(3, names_file=listed, own_names=["x", "y", "z"])] == [7, 9, 12]
    for categories in (name_classes(80), name_classes(80, own_names=COCO_NAMES)):
        assert [c.name for c in categories] == list(COCO_NAMES)
        assert [c.id for c in categories] == list(COCO_IDS)
        by_name = {c.name: c.id for c in categories}
        assert (by_name["person"], by_name["stop sign"], by_name["toothbrush"]) == (1, 13, 90)
    assert [c.id for c in name_classes(80, own_names=[str(i) for i in range(80)])] == list(range(1, 81))
    assert len(set(COCO_NAMES)) == len(COCO_IDS) == 80


class Unsafe:
    def __reduce__(self):
        return (os.getcwd, ())


def bad_files(folder):
    """Name, file, and what the one line must say."""
    good = narrow_authors()
    key = "module.roi_heads.box.predictor.cls_score_fc.weight"
    yield "missing file", folder / "absent.pth", "no such file"
    for zipped in (True, False):
        whole = save(folder / f"whole{zipped}.pth", good, zipped=zipped).read_bytes()
        cut = folder / f"cut{zipped}.pth"
        cut.write_bytes(whole[: len(whole) // 2])
        yield f"truncated, zip {zipped}", cut, "cut off"
    (folder / "empty.pth").write_bytes(b"")
    yield "empty", folder / "empty.pth", "cut off"
    (folder / "text.pth").write_text("<html>404</html>")
    yield "not a checkpoint", folder / "text.pth", "of another kind"
    for zipped in (True, False):
        path = folder / f"unsafe{zipped}.pth"
        torch.save({"model": {}, "hook": Unsafe()}, path, _use_new_zipfile_serialization=zipped)
        yield f"code, zip {zipped}", path, "refused, because reading it would run code of"
    other = published.make_tensors(published.resnet_shapes("", "", depth=50, width=2, counter=True))
    yield "other model", save(folder / "other.pth", other, key=None), "not a model of the authors' release"
    missing = {name: value for name, value in good.items() if name != key}
    yield (
        "missing tensor",
        save(folder / "missing.pth", missing),
        "tensor roi_heads.box.predictor.cls_score_fc.weight is",
    )
    odd = {**good, key: good[key][:, :5]}
    yield "odd shape", save(folder / "odd.pth", odd), "cls_score_fc.weight has shape [4, 5], expected [4, 12]"
    fewer = {**good, key: good[key][:3]}
    yield "classes", save(folder / "classes.pth", fewer), "cls_score_fc.weight has shape [3, 12], expected [4, 12]"
    flat = {**good, "module.backbone.fpn.fpn_inner1.weight": np.zeros(8, np.float32)}
    yield "rank", save(folder / "rank.pth", flat), "fpn_inner1.weight has shape [8], expected two or more axes"
    known = "module.backbone.body.layer1.0.bn1.weight"
    broken = {**good, known: np.full_like(good[known], np.nan)}
    yield "not finite", save(folder / "nan.pth", broken), "layer1.0.bn1.weight has values that are not finite"
    strange = {**good, "module.rpn.head.extra.weight": np.zeros(2, np.float32)}
    yield "unknown tensor", save(folder / "strange.pth", strange), "no place for, first rpn.head.extra.weight"
    shallow = {name: value for name, value in good.items() if ".layer3.5." not in name}
    yield "unknown depth", save(folder / "depth.pth", shallow), "has 3-4-5-3 residual blocks"
    anchors = {**good, "module.rpn.anchor_generator.cell_anchors.0": np.zeros([3, 4], np.float32)}
    yield "other anchors", save(folder / "anchors.pth", anchors), "other anchors than the published models"
    torch.save([1, 2], folder / "list.pth")
    yield "no dict", folder / "list.pth", "expected a dict of tensors"
    torch.save({"epoch": 3}, folder / "hollow.pth")
    yield "no tensors", folder / "hollow.pth", "holds no tensors by name"


def test_bad_files_are_refused_in_one_line_and_nothing_is_written(tmp_path):
    for name, path, message in bad_files(tmp_path):
        before = sorted(tmp_path.iterdir())
        with pytest.raises(DataError) as error:
            import_checkpoint(path, tmp_path / "run")
        assert message in str(error.value), (name, str(error.value))
        assert str(path) in str(error.value), name
        assert "\n" not in str(error.value), name
        assert sorted(tmp_path.iterdir()) == before, name


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("a\nb\n", "has 2 class names, but the checkpoint has 3 classes"),
        ("a\nb\na\n", "class name 'a' appears more than once"),
        ('["a", 2, 3]', "expected a JSON list of names"),
        ("[", "expected a JSON list of names"),
    ],
)
def test_a_wrong_list_of_class_names_is_refused(tmp_path, authors_file, text, message):
    (tmp_path / "names").write_text(text)
    with pytest.raises(DataError, match=message):
        import_checkpoint(authors_file, tmp_path / "run", class_names=tmp_path / "names")
    assert not (tmp_path / "run").exists()


def test_an_existing_output_is_left_alone(tmp_path, authors_file):
    output = tmp_path / "run"
    output.mkdir()
    (output / "notes.txt").write_text("mine")
    with pytest.raises(DataError, match="exists already"):
        import_checkpoint(authors_file, output)
    assert [path.name for path in output.iterdir()] == ["notes.txt"]


def test_a_failure_while_writing_leaves_nothing(tmp_path, authors_file, authors_import, monkeypatch):
    def fail(*args):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("dh_keras.pretrained.importer.convert_checkpoint", lambda *args, **options: authors_import)
    monkeypatch.setattr("dh_keras.pretrained.importer.save_weights", fail)
    with pytest.raises(WriteError, match=r"run: cannot be written: No space left on device; free some space"):
        import_checkpoint(authors_file, tmp_path / "run")
    assert list(tmp_path.iterdir()) == []


def test_the_command_reports_what_it_did_and_ends_with_one_line_for_bad_input(tmp_path, authors_file, capsys):
    line = [str(authors_file), "--output", str(tmp_path / "run"), "model.nms_iou=0.4"]
    main(line)
    printed = capsys.readouterr().out
    for said in (
        "the authors' release",
        "ResNet-50",
        "3 classes: class_1",
        "11 num_batches_tracked",
        "dh-keras predict",
    ):
        assert said in printed
    assert open_run(tmp_path / "run").config.model.nms_iou == 0.4
    with pytest.raises(SystemExit) as stopped:
        main(line)
    assert stopped.value.code == 1
    errors = capsys.readouterr().err
    assert errors.startswith("error: ")
    assert errors.count("\n") == 1
