"""Checkpoints are read as PyTorch reads them; damaged ones are one line, and no file ends the process."""

import collections
import pickle
import zipfile

import numpy as np
import pytest

from dh_keras.errors import DataError
from dh_keras.pretrained.torch_file import read_torch_file

torch = pytest.importorskip("torch", reason="torch is needed to write checkpoints, and to compare with")


def network():
    """Every type of number, and tensors that share or skip through their storage."""
    base = torch.arange(24.0).reshape(2, 3, 4)
    names = ("float64", "float16", "bfloat16", "int64", "int32", "int16", "int8", "uint8", "bool")
    tensors = collections.OrderedDict({name: (base * 1.37 - 3).to(getattr(torch, name)) for name in names})
    tensors |= {"turned": base.transpose(0, 2), "part": base[1:, 1:, ::2], "whole": base, "number": torch.tensor(5)}
    tensors |= {"empty": torch.zeros(0, 3), "parameter": torch.nn.Parameter(torch.full((2, 2), 1 / 3))}
    tensors._metadata = {"": {"version": 1}}  # what state_dict() adds
    return tensors


def save(path, content, *, zipped=True):
    torch.save(content, path, _use_new_zipfile_serialization=zipped)
    return path


@pytest.mark.parametrize("zipped", [True, False])
def test_every_tensor_is_what_pytorch_reads(tmp_path, zipped):
    meta = {"CLASSES": ("cat", "dog"), "set": {1, 2}, "bytes": b"\xff", "dtype": torch.float32, "of": torch.Size([1])}
    path = save(tmp_path / "a.pth", {"state_dict": network(), "meta": meta, "epoch": 3}, zipped=zipped)
    theirs, ours = torch.load(path, weights_only=True)["state_dict"], read_torch_file(path)
    assert list(ours.tensors) == list(theirs)
    for name, tensor in theirs.items():
        expected = (tensor.float() if tensor.is_floating_point() else tensor).detach().numpy()
        np.testing.assert_array_equal(ours.tensors[name], expected, err_msg=name, strict=True)
    assert ours.extras == ("meta", "epoch")
    assert ours.meta == {**meta, "dtype": "float32", "of": (1,)}


def test_numbers_of_a_machine_with_the_other_order_of_bytes_are_turned(tmp_path):
    path, turned = save(tmp_path / "a.pth", {"x": torch.tensor([1.5, -2.0])}), tmp_path / "turned.pth"
    with zipfile.ZipFile(path) as old, zipfile.ZipFile(turned, "w") as new:
        for name in old.namelist():
            data = old.read(name)
            data = b"big" if name.endswith("byteorder") else data
            new.writestr(name, np.frombuffer(data, "<f4").astype(">f4").tobytes() if "/data/" in name else data)
    np.testing.assert_array_equal(read_torch_file(turned).tensors["x"], np.float32([1.5, -2.0]), strict=True)


def changed(data, seed):
    random = np.random.default_rng(seed)
    mutant = bytearray(data)
    for place in random.integers(0, len(data), random.integers(1, 9)):
        mutant[place] = random.choice([0, 255, int(random.integers(256))])
    return bytes(mutant[: random.integers(1, len(data))] if seed % 5 == 0 else mutant)


@pytest.mark.parametrize("zipped", [True, False])
def test_files_that_were_changed_at_random_are_read_or_one_line(tmp_path, zipped):
    path = save(tmp_path / "a.pth", {"model": network()}, zipped=zipped)
    data, refused = path.read_bytes(), []
    for seed in range(300):
        path.write_bytes(changed(data, seed))
        try:
            read_torch_file(path)
        except DataError as error:
            refused.append(str(error))
    assert len(refused) > 100
    assert all(line.startswith(f"{path}: ") and "\n" not in line for line in refused)


class Rebuilt:
    """Pickles as a call of PyTorch's function for tensors with what is given."""

    def __init__(self, *arguments):
        self.arguments = arguments

    def __reduce__(self):
        return torch._utils._rebuild_tensor_v2, (*self.arguments, False, collections.OrderedDict())


@pytest.mark.parametrize(
    ("offset", "shape", "strides"),
    [
        (0, (25,), (1,)),
        (1, (24,), (1,)),
        (0, (2,), (24,)),
        (-1, (2,), (1,)),
        (0, (2,), (-1,)),
        (0, (2**40,), (0,)),
        (0, (2, 3), (1,)),
        (0, (2.0,), (1,)),
    ],
)
@pytest.mark.filterwarnings("ignore:TypedStorage")
def test_a_tensor_that_its_storage_cannot_hold_is_refused(tmp_path, offset, shape, strides):
    storage = torch.storage.TypedStorage(wrap_storage=torch.zeros(24).untyped_storage(), dtype=torch.float32)
    path = save(tmp_path / "a.pth", {"x": Rebuilt(storage, offset, shape, strides)})
    with pytest.raises(DataError, match="not a complete PyTorch file"):
        read_torch_file(path)


def test_a_compressed_archive_is_refused_as_it_may_become_huge(tmp_path):
    with zipfile.ZipFile(tmp_path / "a.pth", "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("a/data.pkl", pickle.dumps({"x": "0" * 100000}))
    with pytest.raises(DataError, match="not a complete PyTorch file"):
        read_torch_file(tmp_path / "a.pth")


@pytest.mark.parametrize(
    ("body", "function"),
    [
        (b"cos\nsystem\n(S'echo'\ntR.", "os.system"),
        (b"\x80\x04\x8c\x08builtins\x8c\x04eval\x93.", "builtins.eval"),
        (b"(ios\nsystem\n.", "os.system"),
        (b"ctorch._utils\n_rebuild_parameter\n}b.", "function"),  # sets attributes
    ],
)
def test_code_is_named_and_not_run(tmp_path, body, function):
    with zipfile.ZipFile(tmp_path / "a.pth", "w") as archive:
        archive.writestr("a/data.pkl", body)
    with pytest.raises(DataError, match=f"would run code of {function};"):
        read_torch_file(tmp_path / "a.pth")
