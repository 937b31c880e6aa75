"""Where files of reports may go: folders below one root, and containers of Azure Blob storage.

A schedule is made over HTTP, so its folder must not be a way to write anywhere on the machine: every step below the root is
opened by itself and none of them may be a symbolic link. Files come first and the manifest that lists them last, so that
whoever finds a manifest finds everything. The same snapshot gives the same names and bytes each time.
"""

from __future__ import annotations

import contextlib
import hashlib
import io
import json
import os
import secrets
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path, PurePosixPath
from typing import Any
from urllib.parse import urlsplit

import sqlalchemy as sa

from collector.azure.client import LOOPBACK, AzureSettings
from collector.azure.storage import Container, Storage
from collector.reports.formats import FORMATS, written
from collector.settings import Settings
from models.errors import Conflict, InvalidInput

_DEFAULT = "reports"
_MOST_STEPS = 12
_PART = ".part"


@dataclass(frozen=True, slots=True)
class File:
    """One file of a report, and what the manifest says of it."""

    name: str
    content: bytes
    media_type: str


def files_of(body: Mapping[str, Any]) -> list[File]:
    """The snapshot in every format, and the manifest last."""
    snapshot = body["snapshot"]
    base = f"meterbridge-{snapshot['id']}"
    found: list[File] = []
    told: list[dict[str, Any]] = []
    for form in FORMATS:
        made = written(body, form)
        found.append(File(f"{base}.{form}", made.content, made.media_type))
        told.append(
            {
                "name": found[-1].name,
                "bytes": len(made.content),
                "sha256": hashlib.sha256(made.content).hexdigest(),
                "media_type": made.media_type,
                "rows": made.rows,
                "control_total": dict(made.control_total),
            }
        )
    about = {"kind": body["kind"], "from": body["from"], "to": body["to"], "time_zone": body["time_zone"], "snapshot": snapshot, "files": told}
    content = (json.dumps(about, indent=2, ensure_ascii=False) + "\n").encode()
    return [*found, File(f"{base}.manifest.json", content, "application/json")]


