"""What goes wrong with paths, trees and what is stored of them."""

from ..spec.errors import Conflict, InvalidRequest, LimitExceeded, NotFound, StoreFailure, Unavailable


class UnsafePath(InvalidRequest):
    """A path or a link that does not stay below its folder."""


class BadManifest(InvalidRequest):
    """Bytes that are no manifest, or that of no tree which may be written."""


class UnreadableFile(InvalidRequest):
    """A file that cannot be read, or is no file."""


class TreeTooLarge(LimitExceeded):
    """A tree beyond a stated bound."""


class NoContent(NotFound):
    """There is no such tree or blob here."""


class ForeignStorage(Conflict):
    """A storage folder is not that of the cluster which was to use it."""


class Damaged(StoreFailure):
    """What is stored is not what its name says."""


class UrlRefused(InvalidRequest):
    """What is at a URL cannot be had: it is not there, may not be read, or nothing here opens it."""


class UrlAway(Unavailable):
    """Whoever serves a URL does not answer, or broke off."""


class UrlChanged(Conflict):
    """What is at a URL is not what was there when somebody looked."""
