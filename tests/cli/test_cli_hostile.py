"""Commands with hostile files, names, limits and callers: one line each, and correct outputs."""

from __future__ import annotations

import json
import logging
import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import numpy as np
import pytest

from akidb_mlx_plugin.cli.embed_output import atomic_write
from akidb_mlx_plugin.cli.output import PlainFormatter, print_error, print_json, print_rows, printable

MODEL = str(Path(__file__).parents[1] / "golden" / "bert" / "model")
# Colors, a window title, a bell, right-to-left text, and a C1 control sequence.
NASTY = "a\x1b[31mred\x1b]0;title\x07\u202eb\x9b5m\x7f"


def command(*arguments: str, **options: object) -> subprocess.CompletedProcess[str]:
    defaults: dict[str, object] = {"capture_output": True, "text": True, "timeout": 120}
    return subprocess.run([sys.executable, "-m", "akidb_mlx_plugin", *arguments], **{**defaults, **options})  # type: ignore[call-overload,no-any-return]


class TestWhatIsPrinted:
    def assert_plain(self, text: str) -> None:
        assert "\x1b[31m" not in text
        assert not set("\x07\u202e\x9b\x7f") & set(text)

    def test_rows(self, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
        rows = [{"id": NASTY, "n": 1}, {"id": "two\nlines\tand more", "n": None}]
        print_rows(rows)
        printed = capsys.readouterr().out
        self.assert_plain(printed)
        assert printed.splitlines()[-1] == "two lines and more\t"
        monkeypatch.setattr(sys.stdout, "isatty", lambda: True)
        print_rows(rows)
        self.assert_plain(capsys.readouterr().out)

    def test_json_that_reads_back_equal(self, capsys: pytest.CaptureFixture[str]) -> None:
        value = {NASTY: [NASTY, "é東京👩", 1.5]}
        print_json(value)
        printed = capsys.readouterr().out
        self.assert_plain(printed)
        assert "é東京👩" in printed
        assert json.loads(printed) == value

    def test_errors_of_bounded_length(self, capsys: pytest.CaptureFixture[str]) -> None:
        print_error(f"no field {NASTY}\nfound")
        self.assert_plain(capsys.readouterr().err)
        print_error("x" * 100_000)
        printed = capsys.readouterr().err
        assert len(printed) < 2100
        assert printed.endswith("…\n")

    def test_log_records(self) -> None:
        record = logging.LogRecord("name", logging.WARNING, "", 0, "of %s", (NASTY,), None)
        self.assert_plain(PlainFormatter("%(levelname)s %(message)s").format(record))

    @pytest.mark.parametrize("text", ["é 東京 👍", "a-b_c/d", ""])
    def test_what_is_harmless_stays(self, text: str) -> None:
        assert printable(text) == text


class TestOutputFile:
    def test_keeps_its_mode(self, tmp_path: Path) -> None:
        file = tmp_path / "o.npy"
        file.write_bytes(b"before")
        file.chmod(0o640)
        with atomic_write(file) as out:
            out.write(b"after")
        assert file.read_bytes() == b"after"
        assert file.stat().st_mode & 0o777 == 0o640
        assert os.listdir(tmp_path) == ["o.npy"]

    @pytest.mark.parametrize("there", [True, False])
    def test_is_written_through_a_link(self, tmp_path: Path, there: bool) -> None:
        real, link = tmp_path / "elsewhere" / "real.npy", tmp_path / "link.npy"
        real.parent.mkdir()
        if there:
            real.write_bytes(b"before")
        link.symlink_to(real)
        with atomic_write(link) as out:
            out.write(b"after")
        assert link.is_symlink()
        assert real.read_bytes() == b"after"
        assert os.listdir(real.parent) == ["real.npy"]

    def test_may_be_a_pipe(self, tmp_path: Path) -> None:
        pipe = tmp_path / "p.npy"
        os.mkfifo(pipe)
        read: list[bytes] = []
        reader = threading.Thread(target=lambda: read.append(pipe.read_bytes()))
        reader.start()
        with atomic_write(pipe) as out:
            out.write(b"__header")
            out.seek(0)
            out.write(b"##")
        reader.join(10)
        assert read == [b"##header"]
        assert pipe.is_fifo()

    def test_is_on_disk_before_it_takes_its_place(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        events: list[str] = []
        replace = Path.replace
        monkeypatch.setattr(os, "fsync", lambda descriptor: events.append("sync"))
        monkeypatch.setattr(Path, "replace", lambda *paths: (events.append("replace"), replace(*paths))[1])
        with atomic_write(tmp_path / "o.npy") as out:
            out.write(b"x")
        assert events == ["sync", "replace", "sync"]

    @pytest.mark.parametrize("error", [ValueError, KeyboardInterrupt, SystemExit])
    def test_stays_as_it_was_after_an_error(self, tmp_path: Path, error: type[BaseException]) -> None:
        file = tmp_path / "o.npy"
        file.write_bytes(b"before")
        writing = atomic_write(file)
        writing.__enter__().write(b"after")
        writing.__exit__(error, error(), None)
        assert file.read_bytes() == b"before"
        assert os.listdir(tmp_path) == ["o.npy"]


class TestEmbed:
    @pytest.mark.slow
    @pytest.mark.parametrize(
        ("rows", "target", "message"),
        [
            ('{"text": "a", "meta": {}}\n', "o.parquet", "Parquet cannot store these rows"),
            ('{"text": "a", "deep": ' + "[" * 100_000 + "]" * 100_000 + "}\n", "o.jsonl", "nested too deeply"),
            ('{"text\\u001b[31m": "a"}\n', "o.jsonl", "no text in field"),
            (json.dumps({f"field {i}": 1 for i in range(10_000)}), "o.jsonl", "no text in field"),
        ],
        ids=["an empty object", "nested deeply", "control characters", "ten thousand fields"],
    )
    def test_rows_that_cannot_be_used(self, tmp_path: Path, rows: str, target: str, message: str) -> None:
        (tmp_path / "in.jsonl").write_text(rows)
        done = command("embed", "in.jsonl", "-o", target, "--model", MODEL, cwd=tmp_path)
        assert done.returncode == 1
        assert message in done.stderr
        assert len(done.stderr.splitlines()) == 1
        assert len(done.stderr) < 2100
        assert "\x1b" not in done.stderr
        assert os.listdir(tmp_path) == ["in.jsonl"]

    @pytest.mark.slow
    def test_with_standard_streams_closed(self, tmp_path: Path) -> None:
        """The output file must not get their descriptors, or it would receive what is printed."""
        (tmp_path / "in.txt").write_text("hello\n")
        run = f"{sys.executable} -m akidb_mlx_plugin embed {{}} -o o.npy --model {MODEL} <&- >&- 2>&-"
        assert subprocess.run(["sh", "-c", run.format("in.txt")], cwd=tmp_path, timeout=120).returncode == 0
        assert np.load(tmp_path / "o.npy").shape == (1, 32)
        assert subprocess.run(["sh", "-c", run.format("-")], cwd=tmp_path, timeout=120).returncode == 1


@pytest.mark.slow
@pytest.mark.skipif(not Path("/dev/full").exists(), reason="not Linux")
def test_no_room_for_the_result_is_an_error() -> None:
    with open("/dev/full", "w") as full:
        done = command("models", "list", capture_output=False, stdout=full, stderr=subprocess.PIPE)
    assert done.returncode == 1
    assert done.stderr == "akidb-mlx: [Errno 28] No space left on device\n"


@pytest.mark.slow
def test_a_terminal_without_such_characters() -> None:
    done = command("embed", "é.txt", "-o", "o.npy", env={**os.environ, "PYTHONIOENCODING": "ascii"})
    assert done.returncode == 1
    assert done.stderr.startswith(r"akidb-mlx: cannot read \xe9.txt")


@pytest.mark.slow
def test_what_nobody_foresaw_is_one_line() -> None:
    program = (
        "import sys; from akidb_mlx_plugin import cli; from akidb_mlx_plugin.cli import models\n"
        "def broken(*a, **k): raise KeyError('odd\\x1b[31m')\n"
        "models.print_rows = broken; sys.argv = ['akidb-mlx', *sys.argv[1:]]; cli.main()"
    )
    for options, lines in ((["models", "list"], 1), (["--verbose", "models", "list"], 5)):
        done = subprocess.run([sys.executable, "-c", program, *options], capture_output=True, text=True, timeout=60)
        assert done.returncode == 1
        assert "akidb-mlx: KeyError: " in done.stderr.splitlines()[-1]
        assert len(done.stderr.splitlines()) >= lines
        assert ("Traceback" in done.stderr) == (lines > 1)


@pytest.mark.slow
@pytest.mark.parametrize(("number", "status"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
@pytest.mark.parametrize("delay_s", [0.15, 0.4, 0.8, 1.6])
def test_a_signal_at_any_time_leaves_no_stack_trace(
    tmp_path: Path, number: signal.Signals, status: int, delay_s: float
) -> None:
    (tmp_path / "in.txt").write_text("hello\n" * 20_000)
    running = subprocess.Popen(
        [sys.executable, "-m", "akidb_mlx_plugin", "embed", "in.txt", "-o", "o.npy", "--model", MODEL],
        cwd=tmp_path,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    time.sleep(delay_s)
    running.send_signal(number)
    _, errors = running.communicate(timeout=60)
    # Before the command's own code runs, the interpreter has only its defaults.
    assert running.returncode in (status, -number, 0)
    if running.returncode == status:
        assert "Traceback" not in errors
    assert not (tmp_path / "o.npy").exists() or running.returncode == 0
