"""Memory that is used again."""

import pytest
import torch

from avl_plugins.rl.scratch import Scratch


def test_a_use_has_its_own_memory_until_its_form_changes():
    scratch = Scratch()
    first = scratch("a", (2, 3, 4, 4), torch.float32, "cpu").fill_(1)
    assert scratch("a", [2, 3, 4, 4], torch.float32, "cpu") is first
    assert scratch("b", (2, 3, 4, 4), torch.float32, "cpu").fill_(2).data_ptr() != first.data_ptr()
    assert first.eq(1).all()


@pytest.mark.parametrize(
    "change",
    [{"shape": (3, 3, 4, 4)}, {"dtype": torch.uint8}, {"device": "meta"}, {"memory_format": torch.channels_last}],
)
def test_another_form_is_another_tensor(change):
    scratch = Scratch()
    form = {"shape": (2, 3, 4, 4), "dtype": torch.float32, "device": "cpu", "memory_format": torch.contiguous_format}
    first = scratch("a", **form)
    form |= change
    found = scratch("a", **form)
    assert found is not first
    assert (found.shape, found.dtype, found.device.type) == (form["shape"], form["dtype"], form["device"])
    assert found.is_contiguous(memory_format=form["memory_format"])
