"""Run every command that writes on a disk that becomes full, and on one that can only be read.

    python tests/commands/full_disk.py [COMMAND ...]

The disk is a small file system in memory; where mounting is not allowed, as it is to root, a limit on the size of files
is its end. A command is run with all the room that it wants, with shares of that, and without the right to write. When
it fails it must say one line, leave nothing that looks whole and is not, and change nothing that was there; with room
again, or resumed, it must come to the same end.
"""

import argparse
import contextlib
import dataclasses
import functools
import io
import os
import re
import resource
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))
sys.path.insert(0, str(Path(__file__).parents[1] / "pretrained"))

import numpy as np
import published

from dh_keras.commands.main import main as command_line
from dh_keras.config.load import load_config
from dh_keras.data.formats.coco import read_categories
from dh_keras.data.shapes import write_shapes
from dh_keras.errors import Interrupted
from dh_keras.modeling.builder import assemble_detector
from dh_keras.run.run_folder import write_run
from dh_keras.run.weights import save_weights
from dh_keras.training import loop

SHARES = (0.0, 0.05, 0.2, 0.4, 0.6, 0.8, 0.95)
DISK_BYTES = 2**25
FILLER = "filler"
STOPPED = 143
SAYS = re.compile(r"No space left on device|File too large|Read-only file system|Permission denied|MB left")
SHORT = ("train.epochs=2", "train.drops=[]", "train.pictures=1", "train.sanity_images=0", "model.score_threshold=0.0")


@dataclasses.dataclass
class Case:
    """A command and what it writes.

    Args:
        words: of the command line, after DISK was replaced.
        prepare: puts what is there before on the disk.
        again: words of the second try, where they are others.
        parts: pattern of files that it may leave as they are when it fails, because another try goes on with them.
    """

    words: list[str]
    prepare: Callable[[Path], None] = lambda disk: None
    again: list[str] | None = None
    parts: str = "(?!)"


