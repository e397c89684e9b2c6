"""Detector and SavedModel: one answer from both, and one line for everything that is wrong."""

import io
import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from dh_keras.commands import evaluate
from dh_keras.data.formats.coco import load_coco
from dh_keras.errors import DataError, WriteError
from dh_keras.inference.detector import Detector
from dh_keras.inference.evaluation import evaluate_detector
from dh_keras.inference.served import read_served, split_by_image
from dh_keras.run.run_folder import open_run
from dh_keras.serving.export import compare_detectors, export_saved_model, match_detections

pytestmark = pytest.mark.usefixtures("quick_graphs")
ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="module")
def detector(tiny_run):
    return Detector.load(tiny_run)


@pytest.fixture(scope="module")
def saved_model(tiny_export):
    return tiny_export


@pytest.fixture(scope="module")
def photographs(tiny_shapes, tmp_path_factory):
    """Two JPEG files of different sizes."""
    folder = tmp_path_factory.mktemp("photographs")
    first, second = sorted(Path(tiny_shapes.val_images).iterdir())[:2]
    Image.open(first).save(folder / "a.jpg", quality=95)
    Image.open(second).resize((150, 211)).save(folder / "b.jpg", quality=95)
    return [folder / "a.jpg", folder / "b.jpg"]


def jpeg(image, **options):
    buffer = io.BytesIO()
    image.save(buffer, "JPEG", quality=95, **options)
    return buffer.getvalue()


def assert_same(ours, theirs):
    """The same detections; what scores like the last one may be cut off in one of the two."""
    np.testing.assert_allclose(ours.scores, theirs.scores, atol=1e-4)
    last = ours.scores.min() + 1e-4
    missing = set(range(len(ours))) - {one for one, _ in match_detections(ours, theirs)}
    assert all(ours.scores[index] <= last for index in missing), missing


def test_detections_are_in_pixels_of_the_original_image_with_the_datasets_ids_and_names(
    detector, photographs, tiny_run
):
    names = {category.id: category.name for category in open_run(tiny_run).categories}
    for path in photographs:
        result = detector(path)
        width, height = Image.open(path).size
        assert len(result) == 10
        assert (result.boxes[:, :2] >= 0).all()
        assert (result.boxes[:, 2] <= height).all()
        assert (result.boxes[:, 3] <= width).all()
        assert result.boxes[:, 2].max() > 0.5 * height
        assert (np.diff(result.scores) <= 0).all()
        assert result.categories == tuple(names[id_] for id_ in result.category_ids.tolist())


def test_path_bytes_and_pixels_give_the_same_detections(detector, photographs):
    png = photographs[0].with_suffix(".png")
    Image.open(photographs[0]).save(png)
    pixels = np.asarray(Image.open(photographs[0]))
    assert_same(detector(photographs[0]), detector(photographs[0].read_bytes()))
    assert_same(detector(png), detector(pixels))
    with open(png, "rb") as file, Image.open(png) as image:
        assert_same(detector(file), detector(pixels))
        assert_same(detector(image), detector(pixels))


def test_a_rotated_photograph_gives_the_detections_of_the_upright_one(detector, photographs):
    upright = Image.open(photographs[0])
    exif = Image.Exif()
    exif[0x0112] = 6
    sideways = jpeg(upright.transpose(Image.Transpose.ROTATE_90), exif=exif, subsampling=0)
    result, expected = detector(sideways), detector(jpeg(upright, subsampling=0))
    assert result.boxes[:, 2].max() <= upright.height
    np.testing.assert_allclose(result.scores[:3], expected.scores[:3], atol=0.02)


@pytest.mark.parametrize("mode", ["L", "CMYK", "RGBA", "P", "I;16"])
def test_images_of_other_modes_are_read(detector, photographs, mode):
    image = Image.open(photographs[0])
    if mode == "I;16":
        buffer = io.BytesIO()
        Image.fromarray((np.asarray(image.convert("L")).astype(np.uint16)) * 257).save(buffer, "PNG")
    else:
        buffer = io.BytesIO()
        image.convert(mode).save(buffer, "PNG" if mode in ("RGBA", "P") else "JPEG")
    assert len(detector(buffer.getvalue())) == 10


