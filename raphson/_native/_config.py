"""What is installed and how it runs, in sentences."""

from __future__ import annotations

import platform
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path

import torch

import raphson
from raphson._native import _module


@dataclass(frozen=True, repr=False)
class Config:
    """What is installed and how it runs; prints as sentences.

    Attributes:
        raphson: Its version.
        python: Version of Python.
        torch: Version of PyTorch.
        numpy: Version of NumPy.
        built: Whether compiled code was built and is not switched off.
        reason: Why not; empty where it was.
        vector_bits: Length of the vectors that compiled code computes with; 0 without it.
        threads: On how many threads compiled code runs at most; 0 without it.
        torch_threads: On how many PyTorch does.
        runtime: The file of the OpenMP library that compiled code has its threads from; empty for none.
    """

    raphson: str
    python: str
    torch: str
    numpy: str
    built: bool
    reason: str
    vector_bits: int
    threads: int
    torch_threads: int
    runtime: str

    def __repr__(self) -> str:
        """Return the sentences, a line each."""
        return "\n".join([
            f"raphson {self.raphson} on Python {self.python} ({platform.system()}, {platform.machine()}), "
            f"PyTorch {self.torch}, NumPy {self.numpy}.",
            self._compiled(),
            f"PyTorch computes on {_counted(self.torch_threads)}.",
        ])

    def _compiled(self) -> str:
        if not self.built:
            return f"Compiled code is {self.reason}; everything goes through PyTorch."
        origin = (
            f"{_counted(self.threads)} of {Path(self.runtime).name}" if self.runtime else "1 thread, without OpenMP"
        )
        text = f"Compiled code is built; it computes with vectors of {self.vector_bits} bits on {origin}"
        fewer = self.threads < self.torch_threads
        return f"{text}, so that all but small work goes through PyTorch." if fewer else f"{text}."


def show_config() -> Config:
    """Return what is installed and how it runs: versions, compiled code, instructions and threads.

    Returns:
        What prints as a few sentences, and has them as attributes.

    Examples:
        >>> import raphson as rp
        >>> print(rp.show_config())  # doctest: +ELLIPSIS
        raphson ... on Python ...
        Compiled code is ...
        PyTorch computes on ...
    """
    built, runtime, torch_threads = _module.kernels is not None, _module.runtime(), torch.get_num_threads()
    return Config(
        raphson=raphson.__version__,
        python=platform.python_version(),
        torch=torch.__version__,
        numpy=version("numpy"),
        built=built,
        reason=_module.reason,
        vector_bits=_module.vector_bits(),
        threads=(torch_threads if runtime else 1) if built else 0,
        torch_threads=torch_threads,
        runtime=runtime,
    )


def _counted(threads: int) -> str:
    return f"{threads} thread" if threads == 1 else f"{threads} threads"
