"""Record `akidb-mlx demo` as the picture at the top of the README.

    python docs/scripts/record_demo.py

Runs the command in a terminal of its own, in a new folder, and draws what it prints. On a machine that does nothing else:
the picture shows how many texts were embedded in a second.
"""

from __future__ import annotations

import fcntl
import io
import os
import pty
import re
import struct
import subprocess
import sys
import tempfile
import termios
from pathlib import Path

from rich.console import Console
from rich.terminal_theme import TerminalTheme
from rich.text import Text

PICTURE = Path(__file__).parents[1] / "images" / "demo.svg"
QUESTION = "how do I parse a date from a string"
COLUMNS, LINES = 112, 40
_THEME = TerminalTheme(
    (13, 17, 23),
    (230, 237, 243),
    [(72, 79, 88), (255, 123, 114), (63, 185, 80), (210, 153, 34), (88, 166, 255), (188, 140, 255), (57, 197, 207)]
    + [(177, 186, 196)],
)


def main() -> None:
    with tempfile.TemporaryDirectory() as folder:
        printed = run_in_terminal([sys.executable, "-m", "akidb_mlx_plugin", "demo", "--path", folder, QUESTION])
    console = Console(record=True, width=COLUMNS, file=io.StringIO(), force_terminal=True)
    console.print(Text.assemble(("$ ", "bright_black"), (f'akidb-mlx demo "{QUESTION}"', "bold")))
    console.print(Text.from_ansi(printed))
    svg = console.export_svg(title="akidb-mlx demo", theme=_THEME, unique_id="demo")
    # Pictures in a README may load nothing: the reader's own monospaced font takes the place of a downloaded one.
    svg = re.sub(r"@font-face \{.*?\}\s*", "", svg, flags=re.DOTALL)
    PICTURE.write_text(svg.replace("Fira Code, monospace", "ui-monospace, Menlo, Consolas, monospace"), "utf-8")
    print("written:", PICTURE)


def run_in_terminal(command: list[str]) -> str:
    """Return what a command prints: first its messages, then, as a terminal shows it, its output."""
    ours, theirs = pty.openpty()
    fcntl.ioctl(theirs, termios.TIOCSWINSZ, struct.pack("HHHH", LINES, COLUMNS, 0, 0))
    environment = {**os.environ, "TERM": "xterm-256color", "COLUMNS": str(COLUMNS)}
    with subprocess.Popen(command, stdout=theirs, stderr=subprocess.PIPE, env=environment, text=True) as process:
        os.close(theirs)
        output = b""
        while True:
            try:
                part = os.read(ours, 65536)
            except OSError:  # the terminal's other end is closed
                part = b""
            if not part:
                break
            output += part
        messages = process.stderr.read() if process.stderr else ""
    os.close(ours)
    if process.returncode:
        raise SystemExit(messages)
    return messages + output.decode().replace("\r\n", "\n").rstrip("\n")


if __name__ == "__main__":
    main()
