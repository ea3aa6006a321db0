"""Calls that do not fit what a cache holds, or what it was made for."""

from types import ModuleType
from typing import Any

import calls
import pytest
import torch

from gemlens import DynamicCache, InputError, StaticCache


class TestMistakes:
    """Arguments that do not fit the cache are refused with the numbers, and the cache stays as it was."""

    def cached(self, tiny: ModuleType, length: int = 5) -> tuple[Any, DynamicCache]:
        model = tiny.model("gemma3", 4)
        cache = DynamicCache(model.config)
        model(tiny.words(2, length), past_key_values=cache)
        return model, cache

    def assert_unharmed(self, tiny: ModuleType, model: Any, cache: DynamicCache) -> None:
        batch = calls.text(2, 7, cuts=(5, 6))
        batch.ids[:, :5] = tiny.words(2, 5)
        batch.assert_right(model, batch.with_cache(model, cache, first=1), start=5)

    @pytest.mark.parametrize("length", [1, 5, 7])
    def test_a_mask_of_another_length(self, tiny: ModuleType, length: int) -> None:
        model, cache = self.cached(tiny)
        with pytest.raises(InputError, match=f"covers {length} tokens, but 5 are cached and 1 came; .* all 6"):
            model(tiny.words(2, 1), past_key_values=cache, attention_mask=torch.ones(2, length))
        self.assert_unharmed(tiny, model, cache)

    @pytest.mark.parametrize("shape", [(3, 6), (6,), (2, 1, 6, 6)])
    def test_a_mask_of_another_shape(self, tiny: ModuleType, shape: tuple[int, ...]) -> None:
        model, cache = self.cached(tiny)
        with pytest.raises(InputError, match=r"must be \[batch, tokens\] = \[2, 6\]"):
            model(tiny.words(2, 1), past_key_values=cache, attention_mask=torch.ones(shape))

    @pytest.mark.parametrize(("first", "last"), [(0, 1), (4, 5), (6, 7)])
    def test_cache_positions_that_are_not_the_next(self, tiny: ModuleType, first: int, last: int) -> None:
        model, cache = self.cached(tiny)
        with pytest.raises(InputError, match=f"from {first} to {last}, but 5 tokens are cached, .* 5 to 6"):
            model(tiny.words(2, 2), past_key_values=cache, cache_position=torch.tensor([first, last]))
        self.assert_unharmed(tiny, model, cache)

    def test_cache_positions_of_another_number(self, tiny: ModuleType) -> None:
        model, cache = self.cached(tiny)
        with pytest.raises(InputError, match=r"shape \(3,\), but 2 tokens came"):
            model(tiny.words(2, 2), past_key_values=cache, cache_position=torch.arange(5, 8))

    def test_the_right_cache_positions_are_taken(self, tiny: ModuleType) -> None:
        model, cache = self.cached(tiny)
        model(tiny.words(2, 2), past_key_values=cache, cache_position=torch.arange(5, 7))
        assert cache.get_seq_length() == 7

    @pytest.mark.parametrize("family", ["gemma3", "gemma3-pictures", "paligemma"])
    @pytest.mark.parametrize("filled", [True, False])
    def test_a_tuple_instead_of_a_cache(self, tiny: ModuleType, family: str, filled: bool) -> None:
        _, cache = self.cached(tiny)
        legacy = cache.to_legacy_cache() if filled else ()
        with pytest.raises(InputError, match=r"past_key_values is a tuple, .*from_legacy_cache\(\)"):
            tiny.model(family)(tiny.words(2, 1), past_key_values=legacy)

    @pytest.mark.parametrize("rows", [1, 3])
    def test_another_number_of_rows(self, tiny: ModuleType, rows: int) -> None:
        model, cache = self.cached(tiny)
        with pytest.raises(InputError, match=rf"2 rows.* {rows} "):
            model(tiny.words(rows, 1), past_key_values=cache)
        self.assert_unharmed(tiny, model, cache)

    @pytest.mark.parametrize(
        "how", [{"past_key_values": DynamicCache()}, {"use_cache": True}, {}], ids=["given", "asked for", "by default"]
    )
    def test_packed_rows_with_a_cache(self, tiny: ModuleType, how: dict[str, Any]) -> None:
        """Two texts in one row cannot be cached; read as one text, the second would see the first."""
        packed = {"input_ids": tiny.words(1, 6), "position_ids": torch.tensor([[0, 1, 2, 0, 1, 2]])}
        with pytest.raises(InputError, match=r"Packed .*use_cache=False"):
            tiny.model("gemma3", 4)(**packed, **how)


@pytest.mark.parametrize("make", [DynamicCache, lambda config: StaticCache(config, 16)], ids=["dynamic", "static"])
class TestWindows:
    """A cache must not forget what a layer still sees; one that keeps more is right."""

    def test_the_config_of_paligemmas_decoder_is_refused_because_paligemma_has_no_windows(
        self, tiny: ModuleType, make: Any
    ) -> None:
        model = tiny.model("paligemma2", 4)
        with pytest.raises(InputError, match=r"forgets all but 4 tokens, but the layer sees all.*model\.config"):
            model(**tiny.prompt("paligemma2"), past_key_values=make(model.config.text_config))

    def test_a_narrower_window_is_refused(self, tiny: ModuleType, make: Any) -> None:
        with pytest.raises(InputError, match="forgets all but 3 tokens, but the layer sees 4"):
            tiny.model("gemma3", 4)(tiny.words(1, 6), past_key_values=make(tiny.config("gemma3", 3)))

    @pytest.mark.parametrize("wider", [5, 9])
    def test_a_wider_window_changes_nothing(self, tiny: ModuleType, make: Any, wider: int) -> None:
        batch = calls.text(2, 12, cuts=(5, 6, 7, 10), padding=[(0, 0), (1, 4), (1, 5)])
        model = tiny.model("gemma3", 4)
        batch.assert_right(model, batch.with_cache(model, make(tiny.config("gemma3", wider))))
