"""The models that a server offers, each with the one queue that all clients share."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from akidb_mlx_plugin.config import EmbeddingConfig
from akidb_mlx_plugin.errors import InvalidInputError, ServiceUnavailableError
from akidb_mlx_plugin.hub.registry import resolve
from akidb_mlx_plugin.providers import make_provider
from akidb_mlx_plugin.service import EmbeddingService
from akidb_mlx_plugin.serving.problems import ProblemError
from akidb_mlx_plugin.types import ModelInfo

# What each request decides; a default of the server would change the vectors of clients that rely on the model's.
_CLIENTS_CHOICE = (
    "dimension",
    "normalize",
    "pooling",
    "query_prompt",
    "document_prompt",
    "query_task",
    "document_task",
)
_MOST_DESCRIPTIONS = 64

logger = logging.getLogger(__name__)


class ServedModel:
    """A model, its service, and what clients ask about it.

    Attributes:
        service: one queue for all clients.
        info: the model with its default settings.
    """

    def __init__(self, config: EmbeddingConfig) -> None:
        """Find the model, downloading it if needed; loads no weights."""
        self.service = EmbeddingService(config)
        self.info = self.service.model_info()
        self._descriptions: dict[tuple[tuple[str, Any], ...], ModelInfo] = {}

    @property
    def names(self) -> set[str]:
        """What clients may call it: the name it was started with, its repository, its short name."""
        names = {self.info.model}
        if self.service.config.mode == "mlx":
            source = resolve(self.service.config.mlx.model)
            names |= {self.service.config.mlx.model, source.repo or str(source.folder)}
            names |= {source.spec.name} if source.spec else set()
        return names

    def describe(self, settings: Mapping[str, Any]) -> ModelInfo:
        """Describe the vectors that a client's settings give; blocks while it reads the checkpoint.

        Args:
            settings: values of the configuration's section "mlx", or of "mock".
        Raises:
            InvalidInputError: the model cannot do that.
        """
        key = tuple(sorted(settings.items()))
        if key not in self._descriptions:
            if len(self._descriptions) >= _MOST_DESCRIPTIONS:
                self._descriptions.clear()
            self._descriptions[key] = make_provider(self._config_with(settings)).model_info()
        return self._descriptions[key]

    def _config_with(self, settings: Mapping[str, Any]) -> EmbeddingConfig:
        config = self.service.config
        if config.mode == "mlx":
            return config.model_copy(update={"mlx": config.mlx.model_copy(update=dict(settings))})
        # The mock has no prompts.
        dimension = settings.get("dimension", config.mock.dimension)
        return config.model_copy(update={"mock": config.mock.model_copy(update={"dimension": dimension})})


class ServedModels:
    """Every model of a server."""

    def __init__(self, configs: Sequence[EmbeddingConfig]) -> None:
        """Find the models; loads no weights.

        Raises:
            InvalidInputError: a setting that is the client's choice, or two models of one name.
            ModelNotFoundError, DownloadError: a model cannot be had.
        """
        self._models: list[ServedModel] = []
        self._by_name: dict[str, ServedModel] = {}
        self._loading: ServiceUnavailableError | None = ServiceUnavailableError("the models are being loaded")
        for config in configs:
            _refuse_clients_choice(config)
            model = ServedModel(config)
            for name in model.names:
                if name in self._by_name:
                    raise InvalidInputError(f"--model: {name!r} is given twice")
                self._by_name[name] = model
            self._models.append(model)

    def __iter__(self) -> Iterator[ServedModel]:
        return iter(self._models)

    def find(self, name: str) -> ServedModel:
        """Return the model of a name.

        Raises:
            ProblemError: there is none.
        """
        model = self._by_name.get(name)
        if model is None:
            offered = ", ".join(repr(model.info.model) for model in self._models)
            raise ProblemError(
                404, f"no such model here; this server has {offered}", code="model_not_found", param="model"
            )
        return model

    def load(self) -> None:
        """Load the weights of every model, by embedding a word."""
        try:
            for model in self._models:
                model.service.embed_batch(["ready"])
            self._loading = None
        except Exception as error:
            logger.error("a model could not be loaded: %s", error)
            self._loading = ServiceUnavailableError(f"a model could not be loaded: {error}")

    def check_ready(self) -> None:
        """Raise ServiceUnavailableError while a text could not be embedded."""
        for model in self._models:
            model.service.health_check()
        if self._loading is not None:
            raise self._loading

    def close(self, timeout_s: float) -> None:
        """Answer what is waiting and free the models, all at the same time."""
        with ThreadPoolExecutor(max(1, len(self._models))) as threads:
            for model in self._models:
                threads.submit(model.service.close, timeout_s=timeout_s)


def configs_for(models: Sequence[str], file: Path | None, keep_alive: float | None) -> list[EmbeddingConfig]:
    """Return a configuration for each model, from a file, the environment and the command line.

    Args:
        models: short names, repositories or folders; none for the configured model.
        file: a YAML file with the key "embedding".
        keep_alive: seconds that idle weights stay in memory.
    """
    # A client's setting in the same environment must not make the server its own client.
    given: dict[str, Any] = {"remote": {"url": None}}
    mlx = {} if keep_alive is None else {"keep_alive": keep_alive}
    return [
        EmbeddingConfig.load(file, {**given, "mlx": {**mlx, **({"model": model} if model else {})}})
        for model in models or [""]
    ]


def _refuse_clients_choice(config: EmbeddingConfig) -> None:
    if config.mode == "user_provided":
        raise InvalidInputError("mode 'user_provided' has no model to serve; choose mode 'mlx'")
    for key in _CLIENTS_CHOICE:
        if getattr(config.mlx, key) is not None:
            raise InvalidInputError(
                f"mlx.{key} is for each client to choose, and would change the vectors of the others; "
                "remove it from the server's configuration and environment"
            )
