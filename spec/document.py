"""YAML text -> plain data and a map from each path to its line and column.

Reads one document of mappings with text keys, lists and scalars, by YAML 1.2's core rules (`yes` is
text, `1e-3` a number). Works on the parser's events, so nothing recurses and every bound (bytes,
depth, nodes after aliases are expanded) stops the reading at the place where it is passed. No tag
makes an object. Whatever comes in, only InvalidDocument comes out.
"""

import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, Final

import yaml

from .problems import InvalidDocument, Path, Problem, dotted, escaped, shown
from .yaml_scalars import plain_scalar, tagged_scalar

DOCUMENT_BYTES_MAX: Final = 1 << 20
"""Check a file's size against this before reading it."""
DEPTH_MAX: Final = 32
NODES_MAX: Final = 20_000
"""Keys and values, counted after aliases are expanded."""
KEY_CHARS_MAX: Final = 256

_UNPRINTABLE = re.compile("[^\t\n\r\x20-\x7e\x85\xa0-\ud7ff\ue000-\ufeff\uff00-\ufffd\U00010000-\U0010ffff]")
_SURROGATE = re.compile("[\ud800-\udfff]")
_TAG = "tag:yaml.org,2002:"
_LOADER: type[Any] = getattr(yaml, "CSafeLoader", yaml.SafeLoader)


@dataclass(frozen=True, slots=True)
class Mark:
    """A place in the text; line and column count from 1, the span of characters from 0."""

    line: int
    column: int
    start: int = 0
    end: int = 0


@dataclass(frozen=True, slots=True)
class Document:
    """Plain data, and where each part of it stood."""

    data: Any
    source: str
    text: str = ""
    keys: Mapping[Path, Mark] = field(default_factory=dict)
    values: Mapping[Path, Mark] = field(default_factory=dict)
    raw: Mapping[Path, str] = field(default_factory=dict)
    """The text of scalars that are not text: `1.10` is a number, yet as a tag it is `1.10`."""
    sources: Mapping[Path, str] = field(default_factory=dict)
    """Where a value came from, if not from `source`: `--set inputs.lr=0.1`."""
    grafts: Mapping[Path, "Graft"] = field(default_factory=dict)
    """What stood in a document of its own."""

    def problem(self, path: Path, text: str, *, at_key: bool = False, **more: str) -> Problem:
        """A problem at `path`, placed at the nearest part of the document that was really there."""
        source, mark = self.place(path, at_key=at_key)
        return Problem(source, mark.line, mark.column, dotted(path), text, **more)

    def written(self, path: Path) -> tuple["Document", Mark] | None:
        """The value at `path` as somebody wrote it: the document and the place in its text."""
        for cut in range(len(path), -1, -1):
            if path[:cut] in self.sources:
                return None
            if path[:cut] in self.grafts:
                graft = self.grafts[path[:cut]]
                return graft.document.written((*graft.path, *path[cut:]))
        mark = self.values.get(path)
        return (self, mark) if mark else None

    def place(self, path: Path, *, at_key: bool = False) -> tuple[str, Mark]:
        """The source and the mark of `path`, or of its nearest ancestor."""
        for cut in range(len(path), -1, -1):
            prefix = path[:cut]
            if prefix in self.sources:
                return self.sources[prefix], Mark(0, 0)
            if prefix in self.grafts:
                graft = self.grafts[prefix]
                return graft.document.place((*graft.path, *path[cut:]), at_key=at_key)
            first, second = (self.keys, self.values) if at_key else (self.values, self.keys)
            mark = first.get(prefix) or second.get(prefix)
            if mark is not None:
                return escaped(self.source), mark
        return escaped(self.source), Mark(0, 0)


@dataclass(frozen=True, slots=True)
class Graft:
    """A part of another document, with its path there."""

    document: Document
    path: Path


def parse(text: str | bytes, source: str) -> Document:
    """Read one YAML document; `source` names it in messages. Raises InvalidDocument only."""
    return _Reader(_decoded(text, source), source).read()


def plain_document(data: Any, source: str) -> Document:
    """A document of data that a program made, under the same bounds. Raises InvalidDocument."""
    document = Document(data, source)
    seen = 0
    waiting: list[tuple[Any, Path]] = [(data, ())]
    while waiting:
        value, path = waiting.pop()
        seen += 1
        if seen > NODES_MAX:
            raise InvalidDocument([document.problem((), f"more than {NODES_MAX} keys and values")])
        if len(path) > DEPTH_MAX:
            raise InvalidDocument([document.problem(path[:4], f"nested more than {DEPTH_MAX} deep")])
        if isinstance(value, dict):
            for key, below in value.items():
                if not isinstance(key, str):
                    raise InvalidDocument([document.problem(path, f"a key must be text, found {shown(key)}")])
                waiting.append((below, (*path, key)))
        elif isinstance(value, list | tuple):
            waiting.extend((item, (*path, index)) for index, item in enumerate(value))
    return document


