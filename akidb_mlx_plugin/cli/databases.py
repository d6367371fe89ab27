"""Open the databases that commands name: existing ones only, never created."""

from __future__ import annotations

import logging
import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from akidb_mlx_plugin.errors import EmbeddingError, InvalidInputError
from akidb_mlx_plugin.installation import install_command

CHROMA_PORT = 8000
_URI = re.compile(r"[a-z][a-z0-9+]*://")
# Longest error message kept: a server may answer with a whole page.
_LONGEST_MESSAGE = 300

logger = logging.getLogger(__name__)


@contextmanager
def host_errors(source: str) -> Iterator[None]:
    """Turn any error of a database into one line that names it: its files may be damaged, its server a different one.

    Raises:
        EmbeddingError: with the error as its cause.
    """
    try:
        yield
    except EmbeddingError:
        raise
    except BaseException as error:
        # With damaged files the databases raise anything: their own errors, those of SQLite, Arrow and HTTP, bare
        # exceptions, and Rust panics, which are not even an Exception.
        if not isinstance(error, Exception) and type(error).__name__ != "PanicException":
            raise
        # The process is exiting, or typer ends it.
        if isinstance(error, MemoryError | BrokenPipeError) or type(error).__module__.startswith(("click", "typer")):
            raise
        logger.info("error from %s", source, exc_info=error)
        message = " ".join(str(error).split()) or type(error).__name__
        if type(error) in (KeyError, AttributeError, TypeError, AssertionError, IndexError):
            message = f"{type(error).__name__}: {message} (--verbose shows the stack trace)"
        if len(message) > _LONGEST_MESSAGE:
            message = f"{message[:_LONGEST_MESSAGE]}…"
        raise EmbeddingError(f"{source}: {message}") from error


def open_chroma(source: str) -> Any:
    """Return a client for a server's address, or for a folder with an existing database.

    Raises:
        InvalidInputError: there is no such database.
        EmbeddingError: no server answers, or Chroma is not installed.
    """
    try:
        import chromadb
        from chromadb.config import Settings
    except ImportError as error:
        raise EmbeddingError(f"this needs Chroma ({error}): {install_command('chroma')}") from error
    settings = Settings(anonymized_telemetry=False)
    if not _URI.match(source):
        folder = Path(source).expanduser()
        # Chroma would create a new, empty database in any folder.
        if not (folder / "chroma.sqlite3").is_file():
            raise InvalidInputError(f"no Chroma database at {source}: the folder has no chroma.sqlite3")
        with host_errors(source):
            return chromadb.PersistentClient(str(folder), settings=settings)
    try:
        address = urlsplit(source)
    except ValueError as error:
        raise InvalidInputError(f"a Chroma server's address is http://host:port, got {source!r}: {error}") from error
    if address.scheme not in ("http", "https") or not address.hostname:
        raise InvalidInputError(f"a Chroma server's address is http://host:port, got {source!r}")
    with host_errors(source):
        return chromadb.HttpClient(
            address.hostname, address.port or CHROMA_PORT, ssl=address.scheme == "https", settings=settings
        )


def open_lancedb(source: str, table: str) -> Any:
    """Return the connection to a LanceDB database that has a table.

    Raises:
        InvalidInputError: there is no such database or table.
        EmbeddingError: LanceDB is not installed.
    """
    try:
        import lancedb
    except ImportError as error:
        raise EmbeddingError(f"this needs LanceDB ({error}): {install_command('lancedb')}") from error
    if not _URI.match(source) and not Path(source).expanduser().is_dir():
        raise InvalidInputError(f"no LanceDB database at {source}: there is no such folder")
    with host_errors(source):
        db: Any = lancedb.connect(source)
        has_table = table in db
    if not has_table:
        raise InvalidInputError(f"no table {table!r} in {source}")
    return db
