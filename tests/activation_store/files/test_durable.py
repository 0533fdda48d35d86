import os
from pathlib import Path

import pytest

from activation_store.files.durable import write_file

BLOCK = 2**20


@pytest.mark.parametrize("lengths", [[], [0], [5], [BLOCK], [BLOCK - 1, 4, BLOCK, 1, 3 * BLOCK + 7], [7] * 100])
def test_pieces_of_any_length_are_written_in_aligned_blocks(
    lengths: list[int], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    content = os.urandom(sum(lengths))
    ends = [sum(lengths[: number + 1]) for number in range(len(lengths))]
    written, write = [], os.write
    monkeypatch.setattr(os, "write", lambda descriptor, data: written.append(len(data)) or write(descriptor, data))
    write_file(tmp_path / "file", [content[end - n : end] for n, end in zip(lengths, ends, strict=True)])
    assert (tmp_path / "file").read_bytes() == content
    assert written == [BLOCK] * (len(content) // BLOCK) + [len(content) % BLOCK] * (len(content) % BLOCK > 0)
