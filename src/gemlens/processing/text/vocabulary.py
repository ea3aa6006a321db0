"""Vocabulary: ids -> pieces -> text, and the tokens that have names. GemmaTokenizerFast adds text -> ids to it."""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from tokenizers import AddedToken, Tokenizer
from torch import Tensor

from gemlens.errors import InputError
from gemlens.processing.text.backend import Backend
from gemlens.processing.text.piece_tokenizer import PieceTokenizer
from gemlens.processing.text.special_tokens import SpecialTokens
from gemlens.processing.text.tokenizer_settings import ADDITIONAL, names_a_token

# What `clean_up_tokenization_spaces` joins, as in the reference.
_CLEAN = {
    **{f" {mark}": mark for mark in (".", "?", "!", ",")},
    " ' ": "'",
    **{f" {end}": end for end in ("n't", "'m", "'s", "'ve", "'re")},
}


class Named:
    """`vocabulary.bos_token`: a token by its name; can be set to another token of the vocabulary."""

    def __set_name__(self, owner: type, name: str) -> None:
        self._name = name

    def __get__(self, vocabulary: "Vocabulary", owner: type) -> str | None:
        return vocabulary.special_tokens.get(self._name)

    def __set__(self, vocabulary: "Vocabulary", token: str | None) -> None:
        vocabulary.special_tokens.set(self._name, token)


class NamedId:
    """`vocabulary.bos_token_id`."""

    def __set_name__(self, owner: type, name: str) -> None:
        self._name = name.removesuffix("_id")

    def __get__(self, vocabulary: "Vocabulary", owner: type) -> int | None:
        return vocabulary.special_tokens.id(self._name)


