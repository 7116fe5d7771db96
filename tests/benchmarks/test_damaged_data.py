"""Files of data that are empty, cut off or of another kind are named, with what to do."""

import io
from functools import partial

import numpy as np
import pytest

from benchmarks.data.arrays import cifar100
from benchmarks.data.awa import awa2
from benchmarks.data.domains import svhn
from benchmarks.data.mnist_variation import FILES, mnist_variation

VARIATION = partial(mnist_variation, seed=0)
READERS = {
    "cifar100.npz": (cifar100, ()),
    "train_32x32.mat": (svhn, ("test_32x32.mat",)),
    "AwA2-features.txt": (awa2, ("AwA2-labels.txt",)),
    FILES[0]: (VARIATION, FILES[1:]),
}


@pytest.mark.filterwarnings("ignore:loadtxt")
@pytest.mark.parametrize("content", [b"", b"\0", b"half of it", b"PK\3\4 half of it", b"1 2\n3\n"])
@pytest.mark.parametrize("name", READERS)
def test_a_damaged_file_is_named(tmp_path, name, content):
    reader, others = READERS[name]
    for other in others:
        (tmp_path / other).write_bytes(b"0\n")
    (tmp_path / name).write_bytes(content)
    with pytest.raises(ValueError, match=name.replace(".", r"\.")):
        reader(tmp_path)


def test_torchvision_s_files_that_do_not_match_their_md5_are_named(tmp_path):
    (tmp_path / "cifar-100-python").mkdir()
    with pytest.raises(ValueError, match=r"cifar-100-python is damaged or not .* \(RuntimeError: .*\); replace it"):
        cifar100(tmp_path)


IMAGES, LABELS = np.zeros((2, 32, 32, 3), np.uint8), np.array([3, 99])


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"x_train": IMAGES.astype(np.float32)}, r"images \(2, 32, 32, 3\) float32 .* not \(N, 32, 32, 3\) uint8"),
        ({"x_test": IMAGES.transpose(0, 3, 1, 2)}, r"images \(2, 3, 32, 32\)"),
        ({"y_train": LABELS[:, None]}, r"labels \(2, 1\)"),
        ({"y_test": LABELS[:1]}, r"labels \(1,\)"),
        ({"y_train": np.array([3, 100])}, "labels are not integers from 0 to 99"),
        ({"y_train": np.array([-1, 3])}, "labels are not integers from 0 to 99"),
        ({"y_test": np.array([3.0, 9.0])}, "labels are not integers from 0 to 99"),
        ({"x_train": IMAGES[:0], "y_train": LABELS[:0]}, "labels are not integers from 0 to 99"),
    ],
)
def test_an_npz_that_is_not_cifar100_is_refused(tmp_path, changed, message):
    arrays = {"x_train": IMAGES, "y_train": LABELS, "x_test": IMAGES, "y_test": LABELS}
    np.savez(tmp_path / "cifar100.npz", **(arrays | changed))
    with pytest.raises(ValueError, match=rf"cifar100\.npz is damaged or not what its name says \(.*{message}"):
        cifar100(tmp_path)


def test_an_npz_cut_off_anywhere_is_named(tmp_path):
    content = io.BytesIO()
    np.savez_compressed(content, x_train=IMAGES, y_train=LABELS, x_test=IMAGES, y_test=LABELS)
    whole = content.getvalue()
    for end in range(0, len(whole) - 1, 97):
        (tmp_path / "cifar100.npz").write_bytes(whole[:end])
        with pytest.raises(ValueError, match=r"cifar100\.npz is damaged"):
            cifar100(tmp_path)
