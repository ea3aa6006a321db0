"""The GGML block formats that Gemma files use: how many weights a block holds, and in how many bytes.

Names, ids and sizes are those of ggml.h and ggml-common.h (https://github.com/ggml-org/ggml). What lies inside a block
is in kernels/reference.py.
"""

from collections.abc import Mapping
from dataclasses import dataclass


@dataclass(frozen=True)
class Format:
    """One way to store a row of weights.

    Args:
        name: ggml's name, e.g. "Q4_K".
        type_id: ggml's number for it, as GGUF files hold it.
        block_size: weights per block; the last axis of a tensor is a multiple of it.
        block_bytes: bytes per block.
    """

    name: str
    type_id: int
    block_size: int
    block_bytes: int

    @property
    def is_quantized(self) -> bool:
        """Whether weights share a scale, so that a block must be dequantised to be read."""
        return self.block_size > 1


F32 = Format("F32", 0, 1, 4)
F16 = Format("F16", 1, 1, 2)
BF16 = Format("BF16", 30, 1, 2)
Q4_0 = Format("Q4_0", 2, 32, 18)
Q4_1 = Format("Q4_1", 3, 32, 20)
Q5_0 = Format("Q5_0", 6, 32, 22)
Q5_1 = Format("Q5_1", 7, 32, 24)
Q8_0 = Format("Q8_0", 8, 32, 34)
Q2_K = Format("Q2_K", 10, 256, 84)
Q3_K = Format("Q3_K", 11, 256, 110)
Q4_K = Format("Q4_K", 12, 256, 144)
Q5_K = Format("Q5_K", 13, 256, 176)
Q6_K = Format("Q6_K", 14, 256, 210)

FORMATS = (F32, F16, BF16, Q4_0, Q4_1, Q5_0, Q5_1, Q8_0, Q2_K, Q3_K, Q4_K, Q5_K, Q6_K)
BY_TYPE_ID: Mapping[int, Format] = {block_format.type_id: block_format for block_format in FORMATS}
BY_NAME: Mapping[str, Format] = {block_format.name: block_format for block_format in FORMATS}
