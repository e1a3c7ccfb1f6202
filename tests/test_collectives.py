"""One process agrees with itself, at no cost; several are in `test_distributed.py`."""

import torch
from helpers.compare import every

from optimum.dendritic.distributed.collectives import from_first_rank_, mean_over_ranks, world_size


def test_without_a_process_group_every_tensor_is_its_own_mean():
    assert world_size() == 1
    tensors = [torch.arange(3.0), torch.ones(2, 2)]
    assert every(mean is tensor for mean, tensor in zip(mean_over_ranks(tensors), tensors, strict=True))
    assert mean_over_ranks([]) == []


def test_without_a_process_group_nothing_is_overwritten():
    tensor = torch.nn.Parameter(torch.arange(3.0))
    from_first_rank_(iter([tensor]))
    assert torch.equal(tensor, torch.arange(3.0)) and tensor.requires_grad


def test_a_process_group_of_one_is_no_other(tmp_path):
    torch.distributed.init_process_group("gloo", init_method=f"file://{tmp_path}/store", rank=0, world_size=1)
    try:
        tensor = torch.arange(3.0)
        assert mean_over_ranks([tensor])[0] is tensor and world_size() == 1
    finally:
        torch.distributed.destroy_process_group()
