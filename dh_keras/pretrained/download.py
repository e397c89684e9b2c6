"""A file from the network: complete and of the right hash, or not there."""

import hashlib
import http.client
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO

from tqdm import tqdm

from dh_keras.errors import DataError, one_line
from dh_keras.files import filled_folder, opened_to_write

ATTEMPTS = 5  # a connection that breaks is taken up where it broke
WAIT = 2.0  # seconds before that
TIMEOUT = 30.0  # seconds of silence
_PIECE = 2**20


class _Broken(Exception):
    """The connection failed, or ended before the end of the file."""


def download(address: str, path: Path, *, sha256: str) -> None:
    """Download a file into a folder of its own, where it appears when all of it has arrived.

    Args:
        address: of the file.
        path: where it is to be.
        sha256: its hash, or the beginning of it.

    Raises:
        DataError: when it cannot be downloaded, or has another hash; nothing is left.
        WriteError: when the disk does not take it.
    """
    with filled_folder(path.parent) as folder:
        with (
            opened_to_write(folder / path.name) as file,
            tqdm(unit="B", unit_scale=True, desc=path.name, disable=None) as bar,
        ):
            _receive(address, path, file, bar)
        require_hash(folder / path.name, sha256, source=address, advice="nothing of it was kept; try again")


def _receive(address: str, path: Path, file: BinaryIO, bar: tqdm) -> None:
    """Write the whole file, in as many connections as it takes."""
    for attempt in range(1, ATTEMPTS + 1):
        try:
            for place, total, piece in _pieces(address, file.tell()):
                if place != file.tell():  # the server begins again
                    file.truncate(file.seek(place))
                file.write(piece)
                bar.total = total
                bar.update(file.tell() - bar.n)
            return
        except _Broken as error:
            if attempt == ATTEMPTS or not file.tell():
                raise DataError(
                    f"{address}: could not be downloaded ({one_line(error)}); try again, or fetch it by other means "
                    f"and put it at {path}"
                ) from error
        time.sleep(WAIT)


def _pieces(address: str, start: int) -> Iterator[tuple[int, int | None, bytes]]:
    """Yield (where a piece belongs, bytes of the whole file if known, piece) from a byte on, or from the first.

    Raises:
        _Broken: with the reason.
    """
    request = urllib.request.Request(address, headers={"Range": f"bytes={start}-"} if start else {})
    try:
        with urllib.request.urlopen(request, timeout=TIMEOUT) as response:
            place = start if response.status == http.client.PARTIAL_CONTENT else 0
            total = None if response.length is None else place + response.length
            while piece := response.read(_PIECE):
                yield place, total, piece
                place += len(piece)
    except urllib.error.URLError as error:
        raise _Broken(error.reason) from error
    except (OSError, http.client.HTTPException) as error:
        raise _Broken(error) from error
    if total is not None and place < total:
        raise _Broken(f"the connection ended after {place:,} of {total:,} bytes")


def require_hash(path: Path, sha256: str, *, source: str | Path, advice: str) -> None:
    """Refuse a file whose SHA-256 does not begin as it should.

    Args:
        path: the file.
        sha256: beginning of its hash, in hexadecimal digits; empty where it is not known.
        source: how messages call the file.
        advice: what to do, the end of the message.

    Raises:
        DataError: naming both hashes.
    """
    with path.open("rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
    if not digest.startswith(sha256):
        raise DataError(f"{source}: is not the published file: its SHA-256 is {digest}, expected {sha256}...; {advice}")
