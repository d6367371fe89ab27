"""What `akidb-mlx bulk` writes to."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

from akidb_mlx_plugin.cli.addresses import LanceAddress, parse_address
from akidb_mlx_plugin.config import EmbeddingConfig
from akidb_mlx_plugin.errors import InvalidInputError

if TYPE_CHECKING:
    from akidb_mlx_ray.pipeline import BulkStore


@dataclass(frozen=True)
class LanceTarget:
    """A table of a LanceDB database."""

    uri: str
    name: str

    def absolute(self) -> LanceTarget:
        """Return the target with a path valid from any folder."""
        return self if "://" in self.uri else LanceTarget(str(Path(self.uri).resolve()), self.name)

    def open(self, config: EmbeddingConfig | None, *, on: str, text_column: str, vector_column: str) -> BulkStore:
        """Return the table, which may not exist yet, with a configuration's function, else its own or the default."""
        from akidb_mlx_lancedb import MLXEmbeddings
        from akidb_mlx_ray.lancedb import BulkTable

        function = MLXEmbeddings.from_config(config) if config else None
        return BulkTable(self.uri, self.name, on, function, text_column, vector_column)


@dataclass(frozen=True)
class ChromaTarget:
    """A collection of a Chroma server."""

    host: str
    port: int
    name: str

    def absolute(self) -> ChromaTarget:
        """Return it unchanged; a server's address is valid anywhere."""
        return self

    def open(self, config: EmbeddingConfig | None, *, on: str, text_column: str, vector_column: str) -> BulkStore:
        """Return the collection; as `LanceTarget.open`."""
        from akidb_mlx_chroma import MLXEmbeddingFunction
        from akidb_mlx_ray.chroma import BulkCollection, Server

        function = MLXEmbeddingFunction.from_config(config) if config else None
        server = Server(self.host, self.port)
        return BulkCollection(server, self.name, on, function, text_column, vector_column)


def parse_target(address: str) -> LanceTarget | ChromaTarget:
    """Return what an address names.

    Raises:
        InvalidInputError: it is not a valid address, or it names a collection that workers cannot write to.
    """
    try:
        place = parse_address(address)
    except InvalidInputError as error:
        raise InvalidInputError(f"--to {error}") from error
    if isinstance(place, LanceAddress):
        return LanceTarget(place.source, place.name)
    server = urlsplit(place.source)
    if server.scheme == "http" and server.hostname and server.port:
        return ChromaTarget(server.hostname, server.port, place.name)
    if place.is_server:
        raise InvalidInputError(f"--to {address}: workers reach a Chroma server over plain HTTP only")
    raise InvalidInputError(
        f"--to {address}: many processes cannot write to one Chroma folder; start a server with "
        f"`chroma run --path {place.source}` and use chroma://localhost:8000/{place.name}"
    )
