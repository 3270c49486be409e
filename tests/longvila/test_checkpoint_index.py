"""A checkpoint from outside is data: its index resolves no foreign function and no foreign file."""

import os
import pickle

import pytest
import torch
from torch.distributed.checkpoint import state_dict_loader, state_dict_saver
from torch.distributed.checkpoint.api import CheckpointException

from longvila.checkpoint_index import IndexReader


@pytest.fixture
def saved(tmp_path):
    tensors = {"model": {"a": torch.arange(6.0).reshape(2, 3), "b": torch.ones(4, dtype=torch.bfloat16)}}
    state_dict_saver.save(tensors, checkpoint_id=str(tmp_path / "one"))
    return tmp_path / "one"


def read(folder):
    into = {"model": {"a": torch.zeros(2, 3), "b": torch.zeros(4, dtype=torch.bfloat16)}}
    state_dict_loader.load(into, storage_reader=IndexReader(folder))
    return into["model"]


def test_tensors_come_back(saved):
    model = read(saved)
    assert torch.equal(model["a"], torch.arange(6.0).reshape(2, 3))
    assert torch.equal(model["b"], torch.ones(4, dtype=torch.bfloat16))


class Malicious:
    def __init__(self, target):
        self.target = target

    def __reduce__(self):
        return os.mkdir, (str(self.target),)


def index_of(folder):
    return pickle.loads((folder / ".metadata").read_bytes())


def test_a_function_in_the_index_is_not_called(saved, tmp_path):
    (saved / ".metadata").write_bytes(pickle.dumps(Malicious(tmp_path / "made")))
    with pytest.raises(CheckpointException, match="mkdir, which no index of tensors needs"):
        read(saved)
    assert not (tmp_path / "made").exists()


def test_files_outside_the_folder_are_refused(saved):
    index = index_of(saved)
    for info in index.storage_data.values():
        info.relative_path = "../elsewhere.distcp"
    (saved / ".metadata").write_bytes(pickle.dumps(index))
    with pytest.raises(CheckpointException, match="which is not in its folder"):
        read(saved)


def test_an_entry_that_is_no_tensor_is_refused(saved):
    from torch.distributed.checkpoint.metadata import BytesStorageMetadata

    index = index_of(saved)
    index.state_dict_metadata["model.a"] = BytesStorageMetadata()
    (saved / ".metadata").write_bytes(pickle.dumps(index))
    with pytest.raises(CheckpointException, match="BytesStorageMetadata, which no index"):
        read(saved)


def test_a_truncated_index_is_one_line(saved):
    (saved / ".metadata").write_bytes((saved / ".metadata").read_bytes()[:-20])
    with pytest.raises(CheckpointException, match="has no readable index"):
        read(saved)