class Disk:
    """An empty disk of `DISK_BYTES`, or a folder where none can be mounted, as long as the block lasts."""

    def __init__(self, path: Path):
        self.path = path

    def __enter__(self) -> "Disk":
        self.path.mkdir()
        mount = ["mount", "-t", "tmpfs", "-o", f"size={DISK_BYTES}", "tmpfs", self.path]
        self.mounted = subprocess.run(mount, check=False, capture_output=True).returncode == 0
        return self

    def __exit__(self, *error: object) -> None:
        self.mend()
        if self.mounted:
            subprocess.run(["umount", "--lazy", self.path], check=True)
        shutil.rmtree(self.path)

    @property
    def free(self) -> int:
        """Bytes that are left."""
        status = os.statvfs(self.path)
        return status.f_bavail * status.f_frsize

    def leave_room(self, room: int) -> None:
        """Let no more bytes be written; without a disk of its own, to any one file."""
        if self.mounted:
            with open(self.path / FILLER, "wb") as file:
                os.posix_fallocate(file.fileno(), 0, max(1, self.free - room))
        else:
            resource.setrlimit(resource.RLIMIT_FSIZE, (room, resource.RLIM_INFINITY))

    def make_read_only(self) -> None:
        """Let nothing be written; needs a disk, or a user whom rights hold back."""
        if self.mounted:
            subprocess.run(["mount", "-o", "remount,ro", self.path], check=True)
        else:
            self.path.chmod(0o500)

    def mend(self) -> None:
        """Take away what hinders writing."""
        if self.mounted:
            subprocess.run(["mount", "-o", "remount,rw", self.path], check=True)
        self.path.chmod(0o700)
        resource.setrlimit(resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
        (self.path / FILLER).unlink(missing_ok=True)


def tree(disk: Path) -> dict[str, bytes]:
    """Every file by its name."""
    files = [path for path in disk.rglob("*") if path.is_file() and path.name != FILLER]
    return {str(path.relative_to(disk)): path.read_bytes() for path in files}


def call(words: list[str]) -> tuple[int, str]:
    """Exit status and standard error of a command in this process."""
    said = io.StringIO()
    with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(said):
        try:
            command_line(words)
        except SystemExit as stop:
            return int(stop.code or 0), said.getvalue()
    return 0, said.getvalue()


class Inputs:
    """Small inputs of the commands, made in a folder when they are needed, with overrides for a tiny model."""

    def __init__(self, folder: Path, tiny: Sequence[str]):
        self.folder, self.tiny = folder, tiny
        self.data = write_shapes(folder / "shapes", train_images=4, val_images=3, seed=1)
        self.paths = [f"data.{name}={value}" for name, value in dataclasses.asdict(self.data).items()]
        self.val = ["--annotations", str(self.data.val_annotations), "--images", str(self.data.val_images)]
        self.training = ["train", *self.tiny, *SHORT, *self.paths]

    @functools.cached_property
    def run(self) -> Path:
        """A run folder as after a training that learned nothing."""
        return self._make_run("run", SHORT)

    @functools.cached_property
    def heads(self) -> Path:
        """One whose heads can be compared."""
        small = (f"model.conv_head.non_local.{key}" for key in ("channels=4", "groups=2"))
        return self._make_run("heads", ("model.variant=double_head_ext", *small))

    @functools.cached_property
    def begun(self) -> Path:
        """The run folder of a training that was stopped before the first step."""
        fit, loop._fit = loop._fit, _stop
        try:
            assert call([*self.training, "--output", str(self.folder / "begun")])[0] == STOPPED
        finally:
            loop._fit = fit
        return self.folder / "begun"

    @functools.cached_property
    def shards(self) -> list[Path]:
        """The two parts of a prediction."""
        made = [self.folder / "shard1", self.folder / "shard2"]
        for number, shard in enumerate(made, start=1):
            options = ["--shard", f"{number}/2", "--score", "0", "--no-pictures", "--output", str(shard)]
            status, said = call(["predict", str(self.run), str(self.data.val_images), *options])
            assert status == 0, said
        return made

    @functools.cached_property
    def checkpoint(self) -> Path:
        """A checkpoint of the authors' network; needs torch."""
        import torch

        tensors = published.make_tensors(published.authors_shapes(**published.NARROW))
        network = {name: torch.from_numpy(np.array(value)) for name, value in tensors.items()}
        torch.save({"model": network}, self.folder / "authors.pth")
        return self.folder / "authors.pth"

    def _make_run(self, name: str, changes: Sequence[str]) -> Path:
        config = load_config(overrides=[*self.tiny, *changes, *self.paths])
        categories = read_categories(self.data.val_annotations)
        write_run(self.folder / name, config, categories)
        model = assemble_detector(config.model, num_classes=len(categories))
        save_weights(model, self.folder / name / "best.weights.h5")
        return self.folder / name


def _stop(job, callbacks) -> None:
    raise Interrupted("stopped before the first step", STOPPED)


TRAINED = r"run/(state\.npz|metrics\.csv|.*\.weights\.h5|config\.yaml|classes\.json|tensorboard/.*|pictures/.*)"
QUICK = ("--sizes", "64x64", "--surviving", "1", "--repeats", "1")


def make_case(name: str, inputs: Inputs) -> Case:
    """What is typed for a name of `CASES`."""
    val = inputs.val
    if name == "train":
        words = [*inputs.training, "--output", "DISK/run"]
        return Case(words, again=[*words, "--resume"], parts=TRAINED)
    if name == "train --resume":
        begun = inputs.begun
        words = ["train", "--resume", "--output", "DISK/run"]
        return Case(words, prepare=lambda disk: shutil.copytree(begun, disk / "run"), parts=TRAINED)
    if name == "predict":
        words = ["predict", str(inputs.run), str(inputs.data.val_images), "--score", "0", "--output", "DISK/out"]
        return Case(words, again=[*words, "--resume"], parts=r"out/(settings\.json|parts/.*|.*\.jpg)")
    if name == "analyze":
        run = inputs.run
        return Case(["analyze", "DISK/run"], prepare=lambda disk: shutil.copytree(run, disk / "run"))
    if name == "inspect-data --fix":
        report = str(inputs.folder / "report")
        return Case(["inspect-data", *val, "--output", report, "--fix", "DISK/fixed.json"])
    words = {
        "evaluate": lambda: [inputs.run, *val, "--output", "DISK/metrics.json"],
        "merge-predictions": lambda: [*inputs.shards, "--output", "DISK/merged"],
        "export": lambda: [inputs.run, "--output", "DISK/1"],
        "analyze-heads": lambda: [inputs.heads, *val, "--output", "DISK/heads"],
        "inspect-data": lambda: [*val, "--output", "DISK/report"],
        "make-tfrecords": lambda: [*val, "--shards", "2", "--output", "DISK/records/val"],
        "benchmark": lambda: [*inputs.tiny, *QUICK, "--output", "DISK/benchmark.json"],
        "convert-checkpoint": lambda: [inputs.checkpoint, "--output", "DISK/run"],
    }
    return Case([name, *map(str, words[name]())])


CASES = (
    *("merge-predictions", "make-tfrecords", "inspect-data --fix", "inspect-data", "evaluate", "predict", "export"),
    *("convert-checkpoint", "train --resume", "train", "analyze", "analyze-heads", "benchmark"),
)


class Commands:
    """The commands, each of which is tried on a disk at one place, so that what it writes is always the same.

    Args:
        folder: new, for inputs and the place of the disk.
        tiny: overrides for a model that is quick.
    """

    def __init__(self, folder: Path, tiny: Sequence[str]):
        self._inputs, self._place = Inputs(folder, tiny), folder / "disk"
        self.case = functools.cache(lambda name: make_case(name, self._inputs))
        self.whole = functools.cache(self._whole)

    def run(self, name: str, *, again: bool = False) -> tuple[int, str]:
        """Status and standard error of a command, or of what is typed to go on with it."""
        shutil.rmtree(self._inputs.folder / "report", ignore_errors=True)
        case = self.case(name)
        words = case.again if again and case.again else case.words
        return call([word.replace("DISK", str(self._place)) for word in words])

    def _whole(self, name: str) -> tuple[dict[str, bytes], int]:
        """What a command writes when it has room, and how many bytes of the disk that takes."""
        with Disk(self._place) as disk:
            self.case(name).prepare(disk.path)
            before = disk.free
            status, said = self.run(name)
            assert status == 0, said
            return tree(disk.path), before - disk.free

    def refuse(self, name: str, spoil: Callable[[Disk], None], *, whole: dict[str, bytes] | None = None) -> str:
        """Try on a disk that was spoiled.

        Args:
            name: of the command.
            spoil: see `Disk`.
            whole: what it writes when it has room, to try again and compare.

        Returns:
            The line that was said, "" if it wrote everything all the same.
        """
        case = self.case(name)
        with Disk(self._place) as disk:
            case.prepare(disk.path)
            before = tree(disk.path)
            spoil(disk)
            status, said = self.run(name)
            if status == 0:
                return ""
            after = tree(disk.path)
            disk.mend()
            line = check_line(status, said, disk.path)
            check_files(before, after, whole or {}, parts=case.parts)
            if whole:
                status, said = self.run(name, again=any(re.fullmatch(case.parts, file) for file in after))
                assert status == 0, said
                check_end(tree(disk.path), whole)
        return line


def check_line(status: int, said: str, disk: Path) -> str:
    """See that the last line names the file and what the system says; return it."""
    lines = [line for line in said.splitlines() if line.startswith("error: ")]
    assert status == 1, said
    assert len(lines) == 1, said
    assert said.rstrip().endswith(lines[0]), said
    assert "Traceback" not in said, said
    assert str(disk) in lines[0], said
    assert SAYS.search(lines[0]), said
    return lines[0].replace(str(disk), "DISK")


def check_files(before: dict[str, bytes], after: dict[str, bytes], whole: dict[str, bytes], *, parts: str) -> None:
    """See that every file is the one that was there or the one that should come, but for such as a next try needs."""
    for file in before.keys() | after.keys():
        if not re.fullmatch(parts, file):
            assert file in after, f"{file} is lost"
            assert after[file] in (before.get(file), whole.get(file)), f"{file} is neither the old nor the new one"


def check_end(ours: dict[str, bytes], theirs: dict[str, bytes]) -> None:
    """See that another try came to the same end, in files that hold no times."""
    assert {file for file in ours if "tfevents" not in file} == {file for file in theirs if "tfevents" not in file}
    for file in theirs.keys() - {"run/curves.png"}:  # which shows images per second
        if file.endswith(
            (".weights.h5", "predictions.json", ".tfrecord", "fixed.json", "metrics.json", ".png", ".jpg")
        ):
            assert ours[file] == theirs[file], f"{file} differs after another try"


def spoilers(needed: int) -> Iterator[tuple[str, Callable[[Disk], None]]]:
    """Disks with shares of the room that is needed, those apart that differ by a page, and one to be read only."""
    rooms = {int(share * needed) // 4096: share for share in reversed(SHARES)}
    for share in sorted(rooms.values()):
        yield f"{share:.0%}", lambda disk, share=share: disk.leave_room(int(share * needed))
    yield "read-only", Disk.make_read_only


def main() -> None:
    from conftest import TINY  # in the tests, other folders have modules of this name

    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("commands", nargs="*")
    names, failed = parser.parse_args().commands or CASES, False
    with tempfile.TemporaryDirectory() as folder:
        commands = Commands(Path(folder), TINY)
        for name in names:
            whole, needed = commands.whole(name)
            print(f"{name}: {len(whole)} files, {needed} bytes", flush=True)
            for shown, spoil in spoilers(needed):
                try:
                    line = commands.refuse(name, spoil, whole=whole) or "was enough"
                except AssertionError as error:
                    failed, line = True, f"WRONG {error}"
                print(f"  {shown:>9}  {line}", flush=True)
    sys.exit(failed)


if __name__ == "__main__":
    main()
