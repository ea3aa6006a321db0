"""`pipeline("detect")`: boxes in pixels of the original picture, with scores, whatever the picture is."""

import io
import subprocess
import sys
from collections.abc import Callable
from math import prod
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image, ImageDraw, ImageOps
from scripted_model import scripted

import gemlens
from gemlens.errors import InputError, PictureError
from gemlens.pipelines.detection import DetectionPipeline
from gemlens.tasks.boxes import Box
from gemlens.tasks.findings import Finding, write

WHITE = Image.new("RGB", (300, 80), "white")
CAT, DOG = Finding("cat", Box(30, 8, 150, 40)), Finding("dog", Box(0, 0, 300, 80))
Make = Callable[..., DetectionPipeline]


@pytest.fixture
def finder(checkpoint: Callable[[str], str]) -> Make:
    """A pipeline whose model says what `answers` tells it."""

    def make(answers: dict[str, Any], chances: Any = (), **settings: Any) -> DetectionPipeline:
        found = gemlens.pipeline("detect", checkpoint("paligemma"), device=-1, **settings)
        assert isinstance(found, DetectionPipeline)
        found.model.generate = scripted(found.processor, answers, chances)  # type: ignore[method-assign]
        return found

    return make


def near(box: Box, other: Box, size: tuple[int, int]) -> bool:
    """Within one of 1023 steps of a side."""
    width, height = size
    return (
        max(abs(box.left - other.left), abs(box.right - other.right)) <= width / 1023
        and max(abs(box.top - other.top), abs(box.bottom - other.bottom)) <= height / 1023
    )


@pytest.mark.parametrize("size", [(300, 80), (31, 77), (1, 5), (2000, 1500)])
def test_boxes_are_in_pixels_of_the_original_picture(finder: Make, size: tuple[int, int]) -> None:
    width, height = size
    box = Box(0.25 * width, 0.5 * height, width, 0.75 * height)
    find = finder({"detect cat": write([Finding("cat", box)], size)})
    (found,) = find(Image.new("RGB", size), "cat")
    assert found.label == "cat"
    assert near(found.box, box, size)


def test_labels_come_as_a_list_or_as_one_text_and_findings_in_the_order_that_was_written(finder: Make) -> None:
    text = write([DOG, CAT], WHITE.size)
    for labels in (["cat", "dog"], ("cat", "dog"), "cat ; dog"):
        assert [each.label for each in finder({"detect cat ; dog": text})(WHITE, labels)] == ["dog", "cat"]
    assert len(finder({"detect cat ; dog": text}, labels="cat ; dog")(WHITE)) == 2


def test_a_score_is_the_geometric_mean_of_the_tokens_that_wrote_the_box(finder: Make) -> None:
    chances = (0.9, 0.8, 0.7, 0.6)
    first, second = finder({"detect cat ; dog": write([CAT, DOG], WHITE.size)}, chances)(WHITE, "cat ; dog")
    assert first.score == pytest.approx(prod(chances) ** 0.25)
    assert second.score == pytest.approx(1, abs=1e-4)


def test_scores_are_the_models_probabilities(checkpoint: Callable[[str], str]) -> None:
    """Of a model that is made to write a box; the same probabilities from one forward pass over prompt and answer."""
    find: Any = gemlens.pipeline("detect", checkpoint("paligemma"), device=-1, max_new_tokens=4)
    locs = torch.tensor(find.processor.tokenizer.convert_tokens_to_ids([f"<loc{n:04d}>" for n in range(1024)]))
    allowed = torch.full((4, find.model.config.text_config.vocab_size), -1e9)
    allowed[:2, locs[:300]] = 0
    allowed[2:, locs[500:]] = 0
    steps, generate, calls = iter(allowed), find.model.generate, []
    hook = find.model.lm_head.register_forward_hook(lambda module, given, logits: logits + next(steps))

    def listen(**arguments: Any) -> Any:
        calls.append((arguments["pixel_values"], generate(**arguments)))
        return calls[0][1]

    find.model.generate = listen
    (found,) = find(WHITE, "cat")
    hook.remove()
    ((pixels, ids),) = calls
    is_answer = (torch.arange(ids.shape[1]) >= ids.shape[1] - 4).long()[None]
    with torch.no_grad():
        logits = find.model(ids, pixel_values=pixels, token_type_ids=is_answer).logits[0, -5:-1] + allowed
    chosen = logits.log_softmax(-1).gather(-1, ids[0, -4:, None])
    assert found.score == pytest.approx(float(chosen.mean().exp()), rel=1e-4)


