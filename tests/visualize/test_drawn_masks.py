"""The drawn cells are the mask inside the running model, and not that of the reference's visualizer."""

import io
import re
from types import SimpleNamespace
from typing import Any

import pytest
import requests
import torch
import transformers
from mask_folders import WINDOW, folder, inputs_of, seen_in_model, visualizer
from PIL import Image
from processor_pairs import picture
from transformers.utils.attention_visualizer import AttentionMaskVisualizer as ReferencesVisualizer

from gemlens.visualize.chart import HIDDEN, OUTSIDE, SEEN, Chart
from gemlens.visualize.drawing import MaskDrawing

FAMILIES = ("gemma", "gemma2", "gemma3", "paligemma", "paligemma2", "gemma3-pictures")
TEXT = "Where is the License granted?"
PROMPTS = {
    "text": (TEXT, 0),
    "a picture": (f"<img> {TEXT}", 1),
    "a picture between words": (f"the work <img> {TEXT}", 1),
    "two pictures": (f"<img><img> {TEXT}", 2),
    "two pictures with words between": (f"see <img> and <img> {TEXT}", 2),
}
SUFFIX = " the Work and the License"
CASES = [
    pytest.param(family, prompt, suffix, id=f"{family}, {name}{', answered' if suffix else ''}")
    for family in FAMILIES
    for name, (prompt, pictures) in PROMPTS.items()
    for suffix in (None, SUFFIX)
    if not pictures or family not in ("gemma", "gemma2", "gemma3")
]


def expanded(chart: Chart) -> list[torch.Tensor]:
    """By panel, [S, S] bool: whether the cell that stands for a pair of tokens is drawn as seen."""
    owner = [place for place, line in enumerate(chart.lines) for _ in range(line.count)]
    assert [line.first for line in chart.lines] == sorted({owner.index(place) for place in owner})
    seen = [torch.tensor([[cell in SEEN.values() for cell in row] for row in panel.cells]) for panel in chart.panels]
    return [cells[owner][:, owner] for cells in seen]


def signs(text: str, tokens: int) -> list[list[str]]:
    """The signs of one panel's rows in a drawing for the terminal."""
    rows = re.findall(r"^ *\d+ \S+ +((?:[#@+*.-] ?)+)$", text, flags=re.MULTILINE)[:tokens]
    return [row.split() for row in rows]


@pytest.mark.parametrize(("family", "prompt", "suffix"), CASES)
def test_a_cell_is_drawn_as_seen_where_attention_in_the_model_gives_weight(
    family: str, prompt: str, suffix: str | None
) -> None:
    pictures = [picture(seed) for seed in range(prompt.count("<img>"))]
    inside = seen_in_model(family, inputs_of(family, prompt, pictures, suffix))
    drawing = visualizer(family)(prompt, images=pictures or None, suffix=suffix, tokens_per_picture_drawn=2)
    assert sorted(layer for mask in drawing.masks for layer in mask.layers) == list(range(len(inside)))
    for mask in drawing.masks:
        for layer in mask.layers:
            assert torch.equal(mask.seen, inside[layer])
    for drawn, mask in zip(expanded(drawing.chart(500)), drawing.masks, strict=True):
        assert torch.equal(drawn, mask.seen)
    assert len(drawing.masks) == (2 if family in ("gemma2", "gemma3", "gemma3-pictures") else 1)


@pytest.mark.parametrize("family", FAMILIES)
def test_the_signs_in_the_terminal_are_the_masks(family: str) -> None:
    prompt = TEXT if family in ("gemma", "gemma2", "gemma3") else f"<img> {TEXT}"
    drawing = visualizer(family)(prompt, suffix=SUFFIX, tokens_per_picture_drawn=9)
    blocks = drawing.text(colour=False, width=300).split("attention")[1:]
    for mask, block in zip(drawing.masks, blocks, strict=True):
        rows = signs(block, len(drawing.tokens))
        assert [[sign not in ".-" for sign in row] for row in rows] == mask.seen.tolist()
        assert [[sign == "-" for sign in row] for row in rows] == mask.outside.tolist()
        for row in rows:
            kinds = [SEEN[token.kind].sign for token in drawing.tokens]
            assert all(sign in (kind, HIDDEN.sign, OUTSIDE.sign) for sign, kind in zip(row, kinds, strict=True))


def test_what_only_the_window_hides_has_a_sign_of_its_own() -> None:
    sliding, full = visualizer("gemma3")(TEXT).masks
    assert (sliding.window, full.window) == (WINDOW, None)
    assert torch.equal(sliding.seen | sliding.outside, full.seen)
    assert not (sliding.seen & sliding.outside).any()
    assert sliding.outside.any()
    assert not full.outside.any()


