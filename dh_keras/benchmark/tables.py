"""What was measured, as rows for JSON and as tables to read."""

from dh_keras.benchmark.stages import STAGES, Measurement


def make_row(measurement: Measurement, *, batch: dict, precision: str, peak_rss_mb: float) -> dict:
    """One run, ready for JSON except for `gemm_share`, which `add_gemm_share` adds.

    Args:
        measurement: times, operations and RoIs.
        batch: of `make_batch`.
        precision: "float32" or "bfloat16".
        peak_rss_mb: of the process after the run.
    """
    images, height, width, _ = batch["images"].shape
    survivors = measurement.survivors
    return {
        "height": height,
        "width": width,
        "batch": images,
        "precision": precision,
        # Of one image; a whole number unless the scores of the whole graph differ from those it was chosen by.
        "surviving_rois": survivors / images if survivors % images else survivors // images,
        "total_ms": measurement.total_ms,
        "necessary_gflop": sum(measurement.stage_gflop.values()),
        "peak_rss_mb": peak_rss_mb,
        "stages": {name: {"ms": measurement.stage_ms[name], "gflop": measurement.stage_gflop[name]} for name in STAGES},
    }


def gemm_share(gflop: float, milliseconds: float, gemm_gflops: float) -> float:
    """How fast operations were done compared with a float32 matrix product; 0 where nothing was run."""
    return gflop / (milliseconds / 1000.0) / gemm_gflops if milliseconds else 0.0


def add_gemm_share(row: dict, gemm_gflops: float) -> dict:
    """The row with `gemm_share` of the total."""
    return {**row, "gemm_share": gemm_share(row["necessary_gflop"], row["total_ms"], gemm_gflops)}


def format_gemm(measurements: dict[str, list[float]]) -> str:
    """A line for each precision; before and after are the same word when they are within 5 %."""
    lines = []
    for precision, (before, after) in measurements.items():
        text = f"GEMM 2048 {precision}: {max(before, after):.0f} GFLOP/s"
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
    lines.append(f"peak memory of the process so far: {row['peak_rss_mb']:.0f} MB")
    return "\n".join(lines)


def format_peer(peer: dict, rows: list[dict]) -> str:
    """A line for the peer, and one for each run of the same size that compares it."""
    lines = [f"{peer['name']}: {peer['total_ms']:.1f} ms, {peer['proposals']} proposals, constant weights, float32"]
    for row in rows:
        if all(row[key] == peer[key] for key in ("height", "width", "batch")):
            ratio = row["total_ms"] / peer["total_ms"]
            lines.append(
                f"  {row['surviving_rois']:g} surviving RoIs, {row['precision']}: {row['total_ms']:.1f} ms,"
                f" {ratio:.2f} times the peer's time"
            )
    return "\n".join(lines)
