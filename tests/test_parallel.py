"""Training steps of several processes. What they import is imported again in each."""

import torch
from torch import distributed, multiprocessing
from torch.nn.parallel import DistributedDataParallel

from eqdmri_monai.losses import MaskedBCELoss
from eqdmri_monai.networks import PQNet
from eqdmri_monai.symmetry import random_scheme


def small_net():
    torch.manual_seed(0)
    return PQNet(("2x0e+1x1e",), ("2x0e+1x1e",), kernel_size=3)


def crops(volumes, brain):
    """Two crops of a scan, q-vectors, and labels with a mask that covers some part of them."""
    image = torch.randn(2, 1 + volumes, 5, 5, 5)
    label, mask = (torch.rand(2, 1, 5, 5, 5) < 0.3).double(), (torch.rand(2, 1, 5, 5, 5) < brain).double()
    return image, random_scheme(volumes, 1.0), torch.cat([label, mask], dim=1)


def gradients(net, parts):
    loss = sum(MaskedBCELoss(3.0)(net(image, q=q), target) for image, q, target in parts) / len(parts)
    loss.backward()
    return {name: parameter.grad for name, parameter in net.named_parameters()}


def step(rank, folder, parts):
    torch.set_default_dtype(torch.float64)
    distributed.init_process_group("gloo", f"file://{folder}/meeting", rank=rank, world_size=len(parts))
    net = DistributedDataParallel(small_net(), broadcast_buffers=False)
    for _ in range(2):  # a second one shows parameters that had no gradient in the first
        net.zero_grad()
        found = gradients(net, parts[rank : rank + 1])
    torch.save({name.removeprefix("module."): g for name, g in found.items()}, f"{folder}/{rank}.pt")
    distributed.destroy_process_group()


def test_processes_together_step_by_the_mean_over_their_scans(tmp_path):
    parts = [crops(6, 0.9), crops(9, 0.2)]  # scans of other schemes, with much and with little brain
    expected = gradients(small_net(), parts)
    multiprocessing.spawn(step, (str(tmp_path), parts), nprocs=2)
    for rank in range(2):
        found = torch.load(tmp_path / f"{rank}.pt")
        assert found.keys() == expected.keys()
        for name, gradient in expected.items():
            assert gradient.abs().max() > 0
            torch.testing.assert_close(found[name], gradient, rtol=1e-5, atol=1e-7)
