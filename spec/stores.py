"""URLs: where checkpoints may be kept, beside the job's folder, and from where nodes may fetch data.

Pure: the scheduler refuses a checkpoints' URL that nothing here opens; a job's own interpreter is asked for
the package. fsspec may be missing where this is read: a test compares the schemes with those that it knows.
Data may be at any URL that fsspec reads, but for those of one process or machine alone.
"""

from dataclasses import dataclass
from typing import Final
from urllib.parse import unquote, urlsplit


@dataclass(frozen=True, slots=True)
class Opener:
    """The package that speaks a scheme, and our extra that installs it; empty: none is needed, or has it."""

    package: str = ""
    extra: str = ""
    folders: bool = False
    """A folder must be made before a file is put into it, and what is open is a connection."""

    @property
    def module(self) -> str:
        return self.package.replace("-", "_")


def _folders(package: str = "") -> Opener:
    return Opener(package, folders=True)


_OPENERS: Final = {
    "file": _folders(),
    "local": _folders(),
    "s3": Opener("s3fs", "s3"),
    "s3a": Opener("s3fs", "s3"),
    "gs": Opener("gcsfs", "gs"),
    "gcs": Opener("gcsfs", "gs"),
    "abfs": Opener("adlfs", "abfs"),
    "abfss": Opener("adlfs", "abfs"),
    "az": Opener("adlfs", "abfs"),
    "oci": Opener("ocifs"),
    "ocilake": Opener("ocifs"),
    "oss": Opener("ossfs"),
    "tos": Opener("tosfs"),
    "tosfs": Opener("tosfs"),
    "hf": Opener("huggingface_hub"),
    "lakefs": Opener("lakefs-spec"),
    "wandb": Opener("wandbfs"),
    "hdfs": _folders("pyarrow"),
    "arrow_hdfs": _folders("pyarrow"),
    "webhdfs": _folders("requests"),
    "sftp": _folders("paramiko"),
    "ssh": _folders("paramiko"),
    "smb": _folders("smbprotocol"),
    "ftp": _folders(),
    "webdav": _folders("webdav4"),
    "dbfs": _folders("requests"),
    "root": _folders("fsspec-xrootd"),
    "box": _folders("boxfs"),
    "dropbox": _folders("dropboxdrivefs"),
    "gdrive": _folders("gdrive_fsspec"),
}
SCHEMES: Final = tuple(_OPENERS)
_REFUSED: Final = {
    "cannot be written to": ("http", "https", "data", "git", "github", "gist", "dvc", "adl"),
    "is in one process or on one machine": ("memory", "asynclocal", "dask", "jlab", "jupyter", "pyscript"),
    "lies within another place": (
        *("zip", "tar", "libarchive", "reference", "dir", "generic", "async_wrapper", "asyncwrapper"),
        *("cached", "blockcache", "filecache", "simplecache"),
    ),
}
REFUSED: Final = {scheme: why for why, schemes in _REFUSED.items() for scheme in schemes}
"""What fsspec knows besides, and why no checkpoint is kept there."""
_KEPT: Final = "expected a URL like s3://bucket/prefix or an absolute path"


LISTING: Final = "listing "
"""Before the hash that is a folder's state."""


@dataclass(frozen=True, slots=True)
class Seen:
    """What somebody saw at a URL."""

    url: str
    etag: str
    """What its server called its state; of a folder, LISTING and a hash; empty: it does not say."""
    bytes: int
    """0 also where its server does not say."""
    files: int

    def __str__(self) -> str:
        files = "1 file" if self.files == 1 else f"{self.files} files"
        return f"{files} of {self.bytes} bytes, etag {self.etag or 'none'}"

    @property
    def file(self) -> str:
        """The name of the one file that it is; empty: it is a folder."""
        return "" if self.etag.startswith(LISTING) else file_name(self.url)


def scheme_of(url: str) -> str:
    """`file` for an absolute path; empty for what is neither that nor a URL with a place in it."""
    if url.startswith("/"):
        return "file"
    scheme, found, rest = url.partition("://")
    whole = rest.startswith("/") if scheme in ("file", "local") else bool(rest.strip("/"))
    return scheme if found and whole else ""


def opener_of(url: str) -> Opener | None:
    """None: nothing here opens it."""
    return _OPENERS.get(scheme_of(url))


def why_not_kept(url: str) -> str:
    """Why no checkpoint can be kept at it; empty: some can."""
    scheme = scheme_of(url)
    if scheme in _OPENERS:
        return ""
    if "::" in url:
        return f"{_KEPT}, and no URL within another"
    if scheme in REFUSED:
        return f"{_KEPT}; what {scheme}: names {REFUSED[scheme]}"
    return f"{_KEPT}; fsspec opens no {scheme}:" if scheme else _KEPT


WEB: Final = ("http", "https")
_OF_ONE_PLACE: Final = ("data", "file", "local", "memory")
_FETCHED: Final = "nodes fetch URLs like s3://bucket/folder, gs://bucket/file or https://host/file"


def why_not_fetched(url: str) -> str:
    """Why no node can fetch what is at it; empty: nodes can try."""
    scheme = scheme_of(url)
    if "::" in url:
        return f"it is a URL within another; {_FETCHED}"
    if not scheme:
        return f"it is no URL with a place in it; {_FETCHED}"
    if scheme in _OF_ONE_PLACE:
        return f"what {scheme}: names is in one process or on one machine; {_FETCHED}"
    return ""


def file_name(url: str) -> str:
    """What a file is called that is at this URL."""
    if scheme_of(url) in WEB:  # in object stores, a question mark is part of the name
        url = unquote(urlsplit(url).path)
    return url.rstrip("/").rpartition("/")[2] or "data"


def shown_url(url: str) -> str:
    """For a person: without a password or a signature that stands in it."""
    if scheme_of(url) not in WEB:
        return url
    parts = urlsplit(url)
    return f"{parts.scheme}://{parts.netloc.rpartition('@')[2]}{parts.path}"
