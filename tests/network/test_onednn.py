"""On which processors oneDNN makes products of matrices."""

import pytest
import torch

from raphson.network._onednn import has_longer_vectors

FULL = {"avx512_f": True, "cpu_name": "AMD EPYC"}


@pytest.mark.parametrize(
    ("capabilities", "expected"),
    [
        (FULL | {"avx_vnni": True, "avx512_vp2intersect": True}, True),
        (FULL | {"avx_vnni": False, "avx512_vp2intersect": True}, True),
        # two steps for each vector of 512 bits
        (FULL | {"avx_vnni": False, "avx512_vp2intersect": False, "avx512_vnni": True}, False),
        ({"avx512_f": False, "avx_vnni": True, "cpu_name": "AMD Ryzen"}, False),
        ({"avx512_f": True, "avx_vnni": True, "cpu_name": "Intel Xeon"}, False),
        ({}, False),
    ],
)
def test_vectors_of_512_bits_in_one_step_on_processors_of_amd(capabilities, expected, monkeypatch):
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: capabilities, raising=False)
    built = hasattr(torch.ops.mkldnn, "_linear_pointwise")
    assert has_longer_vectors.__wrapped__() is (expected and built)