def test_a_threshold_leaves_out_what_is_less_sure(finder: Make) -> None:
    answers = {"detect cat ; dog": write([CAT, DOG], WHITE.size)}
    find = finder(answers, [0.6] * 4)
    assert [each.label for each in find(WHITE, "cat ; dog", threshold=0.61)] == ["dog"]
    assert [each.label for each in find(WHITE, "cat ; dog", threshold=0.59)] == ["cat", "dog"]


def test_a_box_that_is_told_again_is_left_out_unless_kept(finder: Make) -> None:
    again = Finding("cat", Box(31, 8, 151, 40))
    find = finder({"detect cat ; dog": write([CAT, again, DOG, CAT], WHITE.size)})
    assert [each.label for each in find(WHITE, "cat ; dog")] == ["cat", "dog"]
    assert len(find(WHITE, "cat ; dog", keep_repeats=True)) == 4


@pytest.mark.parametrize("batch_size", [1, 2, 3])
def test_several_pictures_give_a_list_for_each_in_their_own_pixels(finder: Make, batch_size: int) -> None:
    half = write([Finding("cat", Box(0, 0, 50, 100))], (100, 100))
    find = finder({"detect cat": [half, "", half]}, batch_size=batch_size)
    pictures = [Image.new("RGB", size) for size in ((100, 100), (10, 10), (40, 400))]
    first, second, third = find(pictures, "cat")
    assert near(first[0].box, Box(0, 0, 50, 100), (100, 100))
    assert second == []
    assert near(third[0].box, Box(0, 0, 20, 400), (40, 400))
    assert finder({})([], "cat") == []


def test_boxes_count_the_pixels_of_the_picture_as_it_is_seen(finder: Make, tmp_path: Path) -> None:
    """A photograph that a phone took upright: its file lies on the side, and EXIF says so."""
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.new("RGB", (400, 200)).save(tmp_path / "turned.jpg", exif=exif)
    find = finder({"detect cat": write([Finding("cat", Box(0, 0, 100, 400))], (200, 400))})
    for picture in (
        tmp_path / "turned.jpg",
        (tmp_path / "turned.jpg").read_bytes(),
        Image.open(tmp_path / "turned.jpg"),
    ):
        (found,) = find(picture, "cat")
        assert near(found.box, Box(0, 0, 100, 400), (200, 400))


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP", "TIFF"])
def test_the_model_sees_the_picture_upright(finder: Make, kind: str) -> None:
    find, seen = finder({}), []
    generate = scripted(find.processor, {"detect cat": ""})

    def watch(*, pixel_values: torch.Tensor, **named: Any) -> torch.Tensor:
        seen.append(pixel_values)
        return generate(**named)

    find.model.generate = watch  # type: ignore[method-assign]
    stored, exif = Image.linear_gradient("L").convert("RGB").resize((40, 20)), Image.Exif()
    ImageDraw.Draw(stored).rectangle((0, 0, 9, 4), fill="red")
    for orientation in range(1, 9):
        exif[0x0112] = orientation
        file = io.BytesIO()
        stored.save(file, kind, exif=exif)
        find([file, ImageOps.exif_transpose(Image.open(file))], "cat", batch_size=2)
        assert torch.equal(*seen.pop())


def test_a_picture_may_be_whatever_can_be_opened(finder: Make, tmp_path: Path) -> None:
    WHITE.save(tmp_path / "a.png")
    find = finder({"detect cat": write([CAT], WHITE.size)})
    expected = find(WHITE, "cat")
    opened = io.BytesIO((tmp_path / "a.png").read_bytes())
    for picture in (str(tmp_path / "a.png"), tmp_path / "a.png", opened, torch.full((80, 300, 3), 255)):
        assert find(picture, "cat") == expected


def test_text_is_returned_when_asked_for(finder: Make) -> None:
    answers = {"detect cat": write([CAT], WHITE.size)}
    findings, text = finder(answers)(WHITE, "cat", return_text=True)
    assert text == answers["detect cat"]
    assert findings == finder(answers)(WHITE, "cat")
    assert [each.text for each in finder(answers)([WHITE, WHITE], "cat", return_text=True)] == [text, text]


def test_answers_that_are_no_boxes_give_nothing(finder: Make) -> None:
    for text in ("a cat", "<loc0000><loc0000><loc0000> cat", "<loc0500><loc0000><loc0100><loc0100> cat", ""):
        assert finder({"detect cat": text})(WHITE, "cat") == []


