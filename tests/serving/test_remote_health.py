"""What a client's health check says of its server."""

from __future__ import annotations

from pathlib import Path

import pytest
from local_server import LocalServer, client, mock_config, serving, wait_until

from akidb_mlx_plugin.errors import ServiceUnavailableError


class TestHealth:
    @pytest.mark.slow
    def test_it_is_the_servers(self, tmp_path: Path) -> None:
        socket = tmp_path / "socket"
        with client(f"unix://{socket}") as far:
            with pytest.raises(ServiceUnavailableError, match="not available: No such file"):
                far.health_check()
            for _ in range(2):
                with serving(mock_config(), uds=socket) as server:
                    wait_until(lambda server=server: server.is_ready, "the model is loaded")
                    far.health_check()
                with pytest.raises(ServiceUnavailableError, match="not available"):
                    far.health_check()

    def test_a_token_that_is_refused(self) -> None:
        with serving(mock_config(), token="right") as server:
            wait_until(lambda: server.is_ready, "the model is loaded")
            with (
                client(server.url, token="wrong") as far,
                pytest.raises(ServiceUnavailableError, match="refused the token"),
            ):
                far.health_check()

    def test_a_model_that_the_server_does_not_have(self, server: LocalServer) -> None:
        wait_until(lambda: server.is_ready, "the model is loaded")
        with client(server.url, "other") as far, pytest.raises(ServiceUnavailableError, match="no such model"):
            far.health_check()
