"""How this package was installed, so that a message names an install command that works here."""

from __future__ import annotations

import json
import shlex
from importlib.metadata import PackageNotFoundError, distribution
from urllib.parse import urlsplit
from urllib.request import url2pathname

_NAME = "akidb-mlx-plugin"


def install_command(extra: str) -> str:
    """Return the command that adds an extra of this package to its environment.

    A package that was installed from a clone is not necessarily on an index: its command names the folder, archive or
    repository that pip recorded.

    Source: PEP 610, `direct_url.json`.
    """
    return f"pip install {_requirement(extra)}"


def _requirement(extra: str) -> str:
    try:
        recorded = json.loads(distribution(_NAME).read_text("direct_url.json") or "{}")
        url = str(recorded["url"])
    except (PackageNotFoundError, ValueError, KeyError, TypeError):
        return shlex.quote(f"{_NAME}[{extra}]")
    if "dir_info" in recorded:
        folder = url2pathname(urlsplit(url).path)
        is_editable = bool(recorded["dir_info"].get("editable"))
        return f"{'-e ' if is_editable else ''}{shlex.quote(f'{folder}[{extra}]')}"
    vcs = recorded.get("vcs_info", {})
    prefix, suffix = (f"{vcs['vcs']}+", f"@{vcs['commit_id']}") if vcs.keys() >= {"vcs", "commit_id"} else ("", "")
    return shlex.quote(f"{_NAME}[{extra}] @ {prefix}{url}{suffix}")