def test_dicts_are_those_of_the_reference(finder: Make) -> None:
    """Its object-detection pipeline documents {"score", "label", "box"}, the box in whole pixels."""
    import transformers

    class Reference(transformers.ObjectDetectionPipeline):  # only its method that writes boxes
        def __init__(self) -> None:
            self.framework = "pt"

    (found,) = finder({"detect cat": write([CAT], WHITE.size)})(WHITE, "cat")
    (told,) = finder({"detect cat": write([CAT], WHITE.size)}, as_dicts=True)(WHITE, "cat")
    box = found.box
    edges = torch.tensor([round(edge) for edge in (box.left, box.top, box.right, box.bottom)])
    assert told == {"score": found.score, "label": "cat", "box": Reference()._get_bounding_box(edges)}


def test_other_libraries_names_of_the_task_give_dicts(checkpoint: Callable[[str], str]) -> None:
    find: Any = gemlens.pipeline("object-detection", checkpoint("paligemma"), device=-1)
    assert type(find) is DetectionPipeline
    find.model.generate = scripted(find.processor, {"detect cat": write([CAT], WHITE.size)})
    assert find(WHITE, "cat")[0].keys() == {"score", "label", "box"}
    assert isinstance(find(WHITE, "cat", as_dicts=False)[0], Finding)


def test_models_that_divide_by_1024_are_read_so(finder: Make) -> None:
    size = (1024, 1024)
    find = finder({"detect cat": "<loc0100><loc0200><loc0300><loc0400> cat"}, bins=1024)
    assert find(Image.new("RGB", size), "cat")[0].box == Box(200, 100, 400, 300)


def test_findings_can_be_drawn_on_the_picture_as_they_are(finder: Make) -> None:
    from gemlens.tasks.drawing import draw

    picture = Image.new("RGB", (200, 100), "white")
    ImageDraw.Draw(picture).rectangle((20, 30, 99, 79), fill="black")
    find = finder({"detect square": write([Finding("square", Box(20, 30, 100, 80))], picture.size)})
    drawn = draw(picture, find(picture, "square"))
    assert drawn.size == picture.size
    assert drawn.tobytes() != picture.tobytes()


# -- what is refused ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("labels", "keywords", "told"),
    [
        (None, {}, r"Nothing to look for was named; pass labels=\['cat', 'dog'\]"),
        ([], {}, "Nothing to look for was named"),
        (" ; ", {}, "Nothing to look for was named"),
        (["cat ; dog"], {}, "has ' ; ' in it"),
        (["cat", ""], {}, "A label is empty"),
        ("cat", {"threshold": 1.5}, "threshold is 1.5, but scores lie within 0 and 1"),
        ("cat", {"bins": 1000}, "bins=1000"),
        ("cat", {"batch_size": 0}, "batch_size is 0"),
    ],
)
def test_what_cannot_be_meant_is_refused(finder: Make, labels: Any, keywords: Any, told: str) -> None:
    with pytest.raises(InputError, match=told):
        finder({})(WHITE, labels, **keywords)


def test_a_misspelt_keyword_is_refused_when_it_is_made_and_when_it_is_called(finder: Make) -> None:
    for act in (lambda: finder({}, treshold=0.5), lambda: finder({})(WHITE, "cat", treshold=0.5)):
        with pytest.raises(
            TypeError, match=r"A detect pipeline takes no argument 'treshold'; did you mean 'threshold'"
        ):
            act()


def test_pictures_that_cannot_be_opened_are_told(finder: Make, tmp_path: Path) -> None:
    (tmp_path / "junk.png").write_bytes(b"junk")
    for picture, told in ((tmp_path / "junk.png", "junk.png"), (tmp_path / "none.png", "does not exist")):
        with pytest.raises(PictureError, match=told):
            finder({})(picture, "cat")
    with pytest.raises(PictureError, match="allow_urls=False"):
        finder({}, allow_urls=False)("http://127.0.0.1/a.png", "cat")


def test_models_of_other_kinds_are_refused(checkpoint: Callable[[str], str]) -> None:
    with pytest.raises(InputError, match="no processor of pictures"):
        gemlens.pipeline("detect", checkpoint("gemma3-text"), device=-1)
    model = gemlens.AutoModelForImageTextToText.from_pretrained(checkpoint("paligemma"))
    with pytest.raises(InputError, match="A model came without its processor"):
        gemlens.pipeline("detect", model)


def test_it_starts_without_torchs_compiler(checkpoint: Callable[[str], str]) -> None:
    """Which takes longer to import than a small model to load and to answer."""
    program = (
        "import sys, gemlens\nfrom PIL import Image\n"
        f"gemlens.pipeline('detect', {checkpoint('paligemma')!r}, max_new_tokens=2)(Image.new('RGB', (9, 9)), 'cat')\n"
        "print('torch._dynamo' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", program], check=True, capture_output=True, text=True, timeout=120)
    assert done.stdout == "False\n"
