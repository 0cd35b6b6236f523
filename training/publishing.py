"""Publishing a checkpoint whose files are on disk: manifest, rename, telling the shim, letting old ones go.

In rank 0's persister alone. Whole or not at all; a failure is said on stderr and in the job's timeline.
"""

import subprocess
import time
from collections.abc import Mapping, Sequence
from functools import cache
from pathlib import Path

from ..proto.shim_line import ShimLink
from ..spec.folder_names import FolderName
from . import candidates, folders, manifest
from .candidates import Candidate
from .converting import Ahead
from .errors import NotAccepted, StorageFailed, Unanswered
from .images import remove_label, set_label
from .keeper import Keeper, discard
from .manifest import FileEntry, Manifest
from .orders import Order, Publish, Setting
from .remote import Remote
from .retention import Kept
from .say import say
from .scrub import Scrubber
from .stop import StopNotice
from .task import Task, read_acked_seq, read_task
from .uploading import Commit

_WHY_LENGTH_MAX = 500
_GIT_S = 5.0
_GIVEN_UP_MAX = 8


class Publisher:
    """Joins publishing and keeping over one folder."""

    def __init__(self, setting: Setting) -> None:
        self._setting = setting
        self._folder = Path(setting.task_folder) if setting.task_folder else None
        self._root = Path(setting.root)
        self.link = ShimLink(self._folder) if self._folder is not None else None
        self._task: Task | None = read_task(self._folder) if self._folder is not None else None
        self._notice = StopNotice(self._folder)
        self._bad: frozenset[str] = frozenset()
        self._given_up: list[Path] = []
        self.uploaded = self._uploaded_before()
        """What is at the URL, too; uploads add to it."""
        self.persist_s = 0.0
        """Of the last one: from the copy until it was on disk."""
        self._keeper = Keeper(
            self._root,
            setting.retention,
            self._earlier,
            self._acked_seq,
            self._is_bad,
            sweeps_unaccepted=self._task is not None,
        )
        self._scrubber = self._make_scrubber()
        self._ahead = Ahead(self._root) if setting.elastic else None

    def publish(self, order: Order, told: Publish, files: Mapping[str, FileEntry]) -> Commit:
        """What an upload of it must know. Raises StorageFailed, NotAccepted and OSError. Letting go,
        which may take long, comes when the new one is durable, and is told with it.
        """
        self._bad = frozenset(told.bad)
        document = Manifest(
            job=told.job,
            attempt=order.attempt,
            step=order.step,
            world_size=told.world_size,
            files=files,
            contents=told.contents,
            metrics=told.metrics,
            data=told.data,
            git_commit=self._packed_commit() or _git_commit(told.code_folder),
            parents=told.parents,
        )
        manifest_hash = manifest.write(order.aside, document)
        path = folders.publish(self._root, order.name)
        self.persist_s = max(0.0, time.monotonic() - told.staged_s)
        self._keeper.let_go(order.attempt)
        self._keep_manifest(order, document)
        seq = self._tell(order, told, path, manifest_hash, document) if self.link is not None else 0
        self._keeper.add(Kept(order.step, path, dict(told.metrics), seq, manifest_hash=manifest_hash))
        self._begin_scrub()
        if self._ahead is not None and "engine" in told.contents.values():
            self._ahead.convert(path, manifest_hash)
        if self.link is None:
            self._keeper.let_go(order.attempt)
        self._discard_given_up()
        return Commit(path, told.world_size, manifest.encode(document), files, self._keeper.names_kept())

    def on_failed(self, order: Order, why: str) -> None:
        """Nothing of it is left that could be restored."""
        why = why[:_WHY_LENGTH_MAX]
        say(f"checkpoint of step {order.step} FAILED, training goes on without it: {why}")
        self._given_up.append(order.aside)
        self._discard_given_up()
        if self.link is not None:
            request = order.publish.purpose.request if order.publish is not None else 0
            self.link.ask({"op": "checkpoint_failed", "step": order.step, "why": why, "request": request})

    def close(self) -> None:
        """Nothing more comes."""
        if self._ahead is not None:
            self._ahead.stop()
        if self._scrubber is not None:
            self._scrubber.stop()

    def _uploaded_before(self) -> set[FolderName]:
        if self._task is None:
            return set()
        found = (FolderName.parse(one.path.name) for one in self._task.checkpoints if one.uploaded)
        return {name for name in found if name is not None}

    def _make_scrubber(self) -> Scrubber | None:
        """Inside Paceline: what it finds belongs on the job's page."""
        if self.link is None or self._setting.scrub_s <= 0:
            return None
        remote = Remote(self._setting.url) if self._setting.url else None
        return Scrubber(
            self._keeper.kept,
            lambda: frozenset(self.uploaded),
            remote,
            self.link,
            self._setting.scrub_s,
        )

    def _begin_scrub(self) -> None:
        """Rank 0's alone has something to look at: it publishes."""
        if self._scrubber is not None and not self._scrubber.begun:
            self._scrubber.begin()

    def _is_bad(self, path: Path) -> bool:
        return self._scrubber is not None and self._scrubber.is_bad(path)

    def _discard_given_up(self) -> None:
        """Again at the next ones: another rank may have been about to write there."""
        del self._given_up[:-_GIVEN_UP_MAX]
        for path in self._given_up:
            discard(path)

    def _keep_manifest(self, order: Order, document: Manifest) -> None:
        """Beside the images: it is read from there when storage is slow or damaged."""
        metadata = next(
            (Path(image) for name, image in order.files.items() if name == candidates.METADATA), None
        )
        if metadata is None:
            return
        copy = metadata.with_name(manifest.NAME)
        try:
            remove_label(copy)
            copy.write_bytes(manifest.encode(document))
            set_label(copy, order.name)
        except OSError as error:  # the one in storage is there
            say(f"{copy} could not be written: {error.strerror}")

    def _tell(self, order: Order, told: Publish, path: Path, manifest_hash: str, document: Manifest) -> int:
        """The seq of the journal's entry about it."""
        assert self.link is not None
        answer = self.link.ask(
            {
                "op": "checkpoint",
                "step": order.step,
                "path": str(path),
                "manifest_hash": manifest_hash,
                "size_bytes": document.size_bytes,
                "stall_s": told.stall_s,
                "waited_s": told.waited_s,
                "image": self._place(order),
                "persist_s": self.persist_s,
                "why": told.purpose.why,
                "request": told.purpose.request,
                "metrics": dict(told.metrics),
                "removed_steps": self._keeper.removed_steps(),
            }
        )
        if answer is None:
            raise Unanswered("it is on disk, but the agent's shim does not answer")
        if not answer.get("ok") or "seq" not in answer:
            discard(path)  # it can never be accepted
            raise NotAccepted(f"the agent's shim refused it: {answer.get('error', answer)}")
        self._keeper.told_removed()
        return int(str(answer["seq"]))

    def _place(self, order: Order) -> str:
        """Where this rank's image is: where memory has no room it is in the task's folder."""
        on_disk = any(image.startswith(self._setting.task_folder) for image in order.files.values())
        return "disk" if on_disk else "memory"

    def _earlier(self) -> Sequence[Kept]:
        """What counts from before this attempt, oldest first. Outside, a run that has not gone on from it
        leaves it alone.
        """
        if self._task is not None:
            before = candidates.accepted(self._task)
        elif self._setting.continues:
            found = candidates.found(self._root)
            before = [one for one in found if one.attempt < self._setting.attempt]
        else:
            before = []
        return [
            Kept(
                one.step,
                one.path,
                self._metrics_of(one),
                good=str(one.path) not in self._bad,
                manifest_hash=one.manifest_hash,
            )
            for one in reversed(before)
        ]

    def _metrics_of(self, candidate: Candidate) -> Mapping[str, float]:
        if not self._setting.retention.keep_best:
            return {}
        try:
            return manifest.read(candidate.path, candidate.manifest_hash).metrics
        except StorageFailed:
            return {}  # gone or damaged: it cannot be the best

    def _packed_commit(self) -> str:
        return self._task.git_commit if self._task is not None else ""

    def _acked_seq(self) -> int:
        """Nothing once a stop was asked for: this attempt may have a successor, and what is acknowledged from
        then on was perhaps only taken note of.
        """
        if self._folder is None:
            return 0
        return 0 if self._notice.seen() else read_acked_seq(self._folder)


@cache
def _git_commit(folder: str) -> str:
    """Of the code's folder, when it is a checkout and git is there; else empty."""
    command = ["git", "-C", folder, "rev-parse", "--verify", "-q", "HEAD"]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=_GIT_S, check=False)
    except (OSError, subprocess.TimeoutExpired):
        return ""
    return done.stdout.strip() if done.returncode == 0 else ""
