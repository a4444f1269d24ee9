"""Certificates that tests make on the spot, by the openssl program: a CA and what it has signed."""

from __future__ import annotations

import subprocess
from dataclasses import dataclass
from pathlib import Path

_NEW = ("-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes")


@dataclass(frozen=True)
class Authority:
    """A CA of its own in `folder`: ca.pem, and NAME.pem with NAME.key for each name that `sign` was asked for."""

    folder: Path

    @property
    def ca(self) -> Path:
        return self.folder / "ca.pem"

    def sign(self, name: str, *addresses: str) -> tuple[Path, Path]:
        """A certificate for `name`, for a server also with `addresses` as DNS:host or IP:address; it and its key."""
        certificate, key, request = (self.folder / f"{name}.{end}" for end in ("pem", "key", "csr"))
        _openssl("req", *_NEW, "-keyout", key, "-out", request, "-subj", f"/CN={name}")
        names = self.folder / f"{name}.ext"
        names.write_text(f"subjectAltName={','.join(addresses)}\n" if addresses else "")
        signed = ("-CA", self.ca, "-CAkey", self.folder / "ca.key", "-CAcreateserial", "-days", "2")
        _openssl("x509", "-req", "-in", request, "-out", certificate, "-extfile", names, *signed)
        return certificate, key


def authority(folder: Path) -> Authority:
    folder.mkdir(parents=True, exist_ok=True)
    subject = ("-subj", f"/CN={folder.name}", "-days", "2")
    _openssl("req", "-x509", *_NEW, "-keyout", folder / "ca.key", "-out", folder / "ca.pem", *subject)
    return Authority(folder)


def _openssl(*arguments: str | Path) -> None:
    subprocess.run(["openssl", *map(str, arguments)], check=True, capture_output=True)
