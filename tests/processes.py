"""Other processes, for tests of what happens at a fork or when an interpreter exits."""

from __future__ import annotations

import os
import subprocess
import sys
import textwrap

_TIMEOUT_S = 120.0


def run_python(
    code: str,
    *arguments: object,
    environment: dict[str, str] | None = None,
    status: int = 0,
    silent: bool = False,
) -> str:
    """Run code in a fresh process with this one's packages, and return what it prints.

    Args:
        code: the script; may be indented.
        arguments: its `sys.argv[1:]`.
        environment: variables to add to this process's.
        status: the exit status it must have.
        silent: whether it must print nothing to stderr.
    """
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(code), *map(str, arguments)],
        capture_output=True,
        text=True,
        timeout=_TIMEOUT_S,
        check=False,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(path for path in sys.path if path), **(environment or {})},
    )
    assert done.returncode == status, done.stdout + done.stderr
    assert not (silent and done.stderr), done.stderr
    return done.stdout
