"""A detector under load: threads that send photographs, and now and then what is none.

Every good request is asked alone first. In the threads its answer must be that again, and a bad request must get the
error of its own fault, whatever the others send meanwhile.
"""

import array
import io
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor, wait
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import psutil
import tensorflow as tf
from PIL import Image

from dh_keras.benchmark.machine import describe_machine
from dh_keras.data.shape_drawing import draw_image
from dh_keras.errors import one_line
from dh_keras.evaluation.image_detections import ImageDetections
from dh_keras.inference.detector import Detector
from dh_keras.serving.export import match_detections

PHOTOGRAPHS = 24
REQUESTS_EACH = 8  # of every number of photographs
HEADING = (
    f"{'threads':>7}{'requests/s':>12}{'photographs/s':>15}{'p50 ms':>9}{'p99 ms':>9}"
    f"{'MB at start, half, end':>24}{'refused':>9}{'wrong':>7}"
)
SCALES = (0.5, 1.0, 2.5)  # of the drawn pictures, which have several sizes themselves


@dataclass(frozen=True)
class Request:
    """Files that are sent together.

    Args:
        files: JPEG and PNG files, or one that is none among them.
        error: what the error about them says; None where there must be an answer.
    """

    files: tuple[bytes, ...]
    error: str | None = None


@dataclass
class Answers:
    """What a thread got.

    Args:
        seconds: how long each good request took.
        photographs: that were looked at.
        exact: answers that are to the last bit those of the request alone.
        refused: bad requests that got the error of their fault.
        wrong: a line for everything else.
    """

    seconds: array.array = field(default_factory=lambda: array.array("d"))
    photographs: int = 0
    exact: int = 0
    refused: int = 0
    wrong: list[str] = field(default_factory=list)


def measure_serving(
    model: Path, *, threads: Sequence[int], batches: Sequence[int], minutes: float, bad: float, seed: int = 0
) -> dict:
    """Send requests from several threads to a detector in this process, and print a row for each number of threads.

    Args:
        model: a SavedModel or run folder.
        threads: numbers of threads, each of which sends its next request when the one before was answered.
        batches: photographs in a request, drawn from among these.
        minutes: for each number of threads.
        bad: share of the requests that cannot be answered.
        seed: of the photographs and the order.

    Returns:
        machine, model and runs, for JSON; see `run_load`. "wrong" of a run has a line for every answer that is not the
        one which the request gets alone, and for every bad request without the error of its fault.
    """
    machine = describe_machine()
    print("machine: " + ", ".join(f"{key} {value}" for key, value in machine.items()))
    detector = Detector.load(model)
    good, refused = make_requests(batches, seed=seed)
    alone = [detector.detect_files(request.files) for request in good]
    found = sum(len(one) for answer in alone for one in answer)
    print(f"{model}: {found} detections in {len(good)} requests; {minutes:g} minutes for each number of threads")
    print(HEADING)
    runs = []
    for number in threads:
        load = {"threads": number, "seconds": 60.0 * minutes, "bad": bad, "seed": seed + number}
        runs.append(run_load(detector, good, alone, refused, **load))
        print(format_run(runs[-1]), flush=True)
    return {"machine": machine, "model": str(model), "detections": found, "runs": runs}


