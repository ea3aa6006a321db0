"""Layers of a decoder as compiled code, for small models: they spend much of their time between products of matrices.

compile_layers(model)  ->  the same model: the same weights by the same names, the same numbers except rounding
"""

import os
import shutil

from gemlens.errors import InputError
from gemlens.models.generative import GenerativeModel


def compile_layers(model: GenerativeModel) -> None:
    """Has each layer of the decoder compiled when it is first used, for rows of any length; that takes about a minute.

    Raises:
        InputError: the model is on a CPU, and there is no C++ compiler.
    """
    compiler = os.environ.get("CXX", "g++")
    if model.device.type == "cpu" and shutil.which(compiler) is None:
        raise InputError(
            f"compile = true needs a C++ compiler, and there is no '{compiler}'; install one, name it in the "
            "environment variable CXX, or leave compile out."
        )
    for layer in model.text_model().layers:
        layer.compile(dynamic=True)
