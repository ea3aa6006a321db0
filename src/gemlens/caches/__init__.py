"""What has been seen: keys, values and spans of earlier tokens. A cache is an argument, given back.

cache.py      the Protocol that decoders speak to
dynamic.py    grows with the text; sliding layers keep only what their window needs
static.py     fixed shapes, allocated once; sliding layers are rings
quantized.py  the first in eight bits
offloaded.py  both, with keys and values in main memory
"""
