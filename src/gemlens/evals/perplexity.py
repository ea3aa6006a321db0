"""Perplexity: how many tokens the model hesitates between where the true answers go on."""

from collections.abc import Sequence
from math import exp, inf

from gemlens.errors import InputError
from gemlens.evals.score import Score, check_pairs

_LARGEST = 709.0  # of larger numbers a float holds no exponential


def perplexity(likelihoods: Sequence[float], tokens: Sequence[int]) -> Score:
    """exp of the mean negative log-likelihood of all tokens of all answers; 1 is perfect.

    Args:
        likelihoods: natural logarithm of each answer's probability.
        tokens: of each answer, the end token counted.

    Returns:
        perplexity; the items' own numbers are mean log-likelihoods of their tokens, 0 at best.

    Raises:
        InputError: no tokens.
    """
    check_pairs(likelihoods, tokens)
    if not sum(tokens):
        raise InputError("There are no answers with tokens, so there is no perplexity.")
    items = tuple(likelihood / max(count, 1) for likelihood, count in zip(likelihoods, tokens, strict=True))
    mean = -sum(likelihoods) / sum(tokens)
    return Score({"perplexity": exp(mean) if mean < _LARGEST else inf}, items)
