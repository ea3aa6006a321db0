"""`model.generate`: the documented arguments, checked once, become a Run, and one of the loops continues it.

arguments -> Settings, Prompt, cache -> Reader, Chooser, StoppingCriteriaList -> loop, beam or speculative -> ids
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from gemlens.caches.cache import Cache, HasWindows
from gemlens.caches.dynamic import DynamicCache
from gemlens.caches.offloaded import OffloadedCache, OffloadedStaticCache
from gemlens.caches.quantized import QuantizedCache
from gemlens.caches.static import StaticCache
from gemlens.errors import InputError
from gemlens.generation import stopping
from gemlens.generation.beam import search
from gemlens.generation.config import Settings, ids_of
from gemlens.generation.logits import LogitsProcessor
from gemlens.generation.loop import Run, Streamer, continue_rows
from gemlens.generation.outputs import GenerateBeamDecoderOnlyOutput, GenerateDecoderOnlyOutput, Record
from gemlens.generation.reading import Prompt, Reader
from gemlens.generation.sampling import AllowedTokens, Chooser, Length, largest_needed, processors_for
from gemlens.generation.speculative import Assistant, PromptLookup, continue_with_guesses

if TYPE_CHECKING:
    from gemlens.models.generative import GenerativeModel

Generated = Tensor | GenerateDecoderOnlyOutput | GenerateBeamDecoderOnlyOutput
_NEW_TOKENS = 20  # where nobody says how many
_CACHES: Mapping[str, Callable[[HasWindows, int], Cache]] = {
    "dynamic": lambda model, room: DynamicCache(model),
    "dynamic_full": lambda model, room: DynamicCache(),
    "quantized": lambda model, room: QuantizedCache(model),
    "quantized_full": lambda model, room: QuantizedCache(),
    "offloaded": lambda model, room: OffloadedCache(model),
    "static": StaticCache,
    "hybrid": StaticCache,
    "offloaded_static": OffloadedStaticCache,
}


@dataclass(frozen=True)
class Company:
    """Objects of the caller's that take part in a call; see `GenerativeModel.generate`."""

    processors: Sequence[LogitsProcessor] = ()
    criteria: Sequence[stopping.StoppingCriteria] = ()
    allowed_tokens: AllowedTokens | None = None
    streamer: Streamer | None = None
    assistant: "GenerativeModel | None" = None
    tokenizer: stopping.Decodes | None = None
    generator: torch.Generator | None = None
    compile: bool = False


def generate(
    model: "GenerativeModel", prompt: Prompt, settings: Settings, company: Company, cache: Cache | None = None
) -> Generated:
    """Continues prompts; see `GenerativeModel.generate`.

    Args:
        model: in eval mode.
        prompt: as it came.
        settings: with the model's own where the caller said nothing.
        company: of the caller.
        cache: of an earlier call, holding the beginning of the prompt.
    """
    settings = _with_padding(settings)
    _check_tokens(settings, model.text_model().embed_tokens.num_embeddings)
    prompt = _checked(model, prompt, settings)
    length = Length(len(prompt), _most_tokens(model, prompt, settings))
    _check_fit(settings, company, cache, prompt)
    cache = _cache_for(model, settings, company, length, cache)
    # Where embeddings came, `ids` hold new tokens only, but lengths are said of the whole text.
    unseen = len(prompt) - prompt.ids.shape[1]
    length = Length(length.prompt - unseen, length.most - unseen)
    settings = replace(settings, min_length=max(0, settings.min_length - unseen))
    run = _run(model, prompt, settings, company, length, cache)
    if run.streamer is not None:
        run.streamer.put(prompt.ids.cpu())
    if settings.num_beams > 1:
        return _beam_output(run, settings, search(run, settings, length.most))
    return _output(run, settings, _continue(run, settings, company, length))


def _continue(run: Run, settings: Settings, company: Company, length: Length) -> Tensor:
    if company.assistant is not None:
        prompt, rows = run.reader.prompt, run.reader.model.text_model().embed_tokens.num_embeddings
        if company.assistant.text_model().embed_tokens.num_embeddings > rows:
            raise InputError(
                f"The assistant has more than the model's {rows} tokens; it must have the same vocabulary."
            )
        if prompt.pixels is not None and company.assistant.picture_tokens is None:
            raise InputError(f"The assistant {type(company.assistant).__name__} cannot see the pictures of the prompt.")
        reader = Reader(company.assistant, prompt, DynamicCache(), settings.prefill_chunk_size, {})
        return continue_with_guesses(run, Assistant(reader, settings), length.most)
    if settings.prompt_lookup_num_tokens is not None:
        lookup = PromptLookup(settings.prompt_lookup_num_tokens, settings.max_matching_ngram_size or 2)
        return continue_with_guesses(run, lookup, length.most)
    return continue_rows(run, settings.num_return_sequences)


