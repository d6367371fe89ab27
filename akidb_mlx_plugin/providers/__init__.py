"""Sources of vectors with one interface: a model on MLX, here or in a server, the user, or a mock for tests."""

from __future__ import annotations

from typing import TYPE_CHECKING

from akidb_mlx_plugin._lazy import import_when_asked
from akidb_mlx_plugin.providers.base import EmbeddingProvider

if TYPE_CHECKING:
    from akidb_mlx_plugin.config import EmbeddingConfig
    from akidb_mlx_plugin.providers.mlx import MLXProvider
    from akidb_mlx_plugin.providers.mock import MockProvider
    from akidb_mlx_plugin.providers.remote import RemoteProvider
    from akidb_mlx_plugin.providers.user_provided import UserProvidedProvider

__all__ = [
    "EmbeddingProvider",
    "MLXProvider",
    "MockProvider",
    "RemoteProvider",
    "UserProvidedProvider",
    "make_provider",
]

__getattr__ = import_when_asked(
    __name__,
    {
        "MLXProvider": "mlx",
        "MockProvider": "mock",
        "RemoteProvider": "remote",
        "UserProvidedProvider": "user_provided",
    },
)


def make_provider(config: EmbeddingConfig, *, trusted: bool = True) -> EmbeddingProvider:
    """Return the provider for a configuration; loads nothing.

    Args:
        config: its mode decides.
        trusted: as for `MLXProvider`.
    """
    if config.mode == "mlx" and config.remote.url is not None:
        from akidb_mlx_plugin.providers.remote import RemoteProvider

        return RemoteProvider(config.remote, config.mlx, trusted=trusted)
    if config.mode == "mlx":
        from akidb_mlx_plugin.providers.mlx import MLXProvider

        return MLXProvider(config.mlx, trusted=trusted)
    if config.mode == "mock":
        from akidb_mlx_plugin.providers.mock import MockProvider

        return MockProvider(config.mock.dimension)
    from akidb_mlx_plugin.providers.user_provided import UserProvidedProvider

    return UserProvidedProvider(model=config.user_provided.model, dimension=config.user_provided.dimension)
