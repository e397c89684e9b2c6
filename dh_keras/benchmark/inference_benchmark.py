"""The benchmark: every requested run, between two measurements of the machine."""

from collections.abc import Callable, Sequence

from dh_keras.benchmark import tables
from dh_keras.benchmark.machine import describe_machine, gemm_gflops, peak_rss_mb
from dh_keras.benchmark.peer import measure_peer
from dh_keras.benchmark.stages import best_scores, measure
from dh_keras.benchmark.workload import build_model, make_batch, threshold_for
from dh_keras.config.schema import ModelConfig
from dh_keras.errors import ConfigError

COCO_CLASSES = 80


def check_survivors(config: ModelConfig, surviving: Sequence[int] | None) -> list[int]:
    """Numbers of surviving RoIs per image; None takes a tenth and all of the proposals.

    Raises:
        ConfigError: for a number that there are not enough proposals for.
    """
    proposals = config.rpn.post_nms_test
    if surviving is None:
        return [proposals // 10, proposals]
    for number in surviving:
        if number > proposals:
            raise ConfigError(
                f"--surviving: expected at most {proposals}, the value of model.rpn.post_nms_test, got {number}"
            )
    return list(surviving)


def run_benchmark(
    config: ModelConfig,
    *,
    sizes: Sequence[tuple[int, int]],
    batches: Sequence[int],
    surviving: Sequence[int] | None,
    precision: str,
    repeats: int,
    peer: str | None,
    show: Callable[[str], None] = print,
) -> dict:
    """Measure a detector of 80 classes with random weights.

    Args:
        config: the detector.
        sizes: (height, width) of the images in pixels.
        batches: numbers of images.
        surviving: numbers of RoIs per image with a score above the threshold, see `check_survivors`.
        precision: "float32" or "bfloat16".
        repeats: calls of which each time is the median.
        peer: a key of `peer.PEERS` to compare with on the first size and batch, or None.
        show: takes lines about what is going on, and the tables at the end.

    Returns:
        machine, gemm_gflops (float32, the better one of before and after), gemm_measurements, runs and peer, for JSON.
    """
    surviving = check_survivors(config, surviving)
    precisions = list(dict.fromkeys(["float32", precision]))
    machine = describe_machine()
    show("machine: " + ", ".join(f"{key} {value}" for key, value in machine.items()))
    before = {name: gemm_gflops(name) for name in precisions}
    rows = []
    for height, width in sizes:
        for images in batches:
            batch = make_batch(height=height, width=width, batch=images)
            rows += run_inference(config, batch, surviving=surviving, precision=precision, repeats=repeats, show=show)
    measured_peer = None
    if peer:
        show(f"running {peer}; its graph takes a minute to build")
        (height, width), images = sizes[0], batches[0]
        batch = make_batch(height=height, width=width, batch=images)
        measured_peer = measure_peer(peer, batch["images"], repeats=repeats)
    measurements = {name: [before[name], gemm_gflops(name)] for name in precisions}
    gemm = max(measurements["float32"])
    rows = [tables.add_gemm_share(row, gemm) for row in rows]
    _show_results(rows, measurements, measured_peer, show)
    return {
        "machine": machine,
        "gemm_gflops": gemm,
        "gemm_measurements": measurements,
        "runs": rows,
        "peer": measured_peer,
    }


def run_inference(
    config: ModelConfig,
    batch: dict,
    *,
    surviving: Sequence[int],
    precision: str,
    repeats: int,
    show: Callable[[str], None],
) -> list[dict]:
    """Rows of a batch, one for each number of surviving RoIs; see `run_benchmark`."""
    images, height, width, _ = batch["images"].shape
    detector = build_model(config, num_classes=COCO_CLASSES, precision=precision, batch=batch)
    scores = best_scores(detector, batch)
    expected = images * config.rpn.post_nms_test
    if len(scores) != expected:
        show(f"note: {len(scores)} proposals instead of {expected} are left after NMS")
    rows = []
    for number in surviving:
        show(f"running {height}x{width}, batch {images}, {precision}, {number} surviving RoIs per image")
        wanted = min(number * images, len(scores))
        measurement = measure(detector, batch, threshold=threshold_for(scores, wanted), repeats=repeats)
        if measurement.survivors != wanted:
            show(f"note: {measurement.survivors} RoIs survived instead of {wanted}")
        rows.append(tables.make_row(measurement, batch=batch, precision=precision, peak_rss_mb=peak_rss_mb()))
    return rows


def _show_results(
    rows: list[dict], measurements: dict[str, list[float]], peer: dict | None, show: Callable[[str], None]
) -> None:
    show("\n" + tables.format_gemm(measurements))
    for row in rows:
        show("\n" + tables.format_row(row, max(measurements["float32"])))
    if peer:
        show("\n" + tables.format_peer(peer, rows))
