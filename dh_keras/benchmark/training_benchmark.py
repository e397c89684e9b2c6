"""The benchmark of training: every case in a process of its own, so that its peak memory is its own."""

from collections.abc import Sequence
from dataclasses import replace

import tensorflow as tf

from dh_keras.benchmark.case import Case
from dh_keras.benchmark.machine import describe_machine
from dh_keras.benchmark.peer import measure_peer_training
from dh_keras.benchmark.process import run_isolated
from dh_keras.benchmark.training import STAGES, measure_training
from dh_keras.config.schema import ModelConfig

STANDARD = (Case(height=800, width=1344), Case(height=512, width=512, batch=2))
GROWTH_BASE = Case(height=512, width=512)
GROWTH = {
    "batch": [{"batch": number} for number in (1, 2, 4)],
    "RoIs": [{"rois": number} for number in (128, 512, 1024)],
    "image size": [{"height": h, "width": w} for h, w in ((320, 320), (512, 512), (800, 1344))],
    "boxes": [{"boxes": number} for number in (2, 20, 100)],
}


def run_training_benchmark(
    config: ModelConfig,
    *,
    cases: Sequence[Case],
    growth: bool,
    repeats: int,
    peer: str | None,
) -> dict:
    """Measure training steps of a detector of 80 classes with random weights, and print what is going on.

    Args:
        config: the detector.
        cases: what to measure in float32, with its parts, in mixed bfloat16, and with recomputed heads.
        growth: measure `GROWTH` instead, each change by itself from `GROWTH_BASE`.
        repeats: steps of which each time is the median.
        peer: a key of `PEERS` whose training step is measured on the same sizes, or None.

    Returns:
        machine, runs (see `measure_training`) and peers, for JSON.
    """
    machine = describe_machine()
    print("machine: " + ", ".join(f"{key} {value}" for key, value in machine.items()))
    rows, peers = [], []
    modes = growth_cases() if growth else [mode for case in cases for mode in modes_of(case)]
    for mode in modes:
        print(f"running {mode.title}")
        stages = not growth and mode in cases
        row = run_isolated(measure_training, config, mode, repeats=repeats, stages=stages)
        rows.append(row)
        print(format_training_row(row))
    for case in cases if peer else ():
        print(f"running {peer}, {case.title}")
        peers.append(measure_peer_training(peer, case, repeats=repeats))
        print(format_training_peer(peers[-1], rows))
    if growth:
        print(format_growth(rows))
    return {"machine": machine, "runs": rows, "peers": peers}


def make_cases(sizes: Sequence[tuple[int, int]] | None, batches: Sequence[int] | None) -> list[Case]:
    """Every size with every batch; `STANDARD` when neither is given."""
    if sizes is None and batches is None:
        return list(STANDARD)
    return [
        Case(height=height, width=width, batch=batch)
        for height, width in sizes or [(STANDARD[0].height, STANDARD[0].width)]
        for batch in batches or [1]
    ]


def modes_of(case: Case) -> list[Case]:
    """The case as it is, in mixed bfloat16, with a GPU in mixed float16, and recomputed."""
    halves = ("mixed_bfloat16", "mixed_float16") if tf.config.list_physical_devices("GPU") else ("mixed_bfloat16",)
    return [case, *(replace(case, precision=precision) for precision in halves), replace(case, recompute=True)]


def growth_cases() -> list[Case]:
    """All cases of `GROWTH`, each once."""
    return list(dict.fromkeys(replace(GROWTH_BASE, **change) for changes in GROWTH.values() for change in changes))


def format_training_row(row: dict) -> str:
    """What was measured in a case, in some lines."""
    share = row["gflop"] / (row["total_ms"] / 1000.0) / row["gemm_gflops"]
    rois = ", ".join(f"{number} in the {kind}-head" for kind, number in sorted(row["head_rois"].items(), reverse=True))
    lines = [
        f"  {row['total_ms']:.0f} ms, {row['gflop']:.0f} GFLOP, {share:.1%} of the matrix product's"
        f" {row['gemm_gflops']:.0f} GFLOP/s",
        f"  peak memory {row['peak_memory_mb'] / 1000:.2f} GB; RoIs: {rois}",
    ]
    if len(set(row["head_rois"].values())) > 1:
        lines.append(
            "  left out: background RoIs, in a head that only places boxes; with batch norms, as published, it sees all"
        )
    if row["stage_ms"]:
        lines.append("  ms: " + ", ".join(f"{stage} {row['stage_ms'][stage]:.0f}" for stage in STAGES))
    return "\n".join(lines)


def format_training_peer(peer: dict, rows: Sequence[dict]) -> str:
    """The peer's numbers, and our float32 time over its, each scaled by the rate of its own process."""
    memory = peer["peak_memory_mb"] / 1000
    lines = [f"  {peer['total_ms']:.0f} ms at {peer['gemm_gflops']:.0f} GFLOP/s, {memory:.2f} GB"]
    for row in rows:
        same = all(row[key] == peer[key] for key in ("height", "width", "batch", "precision"))
        if same and not row["recompute"]:
            ratio = row["total_ms"] * row["gemm_gflops"] / (peer["total_ms"] * peer["gemm_gflops"])
            lines.append(f"  ours: {row['total_ms']:.0f} ms, {ratio:.2f} times the peer's time at equal rates")
    return "\n".join(lines)


def format_growth(rows: Sequence[dict]) -> str:
    """A table for each thing that grows: time, time over the base's, memory."""
    by_case = {Case(**{key: row[key] for key in GROWTH_BASE.to_dict()}): row for row in rows}
    base = by_case[GROWTH_BASE]
    lines = []
    for name, changes in GROWTH.items():
        lines.append(f"{name:<14}{'ms':>8}{'of base':>9}{'GFLOP':>8}{'GB':>7}")
        for change in changes:
            row = by_case[replace(GROWTH_BASE, **change)]
            ratio = row["total_ms"] * row["gemm_gflops"] / (base["total_ms"] * base["gemm_gflops"])
            label = "x".join(str(value) for value in change.values())
            memory = row["peak_memory_mb"] / 1000
            lines.append(f"{label:<14}{row['total_ms']:>8.0f}{ratio:>9.2f}{row['gflop']:>8.0f}{memory:>7.2f}")
    return "\n".join(lines)
