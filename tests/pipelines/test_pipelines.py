"""What pipelines do beside answering: find their parts and devices, refuse what is wrong, and do better in places."""

import copy
import socket
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from processor_pairs import picture

import gemlens
from gemlens.errors import InputError, PictureError
from gemlens.pipelines.image_text_to_text import ImageTextToTextPipeline
from gemlens.pipelines.text_classification import TextClassificationPipeline
from gemlens.pipelines.text_generation import TextGenerationPipeline
from gemlens.processing.pictures import picture_urls

A, B, WIDE = picture(1), picture(2, 9, 31), picture(3, 60, 20)
MARK = "<start_of_image>"
SHORT = {"max_new_tokens": 4}
needs_no_accelerator = pytest.mark.skipif(torch.accelerator.is_available(), reason="this machine has an accelerator")


@pytest.fixture(scope="module")
def answers(checkpoint: Callable[[str], str]) -> ImageTextToTextPipeline:
    """A Gemma 3 with pictures."""
    return gemlens.pipeline("image-text-to-text", model=checkpoint("gemma3-pictures"), device=-1)


@pytest.fixture(scope="module")
def writes(checkpoint: Callable[[str], str]) -> TextGenerationPipeline:
    """A Gemma 3 without pictures."""
    return gemlens.pipeline("text-generation", model=checkpoint("gemma3-text"), device=-1)


def reference(answers_or_writes: Any) -> Any:
    """The reference's pipeline of the same task and files."""
    found = answers_or_writes
    return transformers.pipeline(found.task, model=found.tokenizer.name_or_path, device=-1)


# -- parts -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "kind"),
    [
        ("paligemma", ImageTextToTextPipeline),
        ("gemma3-pictures", ImageTextToTextPipeline),
        ("gemma3-text", TextGenerationPipeline),
        ("gemma3-classifier", TextClassificationPipeline),
    ],
)
def test_without_a_task_it_is_what_the_model_is_for(checkpoint: Any, name: str, kind: type) -> None:
    found = gemlens.pipeline(model=checkpoint(name), device=-1)
    assert type(found) is kind
    encoder = {"processor": found.processor} if kind is ImageTextToTextPipeline else {"tokenizer": found.tokenizer}
    again = gemlens.pipeline(model=found.model, **encoder)
    assert type(again) is kind
    assert again.model is found.model


def test_a_model_and_its_parts_may_come_as_they_are(answers: Any, checkpoint: Any) -> None:
    folder = Path(checkpoint("gemma3-pictures"))
    model = gemlens.Gemma3ForConditionalGeneration.from_pretrained(folder)
    for processor in (folder, str(folder), gemlens.AutoProcessor.from_pretrained(folder)):
        found = gemlens.pipeline("image-text-to-text", model=model, processor=processor)
        assert found(A, f"{MARK} a", **SHORT) == answers(A, f"{MARK} a", **SHORT)


def test_weights_have_the_checkpoints_dtype_unless_told(checkpoint: Any, tmp_path: Path) -> None:
    model = gemlens.Gemma3ForCausalLM.from_pretrained(checkpoint("gemma3-text"), dtype=torch.bfloat16)
    model.save_pretrained(tmp_path)
    gemlens.AutoTokenizer.from_pretrained(checkpoint("gemma3-text")).save_pretrained(tmp_path)
    for asked, dtype in (
        ({}, torch.bfloat16),
        ({"dtype": "auto"}, torch.bfloat16),
        ({"dtype": torch.float32}, torch.float32),
        ({"torch_dtype": "float32"}, torch.float32),
        ({"model_kwargs": {"dtype": torch.float32}}, torch.float32),
    ):
        for library in (gemlens, transformers):
            found = library.pipeline("text-generation", model=str(tmp_path), device=-1, **asked)
            assert found.model.dtype == dtype


def test_arguments_of_the_model_are_passed_on(checkpoint: Any) -> None:
    more = {"attn_implementation": "eager", "sliding_window": 3}
    found = gemlens.pipeline("text-generation", model=checkpoint("gemma3-text"), device=-1, model_kwargs=more)
    assert found.model.attn_implementation == "eager"
    assert found.model.config.sliding_window == 3


