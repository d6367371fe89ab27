"""The install command in messages is one that works for this installation."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from akidb_mlx_plugin.installation import install_command


@pytest.mark.parametrize(
    ("recorded", "command"),
    [
        (None, "pip install 'akidb-mlx-plugin[chroma]'"),
        ({"url": "file:///home/me/clone", "dir_info": {"editable": True}}, "pip install -e '/home/me/clone[chroma]'"),
        ({"url": "file:///home/my%20clone", "dir_info": {}}, "pip install '/home/my clone[chroma]'"),
        (
            {"url": "https://host/repo.git", "vcs_info": {"vcs": "git", "commit_id": "0123abc"}},
            "pip install 'akidb-mlx-plugin[chroma] @ git+https://host/repo.git@0123abc'",
        ),
        (
            {"url": "file:///tmp/akidb_mlx_plugin-0.1.0-py3-none-any.whl", "archive_info": {}},
            "pip install 'akidb-mlx-plugin[chroma] @ file:///tmp/akidb_mlx_plugin-0.1.0-py3-none-any.whl'",
        ),
        ({}, "pip install 'akidb-mlx-plugin[chroma]'"),
    ],
    ids=["index", "editable", "folder", "repository", "archive", "damaged"],
)
def test_command_of_an_installation(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, recorded: dict[str, Any] | None, command: str
) -> None:
    metadata = tmp_path / "akidb_mlx_plugin-9.9.9.dist-info"
    metadata.mkdir()
    (metadata / "METADATA").write_text("Metadata-Version: 2.1\nName: akidb-mlx-plugin\nVersion: 9.9.9\n")
    if recorded is not None:
        (metadata / "direct_url.json").write_text(json.dumps(recorded))
    monkeypatch.syspath_prepend(str(tmp_path))

    assert install_command("chroma") == command


def test_not_installed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sys.path", [])

    assert install_command("lancedb") == "pip install 'akidb-mlx-plugin[lancedb]'"
