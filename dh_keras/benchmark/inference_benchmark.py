"""The benchmark: every requested run, between two measurements of the machine."""

from collections.abc import Sequence

from dh_keras.benchmark.machine import describe_machine, gemm_gflops, peak_memory_mb
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
) -> dict:
    """Measure a detector of 80 classes with random weights, and print what is going on and tables at the end.

    Args:
        config: the detector.
        sizes: (height, width) of the images in pixels.
        batches: numbers of images.
        surviving: numbers of RoIs per image with a score above the threshold, see `check_survivors`.
        precision: "float32" or "bfloat16".
        repeats: calls of which each time is the median.
        peer: one of `PEERS` to compare with on the first size and batch, or None.

    Returns:
        machine, gemm_gflops (float32, the better one of before and after), gemm_measurements, runs and peer, for JSON.
    """
    surviving = check_survivors(config, surviving)
    precisions = list(dict.fromkeys(["float32", precision]))
    machine = describe_machine()
    print("machine: " + ", ".join(f"{key} {value}" for key, value in machine.items()))
    before = {name: gemm_gflops(name) for name in precisions}
    rows = []
    for height, width in sizes:
        for images in batches:
            batch = make_batch(height=height, width=width, batch=images)
            rows += run_inference(config, batch, surviving=surviving, precision=precision, repeats=repeats)
    measured_peer = None
    if peer:
        print(f"running {peer}, in a process of its own")
        (height, width), images = sizes[0], batches[0]
        measured_peer = measure_peer(peer, height=height, width=width, batch=images, repeats=repeats)
    measurements = {name: [before[name], gemm_gflops(name)] for name in precisions}
    gemm = max(measurements["float32"])
    print("\n" + format_gemm(measurements))
    for row in rows:
        row["gemm_share"] = gemm_share(row["necessary_gflop"], row["total_ms"], gemm)
        print("\n" + format_row(row, gemm))
    if measured_peer:
        print("\n" + format_peer(measured_peer, rows))
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
) -> list[dict]:
    """Rows of a batch, ready for JSON, one for each number of surviving RoIs; see `run_benchmark`."""
    images, height, width, _ = batch["images"].shape
    detector = build_model(config, num_classes=COCO_CLASSES, precision=precision, batch=batch)
    scores = best_scores(detector, batch)
    expected = images * config.rpn.post_nms_test
    if len(scores) != expected:
        print(f"note: {len(scores)} proposals instead of {expected} are left after NMS")
    rows = []
    for number in surviving:
        print(f"running {height}x{width}, batch {images}, {precision}, {number} surviving RoIs per image")
        wanted = min(number * images, len(scores))
        measurement = measure(detector, batch, threshold=threshold_for(scores, wanted), repeats=repeats)
        survivors = measurement.survivors
        if survivors != wanted:
            print(f"note: {survivors} RoIs survived instead of {wanted}")
        rows.append(
            {
                "height": height,
                "width": width,
                "batch": images,
                "precision": precision,
                # Of one image; a whole number unless the scores of the whole graph differ from those it was chosen by.
                "surviving_rois": survivors / images if survivors % images else survivors // images,
                "total_ms": measurement.total_ms,
                "necessary_gflop": sum(stage["gflop"] for stage in measurement.stages.values()),
                "peak_memory_mb": peak_memory_mb(),
                "stages": measurement.stages,
            }
        )
    return rows


def gemm_share(gflop: float, milliseconds: float, gemm_gflops: float) -> float:
    """How fast operations were done compared with a float32 matrix product; 0 where nothing was run."""
    return gflop / (milliseconds / 1000.0) / gemm_gflops if milliseconds else 0.0


def format_gemm(measurements: dict[str, list[float]]) -> str:
    """A line for each precision; before and after are the same word when they are within 5 %."""
    lines = []
    for precision, (before, after) in measurements.items():
        text = f"GEMM {precision}: {max(before, after):.0f} GFLOP/s"
        if abs(before - after) > 0.05 * max(before, after):
            text += f" ({before:.0f} before the runs, {after:.0f} after)"
        lines.append(text)
    return "\n".join(lines)


def format_row(row: dict, gemm_gflops: float) -> str:
    """The stage table of a run."""
    title = f"{row['height']}x{row['width']}, batch {row['batch']}, {row['precision']}"
    lines = [
        f"{title}, {row['surviving_rois']:g} surviving RoIs per image",
        f"{'stage':<12}{'ms':>10}{'GFLOP':>10}{'of GEMM':>10}",
    ]
    total = {"ms": row["total_ms"], "gflop": row["necessary_gflop"]}
    for name, stage in [*row["stages"].items(), ("total", total)]:
        share = gemm_share(stage["gflop"], stage["ms"], gemm_gflops)
        lines.append(f"{name:<12}{stage['ms']:>10.1f}{stage['gflop']:>10.1f}{share:>10.1%}")
    lines.append(f"peak memory of the process so far: {row['peak_memory_mb']:.0f} MB")
    return "\n".join(lines)


def format_peer(peer: dict, rows: list[dict]) -> str:
    """A line for the peer, and one for each run of the same size that compares it."""
    lines = [f"{peer['name']}: {peer['total_ms']:.1f} ms, {peer['proposals']:g} proposals, float32"]
    for row in rows:
        if all(row[key] == peer[key] for key in ("height", "width", "batch")):
            ratio = row["total_ms"] / peer["total_ms"]
            lines.append(
                f"  {row['surviving_rois']:g} surviving RoIs, {row['precision']}: {row['total_ms']:.1f} ms,"
                f" {ratio:.2f} times the peer's time"
            )
    return "\n".join(lines)