def _run(
    model: "GenerativeModel", prompt: Prompt, settings: Settings, company: Company, length: Length, cache: Cache | None
) -> Run:
    recorded = {
        name: True
        for name in ("output_attentions", "output_hidden_states")
        if settings.return_dict_in_generate and getattr(settings, name)
    }
    compiled = company.compile and not settings.disable_compile
    if compiled and (recorded or not (isinstance(cache, StaticCache) and cache.is_compileable)):
        raise InputError("compile=True needs a static cache, and gives no attentions and hidden states; drop one.")
    if compiled and not all(getattr(module, "compiles", True) for module in model.modules()):
        raise InputError("compile=True does not go with a packed model, which torch cannot compile; drop one.")
    processors = processors_for(settings, length, company.processors, company.allowed_tokens)
    is_recorded = bool(recorded) or (
        settings.return_dict_in_generate and (settings.output_scores or settings.output_logits)
    )
    needed = None if settings.num_beams > 1 else largest_needed(processors, settings.draws)
    largest = None if is_recorded else needed
    criteria = stopping.StoppingCriteriaList([stopping.MaxLengthCriteria(length.most), *company.criteria])
    if settings.max_time is not None:
        criteria.append(stopping.MaxTimeCriteria(settings.max_time))
    if settings.end_tokens:
        criteria.append(stopping.EosTokenCriteria(settings.end_tokens))
    if settings.stop_strings is not None:
        if company.tokenizer is None:
            raise InputError("stop_strings came without tokenizer=, which makes text of ids; pass it.")
        criteria.append(stopping.StopStringCriteria(company.tokenizer, settings.stop_strings, prompt.ids.shape[1]))
    return Run(
        reader=Reader(model, prompt, cache, settings.prefill_chunk_size, recorded, compiled, largest),
        ids=prompt.ids,
        # Whether or not logits are recorded, so that a seed gives the same tokens.
        choose=Chooser(processors, settings.draws, company.generator, needed is not None and model.finds_largest),
        has_ended=criteria,
        padding=ids_of(settings.pad_token_id)[0],
        record=Record(settings),
        streamer=company.streamer,
    )


def _output(run: Run, settings: Settings, ids: Tensor) -> Generated:
    if not settings.return_dict_in_generate:
        return ids
    record = run.record
    return GenerateDecoderOnlyOutput(
        ids, *record.scores_and_logits(), *record.inside(), past_key_values=run.reader.cache
    )


def _beam_output(run: Run, settings: Settings, found: tuple[Tensor, Tensor, Tensor]) -> Generated:
    ids, scores, origins = found
    if not settings.return_dict_in_generate:
        return ids
    record, shown = run.record, scores if settings.output_scores else None
    return GenerateBeamDecoderOnlyOutput(
        ids, shown, *record.scores_and_logits(), origins, *record.inside(), past_key_values=run.reader.cache
    )


# -- checks ------------------------------------------------------------------------------------------------------------


def _with_padding(settings: Settings) -> Settings:
    """Rows that have ended are filled with the padding token, else with an end token, else with 0."""
    return replace(settings, pad_token_id=(*ids_of(settings.pad_token_id), *settings.end_tokens, 0)[0])


def _check_tokens(settings: Settings, vocabulary: int) -> None:
    """Ids in the settings must be tokens.

    Raises:
        InputError: one is not.
    """
    words = [settings.suppress_tokens, settings.begin_suppress_tokens, *(settings.bad_words_ids or [])]
    single = [settings.pad_token_id, settings.eos_token_id, settings.forced_bos_token_id, settings.forced_eos_token_id]
    largest = max(token for given in (*words, *single) for token in ids_of(given))
    if largest >= vocabulary:
        raise InputError(f"The settings name token {largest}, but the vocabulary ends at {vocabulary - 1}.")


def _checked(model: "GenerativeModel", prompt: Prompt, settings: Settings) -> Prompt:
    """The prompt on the model's device, its mask told from padding if none came."""
    ids, mask = prompt.ids, prompt.mask
    if not isinstance(ids, Tensor) or ids.dim() != 2 or ids.is_floating_point():
        came = f"shape {tuple(ids.shape)} and dtype {ids.dtype}" if isinstance(ids, Tensor) else f"{type(ids).__name__}"
        raise InputError(f"input_ids have {came}, but must be whole numbers of shape [batch, tokens].")
    if len(prompt) == 0:
        raise InputError("The prompt is empty; begin with the tokenizer's <bos>.")
    if (prompt.pixels is not None or prompt.types is not None) and model.picture_tokens is None:
        given = "pixel_values" if prompt.pixels is not None else "token_type_ids"
        raise InputError(f"{type(model).__name__} reads text only, but {given} came.")
    for name, numbers in (("attention_mask", mask), ("token_type_ids", prompt.types)):
        if numbers is not None and (not isinstance(numbers, Tensor) or numbers.shape != (len(ids), len(prompt))):
            came = f"shape {tuple(numbers.shape)}" if isinstance(numbers, Tensor) else f"type {type(numbers).__name__}"
            raise InputError(f"{name} has {came}, but must have a number per token: [{len(ids)}, {len(prompt)}].")
    (pad,) = ids_of(settings.pad_token_id)
    if mask is None and prompt.embeds is None and pad not in settings.end_tokens and bool((ids == pad).any()):
        mask = (ids != pad).long()
    ends_padded = [] if mask is None else (mask[:, -1:] == 0).nonzero()[:, 0].tolist()
    if ends_padded:
        raise InputError(
            f"Row {ends_padded[0]} ends in padding, but its answer comes after its last token; pad on the left: "
            "tokenizer(..., padding=True, padding_side='left')."
        )
    device = model.device

    def moved(values: Tensor | None) -> Tensor | None:
        return None if values is None else values.to(device)

    return Prompt(ids.to(device), moved(mask), moved(prompt.types), moved(prompt.pixels), moved(prompt.embeds))


