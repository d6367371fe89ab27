"""The databases that commands are pointed at: opened if they are there, never made."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from akidb_mlx_plugin.errors import EmbeddingError, InvalidInputError

_CHROMA_PORT = 8000
_URI = re.compile(r"[a-z][a-z0-9+]*://")


def open_chroma(source: str) -> Any:
    """Return a client for a server's address, or for a folder that holds a database already.

    Raises:
        InvalidInputError: no database there.
        EmbeddingError: no server answers, or Chroma is not installed.
    """
    try:
        import chromadb
        from chromadb.config import Settings
    except ImportError as error:
        raise EmbeddingError(f"this needs Chroma ({error}): pip install 'akidb-mlx-plugin[chroma]'") from error
    settings = Settings(anonymized_telemetry=False)
    if not _URI.match(source):
        folder = Path(source).expanduser()
        # Chroma would make a new, empty database of any folder.
        if not (folder / "chroma.sqlite3").is_file():
            raise InvalidInputError(f"no Chroma database at {source}: the folder has no chroma.sqlite3")
        return chromadb.PersistentClient(str(folder), settings=settings)
    address = urlsplit(source)
    if address.scheme not in ("http", "https") or not address.hostname:
        raise InvalidInputError(f"a Chroma server's address is http://host:port, got {source!r}")
    try:
        return chromadb.HttpClient(
            address.hostname, address.port or _CHROMA_PORT, ssl=address.scheme == "https", settings=settings
        )
    except ValueError as error:
        raise EmbeddingError(f"{source}: {error}") from error


def open_lancedb(source: str, table: str) -> Any:
    """Return the connection to a LanceDB database that has a table.

    Raises:
        InvalidInputError: no database there, or no such table.
        EmbeddingError: LanceDB is not installed.
    """
    try:
        import lancedb
    except ImportError as error:
        raise EmbeddingError(f"this needs LanceDB ({error}): pip install 'akidb-mlx-plugin[lancedb]'") from error
    if not _URI.match(source) and not Path(source).expanduser().is_dir():
        raise InvalidInputError(f"no LanceDB database at {source}: there is no such folder")
    db: Any = lancedb.connect(source)
    if table not in db:
        raise InvalidInputError(f"no table {table!r} in {source}")
    return db