@pytest.mark.parametrize(
    ("name", "data", "expected"),
    [
        ("empty.jpg", b"", "the file is empty"),
        ("text.jpg", b"hello, world", "not a readable JPEG or PNG image"),
        ("cut.jpg", None, "not a readable JPEG or PNG image, it may be cut off"),
    ],
)
def test_a_file_that_is_no_image_is_named_in_one_line(detector, photographs, tmp_path, name, data, expected):
    path = tmp_path / name
    path.write_bytes(photographs[0].read_bytes()[:700] if data is None else data)
    with pytest.raises(DataError, match=f"{name}: {expected}") as error:
        detector(path)
    assert "\n" not in str(error.value)
    assert len(detector(photographs[0])) == 10


def test_what_is_no_image_file_or_array_is_refused(detector, tmp_path):
    with pytest.raises(DataError, match=r"nothing\.jpg: cannot be read: No such file"):
        detector(tmp_path / "nothing.jpg")
    with pytest.raises(ValueError, match=r"`image` must be uint8 \[H, W, 3\], got float64 \[4, 4, 3\]"):
        detector(np.zeros((4, 4, 3)))


def test_a_fresh_process_without_the_package_serves_two_sizes_in_one_batch(saved_model, detector, photographs):
    script = """
import json, sys
for name in ("dh_keras", "keras", "tf_keras"):
    sys.modules[name] = None  # as if it were not installed
import tensorflow as tf
model = tf.saved_model.load(sys.argv[1])
files = [open(path, "rb").read() for path in sys.argv[2:]]
out = model.signatures["serving_default"](image_bytes=tf.constant(files))
assert not any(name.startswith(("keras.", "dh_keras.", "tf_keras.")) for name in sys.modules)
print(json.dumps({name: (value.numpy().astype(str) if value.dtype == tf.string else value.numpy()).tolist()
                  for name, value in out.items()}))
"""
    result = subprocess.run(
        [sys.executable, "-I", "-c", script, str(saved_model), *map(str, photographs)],
        capture_output=True,
        text=True,
        timeout=200,
        check=False,
    )
    assert result.returncode == 0, result.stderr[-2000:]
    served = json.loads(result.stdout.splitlines()[-1])
    assert set(served) == {
        "detection_boxes",
        "detection_scores",
        "detection_classes",
        "detection_class_names",
        "num_detections",
    }
    ours = detector.module.serve_bytes([path.read_bytes() for path in photographs])
    ours = split_by_image({name: value.numpy() for name, value in ours.items()})
    names = {category.id: category.name for category in detector.categories}
    for one, other in zip(ours, split_by_image(served), strict=True):
        assert other["num_detections"] == one["num_detections"] == 10
        assert other["detection_class_names"] == [names[id_] for id_ in other["detection_classes"]]
        answer, expected = read_served(other, detector.categories), read_served(one, detector.categories)
        assert_same(answer, expected)


def test_a_saved_model_is_a_detector_like_its_run_folder(saved_model, detector, photographs):
    served = Detector.load(saved_model)
    assert served.categories == detector.categories
    assert served.max_detections == detector.max_detections == 10
    for path in photographs:
        assert_same(served(path), detector(path))
    pixels = np.asarray(Image.open(photographs[1]))
    assert_same(served(pixels), detector(pixels))
    assert "20 detections in 2 image(s)" in compare_detectors(detector, served, photographs)


def test_padding_rows_of_a_served_batch_are_zero_and_empty(tiny_run, photographs):
    strict = Detector.load(tiny_run, ["model.score_threshold=0.999"])
    out = strict.module.serve_bytes([path.read_bytes() for path in photographs])
    assert out["num_detections"].numpy().tolist() == [0, 0]
    assert out["detection_boxes"].shape == (2, 10, 4)
    for name in ("detection_boxes", "detection_scores", "detection_classes"):
        assert not out[name].numpy().any()
    assert set(out["detection_class_names"].numpy().ravel()) == {b""}