@dataclass(slots=True)
class _Node:
    """A built node: expanded size and depth are known before anything is expanded."""

    value: Any
    mark: Mark
    size: int = 1
    depth: int = 1
    raw: str | None = None


@dataclass(slots=True)
class _Open:
    """A mapping or list whose end has not come yet."""

    node: _Node
    anchor: str | None
    key: _Node | None = None
    merged: list[_Node] = field(default_factory=list)


class _Reader:
    """Builds the node tree from events, then the data and the marks from the tree."""

    def __init__(self, text: str, source: str) -> None:
        self.text = text
        self.source = source
        self.anchors: dict[str, _Node] = {}
        self.pending: set[str] = set()
        self.stack: list[_Open] = []
        self.root: _Node | None = None
        self.documents = 0
        self.seen = 0

    def read(self) -> Document:
        handlers: Mapping[type, Callable[[Any], None]] = {
            yaml.ScalarEvent: self._on_scalar,
            yaml.AliasEvent: self._on_alias,
            yaml.MappingStartEvent: self._on_start,
            yaml.SequenceStartEvent: self._on_start,
            yaml.MappingEndEvent: self._on_end,
            yaml.SequenceEndEvent: self._on_end,
            yaml.DocumentStartEvent: self._on_document,
        }
        for event in self._events():
            handler = handlers.get(type(event))
            if handler is not None:
                handler(event)
        return self._document()

    def _events(self) -> Iterator[Any]:
        try:
            yield from yaml.parse(self.text, Loader=_LOADER)
        except yaml.MarkedYAMLError as error:
            mark = error.problem_mark or error.context_mark
            place = _mark(mark, mark) if mark is not None else Mark(1, 1)
            text = f"not valid YAML: {escaped(error.problem or error.context or 'cannot be read')}"
            raise self._error(place, text + self._tab_hint(place)) from error
        except yaml.YAMLError as error:
            raise self._error(Mark(1, 1), f"not valid YAML: {escaped(str(error))[:200]}") from error

    def _tab_hint(self, place: Mark) -> str:
        lines = self.text.splitlines()
        line = lines[place.line - 1] if place.line <= len(lines) else ""
        return "; indent with spaces, not tabs" if "\t" in line[: place.column] else ""

    def _error(self, mark: Mark, text: str, key: str = "") -> InvalidDocument:
        return InvalidDocument([Problem(escaped(self.source), mark.line, mark.column, key, text)])

    def _on_document(self, event: Any) -> None:
        self.documents += 1
        if self.documents > 1:
            raise self._error(
                _mark(event.start_mark, event.end_mark),
                "a second document starts here; one file holds one job",
            )

    def _on_scalar(self, event: Any) -> None:
        mark = _mark(event.start_mark, event.end_mark)
        node = _Node(event.value, mark)
        tag = self._tag(event.tag, mark, ("str", "int", "float", "bool", "null"))
        if _SURROGATE.search(event.value):
            raise self._error(mark, "half of a surrogate pair, which is not text")
        if tag or (event.tag is None and event.implicit[0]):
            try:
                node.value = tagged_scalar(event.value, tag) if tag else plain_scalar(event.value)
            except ValueError as error:
                raise self._error(mark, str(error)) from None
            node.raw = None if isinstance(node.value, str) else event.value
        self._keep(node, event.anchor)
        self._add(node)

    def _on_alias(self, event: Any) -> None:
        mark = _mark(event.start_mark, event.end_mark)
        target = self.anchors.get(event.anchor)
        if target is None:
            why = "refers to itself" if event.anchor in self.pending else "was not defined before"
            raise self._error(mark, f"alias '*{escaped(event.anchor)}' {why}")
        self._add(_Node(target.value, mark, target.size, target.depth, target.raw))

    def _on_start(self, event: Any) -> None:
        mark = _mark(event.start_mark, event.end_mark)
        is_mapping = isinstance(event, yaml.MappingStartEvent)
        self._tag(event.tag, mark, ("map",) if is_mapping else ("seq",))
        if self.stack and self._awaits_key():
            raise self._error(mark, "a key must be text, not a list or mapping")
        if len(self.stack) >= DEPTH_MAX:
            raise self._error(mark, f"nested more than {DEPTH_MAX} deep")
        if event.anchor:
            self.pending.add(event.anchor)
        self.stack.append(_Open(_Node({} if is_mapping else [], mark), event.anchor))

    def _on_end(self, event: Any) -> None:
        opened = self.stack.pop()
        for merged in opened.merged:
            self._merge(opened.node, merged)
        self._keep(opened.node, opened.anchor)
        self._add(opened.node)

    def _keep(self, node: _Node, anchor: str | None) -> None:
        if anchor:
            self.anchors[anchor] = node
            self.pending.discard(anchor)

    def _tag(self, tag: str | None, mark: Mark, allowed: tuple[str, ...]) -> str:
        if tag is None or tag == "!":
            return ""
        short = tag.removeprefix(_TAG)
        if short not in allowed or short == tag:
            raise self._error(mark, f"tag '{escaped(tag[:60])}' is not allowed; only plain data is read")
        return short

    def _awaits_key(self) -> bool:
        return isinstance(self.stack[-1].node.value, dict) and self.stack[-1].key is None

    def _add(self, node: _Node) -> None:
        """Put a finished node into what is open, with its size and depth."""
        self.seen += 1
        if not self.stack:
            self.root = node
            return
        opened = self.stack[-1]
        if self._awaits_key():
            self._check_key(opened, node)
            opened.key = node
            return
        self._grow(opened.node, node)
        if isinstance(opened.node.value, list):
            opened.node.value.append(node)
            return
        assert opened.key is not None
        key, opened.key = opened.key, None
        if key.raw is None and key.value == "<<" and self.text[key.mark.start : key.mark.start + 2] == "<<":
            opened.merged.extend(self._mappings(node))
        else:
            opened.node.value[key.value] = (key, node)

    def _grow(self, parent: _Node, child: _Node) -> None:
        parent.size += child.size + 1
        parent.depth = max(parent.depth, child.depth + 1)
        if parent.size > NODES_MAX or self.seen > 2 * NODES_MAX:
            raise self._error(child.mark, f"more than {NODES_MAX} keys and values, aliases expanded")
        if len(self.stack) + child.depth > DEPTH_MAX:
            raise self._error(child.mark, f"nested more than {DEPTH_MAX} deep, aliases expanded")

    def _check_key(self, opened: _Open, key: _Node) -> None:
        if not isinstance(key.value, str):
            found = "a list or mapping" if isinstance(key.value, list | dict) else shown(key.value)
            raise self._error(key.mark, f"a key must be text, found {found}; quote it")
        if len(key.value) > KEY_CHARS_MAX:
            raise self._error(key.mark, f"a key of more than {KEY_CHARS_MAX} characters")
        if not key.value.isprintable():
            raise self._error(
                key.mark, f"key '{escaped(key.value)}' holds control or direction-changing characters"
            )
        before = opened.node.value.get(key.value)
        if before is not None:
            why = f"duplicate key, first given in line {before[0].mark.line}"
            raise self._error(key.mark, why, dotted((*self._open_path(), key.value)))

    def _open_path(self) -> Path:
        """The path of the mapping or list that is open."""
        return tuple(opened.key.value if opened.key else len(opened.node.value) for opened in self.stack[:-1])

    def _mappings(self, node: _Node) -> list[_Node]:
        found = list(node.value) if isinstance(node.value, list) else [node]
        for item in found:
            if not isinstance(item.value, dict):
                raise self._error(node.mark, "'<<' needs a mapping or a list of mappings")
        return found

    def _merge(self, into: _Node, merged: _Node) -> None:
        for name, pair in merged.value.items():
            into.value.setdefault(name, pair)

    def _document(self) -> Document:
        keys: dict[Path, Mark] = {}
        values: dict[Path, Mark] = {}
        raw: dict[Path, str] = {}

        def expand(node: _Node, path: Path) -> Any:
            values[path] = node.mark
            if node.raw is not None:
                raw[path] = node.raw
            if isinstance(node.value, dict):
                plain = {}
                for name, (key, child) in node.value.items():
                    keys[(*path, name)] = key.mark
                    plain[name] = expand(child, (*path, name))
                return plain
            if isinstance(node.value, list):
                return [expand(child, (*path, index)) for index, child in enumerate(node.value)]
            return node.value

        root = self.root or _Node(None, Mark(1, 1))
        return Document(expand(root, ()), self.source, self.text, keys, values, raw)


