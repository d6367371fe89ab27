"""How commands name a collection or a table: in one string, the same for all of them."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated
from urllib.parse import urlsplit

import typer

from akidb_mlx_plugin.cli.databases import CHROMA_PORT
from akidb_mlx_plugin.errors import InvalidInputError

FORMS = (
    "chroma://HOST:PORT/COLLECTION, chroma:///FOLDER/COLLECTION, lancedb://FOLDER/TABLE, "
    "lancedb://s3://bucket/path/TABLE, or the path FOLDER/NAME of an existing database"
)
ADDRESS_HELP = "chroma://HOST:PORT/COLLECTION, lancedb://FOLDER/TABLE, or FOLDER/NAME of an existing database."
_LANCE = ".lance"

# The options of earlier versions, which no help shows.
ChromaOption = Annotated[str | None, typer.Option("--chroma", hidden=True, help="Earlier form of the address.")]
CollectionOption = Annotated[str | None, typer.Option("--collection", hidden=True, help="Earlier form of the address.")]
LancedbOption = Annotated[str | None, typer.Option("--lancedb", hidden=True, help="Earlier form of the address.")]
TableOption = Annotated[str | None, typer.Option("--table", hidden=True, help="Earlier form of the address.")]


@dataclass(frozen=True)
class ChromaAddress:
    """A collection of Chroma.

    Attributes:
        source: a folder, or the server's http://host:port.
        name: the collection's.
    """

    source: str
    name: str

    @property
    def is_server(self) -> bool:
        """Whether a server has it, and not a folder."""
        return "://" in self.source


@dataclass(frozen=True)
class LanceAddress:
    """A table of LanceDB.

    Attributes:
        source: a folder, or an address such as s3://bucket/path.
        name: the table's.
    """

    source: str
    name: str


Address = ChromaAddress | LanceAddress


def parse_address(address: str) -> Address:
    """Return what an address names; only a plain path must exist.

    Raises:
        InvalidInputError: it fits no form, or a path leads to no database.
    """
    scheme, found, rest = address.partition("://")
    if not found:
        return _parse_path(address)
    source, _, name = rest.rstrip("/").rpartition("/")
    if source and name:
        if scheme == "lancedb":
            return LanceAddress(source if "://" in source else _expand(source), name.removesuffix(_LANCE))
        if scheme == "chroma" and _is_folder(source):
            return ChromaAddress(_expand(source), name)
        if scheme in ("chroma", "http", "https") and "/" not in source:
            return ChromaAddress(_server(address, "http" if scheme == "chroma" else scheme, source), name)
    raise InvalidInputError(f"{address!r} is not a database's address; use {FORMS}")


def _is_folder(source: str) -> bool:
    """Return whether the middle of a Chroma address is a folder, not a server.

    HOST without a port could be either, and is a folder if there is a database in it.
    """
    if source.startswith((".", "~", "/")) or "/" in source:
        return True
    return ":" not in source and _has_chroma(Path(source))


def _server(address: str, scheme: str, source: str) -> str:
    try:
        parts = urlsplit(f"{scheme}://{source}")
        host, port = parts.hostname, parts.port or (443 if scheme == "https" else CHROMA_PORT)
    except ValueError as error:
        raise InvalidInputError(f"{address}: {error}; use {FORMS}") from error
    if not host:
        raise InvalidInputError(f"{address!r} names no server; use {FORMS}")
    return f"{scheme}://[{host}]:{port}" if ":" in host else f"{scheme}://{host}:{port}"


def _parse_path(address: str) -> Address:
    path = Path(_expand(address))
    if names := _names_in(path):
        first = Path(address) / names[0]
        raise InvalidInputError(f"{address} is a database: add the name of a collection or table, as in {first}")
    folder, name = path.parent, path.name
    in_chroma, in_lancedb = _has_chroma(folder), bool(_tables_in(folder))
    if not name or not (in_chroma or in_lancedb):
        raise InvalidInputError(
            f"no database at {address!r}: {folder} has no chroma.sqlite3 and no .lance folder; use {FORMS}"
        )
    if in_chroma and in_lancedb:
        raise InvalidInputError(
            f"{folder} holds databases of Chroma and of LanceDB: write chroma://{folder.absolute()}/{name} or "
            f"lancedb://{folder}/{name}"
        )
    return ChromaAddress(str(folder), name) if in_chroma else LanceAddress(str(folder), name.removesuffix(_LANCE))


def _names_in(folder: Path) -> list[str]:
    """Return what to suggest after the path of a database itself; nothing for other paths."""
    return _tables_in(folder) or (["COLLECTION"] if _has_chroma(folder) else [])


def _has_chroma(folder: Path) -> bool:
    return (folder.expanduser() / "chroma.sqlite3").is_file()


def _tables_in(folder: Path) -> list[str]:
    return sorted(entry.stem for entry in folder.glob(f"*{_LANCE}") if entry.is_dir())


def _expand(path: str) -> str:
    return str(Path(path).expanduser())


def choose_address(
    address: str | None,
    *,
    chroma: str | None = None,
    collection: str | None = None,
    lancedb: str | None = None,
    table: str | None = None,
) -> Address:
    """Return what a command was told to open: an address, or the options of earlier versions.

    Raises:
        typer.BadParameter: nothing or more than one thing is named.
        InvalidInputError: as `parse_address`.
    """
    places: list[Address] = []
    if address is not None:
        places.append(parse_address(address))
    if chroma is not None and collection is not None:
        places.append(ChromaAddress(chroma, collection))
    if lancedb is not None and table is not None:
        places.append(LanceAddress(lancedb, table))
    pairs = ((chroma, collection), (lancedb, table))
    if len(places) != 1 or any((source is None) != (name is None) for source, name in pairs):
        raise typer.BadParameter(f"name one collection or table, by its address: {FORMS}")
    return places[0]
