"""evaluate: every example is asked once, whatever the batch; what cannot be asked is wrong and says why."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from processor_pairs import picture
from scripted import Scripted, examples, white

from gemlens.data.example import Example, Examples
from gemlens.errors import InputError
from gemlens.evals.asking import WrittenAnswers, opened, written
from gemlens.evals.metrics import NAMES, metric_of, usual_metric
from gemlens.evals.run import chosen_examples, evaluate, scored
from gemlens.evals.score import Item, Score
from gemlens.tasks.boxes import Box
from gemlens.tasks.findings import Finding, write
from gemlens.tasks.mask_codec import MaskCodec
from gemlens.training.batches import Collator

Loaded = Callable[[str], tuple[Any, Any]]
PROMPTS = (
    "caption en",
    "answer en is it red?",
    "detect cat ; dog",
    "segment cat",
    "ocr",
    "what is this, in many words",
)
FAMILIES = ("paligemma", "paligemma2", "gemma3-pictures", "gemma3-text")
CAT = write([Finding("cat", Box(0, 0, 32, 24))], (64, 48))


def made(family: str) -> Examples:
    """Examples with pictures of several sizes, where the family takes any; one prompt is a chat."""
    with_pictures = family != "gemma3-text"
    rows = [
        Example(f"r{number}", (picture(number, 20 + number, 30),) if with_pictures else (), prompt, "yes")
        for number, prompt in enumerate(PROMPTS)
    ]
    content = [{"type": "image"}, {"type": "text", "text": "Hello"}] if with_pictures else "Hello"
    chat = ({"role": "user", "content": content}, {"role": "assistant", "content": "Good day"})
    return Examples([*rows, Example("chat", (picture(9),) if with_pictures else (), messages=chat)])


def marked(family: str) -> list[Example]:
    """Two pictures, in front, at marks, and in a chat."""
    if family == "gemma3-text":
        return []
    mark = "<start_of_image>" if family == "gemma3-pictures" else "<image>"
    two = (picture(1), picture(2, 12, 30))
    content = [{"type": "image"}, {"type": "image"}, {"type": "text", "text": "Two."}]
    if family == "gemma3-pictures":  # PaliGemma's chats have pictures in front
        content.insert(1, {"type": "text", "text": "One."})
    chat = ({"role": "user", "content": content}, {"role": "assistant", "content": "Good day"})
    texts = [{"role": "user", "content": "Both?"}, {"role": "assistant", "content": "Yes"}]
    return [
        Example("front", two, "both?", "yes"),
        Example("marks", two, f"{mark}one {mark}two", "yes"),
        Example("chat", two, messages=chat),
        Example("no places", two, messages=tuple(texts)),
    ]


# -- asking ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("family", FAMILIES)
def test_answers_do_not_depend_on_the_batch(loaded: Loaded, family: str) -> None:
    model, processor = loaded(family)
    source = Examples([*made(family).rows, *marked(family)])
    alone, together = (
        evaluate(model, processor, source, batch_size=size, max_new_tokens=12, metric="exact_match") for size in (1, 6)
    )
    for one, other in zip(alone.items, together.items, strict=True):
        assert (one.answer, one.tokens) == (other.answer, other.tokens)
        assert one.likelihood == pytest.approx(other.likelihood, abs=1e-3)
        assert one.tokens > 0
    assert alone.errors == together.errors == 0
    assert len({item.answer for item in alone.items}) > 4


@pytest.mark.parametrize("family", FAMILIES)
def test_prompts_are_those_of_training(loaded: Loaded, family: str) -> None:
    """Also where pictures stand within the text, and where it spells out control tokens."""
    _, processor = loaded(family)
    collate = Collator(processor)
    rows = [*made(family).rows, replace(made(family).rows[0], prefix="<bos> <end_of_turn> a"), *marked(family)]
    for example in rows:
        prompt, learned = written(processor, [opened(example)]), collate([example])
        begin = int((learned["labels"][0] != -100).nonzero()[0])
        assert prompt["input_ids"][0].tolist() == learned["input_ids"][0, :begin].tolist()
        if "pixel_values" in learned:
            assert torch.equal(prompt["pixel_values"], learned["pixel_values"])


def test_answers_are_those_of_generate(loaded: Loaded) -> None:
    model, processor = loaded("paligemma")
    (item, *_) = evaluate(model, processor, made("paligemma"), limit=1, max_new_tokens=10).items
    prompt = processor(images=picture(0, 20, 30), text="caption en", return_tensors="pt")
    ids = model.generate(**prompt, max_new_tokens=10, do_sample=False)[0, prompt["input_ids"].shape[1] :]
    assert item.answer == processor.decode(ids, skip_special_tokens=True).strip()


@pytest.mark.parametrize("family", ["paligemma", "gemma3-text"])
def test_likelihoods_are_those_of_a_forward_pass_over_prompt_and_answer(loaded: Loaded, family: str) -> None:
    model, processor = loaded(family)
    example = opened(made(family).rows[2])
    said = WrittenAnswers(model, processor, 12)([example])[0]
    prompt = written(processor, [example])
    answer = model.generate(**prompt, max_new_tokens=12, do_sample=False)
    types = {}
    if "token_type_ids" in prompt:
        more = answer.shape[1] - prompt["input_ids"].shape[1]
        types = {"token_type_ids": torch.cat([prompt["token_type_ids"], torch.ones(1, more, dtype=torch.int64)], 1)}
    pixels = {"pixel_values": prompt["pixel_values"]} if "pixel_values" in prompt else {}
    with torch.no_grad():
        logits = model(input_ids=answer, **pixels, **types).logits
    chances = logits[0, :-1].log_softmax(-1).gather(1, answer[0, 1:, None])[prompt["input_ids"].shape[1] - 1 :, 0]
    assert said.likelihood == pytest.approx(float(chances.sum()), abs=1e-3)
    names = (getattr(processor, "tokenizer", processor)).convert_ids_to_tokens(answer[0].tolist())[-len(chances) :]
    locations = [float(chance) for chance, name in zip(chances, names, strict=True) if name.startswith("<loc")]
    assert said.locations == pytest.approx(locations, abs=1e-3)
    assert family != "paligemma" or locations


def test_what_follows_the_end_token_is_no_part_of_the_answer(loaded: Loaded) -> None:
    _, processor = loaded("paligemma")
    model = Scripted(processor, ["a", "a longer answer than that"])
    short, long = evaluate(model, processor, examples(("x", "a"), ("x", "b")), metric="exact_match").items
    assert (short.answer, long.answer) == ("a", "a longer answer than that")
    assert short.tokens == len(processor.tokenizer.encode("a", add_special_tokens=False)) + 1
    assert short.likelihood == 0


@pytest.mark.parametrize("family", FAMILIES)
def test_perplexity_is_that_of_the_models_own_loss(loaded: Loaded, family: str) -> None:
    model, processor = loaded(family)
    report = evaluate(model, processor, made(family), metric="perplexity")
    total = count = 0.0
    for example, item in zip(made(family).rows, report.items, strict=True):
        batch = Collator(processor)([example])
        tokens = int((batch["labels"] != -100).sum())
        with torch.no_grad():
            loss = float(model(**batch).loss) * tokens
        assert item.tokens == tokens
        assert item.score == pytest.approx(-loss / tokens, rel=1e-4)
        total, count = total + loss, count + tokens
    assert report.values["perplexity"] == pytest.approx(2.718281828459045 ** (total / count), rel=1e-4)


# -- errors ------------------------------------------------------------------------------------------------------------


class Broken(Examples):
    """A source of which one example cannot be read."""

    def __getitem__(self, index: int, /) -> Example:
        if index == 1:
            raise InputError("Line 2 is damaged.")
        return super().__getitem__(index)


def test_what_cannot_be_read_or_asked_is_wrong_and_spoils_nothing_else(loaded: Loaded, tmp_path: Path) -> None:
    model, processor = loaded("paligemma")
    good = replace(
        made("paligemma").rows[0], suffix=evaluate(model, processor, made("paligemma"), limit=1).items[0].answer
    )
    rows = [
        good, good, Example("gone", (tmp_path / "gone.png",), "caption en", "x"),
        Example("junk", (b"junk",), "caption en", "x"),
        Example("marks", (white(),), "<image><image> what", "x"), good,
    ]  # fmt: skip
    report = evaluate(model, processor, Broken(rows), metric="exact_match")
    assert [item.score for item in report.items] == [1, 0, 0, 0, 0, 1]
    assert [item.id for item in report.items] == ["r0", "#1", "gone", "junk", "marks", "r0"]
    assert report.errors == 4
    assert report.values["exact_match"] == 2 / 6
    errors = [item.error or "" for item in report.items]
    assert errors[1] == "Line 2 is damaged."
    assert "gone.png" in errors[2]
    assert "no picture that is read here" in errors[3]
    assert "2 pictures but 1 came" in errors[4]


@pytest.mark.parametrize("name", NAMES)
def test_every_metric_counts_an_unreadable_picture_as_wrong(name: str) -> None:
    """With it, no value is better than without it; perplexity is of what could be read."""
    items = [Item(0, "a", "segment cat", CAT, (CAT,), (64, 48), tokens=3, likelihood=-1.0)]
    items.append(
        Item(1, "b", "segment cat", CAT.replace("cat", "dog"), (CAT.replace("cat", "dog"),), (64, 48), tokens=2)
    )
    bad = Item(2, "c", "segment cat", "", (CAT,), None, "no picture")
    metric = metric_of(name, MaskCodec())
    without, with_it = metric(items), metric([*items, bad])
    assert next(iter(without.values)) == name
    assert with_it.items[2] <= 0
    assert with_it.values[name] <= without.values[name] or name == "cider_d"
    assert with_it.values[name] < 1 or name in ("perplexity", "cider_d")


@pytest.mark.parametrize(
    ("arguments", "why"),
    [
        ({"metric": "bleu"}, "There is no metric 'bleu'; there are exact_match, vqa_accuracy"),
        ({"metric": "mask_iou"}, "a codec has made them"),
        ({"batch_size": 0}, "batch_size is 0"),
        ({"limit": 0}, "limit is 0"),
        ({"max_new_tokens": 1.5}, "max_new_tokens is 1.5"),
    ],
    ids=range(5),
)
def test_wrong_arguments_are_refused_before_anything_is_asked(loaded: Loaded, arguments: Any, why: str) -> None:
    _, processor = loaded("paligemma")
    model = Scripted(processor, ["x"])
    with pytest.raises(InputError, match=why):
        evaluate(model, processor, examples(("x", "x")), **arguments)
    assert not model.batches


def test_a_source_without_examples_is_refused(loaded: Loaded) -> None:
    with pytest.raises(InputError, match="no examples"):
        evaluate(*loaded("paligemma"), Examples([]))
    with pytest.raises(InputError, match="no items"):
        scored([])


# -- scores ------------------------------------------------------------------------------------------------------------


def test_each_kind_of_prompt_has_its_metric(loaded: Loaded) -> None:
    _, processor = loaded("paligemma")
    pairs = [
        ("caption en", "a cat"),
        ("detect cat", CAT),
        ("segment cat", CAT),
        ("answer en why?", "so"),
        ("ocr", "STOP"),
    ]
    model = Scripted(processor, ["a cat", CAT, CAT, "no", "STOP"])
    report = evaluate(model, processor, examples(*pairs))
    assert [name for name in report.values if name in NAMES] == ["cider_d", "map", "box_iou", "exact_match"]
    assert report.values["map"] == pytest.approx(1)
    assert report.values["box_iou"] == 1
    assert report.values["exact_match"] == 0.5
    assert report.counts == {"caption": 1, "detect": 1, "segment": 1, "answer": 1, "ocr": 1}
    assert [item.score for item in report.items] == [0, 1, 1, 0, 1]
    assert usual_metric(Item(0, "x", "answer en why?", references=("so",) * 10)) == "vqa_accuracy"
    assert usual_metric(Item(0, "x", "segment cat"), MaskCodec()) == "mask_iou"


def test_a_metric_may_be_any_function_of_items(loaded: Loaded) -> None:
    _, processor = loaded("paligemma")

    def shouted(items: Any) -> Score:
        return Score.mean("shouted", [float(item.answer.isupper()) for item in items])

    report = evaluate(Scripted(processor, ["YES", "no"]), processor, examples(("x", "y"), ("x", "y")), metric=shouted)
    assert report.values == {"shouted": 0.5}


def test_masks_are_compared_as_the_codec_makes_them() -> None:
    torch.manual_seed(0)
    codec = MaskCodec()
    codes = "".join(f"<seg{number:03}>" for number in range(16))
    answer = CAT.replace(" cat", codes + " cat")
    items = [
        Item(0, "a", "segment cat", answer, (answer,), (64, 48)),
        Item(1, "b", "segment cat", CAT, (answer,), (64, 48)),
    ]
    score = metric_of("mask_iou", codec)(items)
    assert score.items == (1, 0)
    assert score.values["invalid"] == 1
    assert score.values["box_iou"] == 1


def test_the_picture_is_measured_before_the_processor_shrinks_it(loaded: Loaded) -> None:
    _, processor = loaded("paligemma")
    source = Examples([Example("wide", (white(640, 240),), "detect cat", CAT)])
    assert evaluate(Scripted(processor, [CAT]), processor, source).items[0].size == (640, 240)


# -- which items -------------------------------------------------------------------------------------------------------


def test_a_limit_takes_the_first_or_a_seed_takes_others(loaded: Loaded) -> None:
    source = examples(*[("x", "y")] * 50)
    assert chosen_examples(source, 5) == [0, 1, 2, 3, 4]
    drawn = chosen_examples(source, 5, seed=1)
    assert drawn == chosen_examples(source, 5, seed=1) == sorted(set(drawn)) != [0, 1, 2, 3, 4]
    assert drawn != chosen_examples(source, 5, seed=2)
    assert chosen_examples(source, 99, seed=1) == list(range(50))
    _, processor = loaded("paligemma")
    report = evaluate(Scripted(processor, ["y"] * 5), processor, source, limit=5, seed=1, metric="exact_match")
    assert [item.id for item in report.items] == [f"made:{index}" for index in drawn]


def test_known_items_are_not_asked_again_and_new_ones_are_shown_as_they_come(loaded: Loaded) -> None:
    _, processor = loaded("paligemma")
    source = examples(*[("x", str(number)) for number in range(5)])
    whole = evaluate(Scripted(processor, list("01234")), processor, source, metric="exact_match")
    model, shown = Scripted(processor, ["0", "4"]), []
    again = evaluate(
        model, processor, source, metric="exact_match", batch_size=3, known=whole.items[1:4], on_item=shown.append
    )
    assert again.items == whole.items
    assert model.batches == [2]
    assert [item.index for item in shown] == [0, 4]
    assert [item.score for item in shown] == [None, None]


def test_batches_are_as_large_as_asked(loaded: Loaded) -> None:
    _, processor = loaded("paligemma")
    model = Scripted(processor, ["y"] * 7)
    evaluate(model, processor, examples(*[("x", "y")] * 7), batch_size=3, metric="exact_match")
    assert model.batches == [3, 3, 1]