def test_the_assets_describe_the_model(saved_model, detector):
    labels = json.loads((saved_model / "assets" / "labels.json").read_text())
    assert [row["id"] for row in labels] == [category.id for category in detector.categories]
    described = json.loads((saved_model / "assets" / "signature.json").read_text())
    preprocessing = {"min_size": 96, "max_size": 128, "channel_order": "rgb"}
    assert preprocessing.items() <= described["preprocessing"].items()
    assert len(described["preprocessing"]["mean"]) == len(described["preprocessing"]["std"]) == 3
    assert (described["max_detections"], described["score_threshold"], described["precision"]) == (10, 0.0, "float32")
    assert described["versions"]["tensorflow"].startswith("2.20.")


def test_an_export_is_never_overwritten_and_wants_a_number(saved_model, detector, tmp_path):
    before = {path: path.read_bytes() for path in saved_model.rglob("*") if path.is_file()}
    with pytest.raises(DataError, match="exists already and is not overwritten; choose the next version number"):
        export_saved_model(detector, saved_model)
    assert {path: path.read_bytes() for path in saved_model.rglob("*") if path.is_file()} == before
    with pytest.raises(DataError, match=r"wants a numbered folder; use .*model/1"):
        export_saved_model(detector, tmp_path / "model")
    with pytest.raises(DataError, match=r"tiny/1: is exported already; export takes a run folder"):
        export_saved_model(Detector.load(saved_model), tmp_path / "model" / "1")


def test_an_export_that_fails_leaves_nothing(detector, tmp_path, monkeypatch):
    def fail(*args, **kwargs):
        Path(args[1], "variables").mkdir()
        raise OSError("disk full")

    monkeypatch.setattr("dh_keras.serving.export.tf.saved_model.save", fail)
    with pytest.raises(OSError, match="disk full"):
        export_saved_model(detector, tmp_path / "m" / "1")
    assert list((tmp_path / "m").iterdir()) == []


def test_an_export_that_the_disk_does_not_take_is_one_line(detector, tmp_path, small_files):
    small_files(1_000_000)  # the weights are smaller, the graph is larger
    with pytest.raises(WriteError, match=r"m/1: cannot be written: File too large; raise the limit"):
        export_saved_model(detector, tmp_path / "m" / "1")
    assert list((tmp_path / "m").iterdir()) == []


def test_a_killed_export_leaves_nothing_that_looks_complete(tiny_run, detector, tmp_path):
    code = f"""
import os, signal
from dh_keras.serving import export
from dh_keras.inference.detector import Detector
export.write_warmup_requests = lambda *arguments: os.kill(os.getpid(), signal.SIGKILL)
export.export_saved_model(Detector.load({str(tiny_run)!r}), {str(tmp_path / "m" / "1")!r})
"""
    killed = subprocess.run([sys.executable, "-c", code], capture_output=True, check=False)
    assert killed.returncode == -9
    (partial,) = (tmp_path / "m").iterdir()
    assert (partial / "saved_model.pb").is_file()
    assert partial.name.startswith(".partial-1-")  # a server takes folders whose names are numbers
    export_saved_model(detector, tmp_path / "m" / "1")
    assert len(Detector.load(tmp_path / "m" / "1").categories) == 3
    assert [path.name for path in (tmp_path / "m").iterdir()] == ["1"]


def test_a_folder_that_is_no_model_is_named(tmp_path, saved_model, tiny_run):
    with pytest.raises(DataError, match="no such folder; expected a run folder or a SavedModel"):
        Detector.load(tmp_path / "nothing")
    with pytest.raises(DataError, match=r"neither a run folder .* nor a SavedModel .*did you mean .*1\?"):
        Detector.load(saved_model.parent)
    (tmp_path / "versions" / ".partial-2-0123abcd").mkdir(parents=True)
    (tmp_path / "versions" / ".partial-2-0123abcd" / "saved_model.pb").touch()
    with pytest.raises(DataError, match=r"nor a SavedModel \(saved_model\.pb\)$"):  # what a kill left is no model
        Detector.load(tmp_path / "versions")
    with pytest.raises(DataError, match="an export is fixed and takes no overrides"):
        Detector.load(saved_model, ["model.nms_iou=0.3"])
    run = tmp_path / "run"
    run.mkdir()
    for name in ("config.yaml", "classes.json"):
        (run / name).write_bytes((tiny_run / name).read_bytes())
    with pytest.raises(DataError, match=r"has no best\.weights\.h5 or last\.weights\.h5"):
        Detector.load(run)
    (run / "best.weights.h5").write_bytes((tiny_run / "best.weights.h5").read_bytes()[:5000])
    with pytest.raises(DataError, match=r"best\.weights\.h5: is damaged, or of another architecture"):
        Detector.load(run)
    (run / "classes.json").write_text("[1, 2]")
    with pytest.raises(DataError, match=r"classes\.json: is damaged: expected a JSON list"):
        Detector.load(run)


