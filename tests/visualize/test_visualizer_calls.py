"""AttentionMaskVisualizer: where it is found, what it needs, and what it refuses."""

import re
from pathlib import Path
from typing import Any

import pytest
from mask_folders import WINDOW, copied, folder, visualizer
from processor_pairs import picture

import gemlens
from gemlens import AttentionMaskVisualizer
from gemlens.errors import CheckpointError, GemlensError, InputError

TEXT = "Where is the License granted?"


def test_the_documented_import_finds_it() -> None:
    from gemlens.utils.attention_visualizer import AttentionMaskVisualizer as Documented

    assert Documented is gemlens.AttentionMaskVisualizer


def test_no_weights_are_needed_or_made() -> None:
    for family in ("gemma3", "paligemma2"):
        assert not [*folder(family, WINDOW).glob("*.safetensors")]
        assert {weight.device.type for weight in visualizer(family).model.parameters()} == {"meta"}


def test_a_text_models_folder_may_name_a_processor_that_it_does_not_have(tmp_path: Path) -> None:
    """As the published Gemma 3 1B does."""
    copied("gemma3", tmp_path)
    settings = tmp_path / "tokenizer_config.json"
    settings.write_text('{"processor_class": "Gemma3Processor", ' + settings.read_text().lstrip().removeprefix("{"))
    assert len(AttentionMaskVisualizer(tmp_path)(TEXT).tokens) == len(visualizer("gemma3")(TEXT).tokens)


def test_its_repr_is_short() -> None:
    drawing = visualizer("gemma3")(TEXT)
    assert len(repr(drawing)) < 150
    assert len(repr(drawing.masks)) < 300


@pytest.mark.parametrize(
    ("family", "arguments", "sentence"),
    [
        ("gemma", {"prompt": "<img> the"}, "This model reads text only; leave out images= and '<img>'."),
        ("gemma3", {"prompt": "the", "images": [1]}, "This model reads text only; leave out images= and '<img>'."),
        ("paligemma", {"prompt": "<img>", "images": []}, "Text 1 names 1 picture but 0 came; .*"),
        ("paligemma", {"prompt": "<img><img> a", "images": picture(1)}, "Text 1 names 2 pictures but 1 came; .*"),
        ("gemma3-pictures", {"prompt": "<img>", "images": [picture(1)] * 2}, "Text 1 names 1 picture but 2 came; .*"),
        ("gemma3-pictures", {"prompt": "<img>", "images": ["no.png"]}, ".*no.png.*"),
        ("gemma", {"prompt": ["a", "b"]}, "prompt is a list, but it must be one text."),
        ("paligemma", {"prompt": "<img>", "suffix": ["a"]}, "suffix is a list, but it must be one text."),
        (
            "paligemma",
            {"prompt": "<img>", "tokens_per_picture_drawn": 0},
            "tokens_per_picture_drawn is 0, but it must be a whole number above 0.",
        ),
    ],
)
def test_mistakes_are_sentences(family: str, arguments: dict[str, Any], sentence: str) -> None:
    with pytest.raises(InputError) as caught:
        visualizer(family)(**arguments)
    assert re.fullmatch(sentence, str(caught.value))


def test_a_place_that_is_no_model_is_refused(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="neither an existing folder nor a repository id"):
        AttentionMaskVisualizer("/no/such/folder")
    with pytest.raises(CheckpointError, match=r"There is no 'config.json' in the folder"):
        AttentionMaskVisualizer(tmp_path)
    gemlens.SiglipVisionConfig().save_pretrained(tmp_path)
    gemlens.AutoTokenizer.from_pretrained(folder("gemma", WINDOW)).save_pretrained(tmp_path)
    with pytest.raises(GemlensError, match="does not know the model type 'siglip_vision_model'"):
        AttentionMaskVisualizer(tmp_path)


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        ({"mm_tokens_per_image": 1}, r"The processor writes 4 tokens of id \d+ per picture, but the model takes 1 of"),
        (
            {"image_token_index": 9},
            r"writes 4 tokens of id \d+ per picture, but the model takes 4 of id 9; their files",
        ),
    ],
)
def test_files_of_different_checkpoints_are_refused(tmp_path: Path, change: dict[str, int], sentence: str) -> None:
    copied("gemma3-pictures", tmp_path)
    gemlens.AutoConfig.from_pretrained(tmp_path, **change).save_pretrained(tmp_path)
    with pytest.raises(CheckpointError, match=sentence):
        AttentionMaskVisualizer(tmp_path)


def test_a_processor_of_the_other_family_is_refused(tmp_path: Path) -> None:
    copied("gemma3-pictures", tmp_path)
    gemlens.AutoConfig.from_pretrained(folder("paligemma", WINDOW)).save_pretrained(tmp_path)
    with pytest.raises(CheckpointError, match="describes a paligemma model, but the other files a Gemma3Processor"):
        AttentionMaskVisualizer(tmp_path)


def test_places_and_endings_that_cannot_be_saved_to_are_refused(tmp_path: Path) -> None:
    drawing = visualizer("gemma")(TEXT)
    with pytest.raises(InputError, match=r"ends in '.jpg', but a mask is saved as '.png' or '.svg'"):
        drawing.save(tmp_path / "mask.jpg")
    for name in ("mask.png", "mask.svg"):
        with pytest.raises(InputError, match=r"cannot be written \(No such file or directory\); choose another place"):
            drawing.save(tmp_path / "none" / name)


def test_control_tokens_written_out_in_an_answer_stay_words() -> None:
    for family in ("gemma3", "paligemma", "gemma3-pictures"):
        mark = "" if family == "gemma3" else "<img>"
        given = visualizer(family)(f"{mark}the", suffix="<start_of_turn><bos>")
        answer = [token.text for token in given.tokens if token.kind == "answer"]
        assert not {"<start_of_turn>", "<bos>"} & set(answer)
        assert "".join(answer).removesuffix("<eos>") == "<start_of_turn><bos>"
