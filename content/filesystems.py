"""What opens a URL: fsspec's file systems, with bounds on how long they wait for an answer.

fsspec and what speaks the URL's scheme are imported at the first use. Retries are those libraries' own.
"""

from typing import Any, Final

from ..spec.stores import WEB, scheme_of

_CONNECT_S: Final = 5
_READ_S: Final = 30
_S3: Final = {
    "config_kwargs": {
        "connect_timeout": _CONNECT_S,
        "read_timeout": _READ_S,
        "retries": {"mode": "standard", "total_max_attempts": 3},
    }
}
_S3_TOO: Final = ("s3", "s3a")
_FRESH: Final = {"use_listings_cache": False}
_ALL_TO_THE_CLIENT: Final = ("sftp", "ssh", "webdav")
"""Their options are the client's, and no other; they keep no listings."""
_S3FS_RETRIES: Final = 2
"""s3fs tries again around botocore's retries."""


def open_url(url: str, *, shared: bool = True) -> tuple[Any, str]:
    """Its file system, and what the URL is called there. Listings are read anew each time. fsspec's own
    configuration (FSSPEC_S3_..., ~/.config/fsspec) counts more than what is said here. `shared`: with others
    in this process that have opened the same."""
    import fsspec

    scheme = scheme_of(url)
    options = {**_options(scheme), **fsspec.config.conf.get(scheme, {})}
    filesystem, root = fsspec.url_to_fs(url, skip_instance_cache=not shared, **options)
    if scheme in _S3_TOO:
        filesystem.retries = _S3FS_RETRIES
    return filesystem, str(root).rstrip("/")


def _options(scheme: str) -> dict[str, Any]:
    if scheme in _ALL_TO_THE_CLIENT:
        return {}
    if scheme in _S3_TOO:
        return {**_FRESH, **_S3}
    if scheme not in WEB:
        return _FRESH
    import aiohttp

    timeout = aiohttp.ClientTimeout(total=None, sock_connect=_CONNECT_S, sock_read=_READ_S)
    return {
        **_FRESH,
        "client_kwargs": {"timeout": timeout, "trust_env": True},
        "headers": {"Accept-Encoding": "identity"},  # the bytes that its etag and its size are of
    }