def _most_tokens(model: "GenerativeModel", prompt: Prompt, settings: Settings) -> int:
    """Tokens that the text may have, prompt and padding counted.

    Raises:
        InputError: the request does not fit the model, or leaves no room for an answer.
    """
    room, length = model.max_positions, len(prompt)
    if settings.max_new_tokens is not None:
        most = length + settings.max_new_tokens
    elif settings.max_length is not None:
        most = settings.max_length
        if most <= length:
            raise InputError(
                f"max_length is {most}, but the prompt alone has {length} tokens; raise it, or pass max_new_tokens."
            )
    else:
        most = max(min(length + _NEW_TOKENS, room), length + 1)
    if most > room:
        raise InputError(
            f"The prompt's {length} tokens and {most - length} new ones make {most}, but the model reads at most "
            f"{room} (max_position_embeddings); shorten the prompt or ask for {max(room - length, 0)} or fewer."
        )
    return most


def _check_fit(settings: Settings, company: Company, cache: Cache | None, prompt: Prompt) -> None:
    """Arguments that exclude each other.

    Raises:
        InputError: they came together.
    """
    guesses = company.assistant is not None or settings.prompt_lookup_num_tokens is not None
    static = isinstance(cache, StaticCache) or settings.cache_implementation in ("static", "hybrid", "offloaded_static")
    recorded = settings.return_dict_in_generate and (settings.output_attentions or settings.output_hidden_states)
    wrong = {
        "several rows": guesses and len(prompt.ids) > 1,
        "num_beams": guesses and settings.num_beams > 1,
        "num_return_sequences": guesses and settings.num_return_sequences > 1,
        "use_cache=False": guesses and not settings.use_cache,
        "inputs_embeds": company.assistant is not None and prompt.embeds is not None,
        "a static cache, which cannot forget": guesses and static,
    }
    if reasons := [name for name, is_wrong in wrong.items() if is_wrong]:
        raise InputError(f"assistant_model and prompt_lookup_num_tokens do not go with {', '.join(reasons)}.")
    beams, copies = settings.num_beams, settings.num_return_sequences
    if beams > 1 and company.streamer is not None:
        raise InputError("A streamer shows tokens as they are chosen, but beams are chosen at the end; drop one.")
    if beams > 1 and copies > beams:
        raise InputError(f"num_return_sequences is {copies}, but there are {beams} beams; raise num_beams.")
    if beams == 1 and copies > 1 and not settings.draws:
        raise InputError(f"num_return_sequences is {copies}, but greedy answers are all alike; pass do_sample=True.")
    if cache is not None and (settings.cache_implementation is not None or not settings.use_cache):
        raise InputError("past_key_values came, so cache_implementation and use_cache=False say nothing; drop them.")
    if recorded and settings.prefill_chunk_size is not None:
        raise InputError("output_attentions and output_hidden_states need the prompt whole; drop prefill_chunk_size.")


def _cache_for(
    model: "GenerativeModel", settings: Settings, company: Company, length: Length, cache: Cache | None
) -> Cache | None:
    """The caller's cache, or a new one with room for all tokens but the last, which is never read."""
    if cache is not None:
        if isinstance(cache, StaticCache) and cache.max_cache_len < length.most - 1:
            raise InputError(
                f"The text may have {length.most} tokens, but the static cache has room for {cache.max_cache_len}; "
                f"make it with max_cache_len={length.most - 1} or ask for fewer."
            )
        return cache
    if not settings.use_cache:
        return None
    name = settings.cache_implementation or ("static" if company.compile else "dynamic")
    if company.assistant is not None or settings.prompt_lookup_num_tokens is not None:
        # A sliding layer could not give back what guesses pushed out.
        name = "quantized_full" if name == "quantized" else "dynamic_full"
    return _CACHES[name](model.text_model(), length.most - 1)