# -- devices -----------------------------------------------------------------------------------------------------------


@needs_no_accelerator
def test_a_number_without_an_accelerator_warns_and_is_the_cpu(checkpoint: Any) -> None:
    with pytest.warns(UserWarning, match=r"device=0 is an accelerator, but this machine has none; .* on the CPU\."):
        found = gemlens.pipeline("text-generation", model=checkpoint("gemma3-text"), device=0)
    assert found.device.type == "cpu"


def test_a_device_by_name_must_be_there(checkpoint: Any) -> None:
    folder = checkpoint("gemma3-text")
    for device in ("cpu", torch.device("cpu"), -1):
        assert gemlens.pipeline("text-generation", model=folder, device=device).device.type == "cpu"
    assert gemlens.pipeline("text-generation", model=folder, device_map="cpu").device.type == "cpu"
    for wrong in ("cuda:99", "nowhere", "meta"):
        with pytest.raises(InputError, match=f"device='{wrong}' (is no device of this machine|holds no values)"):
            gemlens.pipeline("text-generation", model=folder, device=wrong)


@pytest.mark.gpu
def test_an_accelerator_gives_the_tokens_of_the_cpu(checkpoint: Any) -> None:
    accelerator = torch.accelerator.current_accelerator()
    for device in (None, 0, accelerator):
        for name, given in (("gemma3-pictures", (A, f"{MARK} a")), ("paligemma", (A, "a"))):
            found = gemlens.pipeline("image-text-to-text", model=checkpoint(name), device=device)
            assert found.device.type == accelerator.type
            on_cpu = gemlens.pipeline("image-text-to-text", model=checkpoint(name), device=-1)
            assert found(*given, **SHORT) == on_cpu(*given, **SHORT)
    classifier = gemlens.pipeline(model=checkpoint("gemma3-classifier"), device=0)
    on_cpu = gemlens.pipeline(model=checkpoint("gemma3-classifier"), device=-1)
    assert classifier("the Work")[0]["score"] == pytest.approx(on_cpu("the Work")[0]["score"], abs=1e-3)


# -- how text is continued ---------------------------------------------------------------------------------------------


def test_an_answer_has_256_tokens_unless_told(writes: Any) -> None:
    for pipe in (writes, reference(writes)):
        endless = {"do_sample": False, "eos_token_id": 703, "return_tensors": True}  # a token that never comes
        (found,) = pipe("the Work", **endless)
        assert len(found["generated_token_ids"]) == len(writes.tokenizer("the Work")["input_ids"]) + 256
    (found,) = writes("the Work", max_length=9, return_tensors=True)
    assert len(found["generated_token_ids"]) == 9


