"""The reader of safetensors headers: what the library says, and files that are cut short."""

from __future__ import annotations

from pathlib import Path

import pytest
import tiny
import torch
from safetensors import safe_open
from safetensors.torch import save_file

from tasks.contracts.errors import BaseModelError
from tasks.models import safetensors_headers


@pytest.fixture
def file(tmp_path: Path) -> Path:
    tensors = {
        "b": torch.arange(6, dtype=torch.float32).view(2, 3),
        "a.weight": torch.ones(5, dtype=torch.bfloat16),
        "empty": torch.empty(0, 4, dtype=torch.int8),
        "scalar": torch.tensor(3, dtype=torch.int64),
    }
    save_file(tensors, tmp_path / "model.safetensors", {"format": "pt", "made_by": "a test"})
    return tmp_path / "model.safetensors"


def test_names_types_shapes_and_metadata_are_the_librarys(file: Path) -> None:
    """The same of every tensor, of several types, an empty one and one without dimensions."""
    header = safetensors_headers.read_whole(file)
    with safe_open(file, "pt") as library:
        parts = {name: library.get_slice(name) for name in library.keys()}  # noqa: SIM118
        assert header.metadata == library.metadata()
        assert {t.name: (t.dtype, list(t.shape)) for t in header.tensors} == {
            name: (part.get_dtype(), part.get_shape()) for name, part in parts.items()
        }


def test_a_tensors_bytes_are_where_the_header_says(file: Path) -> None:
    """Read from there, they are the tensor's own."""
    tensors = {t.name: t for t in safetensors_headers.read_header(file).tensors}
    place = tensors["b"]
    content = file.read_bytes()[place.begin : place.begin + place.size_bytes]
    assert torch.frombuffer(bytearray(content), dtype=torch.float32).tolist() == list(range(6))


@pytest.mark.parametrize("cut_bytes", [1, 40])
def test_a_file_cut_short_among_its_weights_is_not_whole(file: Path, cut_bytes: int) -> None:
    """Its header is still read, for which the weights are not needed."""
    content = file.read_bytes()
    file.write_bytes(content[:-cut_bytes])
    assert len(safetensors_headers.read_header(file).tensors) == 4
    with pytest.raises(BaseModelError, match=r"cannot be read .*bytes.*; fetch it again"):
        safetensors_headers.read_whole(file)


@pytest.mark.parametrize(
    "content", [b"", b"\x08", b"version https://git-lfs.github.com", b"\x02" + 7 * b"\0" + b"[]"]
)
def test_what_is_no_safetensors_file_is_named(tmp_path: Path, content: bytes) -> None:
    """Empty, cut within its header, a Git LFS pointer, other JSON."""
    (tmp_path / "model.safetensors").write_bytes(content)
    with pytest.raises(BaseModelError, match=r"model\.safetensors cannot be read .*fetch it again"):
        safetensors_headers.tensor_shapes(tmp_path)


def test_a_models_tensors_are_those_of_all_its_files(tmp_path: Path) -> None:
    """However many shards it is stored in."""
    one_file = tiny.make_tiny_base(tmp_path / "whole")
    shards = tiny.make_tiny_base(tmp_path / "shards", shards=3)
    shapes = safetensors_headers.tensor_shapes(one_file)
    assert safetensors_headers.tensor_shapes(shards) == shapes
    assert safetensors_headers.parameter_count(shards) == sum(
        torch.Size(shape).numel() for shape in shapes.values()
    )