def make_requests(batches: Sequence[int], *, seed: int) -> tuple[list[Request], list[Request]]:
    """Requests that have an answer, `REQUESTS_EACH` of every number of photographs, and such that have none."""
    random = np.random.default_rng(seed)
    kinds = ("JPEG", "JPEG", "JPEG", "PNG")
    files = [_photograph(index, random.choice(SCALES), kinds[index % 4]) for index in range(PHOTOGRAPHS)]

    def some(count: int) -> list[bytes]:
        return [files[index] for index in random.integers(len(files), size=count)]

    good = [Request(tuple(some(count))) for count in batches for _ in range(REQUESTS_EACH)]
    gif = io.BytesIO()
    Image.new("RGB", (40, 30)).save(gif, "GIF")
    bad = []
    for count in batches:
        for none in (b"", b"not an image", gif.getvalue(), b"\x00" * 5000):
            place = int(random.integers(count))
            batch = some(count - 1)
            batch.insert(place, none)
            bad.append(Request(tuple(batch), f"of other kinds or empty: number [{place}] of the batch"))
        whole = files[4 * int(random.integers(PHOTOGRAPHS // 4))]  # a JPEG file
        part = whole[: int(len(whole) * random.uniform(0.3, 0.9))]
        bad.append(Request((*some(count - 1), part), "Invalid JPEG data"))
    return good, bad


def _photograph(index: int, scale: float, kind: str) -> bytes:
    """A drawn picture, resized, as a file."""
    image = Image.fromarray(draw_image(seed=0, split="val", index=index).pixels)
    file = io.BytesIO()
    image.resize((round(image.width * scale), round(image.height * scale))).save(file, kind)
    return file.getvalue()


def run_load(
    detector: Detector,
    good: Sequence[Request],
    alone: Sequence[list[ImageDetections]],
    refused: Sequence[Request],
    *,
    threads: int,
    seconds: float,
    bad: float,
    seed: int,
) -> dict:
    """Let threads send requests for some seconds.

    Args:
        detector: what answers.
        good: requests that have an answer.
        alone: their answers.
        refused: requests that have none.
        threads: how many.
        seconds: how long each of them begins new requests.
        bad: share of the requests that are of those which have no answer.
        seed: of the order.

    Returns:
        threads, seconds, requests, photographs, exact, refused and wrong (see `Answers`), requests_per_second and
        photographs_per_second (good ones), p50_ms and p99_ms of good requests, and memory_mb: that of the process at
        the start, in the middle and at the end, in millions of bytes.
    """
    process, start = psutil.Process(), time.perf_counter()

    def send(number: int) -> Answers:
        answers, random = Answers(), np.random.default_rng([seed, number])
        while time.perf_counter() < start + seconds:
            if random.random() < bad:
                _send_bad(detector, refused[random.integers(len(refused))], answers)
            else:
                index = random.integers(len(good))
                _send_good(detector, good[index], alone[index], answers)
        return answers

    memory = [process.memory_info().rss / 1e6]
    with ThreadPoolExecutor(threads) as pool:
        sent = [pool.submit(send, number) for number in range(threads)]
        wait(sent, timeout=seconds / 2)
        memory.append(process.memory_info().rss / 1e6)
    elapsed = time.perf_counter() - start
    memory.append(process.memory_info().rss / 1e6)
    answers = [future.result() for future in sent]
    times = 1000.0 * np.concatenate([one.seconds for one in answers])
    photographs = sum(one.photographs for one in answers)
    p50, p99 = np.percentile(times, [50, 99]).tolist() if len(times) else (None, None)
    return {
        "threads": threads,
        "seconds": elapsed,
        "requests": len(times),
        "photographs": photographs,
        "exact": sum(one.exact for one in answers),
        "refused": sum(one.refused for one in answers),
        "wrong": [line for one in answers for line in one.wrong],
        "requests_per_second": len(times) / elapsed,
        "photographs_per_second": photographs / elapsed,
        "p50_ms": p50,
        "p99_ms": p99,
        "memory_mb": memory,
    }


def _send_good(detector: Detector, request: Request, alone: list[ImageDetections], answers: Answers) -> None:
    """Ask, and compare with the answer of the request alone."""
    start = time.perf_counter()
    try:
        got = detector.detect_files(request.files)
    except tf.errors.OpError as error:
        answers.wrong.append(f"a good request got an error: {one_line(error.message)}")
        return
    answers.seconds.append(time.perf_counter() - start)
    answers.photographs += len(got)
    pairs = list(zip(got, alone, strict=True)) if len(got) == len(alone) else []
    if pairs and all(_are_equal(one, other) for one, other in pairs):
        answers.exact += 1
    elif not pairs or any(len(match_detections(*pair)) != max(map(len, pair)) for pair in pairs):
        answers.wrong.append(f"{list(map(len, got))} detections, alone {list(map(len, alone))}, or others")


def _are_equal(one: ImageDetections, other: ImageDetections) -> bool:
    return all(np.array_equal(getattr(one, name), getattr(other, name)) for name in ("boxes", "scores", "classes"))


def _send_bad(detector: Detector, request: Request, answers: Answers) -> None:
    """Ask, and see that the error is that of this request."""
    try:
        detector.detect_files(request.files)
    except tf.errors.OpError as error:
        if isinstance(error, tf.errors.InvalidArgumentError) and request.error in error.message:
            answers.refused += 1
        else:
            answers.wrong.append(f"expected an error with {request.error!r}, got {one_line(error.message)}")
    else:
        answers.wrong.append(f"expected an error with {request.error!r}, got an answer")


def format_run(run: dict) -> str:
    """A row of the table below `HEADING`."""
    memory = ", ".join(f"{value:.0f}" for value in run["memory_mb"])
    times = "".join(f"{'n/a' if run[key] is None else f'{run[key]:.1f}':>9}" for key in ("p50_ms", "p99_ms"))
    return (
        f"{run['threads']:>7}{run['requests_per_second']:>12.1f}{run['photographs_per_second']:>15.1f}{times}"
        f"{memory:>24}{run['refused']:>9}{len(run['wrong']):>7}"
    )
