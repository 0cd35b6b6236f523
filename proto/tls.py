"""Certificates of a listener: given as files, or generated once and kept in the state folder.

A generated one is self-signed, names every name and address of this machine, and is at the same time the
authority that clients are given (`tls/cert.pem`). The key has mode 0600.
"""

import datetime
import ipaddress
import os
import secrets
import socket
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Final

import grpc

from ..spec.errors import InvalidRequest
from .channels import is_loopback

if TYPE_CHECKING:
    from cryptography.x509 import GeneralName

_VALID_DAYS: Final = 3650
_RENEW_BEFORE_DAYS: Final = 30


@dataclass(frozen=True, slots=True)
class TlsFiles:
    """PEM files: the certificate (with its chain) and its key."""

    certificate: Path
    key: Path


def check_listener(host: str, *, encrypted: bool, insecure: bool) -> None:
    """Refuse to listen beyond loopback without TLS. Raises InvalidRequest."""
    if encrypted or insecure or is_loopback(host):
        return
    raise InvalidRequest(
        f"listening on {host} would send tokens and logs over the network in the clear",
        hint="add --tls (a certificate is made), or --tls-cert and --tls-key;"
        " --insecure on a network that you trust; or listen on 127.0.0.1",
        host=host,
    )


def server_credentials(files: TlsFiles) -> grpc.ServerCredentials:
    """What a gRPC listener needs. Raises InvalidRequest where the files cannot be used, naming the file."""
    from cryptography import x509
    from cryptography.hazmat.primitives.serialization import load_pem_private_key

    try:
        certificate, key = files.certificate.read_bytes(), files.key.read_bytes()
    except OSError as error:
        raise InvalidRequest(f"cannot read the TLS file {error.filename}: {error.strerror}") from error
    try:
        public = x509.load_pem_x509_certificate(certificate).public_key()
    except ValueError as error:
        raise InvalidRequest(f"{files.certificate} is not a PEM certificate: {error}") from error
    try:
        private = load_pem_private_key(key, password=None)
    except (ValueError, TypeError) as error:
        raise InvalidRequest(f"{files.key} is not a PEM key without a password: {error}") from error
    if private.public_key() != public:
        raise InvalidRequest(f"{files.key} is not the key of {files.certificate}")
    return grpc.ssl_server_credentials([(key, certificate)])


def ensure_certificate(folder: Path, names: Sequence[str]) -> TlsFiles:
    """The certificate in `folder`, made when there is none for all `names`, or it runs out within 30 days."""
    files = TlsFiles(folder / "cert.pem", folder / "key.pem")
    if not (files.key.exists() and _still_good(files.certificate, names)):
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        certificate, key = make_certificate(names)
        _write(files.key, key, 0o600)
        _write(files.certificate, certificate, 0o644)
    return files


def make_certificate(names: Sequence[str]) -> tuple[bytes, bytes]:
    """A self-signed certificate for host names and addresses, and its key, as PEM."""
    from cryptography import x509
    from cryptography.hazmat.primitives import hashes
    from cryptography.hazmat.primitives.asymmetric import ec
    from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat
    from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

    key = ec.generate_private_key(ec.SECP256R1())
    subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "paceline scheduler")])
    now = datetime.datetime.now(datetime.UTC)
    certificate = (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(subject)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - datetime.timedelta(days=1))  # clocks differ
        .not_valid_after(now + datetime.timedelta(days=_VALID_DAYS))
        .add_extension(x509.SubjectAlternativeName([_general_name(name) for name in names]), critical=False)
        .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
        .add_extension(x509.ExtendedKeyUsage([ExtendedKeyUsageOID.SERVER_AUTH]), critical=False)
        .sign(key, hashes.SHA256())
    )
    private = key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
    return certificate.public_bytes(Encoding.PEM), private


def own_names(host: str) -> list[str]:
    """Every name and address at which this machine may be dialled, `host` (of the listener) first."""
    import psutil

    found = [host, "localhost", socket.gethostname(), socket.getfqdn()]
    for addresses in psutil.net_if_addrs().values():
        found += [
            a.address.partition("%")[0] for a in addresses if a.family in (socket.AF_INET, socket.AF_INET6)
        ]
    return list(dict.fromkeys(name for name in found if name not in ("0.0.0.0", "::", "")))


def _general_name(name: str) -> "GeneralName":
    from cryptography import x509

    try:
        return x509.IPAddress(ipaddress.ip_address(name))
    except ValueError:
        return x509.DNSName(name)


def _still_good(path: Path, names: Sequence[str]) -> bool:
    from cryptography import x509

    try:
        certificate = x509.load_pem_x509_certificate(path.read_bytes())
        named = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    except (OSError, ValueError, x509.ExtensionNotFound):
        return False
    left = certificate.not_valid_after_utc - datetime.datetime.now(datetime.UTC)
    return left.days > _RENEW_BEFORE_DAYS and {_general_name(name) for name in names} <= set(named)


def _write(path: Path, data: bytes, mode: int) -> None:
    fresh = path.with_name(f".{path.name}.{secrets.token_hex(4)}")
    descriptor = os.open(fresh, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, mode)
    with os.fdopen(descriptor, "wb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())
    fresh.rename(path)
