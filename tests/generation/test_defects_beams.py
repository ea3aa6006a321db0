"""Where the reference's beams and samples are wrong: pictures change places, and finished beams go on with end tokens.

Model-facts 7 and pitfall 23. What is right is the reference with embeddings in which pictures stand in their places.
"""

from typing import Any

import pytest
import torch
from compared import (
    GEMMA,
    GEMMA_3,
    PICTURES,
    RECORDED,
    SETTINGS,
    embedded,
    new_tokens,
    ours,
    pair,
    rows,
    theirs,
)
from pairs import Batch, Case

SEVERAL: list[dict[str, Any]] = [
    {"num_beams": 3},
    {"num_beams": 3, "num_return_sequences": 2},
    {"do_sample": True, "num_return_sequences": 3},
]


def right(case: Case, batch: Batch, **settings: Any) -> torch.Tensor:
    """New tokens of the reference, which is given embeddings."""
    torch.manual_seed(3)
    return pair(case).reference.generate(**embedded(case, batch), **{**SETTINGS, **settings})


def said(library: Any, case: Case, batch: Batch, **settings: Any) -> torch.Tensor:
    torch.manual_seed(3)
    return new_tokens(batch, library(case, batch, **settings))


@pytest.mark.parametrize("several", SEVERAL, ids=lambda several: "-".join(several))
@pytest.mark.parametrize("case", PICTURES, ids=str)
def test_two_pictures_in_a_row_are_scrambled_there_and_stay_in_their_places_here(
    case: Case, several: dict[str, Any]
) -> None:
    batch = rows(case, padding="left", pictures=(2,))
    assert torch.equal(right(case, batch, **several), said(ours, case, batch, **several))
    assert not torch.equal(right(case, batch, **several), said(theirs, case, batch, **several))


@pytest.mark.parametrize("case", PICTURES, ids=str)
def test_rows_with_at_most_one_picture_are_right_in_both(case: Case) -> None:
    """Pictures change places only within their row, so the reference row by row proves nothing for several."""
    batch = rows(case, padding="left", pictures=(1, 3, 0))
    settings = {"num_beams": 3, "num_return_sequences": 3, "eos_token_id": None, **RECORDED}
    alone = torch.cat([right(case, batch.row(row), **settings).sequences_scores for row in range(3)])
    wrong = [(library(case, batch, **settings).sequences_scores - alone).view(3, 3).abs() for library in (ours, theirs)]
    assert wrong[0].max() < 1e-4
    assert (wrong[1].amax(1) > 1e-3).tolist() == [False, True, False]


@pytest.mark.parametrize("case", [GEMMA, GEMMA_3], ids=str)
def test_finished_beams_are_filled_with_end_tokens_there_if_padding_is_0_and_with_padding_here(case: Case) -> None:
    batch = rows(case)
    settings = {
        "num_beams": 4,
        "num_return_sequences": 4,
        "eos_token_id": list(range(1, 40)),
        "early_stopping": "never",
    }
    for filler in (2, 0):
        mine, other = (said(library, case, batch, **settings, pad_token_id=filler) for library in (ours, theirs))
        ended = (mine > 0) & (mine < 40)
        after = ended.cumsum(1).roll(1, dims=1) > 0
        after[:, 0] = False
        assert after.any()
        assert torch.equal(mine[~after], other[~after])
        assert (mine[after] == filler).all()
        assert (other[after] == (filler or 1)).all()
