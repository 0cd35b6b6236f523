"""Many tensors copied by several threads: whatever their form, each arrives."""

from collections.abc import Iterator
from typing import Any

import pytest
import torch
from paceline.training import copying
from paceline.training.copying import Copier

SOURCES = {
    "a small one": torch.arange(10),
    "none at all": torch.empty(0),
    "a number": torch.tensor(3.5),
    "some pieces and a bit": torch.randn(3 * copying._PIECE_BYTES // 4 + 5),
    "no numpy type": torch.randn(300, 300).to(torch.bfloat16),
    "truths": torch.randn(300, 300) > 0,
    "not contiguous": torch.randn(400, 300).t(),
    "conjugated lazily": torch.randn(200, 200, dtype=torch.complex64).conj(),
    "a parameter": torch.nn.Parameter(torch.randn(300, 300)),
}


@pytest.mark.parametrize("threads", [1, 3])
def test_each_arrives_the_second_time_too(threads: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(copying, "threads", lambda: threads)
    copier = Copier()
    for _ in range(2):
        targets = [torch.zeros(source.shape, dtype=source.dtype) for source in SOURCES.values()]
        copier.copy(zip(targets, (source.detach() for source in SOURCES.values()), strict=True))
        for (name, source), target in zip(SOURCES.items(), targets, strict=True):
            assert torch.equal(target, source), name
    copier.close()


def test_another_type_is_converted_and_another_order_kept() -> None:
    doubles, turned = torch.zeros(300, 300, dtype=torch.float64), torch.zeros(300, 300).t()
    source = torch.randn(300, 300)
    Copier().copy([(doubles, source), (turned, source)])
    assert torch.equal(doubles, source.double())
    assert torch.equal(turned, source)


def test_what_goes_wrong_in_a_thread_is_raised(monkeypatch: pytest.MonkeyPatch) -> None:
    """Else a state would be taken for whole that is not."""

    def no_memory(*_: object) -> None:
        raise MemoryError

    monkeypatch.setattr(copying.ctypes, "memmove", no_memory)
    with pytest.raises(MemoryError):
        Copier().copy([(torch.zeros(100_000), torch.ones(100_000))])


def test_where_the_pairs_end_in_an_error_no_thread_waits_for_more(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(copying, "threads", lambda: 3)

    def pairs() -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
        yield torch.zeros(100_000), torch.ones(100_000)
        raise ValueError("no such tensor")

    with pytest.raises(ValueError, match="no such tensor"):
        Copier().copy(pairs())


class Single(torch.Tensor):
    """Of a kind that is copied one by one."""

    @classmethod
    def __torch_function__(cls, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if function is torch._foreach_copy_:
            return NotImplemented
        return super().__torch_function__(function, types, args, kwargs or {})


def test_a_tensor_that_knows_no_copy_of_many_is_copied_alone() -> None:
    target, source = torch.zeros(5).as_subclass(Single), torch.arange(5.0)
    with pytest.raises(TypeError):
        torch._foreach_copy_([target], [source])
    Copier().copy([(target, source), (torch.zeros(1), torch.ones(1))])
    assert torch.equal(torch.Tensor(target), source)