def test_kinds_of_tokens() -> None:
    def kinds(drawing: MaskDrawing) -> str:
        return " ".join(token.kind[:2] for token in drawing.tokens)

    paligemma = kinds(visualizer("paligemma")("<img>", suffix="no"))
    assert re.fullmatch(r"pi pi pi pi pr pr( an)+", paligemma), "picture, <bos>, line break, answer, <eos>"
    gemma = kinds(visualizer("gemma3-pictures")("<img>", suffix="no"))
    assert re.fullmatch(r"(te )+pi pi pi pi (te )+an( an)*", gemma)
    assert re.fullmatch(r"te (te )*an( an)*", kinds(visualizer("gemma")("the", suffix="no")))


def test_each_picture_has_its_number() -> None:
    tokens = visualizer("paligemma")("<img><img>").tokens
    assert [token.picture for token in tokens] == [0, 0, 0, 0, 1, 1, 1, 1, None, None]


@pytest.mark.parametrize("family", ["paligemma", "gemma3-pictures"])
def test_blank_pictures_stand_where_none_came(family: str) -> None:
    """The mask does not depend on what is in a picture."""
    blank = visualizer(family)("<img> and <img>")
    given = visualizer(family)("<img> and <img>", images=[picture(1), picture(2, 9, 31)])
    assert blank.tokens == given.tokens
    assert all(torch.equal(one.seen, other.seen) for one, other in zip(blank.masks, given.masks, strict=True))


def test_the_models_own_mark_of_a_picture_is_understood_too() -> None:
    assert visualizer("paligemma")("<image>the").tokens == visualizer("paligemma")("<img>the").tokens
    assert visualizer("gemma3-pictures")("<start_of_image>a").tokens == visualizer("gemma3-pictures")("<img>a").tokens


def test_pictures_of_a_prompt_for_paligemma_that_names_none_stand_first() -> None:
    given = visualizer("paligemma")("the", images=picture(1))
    assert given.tokens == visualizer("paligemma")("<img>the").tokens


# -- the reference -----------------------------------------------------------------------------------------------------


def references_rows(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], prompt: str) -> list[Any]:
    """The matrix that the reference prints for PaliGemma: True where a cell is filled. It uses 5 tokens per picture."""

    def answer(*_: Any, **__: Any) -> SimpleNamespace:
        """The picture that it asks the network for."""
        file = io.BytesIO()
        Image.new("RGB", (64, 64)).save(file, "PNG")
        file.seek(0)
        return SimpleNamespace(raw=file)

    monkeypatch.setattr(requests, "get", answer)
    verbosity = transformers.logging.get_verbosity()
    transformers.logging.set_verbosity_error()
    try:
        ReferencesVisualizer(str(folder("paligemma", WINDOW)))(prompt, suffix=SUFFIX)
    finally:
        transformers.logging.set_verbosity(verbosity)
    printed = re.sub(r"\x1b\[\d+m", "", capsys.readouterr().out)
    rows = re.findall(r"^'.*' *: +\d+ ([\u25a0\u2b1a ]+)\|", printed, flags=re.MULTILINE)
    return [[sign == "\u25a0" for sign in row.split()] for row in rows]


def test_the_prompt_is_causal_in_the_references_drawing_and_one_block_here(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    theirs = torch.tensor(references_rows(monkeypatch, capsys, f"<img> {TEXT}"))
    drawing = visualizer("paligemma")(f"<img> {TEXT}", suffix=SUFFIX)
    ours, size = drawing.masks[0].seen, len(theirs)
    assert len(ours) == size - 1, "a picture has 4 tokens, but 5 in their drawing"
    # Theirs: the lower triangle, with the block of the picture painted over it (but for its first row).
    causal = torch.ones(size, size).tril().bool()
    causal[1:5, 1:5] = True
    causal[1:5, 0] = True
    assert torch.equal(theirs, causal)
    # Ours: as the model, where picture and prompt see each other and the answer is causal.
    inside = seen_in_model("paligemma", inputs_of("paligemma", f"<img> {TEXT}", [picture(1)], SUFFIX))[0]
    assert torch.equal(ours, inside)
    prefix = sum(token.kind != "answer" for token in drawing.tokens)
    assert ours[:prefix, :prefix].all()
    assert not torch.equal(ours, torch.ones_like(ours).tril())


def test_gemma_3_with_pictures_cannot_be_drawn_there(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """The documented prompt is an error, and so is one with the model's own mark."""
    references_rows(monkeypatch, capsys, "<img>")  # gives it the picture
    theirs = ReferencesVisualizer(str(folder("gemma3-pictures", WINDOW)))
    with pytest.raises(ValueError, match="0 image tokens but received 1 images"):
        theirs(f"<img>{TEXT}")
    with pytest.raises(AttributeError, match="hidden_size"):
        theirs(f"<start_of_image>{TEXT}")
    ours = visualizer("gemma3-pictures")(f"<img>{TEXT}")
    inside = seen_in_model("gemma3-pictures", inputs_of("gemma3-pictures", f"<img>{TEXT}", [picture(1)], None))
    for mask in ours.masks:
        assert torch.equal(mask.seen, inside[mask.layers[0]])
        assert not torch.equal(mask.seen, mask.seen.tril()), "the picture sees itself whole"
