"""The device that the command line names: whether torch can use it, and how networks run on it."""

import argparse

import torch

from rmsnorm_lab.errors import UserError
from rmsnorm_lab.experiments.learner import Setup


def check(name: str) -> None:
    """Put one number on the device, which is the surest test that torch can use it."""
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


def setup_of(args: argparse.Namespace) -> Setup:
    """How to run networks, from the command line; sets the number of threads."""
    check(args.device)
    if args.threads:
        torch.set_num_threads(args.threads)
    return Setup(kernels=args.kernels, device=args.device, precision=args.precision)
