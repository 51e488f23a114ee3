"""A certificate authority of one's own for servers on loopback."""

from dataclasses import dataclass
from pathlib import Path

from infra.servers import HOST, call, program, write_private

DAYS = 3650


@dataclass(frozen=True, slots=True)
class Certificates:
    """PEM files: whom clients trust, and what the servers show for 127.0.0.1 and localhost."""

    authority: Path
    certificate: Path
    key: Path


def make_certificates(place: Path) -> Certificates:
    """An authority and a certificate signed by it, made once per folder."""
    place.mkdir(parents=True, exist_ok=True)
    authority = _made(place, "authority", "/CN=vista local authority", ["basicConstraints=critical,CA:TRUE"])
    names = [f"subjectAltName=IP:{HOST},DNS:localhost", "basicConstraints=CA:FALSE"]
    signed_by = ["-CA", str(authority), "-CAkey", str(place / "authority.key")]
    certificate = _made(place, "server", "/CN=localhost", names, signed_by)
    return Certificates(authority, certificate, place / "server.key")


def _made(
    place: Path, name: str, subject: str, extensions: list[str], signed_by: list[str] | None = None
) -> Path:
    certificate, key = place / f"{name}.pem", place / f"{name}.key"
    if not certificate.exists():
        write_private(key, "")
        command = [
            program("openssl"), "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1",
            "-nodes", "-days", str(DAYS), "-subj", subject, "-keyout", str(key), "-out", str(certificate),
            *(option for extension in extensions for option in ("-addext", extension)), *(signed_by or []),
        ]  # fmt: skip
        call(command, f"making the certificate {certificate}")
    return certificate
