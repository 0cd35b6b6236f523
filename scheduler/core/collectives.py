"""Which rank the others wait for, told from the collectives of a gang: torch numbers those of a process group
alike in all its ranks, so whoever has begun fewer than one that a peer is in has not arrived there.

The same that `torchfrtrace` does with whole rings, here with the newest of each group.
"""

from collections import Counter
from collections.abc import Callable, Sequence
from functools import partial

from ...spec.peers import group_text
from .hang import GroupLook, RankLook

Verdict = tuple[list[RankLook], Callable[[RankLook], str]]
"""The ranks that did not arrive, and what each did not arrive at."""
_NOBODY: Verdict = ([], lambda look: "")


def judge(looks: Sequence[RankLook]) -> Verdict:
    """Of those whom their peers wait for, the ones that wait for nobody; where all of them wait, all: each
    for another. Where everybody has begun the same, those that began another operation than most. None:
    nothing is known, or nobody is behind."""
    furthest: dict[str, GroupLook] = {}
    for group in (group for look in looks for group in look.groups if group.waiting):
        if group.group not in furthest or group.waiting > furthest[group.group].waiting:
            furthest[group.group] = group
    missing = {
        look.rank: (own, furthest[own.group])
        for look in looks
        for own in look.groups
        if own.group in furthest and own.last < furthest[own.group].waiting
    }
    if not missing:
        return _of_another_kind(looks)
    late = [look for look in looks if look.rank in missing]
    root = [look for look in late if not any(group.waiting for group in look.groups)]
    if not root and not all(look.groups for look in looks):  # it may be one of whom nothing is known
        return _NOBODY
    return root or late, lambda look: _behind(*missing[look.rank])


def _of_another_kind(looks: Sequence[RankLook]) -> Verdict:
    """The same number, and not the same operation: the ranks' programs have parted."""
    by_number: dict[tuple[str, int], dict[int, str]] = {}
    for look in looks:
        for group in look.groups:
            if group.waiting:
                by_number.setdefault((group.group, group.waiting), {})[look.rank] = group.waiting_name
    for (group_name, number), names in by_number.items():
        counts = Counter(names.values())
        if len(counts) == 1:
            continue
        (usual, most), (_, second) = counts.most_common(2)
        tied = most == second
        odd = {rank: name for rank, name in names.items() if tied or name != usual}
        where = f"no. {number} of {group_text(group_name)}"
        others = "" if tied else f", the others {usual}"
        why = {rank: f"began {name} as {where}{others}" for rank, name in odd.items()}
        return [look for look in looks if look.rank in odd], partial(_told, why)
    return _NOBODY


def _told(why: dict[int, str], look: RankLook) -> str:
    return why[look.rank]


def _behind(own: GroupLook, theirs: GroupLook) -> str:
    where = f"no. {theirs.waiting} of {group_text(theirs.group)}"
    last = f"its own last: no. {own.last}"
    return f"did not begin {theirs.waiting_name}, {where}, in which others wait ({last})"