def test_evaluation_of_run_and_saved_model_agree(detector, saved_model, tiny_shapes):
    served = Detector.load(saved_model)
    dataset = load_coco(tiny_shapes.val_annotations, tiny_shapes.val_images, categories=detector.categories)
    ours = evaluate_detector(detector, dataset, batch_size=3)
    theirs = evaluate_detector(served, dataset, batch_size=1)
    assert ours["images"] == theirs["images"] == 6
    for name in ("AP", "AP50", "AR100"):
        assert ours[name] == pytest.approx(theirs[name], abs=1e-3)
    assert "by_head" not in ours


def test_two_replicas_detect_what_one_device_detects_in_the_same_order(tiny_shapes):
    """Of an odd number of batches, so one replica has nothing to do at the end."""
    script = Path(__file__).with_name("replicas.py")
    command = [sys.executable, str(script), tiny_shapes.val_annotations, tiny_shapes.val_images]
    run = subprocess.run(command, capture_output=True, text=True, timeout=900, check=False)
    assert run.returncode == 0, run.stderr[-2000:]
    report = json.loads(run.stdout.splitlines()[-1])
    assert (report["one"]["replicas"], report["two"]["replicas"]) == (1, 2)
    assert report["one"]["batches"] == report["two"]["batches"]
    assert sum(report["two"]["batches"]) == 6
    assert report["detections"] > 6
    assert report["equal"]


def test_a_run_is_measured_in_batches_of_its_own_key(tiny_run, tiny_shapes, monkeypatch):
    seen = []

    def measure(detector, dataset, *, batch_size):
        seen.append(batch_size)
        raise DataError("enough")

    monkeypatch.setattr("dh_keras.inference.evaluation.evaluate_detector", measure)
    data = ["--annotations", str(tiny_shapes.val_annotations), "--images", str(tiny_shapes.val_images)]
    for options in ([], ["evaluate.batch_size=3"], ["--batch-size", "2", "evaluate.batch_size=3"]):
        with pytest.raises(SystemExit):
            evaluate.main([str(tiny_run), *data, *options])
    assert seen == [1, 3, 2]


def test_four_combinations_of_the_heads_come_from_one_pass(make_tiny_detector, tiny_shapes, tiny_run):
    categories = open_run(tiny_run).categories
    model = make_tiny_detector(
        "model.variant=double_head_ext", "model.score_threshold=0.0", num_classes=len(categories)
    )
    detector = Detector.from_model(model, categories, min_size=96, max_size=128)
    dataset = load_coco(tiny_shapes.val_annotations, tiny_shapes.val_images, categories=categories)
    metrics = evaluate_detector(detector, dataset, batch_size=2)
    assert list(metrics["by_head"]) == ["fc/fc", "conv/conv", "fc/conv", "fused/conv"]
    assert metrics["by_head"]["fused/conv"]["AP"] == metrics["AP"]
    found = detector.detect_dataset(dataset, by_head=True)
    fused, single = found["fused/conv"][0], found["conv/conv"][0]
    assert fused.scores.max() > single.scores.max()
    assert not np.allclose(found["fc/fc"][0].boxes, found["fc/conv"][0].boxes)
    direct = detector.detect_dataset(dataset)["detections"]
    np.testing.assert_allclose(direct[0].scores, fused.scores, atol=1e-5)
    shares = [detector.detect_dataset(dataset, shard=(worker, 4)).get("detections", []) for worker in range(4)]
    together = {entry.image_id: entry for share in shares for entry in share}
    assert sum(map(len, shares)) == len(together) == len(dataset)
    for entry in direct:
        np.testing.assert_array_equal(entry.scores, together[entry.image_id].scores)
        np.testing.assert_array_equal(entry.boxes, together[entry.image_id].boxes)


