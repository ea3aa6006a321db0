"""The learning rate of a step: up in a straight line, then down along a cosine, or level."""

import math

from gemlens.training.settings import Settings


def rate(settings: Settings, step: int, steps: int) -> float:
    """The learning rate of a step, counted from 0, of so many."""
    rising = round(settings.warmup * steps)
    if step < rising:
        return settings.learning_rate * (step + 1) / rising
    if settings.schedule == "constant":
        return settings.learning_rate
    done = (step - rising) / max(steps - rising, 1)
    share = settings.final_rate + (1 - settings.final_rate) * (1 + math.cos(math.pi * done)) / 2
    return settings.learning_rate * share
