"""Whether torch can use the device that the command line names."""

import torch

from rmsnorm_lab.errors import UserError


def check(name: str) -> None:
    """Put one number on it: the surest sign that torch can use a device."""
    try:
        torch.zeros(1, device=name) + 1
        device = torch.device(name)
        if device.type == "meta":
            raise RuntimeError("it holds no numbers")
        if device.type == "cpu" and device.index is not None:
            raise RuntimeError("CPUs have no numbers; how many cores are used is said by --threads")
    except (RuntimeError, AssertionError, NotImplementedError) as error:  # torch raises each of these for one
        reason = str(error).splitlines()[0].partition(". ")[0].rstrip(".")  # its list of backends follows
        raise UserError(
            f"--device must be one that this torch can use; got {name!r}: {reason}. Pass --device cpu."
        ) from None
