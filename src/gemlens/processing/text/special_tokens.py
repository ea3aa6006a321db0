"""The tokens that have names: `bos_token` is "<bos>", `image_token` is "<image_soft_token>" and so on."""

from collections.abc import Mapping, Sequence
from typing import Any

from tokenizers import AddedToken

from gemlens.errors import InputError
from gemlens.processing.text.backend import Backend

# The names that every tokenizer has (some None), in the order in which the reference lists them.
STANDARD = ("bos_token", "eos_token", "unk_token", "sep_token", "pad_token", "cls_token", "mask_token")
PICTURES = ("image_token", "boi_token", "eoi_token")


class SpecialTokens:
    """Names of tokens of one vocabulary. A named token that the vocabulary lacks is added to it.

    Attributes:
        additional: special tokens without a name.
    """

    def __init__(self, backend: Backend, named: Mapping[str, Any], additional: Sequence[Any]) -> None:
        self._backend = backend
        self._named: dict[str, str] = {}
        self.additional: list[str] = []
        given = {name: as_token(token, name) for name, token in named.items() if token is not None}
        unnamed = [as_token(token, "additional_special_tokens") for token in additional]
        known = backend.found_texts()
        if missing := [token for token in (*given.values(), *unnamed) if token.content not in known]:
            backend.library.add_special_tokens(missing)
        self._named = {name: token.content for name, token in given.items()}
        self.additional = list(dict.fromkeys(token.content for token in unnamed))

    @property
    def extra(self) -> list[str]:
        """Names beside the standard ones, such as `image_token`."""
        return [name for name in self._named if name not in STANDARD]

    def has(self, name: str) -> bool:
        """Whether there is such a name, with a token or without."""
        return name in STANDARD or name in self._named

    def get(self, name: str) -> str | None:
        """The token's text; None if the name has no token."""
        return self._named.get(name)

    def id(self, name: str) -> int | None:
        """The token's id; None if the name has no token."""
        token = self.get(name)
        return None if token is None else self._backend.reader.token_to_id(token)

    def set(self, name: str, token: Any) -> None:
        """Gives a name another token, which the vocabulary must have; None takes it away.

        Raises:
            InputError: the vocabulary has no such token.
        """
        if token is None:
            self._named.pop(name, None)
            return
        text = as_token(token, name).content
        if self._backend.reader.token_to_id(text) is None:
            raise InputError(
                f"{name}={text!r} is not in the vocabulary; add it with add_special_tokens({{'{name}': {text!r}}})."
            )
        self._named[name] = text

    def add(self, name: str, token: Any) -> int:
        """Adds the token if it is new, makes it special and names it; gives the number of new tokens."""
        added = int(self._backend.library.add_special_tokens([as_token(token, name)]))
        self.set(name, token)
        return added

    def add_unnamed(self, tokens: Any, replace: bool) -> int:
        """Adds special tokens without a name, instead of those there were or beside them; gives how many are new."""
        if isinstance(tokens, (str, AddedToken)) or not isinstance(tokens, Sequence):
            raise InputError(f"additional_special_tokens={tokens!r} is no list of tokens.")
        given = [as_token(token, "additional_special_tokens") for token in tokens]
        added = int(self._backend.library.add_special_tokens(given))
        kept = [] if replace else self.additional
        self.additional = list(dict.fromkeys([*kept, *(token.content for token in given)]))
        return added

    def table(self) -> dict[str, str | list[str]]:
        """{name: token}, standard names first, as `special_tokens_map.json` has it."""
        table: dict[str, str | list[str]] = {name: self._named[name] for name in STANDARD if name in self._named}
        if self.additional:
            table["additional_special_tokens"] = list(self.additional)
        return table | {name: self._named[name] for name in self.extra}

    def all(self) -> list[str]:
        """Each special token once, in the order of `table`."""
        flat: list[str] = []
        for tokens in self.table().values():
            flat += [tokens] if isinstance(tokens, str) else tokens
        return list(dict.fromkeys(flat))


def as_token(token: Any, name: str) -> AddedToken:
    """A special token from a text, an AddedToken, or what a tokenizer_config.json holds.

    Raises:
        InputError: it is something else.
    """
    if isinstance(token, AddedToken):
        return token
    flags: dict[str, bool] = {"normalized": False}
    text = token
    if isinstance(token, Mapping):
        text = token.get("content")
        flags = {flag: bool(token[flag]) for flag in ("single_word", "lstrip", "rstrip", "normalized") if flag in token}
    if not is_text(text):
        raise InputError(f"{name}={token!r} is no token; pass its text.")
    return AddedToken(text, special=True, **flags)


def is_text(text: object) -> bool:
    """Whether this can be the text of a token: some characters, none of them half a one (a lone surrogate)."""
    return isinstance(text, str) and bool(text) and not any("\ud800" <= character <= "\udfff" for character in text)
