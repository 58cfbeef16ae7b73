"""A real PACS: Orthanc with its DICOMweb plug-in, on a free loopback port, gone afterwards.

with orthanc() as pacs:
    pacs.store(dicom_bytes)
    Dicomweb(url=pacs.dicomweb, username=pacs.username, password=pacs.password)
"""

from __future__ import annotations

import json
import os
import secrets
import shutil
import subprocess
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import httpx
import pytest

from tests.running import free_port

PLUGIN = Path("/usr/share/orthanc/plugins/libOrthancDicomWeb.so")
START_TIMEOUT_S = 30


@dataclass(frozen=True, slots=True)
class Orthanc:
    """Where it is, who may use it, and its process."""

    url: str
    username: str
    password: str
    process: subprocess.Popen[bytes]

    @property
    def dicomweb(self) -> str:
        return f"{self.url}/dicom-web"

    def store(self, dicom: bytes) -> None:
        """Keeps a DICOM file, by Orthanc's own REST API."""
        answer = httpx.post(
            f"{self.url}/instances",
            content=dicom,
            auth=(self.username, self.password),
            timeout=60,
            trust_env=False,
        )
        answer.raise_for_status()

    def stop(self) -> None:
        self.process.terminate()
        try:
            self.process.wait(20)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()


def executable() -> str:
    """Orthanc's, or the test is skipped; in CI, where it has to be there, it fails."""
    found = shutil.which("Orthanc", path=f"{os.environ.get('PATH', '')}:/usr/sbin:/usr/local/sbin")
    if found is not None and PLUGIN.exists():
        return found
    missing = "Debian's orthanc and orthanc-dicomweb are not installed"
    if os.environ.get("CI"):
        pytest.fail(missing)
    pytest.skip(missing)


@contextmanager
def orthanc() -> Iterator[Orthanc]:
    """Starts one and waits until it answers."""
    program = executable()
    port = free_port()
    username, password = "reader", secrets.token_hex(8)
    with tempfile.TemporaryDirectory() as folder:
        settings = {
            "Name": "test",
            "StorageDirectory": folder,
            "IndexDirectory": folder,
            "HttpPort": port,
            "RemoteAccessAllowed": False,
            "AuthenticationEnabled": True,
            "RegisteredUsers": {username: password},
            "DicomServerEnabled": False,
            "WebDavEnabled": False,
            "OrthancExplorerEnabled": False,
            "SaveJobs": False,
            "Plugins": [str(PLUGIN)],
            "DicomWeb": {"Enable": True, "Root": "/dicom-web/"},
        }
        config, log = Path(folder, "orthanc.json"), Path(folder, "log")
        config.write_text(json.dumps(settings))
        with log.open("wb") as output:
            process = subprocess.Popen(
                [program, str(config)], stdout=output, stderr=subprocess.STDOUT, cwd=folder
            )
        pacs = Orthanc(f"http://127.0.0.1:{port}", username, password, process)
        try:
            _wait(pacs, log)
            yield pacs
        finally:
            pacs.stop()


def _wait(pacs: Orthanc, log: Path) -> None:
    deadline = time.monotonic() + START_TIMEOUT_S
    while time.monotonic() < deadline and pacs.process.poll() is None:
        try:
            answer = httpx.get(
                f"{pacs.dicomweb}/studies",
                auth=(pacs.username, pacs.password),
                timeout=5,
                trust_env=False,
            )
            if answer.status_code == 200:
                return
        except httpx.HTTPError:
            pass
        time.sleep(0.1)
    raise RuntimeError(f"Orthanc did not start:\n{log.read_text()[-4000:]}")