# None of these is needed to detect, evaluate or export, and each takes long to import. Keras itself imports the first
# of the two lists where they are installed, so they are hidden: what asks for one of them fails.
KERAS_IMPORTS = ("cv2", "matplotlib", "pandas", "sklearn")
UNUSED = ("gradio", "jinja2", "keras_hub", "official", "tf_keras", "torch")
TELL_UNUSED = f"""
import atexit, runpy, sys
if sys.argv[1] != {str(ROOT / "scripts" / "train.py")!r}:  # whose report needs matplotlib
    sys.modules.update(dict.fromkeys({KERAS_IMPORTS}))
atexit.register(lambda: print("imported:", *(name for name in {UNUSED} if name in sys.modules)))
sys.argv = sys.argv[1:]
runpy.run_path(sys.argv[0], run_name="__main__")
"""


def run_script(name, *arguments):
    """Run a script, all but train.py without `KERAS_IMPORTS`; its last line says which of `UNUSED` were imported."""
    return subprocess.run(
        [sys.executable, "-c", TELL_UNUSED, str(ROOT / "scripts" / f"{name}.py"), *map(str, arguments)],
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
    )


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (("train", "train.lr=x"), r"error: override 'train.lr=x': key train.lr"),
        (("train", "--config", "nothing.yaml"), r"error: config nothing.yaml: no such file"),
        (("train", "--resume"), r"error: --resume: needs --output RUN"),
        (("train", "--output", "OUT", "--train-annotations", "no.json", "--train-images", "."), r"error: .*no.json"),
        (("train", "oops"), r"unexpected argument 'oops'"),
        (("evaluate", "nothing", "--annotations", "a.json", "--images", "."), r"error: nothing: no such file or"),
        (("predict", "nothing", "nothing.jpg", "--output", "OUT"), r"error: nothing.jpg: no such file or folder"),
        (("predict", "nothing", "--output", "OUT"), r"error: there is nothing to detect in; give images"),
        (("export", "nothing", "--output", "OUT/1"), r"error: nothing: no such file or folder"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, tuple) else "",
)
def test_scripts_answer_bad_input_with_one_line(arguments, expected, tmp_path):
    result = run_script(*[argument.replace("OUT", str(tmp_path / "out")) for argument in arguments])
    assert result.returncode != 0
    assert "Traceback" not in result.stderr
    last = result.stderr.strip().splitlines()[-1]
    assert __import__("re").search(expected, last), result.stderr
    assert not (tmp_path / "out").exists()


@pytest.mark.slow
def test_the_scripts_work_together_and_import_nothing_idle(tiny_run, tiny_shapes, photographs, tmp_path):
    result = run_script("export", tiny_run, "--output", tmp_path / "m" / "1", "--verify", photographs[0])
    assert result.returncode == 0, result.stderr[-2000:]
    assert "verified: 10 detections in 1 image(s)" in result.stdout
    assert result.stdout.endswith("imported:\n")
    arguments = ("--annotations", tiny_shapes.val_annotations, "--images", tiny_shapes.val_images)
    result = run_script("evaluate", tmp_path / "m" / "1", *arguments, "--output", tmp_path / "metrics.json")
    assert result.returncode == 0, result.stderr[-2000:]
    assert result.stdout.endswith("imported:\n")
    assert set(json.loads((tmp_path / "metrics.json").read_text())) == {
        *("AP", "AP50", "AP75", "APs", "APm", "APl", "AR100", "per_class", "images")
    }
    result = run_script("predict", tiny_run, photographs[0], "--output", tmp_path / "p", "--score", "0.9999")
    assert result.returncode == 0, result.stderr[-2000:]
    assert "nothing above 1.00; the best is" in result.stdout
    assert result.stdout.endswith("imported:\n")
    assert (tmp_path / "p" / "a.jpg").is_file()
