"""A photograph from the web: all of it, within a limit of size and of time."""

import http.client
import time
import urllib.error
import urllib.parse
import urllib.request
from pathlib import Path

from dh_keras import __version__
from dh_keras.errors import DataError, one_line
from dh_keras.paths import to_path

LIMIT_MB = 100
LIMIT_SECONDS = 60
SILENCE = 15.0  # seconds

_PIECE = 2**16
_KEPT = "%/:=&?~#+!$,;'@()*[]"  # as they are in an address


def is_web_address(path: str | Path) -> bool:
    """Whether a photograph is fetched by HTTP."""
    return str(path).lower().startswith(("http://", "https://"))


def to_file(path: str | Path) -> Path:
    """See `to_path`; an address in the web, which `fetch` reads, needs no library."""
    if not is_web_address(path):
        return to_path(path)
    from upath import UPath

    return UPath(path)


def fetch(address: str) -> bytes:
    """Fetch a file.

    Raises:
        DataError: naming the address, when it cannot be fetched, is larger than `LIMIT_MB`, or takes longer than
            `LIMIT_SECONDS` or than `SILENCE` to go on.
    """
    end = time.monotonic() + LIMIT_SECONDS
    # Some servers refuse what does not say who it is.
    headers = {"User-Agent": f"dh_keras/{__version__}"}
    try:
        request = urllib.request.Request(urllib.parse.quote(address, safe=_KEPT), headers=headers)
        with urllib.request.urlopen(request, timeout=SILENCE) as response:
            return _read(response, end)
    except urllib.error.HTTPError as error:
        raise DataError(f"{address}: cannot be fetched: HTTP {error.code} {one_line(error.reason)}") from error
    except urllib.error.URLError as error:
        raise DataError(f"{address}: cannot be fetched: {one_line(error.reason)}") from error
    except (OSError, ValueError, http.client.HTTPException) as error:
        raise DataError(f"{address}: cannot be fetched: {one_line(error) or type(error).__name__}") from error


def _read(response: http.client.HTTPResponse, end: float) -> bytes:
    data = bytearray()
    while piece := response.read1(_PIECE):
        data += piece
        if len(data) > LIMIT_MB * 1e6:
            raise ValueError(f"it has more than {LIMIT_MB} MB")
        if time.monotonic() > end:
            raise ValueError(f"it did not arrive within {LIMIT_SECONDS} seconds")
    if response.length:
        raise ValueError(f"the connection ended after {len(data):,} bytes, {response.length:,} are missing")
    return bytes(data)