def _mark(start: Any, end: Any) -> Mark:
    return Mark(start.line + 1, start.column + 1, start.index, end.index)


def _decoded(text: str | bytes, source: str) -> str:
    """The text, after the checks that need no parser: size, UTF-8, characters that YAML forbids."""
    size = len(text)
    if isinstance(text, str) and size <= DOCUMENT_BYTES_MAX:
        size = len(text.encode("utf-8", "surrogatepass"))
    if size > DOCUMENT_BYTES_MAX:
        what = "characters" if isinstance(text, str) and size == len(text) else "bytes"
        why = f"{size} {what}; a document may have {DOCUMENT_BYTES_MAX} bytes"
        raise InvalidDocument([Problem(escaped(source), 0, 0, "", why)])
    if isinstance(text, bytes):
        try:
            text = text.decode("utf-8")
        except UnicodeDecodeError as error:
            before = error.object[: error.start].decode("utf-8")
            raise _misplaced(
                before, f"byte 0x{error.object[error.start]:02x} is not UTF-8", source
            ) from error
    text = text.removeprefix("\ufeff")
    bad = _UNPRINTABLE.search(text)
    if bad:
        why = f"character U+{ord(bad[0]):04X} may not stand in a document"
        raise _misplaced(text[: bad.start()], why, source)
    return text


def _misplaced(before: str, why: str, source: str) -> InvalidDocument:
    line, column = before.count("\n") + 1, len(before) - before.rfind("\n")
    return InvalidDocument([Problem(escaped(source), line, column, "", why)])
