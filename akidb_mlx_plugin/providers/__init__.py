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


# Part of a request's deadline after which a call to a server gives up.
_SHARE_OF_DEADLINE = 0.8


def make_provider(config: EmbeddingConfig, *, trusted: bool = True) -> EmbeddingProvider:
    """Return the provider for a configuration; loads nothing.

    Args:
        config: its mode decides.
        trusted: as for `MLXProvider`.
    """
    if config.mode == "mlx" and config.remote.url is not None:
        from akidb_mlx_plugin.providers.remote import RemoteProvider

        remote, deadline_ms = config.remote, config.service.deadline_ms
        if deadline_ms is not None and remote.timeout_ms >= deadline_ms:
            # Or a server that is down would be reported as a slow model.
            remote = remote.model_copy(update={"timeout_ms": _SHARE_OF_DEADLINE * deadline_ms})
        return RemoteProvider(remote, config.mlx, trusted=trusted)
    if config.mode == "mlx":
        from akidb_mlx_plugin.providers.mlx import MLXProvider

        return MLXProvider(config.mlx, trusted=trusted)
    if config.mode == "mock":
        from akidb_mlx_plugin.providers.mock import MockProvider

        return MockProvider(config.mock.dimension)
    from akidb_mlx_plugin.providers.user_provided import UserProvidedProvider

    return UserProvidedProvider(model=config.user_provided.model, dimension=config.user_provided.dimension)