@dataclass(frozen=True, slots=True)
class Places:
    """The places of this process: ``root`` is the one folder below which reports may be written; ``is_own`` where we make it ourselves."""

    root: Path
    azure: AzureSettings
    is_own: bool = False

    @classmethod
    def of(cls, settings: Settings) -> Places:
        """As the operator set it; by default a folder beside the database."""
        azure = AzureSettings(settings.azure_arm_url, settings.azure_retail_prices_url, settings.azure_credential, (), ())
        if settings.reports_folder is not None:
            return cls(settings.reports_folder.absolute(), azure)
        url = sa.make_url(settings.database_url)
        beside = Path(url.database).absolute().parent if url.get_backend_name() == "sqlite" and url.database else Path.cwd()
        return cls(beside / _DEFAULT, azure, is_own=True)

    def steps(self, folder: str) -> Sequence[str]:
        """The folder as steps below the root; ``InvalidInput`` says what to do where it lies elsewhere."""
        path = PurePosixPath(folder)
        if path.is_absolute():
            roots = [PurePosixPath(self.root), PurePosixPath(os.path.realpath(self.root))]
            inside = next((path.relative_to(root) for root in roots if path.is_relative_to(root)), None)
            if inside is None:
                raise InvalidInput(
                    f"folder {folder[:200]!r} is outside {self.root}, the one below which reports are written; "
                    "name a folder in it, such as finance, or let the operator set METERBRIDGE_REPORTS_FOLDER"
                )
            path = inside
        steps = path.parts
        if len(steps) > _MOST_STEPS or any(step == ".." or not step.isprintable() or len(step.encode()) > 255 for step in steps):
            raise InvalidInput(f"folder must be the name of a folder below {self.root}, such as finance/weekly, without ..; not {folder[:200]!r}")
        return steps

    def container(self, text: str) -> Container:
        """A container that a schedule writes to, signed for by who we are: an address with a signature would be kept and shown."""
        found = self.target(text)
        if found.sas:
            raise InvalidInput(
                "leave the shared access signature out of container: the service signs in as itself and needs Storage Blob Data Contributor on it"
            )
        return found

    def target(self, text: str) -> Container:
        """A container that a command names, which may bring its own signature."""
        return Container.parse(text, is_simulated=urlsplit(self.azure.arm_url).hostname in LOOPBACK)

    def write(self, folder: str, files: Sequence[File]) -> None:
        """Every file, in order, each whole or not at all."""
        with self._opened(folder) as inside:
            _sweep(inside, {file.name for file in files})
            for file in files:
                _replace(inside, file)

    def upload(self, container: str, files: Sequence[File], *, now: datetime) -> None:
        """Likewise, into a container."""
        into = self.container(container)
        with Storage(self.azure, now=now) as storage:
            for file in files:
                storage.put(into, file.name, io.BytesIO(file.content), size=len(file.content), media_type=file.media_type)

    def probe(self, folder: str) -> None:
        """Whether files may be written there; ``Conflict`` says why not."""
        with self._opened(folder) as inside:
            name = f".meterbridge-doctor.{secrets.token_hex(4)}{_PART}"
            try:
                os.close(os.open(name, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW, 0o600, dir_fd=inside))
            finally:
                with contextlib.suppress(OSError):
                    os.unlink(name, dir_fd=inside)

    def probe_container(self, container: str, *, now: datetime) -> None:
        """Likewise, of a container."""
        with Storage(self.azure, now=now) as storage:
            storage.probe(self.container(container))

    @contextlib.contextmanager
    def _opened(self, folder: str) -> Iterator[int]:
        """The folder, opened step by step: what is checked is what is written into, whatever is renamed meanwhile."""
        steps = self.steps(folder)
        if self.is_own:
            with contextlib.suppress(OSError):
                self.root.mkdir(parents=True, exist_ok=True)
        opened: list[int] = []
        at: Path = self.root
        try:
            opened.append(os.open(self.root, os.O_RDONLY | os.O_DIRECTORY))
            for step in steps:
                at /= step
                with contextlib.suppress(FileExistsError):
                    os.mkdir(step, dir_fd=opened[-1])
                opened.append(os.open(step, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW, dir_fd=opened[-1]))
            yield opened[-1]
        except NotADirectoryError as fault:
            raise Conflict(f"{at} is no folder, or a symbolic link; reports are written into real folders below {self.root} only") from fault
        except OSError as fault:
            missing = f"there is no folder {self.root} (METERBRIDGE_REPORTS_FOLDER)" if not self.root.is_dir() else ""
            raise Conflict(missing or f"{at} cannot be written into: {fault.strerror or fault}") from fault
        finally:
            for one in reversed(opened):
                os.close(one)


def _sweep(inside: int, names: Collection[str]) -> None:
    """What a process left that died while it wrote these files; one that still writes them writes the same and tries again."""
    for part in os.listdir(inside):
        if part.endswith(_PART) and part[1:].rpartition(_PART)[0].rpartition(".")[0] in names:
            with contextlib.suppress(OSError):
                os.unlink(part, dir_fd=inside)


def _replace(inside: int, file: File) -> None:
    """Whole or not at all: written beside, then renamed over whatever has the name, which is not followed."""
    part = f".{file.name}.{secrets.token_hex(4)}{_PART}"
    try:
        with open(part, "xb", opener=lambda name, flags: os.open(name, flags | os.O_NOFOLLOW, 0o666, dir_fd=inside)) as stream:
            stream.write(file.content)
            stream.flush()
            os.fsync(stream.fileno())
        os.replace(part, file.name, src_dir_fd=inside, dst_dir_fd=inside)
    except BaseException:
        with contextlib.suppress(OSError):
            os.unlink(part, dir_fd=inside)
        raise