class Vocabulary:
    """Pieces and their ids.

    Attributes:
        special_tokens: those with names; each name is an attribute here too: `image_token`, `image_token_id`.
        clean_up_tokenization_spaces: whether decoding joins what English writes together.
    """

    bos_token, eos_token, unk_token, pad_token = Named(), Named(), Named(), Named()
    bos_token_id, eos_token_id, unk_token_id, pad_token_id = NamedId(), NamedId(), NamedId(), NamedId()

    def __init__(
        self,
        backend: PieceTokenizer | Tokenizer,
        named: Mapping[str, Any],
        additional: Sequence[Any] = (),
        clean_up: bool = False,
    ) -> None:
        self._backend = Backend(backend)
        self.special_tokens = SpecialTokens(self._backend, named, additional)
        self.clean_up_tokenization_spaces = clean_up

    @property
    def backend_tokenizer(self) -> Tokenizer:
        """The `tokenizers.Tokenizer` underneath; for a GGUF file it is made when it is first asked for."""
        return self._backend.library

    # -- ids -> text ---------------------------------------------------------------------------------------------------

    def decode(
        self, token_ids: Any, skip_special_tokens: bool = False, clean_up_tokenization_spaces: bool | None = None
    ) -> str:
        """The text of one row of ids.

        Args:
            token_ids: an id, a list, or a tensor or array of one dimension.
            skip_special_tokens: leave out `<bos>`, pictures and so on; `<loc0000>` and `<seg000>` are no such tokens.
            clean_up_tokenization_spaces: by default the setting, which is False for Gemma.

        Raises:
            InputError: these are no ids, or several rows.
        """
        ids = id_list(token_ids)
        text = str(self._backend.reader.decode(ids, skip_special_tokens=skip_special_tokens))
        clean = (
            self.clean_up_tokenization_spaces if clean_up_tokenization_spaces is None else clean_up_tokenization_spaces
        )
        if clean:
            for apart, together in _CLEAN.items():
                text = text.replace(apart, together)
        return text

    def batch_decode(
        self, sequences: Any, skip_special_tokens: bool = False, clean_up_tokenization_spaces: bool | None = None
    ) -> list[str]:
        """The text of each row; arguments as in `decode`."""
        if isinstance(sequences, (str, int)):
            raise InputError(f"batch_decode takes rows of ids, but {sequences!r} came.")
        return [self.decode(row, skip_special_tokens, clean_up_tokenization_spaces) for row in sequences]

    # -- pieces --------------------------------------------------------------------------------------------------------

    def convert_tokens_to_ids(self, tokens: str | Iterable[str]) -> Any:
        """The id of a piece as the vocabulary writes it, or a list of ids; `unk_token_id` for what it has not."""
        if not isinstance(tokens, str):
            return [self.convert_tokens_to_ids(token) for token in tokens]
        token_id: int | None = self._backend.reader.token_to_id(tokens)
        return self.unk_token_id if token_id is None else token_id

    def convert_ids_to_tokens(self, ids: Any, skip_special_tokens: bool = False) -> Any:
        """The piece of an id as the vocabulary writes it, or a list of them; None for ids that it has not.

        Raises:
            InputError: these are no ids.
        """
        if isinstance(ids, int):
            return self._backend.reader.id_to_token(id_list(ids)[0])
        skipped = set(self.all_special_ids) if skip_special_tokens else set()
        return [self._backend.reader.id_to_token(token) for token in id_list(ids) if token not in skipped]

    def convert_tokens_to_string(self, tokens: Sequence[str]) -> str:
        """The text that pieces make."""
        return str(self._backend.reader.decoder.decode(list(tokens)))

    def get_vocab(self) -> dict[str, int]:
        """{piece: id}, added tokens included; a new dict."""
        return dict(self._backend.reader.get_vocab(with_added_tokens=True))

    def get_added_vocab(self) -> dict[str, int]:
        """{token: id} of the tokens that are found in a text before it is split."""
        return {token.content: number for number, token in self.added_tokens_decoder.items()}

    @property
    def added_tokens_decoder(self) -> dict[int, AddedToken]:
        """{id: token} of the same, by id."""
        return dict(sorted(self._backend.reader.get_added_tokens_decoder().items()))

    @property
    def vocab_size(self) -> int:
        """The number of pieces, without tokens that were added behind them."""
        return int(self._backend.reader.get_vocab_size(with_added_tokens=False))

    def __len__(self) -> int:
        return int(self._backend.reader.get_vocab_size(with_added_tokens=True))

    def __bool__(self) -> bool:
        return True

    # -- tokens with names ---------------------------------------------------------------------------------------------

    def add_tokens(
        self, new_tokens: str | AddedToken | Sequence[str | AddedToken], special_tokens: bool = False
    ) -> int:
        """Adds tokens that the vocabulary lacks, in order, behind the last id; gives how many were new.

        They are found in a text before it is split. Special ones are left out by `skip_special_tokens`.
        """
        tokens = [new_tokens] if isinstance(new_tokens, (str, AddedToken)) else list(new_tokens)
        library = self._backend.library
        add = library.add_special_tokens if special_tokens else library.add_tokens
        return int(add(tokens))

    def add_special_tokens(
        self, special_tokens_dict: Mapping[str, Any], replace_additional_special_tokens: bool = True
    ) -> int:
        """Adds and names special tokens: `{"pad_token": "<pad>", "additional_special_tokens": ["<image>"]}`.

        Gives how many were new to the vocabulary.

        Raises:
            InputError: a name that does not end in `_token`, or no token.
        """
        if not isinstance(special_tokens_dict, Mapping):
            raise InputError("add_special_tokens takes {name: token}; use add_tokens(tokens, special_tokens=True).")
        for name in special_tokens_dict:
            if name != ADDITIONAL and not names_a_token(name):
                raise InputError(f"{name!r} names no token; pass names like 'pad_token', or '{ADDITIONAL}'.")
        added = 0
        for name, value in special_tokens_dict.items():
            if name == ADDITIONAL:
                added += self.special_tokens.add_unnamed(value, replace_additional_special_tokens)
            else:
                added += self.special_tokens.add(name, value)
        return added

    @property
    def additional_special_tokens(self) -> list[str]:
        """Special tokens without a name."""
        return list(self.special_tokens.additional)

    @property
    def special_tokens_map(self) -> dict[str, str | list[str]]:
        """{name: token}."""
        return self.special_tokens.table()

    @property
    def all_special_tokens(self) -> list[str]:
        """Each special token once."""
        return self.special_tokens.all()

    @property
    def all_special_ids(self) -> list[int]:
        """Their ids."""
        return self.convert_tokens_to_ids(self.all_special_tokens)

    def __getattr__(self, name: str) -> Any:
        tokens = self.__dict__.get("special_tokens")  # absent while being unpickled
        if tokens is not None:
            if tokens.has(name):
                return tokens.get(name)
            if name.endswith("_id") and tokens.has(name.removesuffix("_id")):
                return tokens.id(name.removesuffix("_id"))
        raise AttributeError(f"This {type(self).__name__} has no '{name}'.")


def id_list(token_ids: Any) -> list[int]:
    """Ids as a list of int: one id, a list, or a tensor or array of one dimension.

    Raises:
        InputError: something else, or a negative number.
    """
    values = token_ids.tolist() if isinstance(token_ids, Tensor) else token_ids
    try:
        ids = [int(values)] if isinstance(values, int) else [int(value) for value in values]
    except (TypeError, ValueError) as error:
        raise InputError(
            "These are no token ids; pass a row of whole numbers, and several rows to batch_decode."
        ) from error
    if ids and not 0 <= min(ids) <= max(ids) < 2**32:
        raise InputError(f"Token ids are 0 or more, but {min(ids) if min(ids) < 0 else max(ids)} came.")
    return ids
