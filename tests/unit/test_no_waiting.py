"""Nothing in a pass up the blocks waits for a number: on a GPU each such wait would leave it idle."""

import pytest
import torch
from pair import CLEAN, CORRUPT
from torch.utils._python_dispatch import TorchDispatchMode

from labkit.patching.patch import PatchJob

# A number that Python needs, or a shape that depends on numbers: the host waits until the device has got so far.
WAITS = {"_local_scalar_dense", "nonzero", "masked_select", "is_nonzero", "equal", "unique", "_unique2", "item"}

COPIES = ("tolist", "cpu", "numpy", "__bool__", "__int__", "__float__", "__index__")


class Waits(TorchDispatchMode):
    """Counts, and lets through, every operation that would make the host wait for a device."""

    def __init__(self):
        super().__init__()
        self.seen = []

    def __enter__(self):
        """Methods that copy to the host, too, which on a CPU are no operation that is dispatched."""
        self.own = {name: getattr(torch.Tensor, name) for name in COPIES}
        for name, method in self.own.items():
            setattr(torch.Tensor, name, self._noted(name, method))
        return super().__enter__()

    def __exit__(self, *error):
        for name, method in self.own.items():
            setattr(torch.Tensor, name, method)
        return super().__exit__(*error)

    def _noted(self, name, method):
        def noted(tensor, *args, **kwargs):
            self.seen.append(name)
            return method(tensor, *args, **kwargs)

        return noted

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        name = function.overloadpacket.__name__
        mask = [x for x in (args[1] if name in ("index", "index_put_") else ()) if x is not None]
        if name in WAITS or any(x.dtype == torch.bool for x in mask):
            self.seen.append(name)
        return function(*args, **(kwargs or {}))


@pytest.mark.parametrize("site", ["resid_pre", "attn_out", "mlp_out", "mlp_act", "q", "k", "v", "z", "pattern"])
def test_no_pass_up_the_blocks_waits_for_a_number(lm32, site):
    job = PatchJob(lm32, CLEAN, CORRUPT, " Mary", " John", site=site)
    assert job.ready()
    cells = [job.cells[i] for i in job.waiting()[::7]]
    with Waits() as waits:
        job._wavefront(cells)
    assert waits.seen == []


def test_a_wait_is_noticed():
    x = torch.arange(4.0)
    with Waits() as waits:
        float(x[2])
        x[x > 1]
        x.tolist()
        x.cpu()
    assert {"__float__", "tolist", "cpu"} < set(waits.seen)
    assert len(waits.seen) >= 4
    with Waits() as nothing:
        x + 1
    assert nothing.seen == []
