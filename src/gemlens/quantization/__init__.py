"""Which weight in which format: leaves of a finished model are replaced, and model code never sees it.

config.py      TorchAoConfig: what `quantization_config=` says
torchao.py     linear layers whose weight is a tensor of torchao, and which of a model's become such
int4.py        torchao's int4 in the order of the file <-> in the order of a processor's kernel
int8.py        torchao's int8, which has one order
parts.py       a weight of torchao <-> the plain tensors that stand for it in a file
packed.py      bfloat16 in the order in which a CPU reads it
"""