def test_what_the_checkpoint_says_about_lengths_is_forgotten_there_and_holds_here(
    checkpoint: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The reference's documentation says that it holds."""
    lengths = []
    for library in (gemlens, transformers):
        pipe = library.pipeline("text-generation", model=checkpoint("gemma3-text"), device=-1)
        pipe.model.generation_config.max_new_tokens = 7
        again = library.pipeline("text-generation", model=pipe.model, tokenizer=pipe.tokenizer, device=-1)
        (found,) = again("the Work", do_sample=False, eos_token_id=703, return_tensors=True)
        lengths.append(len(found["generated_token_ids"]) - len(pipe.tokenizer("the Work")["input_ids"]))
    assert lengths == [7, 256]


def test_text_is_drawn_as_the_reference_draws(checkpoint: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """At temperature 0.7, with what the checkpoint says besides; the task with pictures draws only if told."""
    for task, name in (("text-generation", "gemma3-text"), ("image-text-to-text", "gemma3-pictures")):
        pipe = gemlens.pipeline(task, model=checkpoint(name), device=-1)
        pipe.model.generation_config.top_k = 9
        theirs = transformers.pipeline(task, model=checkpoint(name), device=-1)
        theirs.model.generation_config.top_k = 9
        theirs = transformers.pipeline(
            task, model=theirs.model, tokenizer=theirs.tokenizer, processor=theirs.processor, device=-1
        )
        seen: list[Any] = []
        generate = type(pipe.model).generate

        def spy(model: Any, *arguments: Any, seen: list[Any] = seen, generate: Any = generate, **named: Any) -> Any:
            seen.append(named["generation_config"])
            return generate(model, *arguments, **named)

        monkeypatch.setattr(type(pipe.model), "generate", spy)
        pipe(text_inputs="a", max_new_tokens=1) if task == "text-generation" else pipe(text="a", max_new_tokens=1)
        monkeypatch.undo()
        for setting in ("do_sample", "temperature", "top_k", "top_p", "max_new_tokens", "eos_token_id"):
            assert getattr(seen[0], setting) == getattr(theirs.generation_config, setting), setting


def test_a_seed_makes_drawn_text_come_again(writes: Any) -> None:
    found = [writes("the Work", max_new_tokens=12, seed=seed)[0]["generated_text"] for seed in (1, 1, 2)]
    assert found[0] == found[1] != found[2]


def test_keywords_of_the_pipeline_hold_for_calls_that_do_not_say_otherwise(checkpoint: Any) -> None:
    pipe = gemlens.pipeline(
        "text-generation",
        model=checkpoint("gemma3-text"),
        device=-1,
        return_tensors=True,
        do_sample=False,
        **SHORT,
    )
    tokens = len(pipe.tokenizer("the Work")["input_ids"])
    assert len(pipe("the Work")[0]["generated_token_ids"]) == tokens + 4
    assert len(pipe("the Work", max_new_tokens=2)[0]["generated_token_ids"]) == tokens + 2


def test_answers_can_be_streamed_and_stopped(answers: Any, capsys: pytest.CaptureFixture[str]) -> None:
    streamer = gemlens.TextStreamer(answers.processor, skip_prompt=True, skip_special_tokens=True)
    (whole,) = answers(A, f"{MARK} a", return_full_text=False, max_new_tokens=12, streamer=streamer)
    assert capsys.readouterr().out == whole["generated_text"] + "\n"
    stop = whole["generated_text"][2:4]
    (short,) = answers(A, f"{MARK} a", return_full_text=False, max_new_tokens=12, stop_strings=[stop])
    assert stop in short["generated_text"]
    assert len(short["generated_text"]) < len(whole["generated_text"])


def test_several_answers_with_pictures_are_lost_there_and_given_here(answers: Any) -> None:
    keywords = {**SHORT, "generate_kwargs": {"num_beams": 3, "num_return_sequences": 2}}
    found = answers(A, f"{MARK} a", **keywords)
    assert len(found) == 2
    assert found[:1] == reference(answers)(A, f"{MARK} a", **copy.deepcopy(keywords))


def test_a_prompt_that_ends_in_bytes_is_said_twice_there_and_once_here(writes: Any, answers: Any) -> None:
    """A run of bytes is decoded as a whole, so new bytes change what the prompt's own look like."""
    byte = answers.tokenizer.convert_tokens_to_ids("<0xFF>")
    keywords = {"text": "What?", "max_new_tokens": 1, "return_full_text": False}
    allowed = {"generate_kwargs": {"prefix_allowed_tokens_fn": lambda row, ids: [byte]}}
    assert reference(answers)(**keywords, **copy.deepcopy(allowed)) == [
        {"input_text": "What?", "generated_text": "What\ufffd\ufffd"}
    ]
    assert answers(**keywords, **allowed) == [{"input_text": "What?", "generated_text": "\ufffd"}]


# -- pictures ----------------------------------------------------------------------------------------------------------


def test_pictures_come_from_wherever_they_are(answers: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    A.save(tmp_path / "a.png")
    data = (tmp_path / "a.png").read_bytes()
    monkeypatch.setattr(picture_urls, "fetch", lambda url, *_: data)
    (expected,) = answers(A, f"{MARK} a", **SHORT)
    for source in (str(tmp_path / "a.png"), tmp_path / "a.png", data, "https://example.com/a.png"):
        assert answers(source, f"{MARK} a", **SHORT) == [expected]
        assert answers([source], text=[f"{MARK} a"], **SHORT) == [expected]
    chat = [{"role": "user", "content": [{"type": "image", "url": "https://example.com/a.png"}]}]
    assert answers(chat, **SHORT)[0]["generated_text"][0] == chat[0]
    with pytest.raises(PictureError, match="allow_urls=False"):
        answers(chat, **SHORT, allow_urls=False)


def test_urls_in_texts_are_never_fetched(answers: Any, writes: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(socket, "getaddrinfo", lambda *_, **__: pytest.fail("it looked up a name"))
    url = "https://example.com/a.png"
    answers(text=url, **SHORT)
    answers(text=[{"role": "user", "content": url}], **SHORT)
    writes(url, **SHORT)


def test_one_picture_for_each_text_is_an_error_there_and_paired_here(answers: Any) -> None:
    texts = [f"{MARK} a", f"the {MARK}"]
    with pytest.raises(ValueError, match="inconsistently sized batches"):
        reference(answers)([A, B], texts, **SHORT)
    assert answers([A, B], texts, **SHORT) == answers([[A], [B]], texts, **SHORT)


def test_arguments_of_the_processor_are_ignored_in_chats_there_and_obeyed_here(answers: Any) -> None:
    crops = {"do_pan_and_scan": True, "pan_and_scan_min_crop_size": 8, "pan_and_scan_max_num_crops": 4}
    crops |= {"pan_and_scan_min_ratio_to_activate": 1.2}
    chat = [{"role": "user", "content": [{"type": "image", "image": WIDE}]}]
    lengths = [
        [len(pipe(chat, return_tensors=True, **SHORT, **more)[0]["generated_token_ids"]) for more in ({}, crops)]
        for pipe in (answers, reference(answers))
    ]
    assert lengths[0][0] == lengths[1][0] == lengths[1][1] < lengths[0][1]


def test_pictures_beside_a_chat_are_written_into_it_there_and_not_here(answers: Any) -> None:
    changed = []
    for pipe in (answers, reference(answers)):
        chat = [{"role": "user", "content": [{"type": "image"}]}]
        pipe(A, chat, **SHORT)
        changed.append("image" in chat[0]["content"][0])
    assert changed == [False, True]


# -- mistakes ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("wrong", "sentence"),
    [
        (
            {"task": "text-generatoin"},
            "no task 'text-generatoin'; there are image-text-to-text, text-",
        ),
        ({"model": None}, "No model came"),
        ({"device": -1, "device_map": "cpu"}, "pass one of them"),
        ({"dtype": "float32", "model_kwargs": {"dtype": "float32"}}, "'dtype' came twice"),
        ({"processor": "x"}, r"takes tokenizer=, and no processor=\."),
        ({"task": "image-text-to-text", "tokenizer": "x"}, r"takes processor=, and no tokenizer=\."),
        ({"task": "image-text-to-text"}, "no processor of pictures; use 'text-generation'"),
        ({"task": "text-classification"}, "does not know the model type 'gemma3_text'"),
        ({"batch_size": 0}, "batch_size is 0"),
    ],
    ids=str,
)
def test_what_cannot_be_made_is_refused(checkpoint: Any, wrong: dict[str, Any], sentence: str) -> None:
    with pytest.raises((InputError, gemlens.CheckpointError), match=sentence):
        gemlens.pipeline(**{"task": "text-generation", "model": checkpoint("gemma3-text"), **wrong})("a")


def test_a_loaded_model_needs_its_encoder_and_no_words_on_loading(writes: Any) -> None:
    with pytest.raises(InputError, match=r"without its tokenizer; pass tokenizer=\."):
        gemlens.pipeline("text-generation", model=writes.model)
    with pytest.raises(InputError, match="A loaded model came, but dtype"):
        gemlens.pipeline("text-generation", model=writes.model, tokenizer=writes.tokenizer, dtype="bfloat16")
    with pytest.raises(InputError, match="A Gemma3ForCausalLM came for the task 'text-classification'"):
        gemlens.pipeline("text-classification", model=writes.model, tokenizer=writes.tokenizer)


def test_misspelt_keywords_are_type_errors_before_weights_are_read(
    answers: Any, writes: Any, checkpoint: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(TypeError, match=r"no argument 'max_new_token'; did you mean 'max_new_tokens'\?"):
        answers(A, f"{MARK} a", max_new_token=3)
    with pytest.raises(TypeError, match=r"no argument 'do_pan_and_scam'; did you mean 'do_pan_and_scan'\?"):
        answers(A, f"{MARK} a", do_pan_and_scam=True)
    with pytest.raises(TypeError, match=r"no argument 'zzz'; it takes .*top_k"):
        writes("a", zzz=1)
    with pytest.raises(TypeError, match="'temprature'"):
        writes("a", generate_kwargs={"temprature": 1.0})
    with pytest.raises(TypeError, match="function_to_aply"):
        gemlens.pipeline(model=checkpoint("gemma3-classifier"), device=-1)("a", function_to_aply="none")
    monkeypatch.setattr(gemlens.Gemma3ForCausalLM, "from_pretrained", lambda *_, **__: pytest.fail("it read weights"))
    with pytest.raises(TypeError, match=r"no argument 'dtpye'"):
        gemlens.pipeline("text-generation", model=checkpoint("gemma3-text"), dtpye="auto")


@pytest.mark.parametrize(
    ("given", "keywords", "sentence"),
    [
        ((), {}, "A NoneType came as text"),
        ((A,), {}, "A NoneType came as text"),
        ((A, 3), {}, "A int came as text"),
        ((A, []), {}, "A list came as text"),
        (([A, B], ["a"]), {}, r"1 text and pictures for 2 came"),
        (([[A], [B]], "a"), {}, "One text but 2 lists of pictures came"),
        ((A, [{"role": "user", "content": "a"}]), {}, r"0 parts .* without a picture, but 1 came"),
        (([{"role": "user", "content": [{"type": "image"}]}],), {}, r"1 part .* without a picture, but 0 came"),
        ((A, f"{MARK} a"), {"return_full_text": True, "return_tensors": True}, "pass one of them"),
        ((A, f"{MARK} a"), {"max_new_tokens": 2, "generate_kwargs": {"max_new_tokens": 2}}, "came twice"),
        ((A, f"{MARK} a"), {"batch_size": True}, "batch_size is True"),
    ],
    ids=lambda value: None,
)
def test_calls_that_cannot_be_answered_are_refused(answers: Any, given: Any, keywords: Any, sentence: str) -> None:
    with pytest.raises(InputError, match=sentence):
        answers(*given, **{**SHORT, **keywords})


def test_texts_and_classes_that_cannot_be_acted_on_are_refused(writes: Any, checkpoint: Any) -> None:
    for wrong in (None, 3, [], ["a", 3], [["a"]]):
        with pytest.raises(InputError, match="came; pass a text, messages"):
            writes(wrong)
    with pytest.raises(InputError, match="has pictures, and this model reads text only"):
        writes([{"role": "user", "content": [{"type": "image"}]}])
    classifier = gemlens.pipeline(model=checkpoint("gemma3-classifier"), device=-1)
    for inputs, keywords, sentence in (
        (3, {}, "pass a text or a list"),
        ([3], {}, "Pass texts, or dicts"),
        ({"texts": "a"}, {}, "Pass texts, or dicts"),
        ("a", {"top_k": 0}, "top_k is 0"),
        ("a", {"function_to_apply": "tanh"}, "pass one of default, sigmoid, softmax, none"),
    ):
        with pytest.raises(InputError, match=sentence):
            classifier(inputs, **keywords)
    assert classifier([]) == []
