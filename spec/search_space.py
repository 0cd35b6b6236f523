"""A sweep's search space: its dimensions in an order in which each comes after those that it depends on.

A point is what one trial gets: a raw value (as the sampler sees it), or a value (as the script does), for
each dimension that is active in it. See dimensions.py for both.
"""

from collections.abc import Iterator, Mapping, Set
from graphlib import CycleError, TopologicalSorter
from itertools import pairwise
from typing import Final

from .dimensions import Dimension
from .problems import Path, nearest, shown
from .scalars import Scalar

DIMENSIONS_MAX: Final = 200
Point = dict[str, Scalar]


class SearchSpace:
    """Made of what passed `space_refusals`."""

    def __init__(self, dimensions: Mapping[str, Dimension]) -> None:
        self.dimensions: Mapping[str, Dimension] = {name: dimensions[name] for name in _in_order(dimensions)}

    def values(self, raw: Mapping[str, Scalar]) -> Point:
        """What the script gets for raw values: of each dimension that is active, in order. KeyError where
        the raw value of an active one is missing."""
        values: Point = {}
        for name, dimension in self.dimensions.items():
            if dimension.active(values):
                values[name] = dimension.value(raw[name])
        return values

    def raws(self, values: Mapping[str, Scalar]) -> Point:
        """The raw values of some values, such as those of an enqueued point."""
        return {name: one.raw(values[name]) for name, one in self.dimensions.items() if name in values}

    def grid(self) -> Iterator[Point]:
        """All points, as raw values; the last dimension changes fastest. AssertionError where a dimension
        has no end of values."""
        return _points(tuple(self.dimensions.items()), {}, {})

    def grid_size(self, at_most: int) -> int:
        """How many points there are, not counting beyond `at_most`."""
        parents = {other for one in self.dimensions.values() for other in one.when}
        return _count(tuple(self.dimensions.items()), parents, {}, at_most)


def space_refusals(dimensions: Mapping[str, Dimension]) -> Iterator[tuple[Path, str, str]]:
    """What is wrong with the dimensions together: path below the space, text, nearest valid key."""
    for name, dimension in dimensions.items():
        for other, allowed in dimension.when.items():
            if other not in dimensions:
                yield (name, "when", other), "the search space has no such name", nearest(other, dimensions)
                continue
            if not allowed:
                yield (name, "when", other), "expected a value or a list of them; found an empty list", ""
            for value in allowed:
                expected = dimensions[other].expected(value)
                if expected:
                    yield (name, "when", other), f"expected {expected}; found {shown(value)}", ""
    cycle = _cycle(dimensions)
    if cycle:
        way = ", ".join(f"{one} depends on {other}" for one, other in pairwise(cycle))
        yield (cycle[0], "when"), f"{way}: none of them can ever be there", ""


def point_refusals(
    dimensions: Mapping[str, Dimension], point: Mapping[str, Scalar]
) -> Iterator[tuple[Path, str, str]]:
    """What is wrong with values that a trial shall have; those that it leaves out are up to the sampler."""
    for name, value in point.items():
        if name not in dimensions:
            yield (name,), "the search space has no such name", nearest(name, dimensions)
            continue
        expected = dimensions[name].expected(value)
        if expected:
            yield (name,), f"expected {expected}; found {shown(value)}", ""
        given = {other: point[other] for other in dimensions[name].when if other in point}
        wanted = {other: dimensions[name].when[other] for other in given}
        if not dimensions[name].model_copy(update={"when": wanted}).active(given):
            conditions = ", ".join(f"{other}: {shown(given[other])}" for other in given)
            yield (name,), f"not there with {conditions}: see its `when`", ""


def _points(left: tuple[tuple[str, Dimension], ...], values: Point, raw: Point) -> Iterator[Point]:
    while left and not left[0][1].active(values):
        left = left[1:]
    if not left:
        yield dict(raw)
        return
    (name, dimension), rest = left[0], left[1:]
    points = dimension.points()
    assert points is not None, name
    for one in points:
        yield from _points(rest, values | {name: dimension.value(one)}, raw | {name: one})


def _count(left: tuple[tuple[str, Dimension], ...], parents: Set[str], values: Point, at_most: int) -> int:
    """Of `_points`, looking only at the values of those on which others depend."""
    product = 1
    for index, (name, dimension) in enumerate(left):
        points = dimension.points() if dimension.active(values) else (None,)
        assert points is not None, name
        if name not in parents or not dimension.active(values):
            product = min(product * len(points), at_most)
            continue
        total = 0
        for one in points:
            total += _count(left[index + 1 :], parents, values | {name: dimension.value(one)}, at_most)
            if product * total >= at_most:
                break
        return min(product * total, at_most)
    return product


def _in_order(dimensions: Mapping[str, Dimension]) -> list[str]:
    """As given, but for those that depend on later ones."""
    ordered: dict[str, None] = {}

    def take(name: str) -> None:
        for other in dimensions[name].when:
            if other not in ordered:
                take(other)
        ordered.setdefault(name)

    for name in dimensions:
        take(name)
    return list(ordered)


def _cycle(dimensions: Mapping[str, Dimension]) -> list[str]:
    """Names that depend on each other in a ring, the first again at the end; empty: there is none."""
    sorter = TopologicalSorter({name: tuple(one.when) for name, one in dimensions.items()})
    try:
        sorter.prepare()
    except CycleError as error:
        return list(reversed(error.args[1]))
    return []
