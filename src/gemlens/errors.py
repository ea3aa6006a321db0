"""The errors gemlens raises on purpose.

Each message is a sentence for the person who can act: what came, what was expected, what to do.
All of them are also the built-in error that this field expects, so `except ValueError` keeps working.
"""


class GemlensError(Exception):
    """Whatever gemlens refuses on purpose."""


class InputError(GemlensError, ValueError):
    """An argument of a call that cannot be acted on: a shape, an id, a combination."""


class PictureError(InputError):
    """A picture that is damaged, too large, of no known kind, or that may not be fetched."""


class ConfigError(InputError):
    """A value in a model's configuration that describes no model."""


class CheckpointError(GemlensError, OSError):
    """A file or folder of weights that is missing, damaged or not what it says it is."""
