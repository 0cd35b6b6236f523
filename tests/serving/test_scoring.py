"""Rows in parts: each answered once, in order, whoever comes and however often."""

import json
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from paceline.serving import scoring
from paceline.serving.scoring import Part, main, parts_of, rows_of
from paceline.serving.tensors import NUMPY
from paceline.spec.model_signature import ModelSignature, Tensor
from support.endpoint_models import model

LINES = st.lists(st.text(st.characters(codec="utf-8", exclude_characters="\r\n"), max_size=12), max_size=40)


@settings(max_examples=200, deadline=None)
@given(LINES, st.integers(1, 40), st.booleans())
def test_each_row_is_in_one_part(
    tmp_path_factory: pytest.TempPathFactory, lines: list[str], part_bytes: int, ended: bool
) -> None:
    file = tmp_path_factory.mktemp("rows") / "rows.jsonl"
    text = "\n".join(lines) + ("\n" if ended else "")
    file.write_bytes(text.encode())
    if not text:
        assert parts_of(file, part_bytes) == []
        return
    found = [row for part in parts_of(file, part_bytes) for _, row in rows_of(part)]
    assert [row.rstrip(b"\n") for row in found] == [line.encode() for line in lines if line.encode().strip()]


class Ranks:
    """Those of a job, one after the other."""

    def __init__(self, job: Path, rows: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        self.model = model(job / "model", "m")
        self.job, self.rows, self._monkeypatch = job, rows, monkeypatch
        monkeypatch.setenv("PACELINE_JOB_FOLDER", str(job))

    def run(self, at: int, world: int) -> int:
        self._monkeypatch.setenv("OMPI_COMM_WORLD_RANK", str(at))
        self._monkeypatch.setenv("OMPI_COMM_WORLD_SIZE", str(world))
        out = str(self.job / "out")
        return main(["--model", str(self.model), "--data", str(self.rows), "--output", out])

    def parts(self) -> dict[str, int]:
        return {one.name: one.stat().st_ino for one in (self.job / "scored").iterdir()}

    def answers(self) -> list[int]:
        files = sorted((self.job / "out").iterdir())
        return [json.loads(line)["got"]["x"] for file in files for line in file.read_text().splitlines()]


@pytest.fixture
def ranks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Ranks:
    folder = tmp_path / "data"
    (folder / "below").mkdir(parents=True)
    for name, first in (("a.jsonl", 0), ("below/b.ndjson", 300)):
        (folder / name).write_text("".join(json.dumps({"x": n}) + "\n" for n in range(first, first + 300)))
    (folder / "notes.txt").write_text("not rows")
    monkeypatch.setattr(scoring.parts_of, "__defaults__", (700,))
    return Ranks(tmp_path / "job", folder, monkeypatch)


def test_ranks_share_the_parts_and_all_rows_are_answered_in_order(ranks: Ranks) -> None:
    for at in range(3):
        assert ranks.run(at, 3) == 0
    assert ranks.answers() == list(range(600))
    assert len(ranks.parts()) > 6


def test_what_is_there_is_not_done_again_also_by_another_number_of_ranks(ranks: Ranks) -> None:
    assert ranks.run(0, 3) == 0
    done = ranks.parts()
    assert done
    for at in range(2):
        assert ranks.run(at, 2) == 0
    assert done.items() <= ranks.parts().items()
    assert ranks.answers() == list(range(600))


def test_no_rows_at_all_is_an_error(ranks: Ranks) -> None:
    for file in ranks.rows.rglob("*.*json*"):
        file.unlink()
    assert ranks.run(0, 1) == 1


def test_a_row_that_does_not_fit_is_named_and_leaves_no_part(tmp_path: Path) -> None:
    signature = ModelSignature(
        framework="torch.export", inputs=[Tensor(name="x", datatype="INT64", shape=[-1])], outputs=[]
    )
    loaded = scoring.Loaded("p", signature, lambda inputs: {"y": inputs["x"].astype(NUMPY["INT64"]) * 2})
    answer = scoring.answerer(loaded)
    assert answer([b'{"x": 1}', b"3"]) == [b'{"y":2}', b'{"y":6}']
    file = tmp_path / "rows.jsonl"
    file.write_text('{"x": 1}\n{"x": "two"}\n{"x": 3}\n')
    part = Part(file, 0, file.stat().st_size, "p.jsonl")
    wrong = r"rows\.jsonl at byte 9: input 'x': expected whole numbers"
    with pytest.raises(scoring.InvalidRequest, match=wrong):
        scoring.score(part, answer, tmp_path / "p.jsonl")
    assert sorted(one.name for one in tmp_path.iterdir()) == ["rows.jsonl"]
