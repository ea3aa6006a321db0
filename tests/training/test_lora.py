"""LoRA against the peft library over the reference's models: logits, gradients, merged weights; and what is refused."""

from pathlib import Path
from types import ModuleType
from typing import Any

import lora_pairs
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import gemlens
from gemlens import TorchAoConfig
from gemlens.errors import CheckpointError, InputError
from gemlens.quantization.torchao import replace
from gemlens.training.lora import (
    LoraLinear,
    LoraSettings,
    add_lora,
    chosen,
    lora_layers,
    merge_lora,
    merge_verified,
)
from gemlens.training.low_rank import low_rank

cases = pytest.mark.parametrize("case", lora_pairs.CASES)
SETTINGS = LoraSettings(rank=4, dropout=0.0)


def spread(model: Any, seed: int = 3) -> Any:
    """Gives B numbers, so that the adapter does something."""
    lora_pairs.stir(model, seed)
    return model


def gap(theirs: Tensor, ours: Tensor) -> float:
    return float((theirs.detach() - ours.detach()).abs().max())


class TestAgainstPeft:
    @cases
    def test_logits_are_equal(self, case: str) -> None:
        both = lora_pairs.adapted(case)
        theirs, ours = both.logits()
        real = both.rows.real
        assert gap(theirs[real], ours[real]) < 2e-5
        merge_free = lora_pairs.plain(case)[0].ours(**both.rows.ours()).logits
        assert gap(merge_free[real], ours[real]) > 0.01, "the adapter does something"

    @cases
    @pytest.mark.parametrize("checkpointing", [False, True])
    def test_gradients_of_a_and_b_are_equal(self, case: str, checkpointing: bool) -> None:
        both = lora_pairs.adapted(case)
        labels = both.rows.labels
        both.theirs.train()(**both.rows.reference(labels=labels)).loss.backward()
        if checkpointing:
            both.ours.gradient_checkpointing_enable()
        both.ours.train()(**both.rows.ours(labels=labels)).loss.backward()
        for name, layer in lora_layers(both.ours).items():
            theirs = both.theirs.get_submodule(f"base_model.model.{name}")
            for ours, expected in (
                (layer.lora_A, theirs.lora_A["default"].weight),
                (layer.lora_B, theirs.lora_B["default"].weight),
            ):
                assert expected.grad.abs().max() > 0
                torch.testing.assert_close(ours.grad, expected.grad, rtol=1e-4, atol=1e-5)

    def test_rslora_is_scaled_alike(self) -> None:
        both = lora_pairs.adapted("Gemma3ForCausalLM", rslora=True)
        theirs, ours = both.logits()
        assert gap(theirs[both.rows.real], ours[both.rows.real]) < 2e-5

    @cases
    def test_merging_gives_the_weights_that_peft_gives(self, case: str) -> None:
        both = lora_pairs.adapted(case)
        merge_lora(both.ours)
        theirs = both.theirs.merge_and_unload().state_dict()
        ours = both.ours.state_dict()
        assert ours.keys() == theirs.keys()
        for name, weight in ours.items():
            torch.testing.assert_close(weight, theirs[name], rtol=1e-6, atol=1e-6)


class TestTheLayer:
    def test_it_is_the_plain_formula(self) -> None:
        torch.manual_seed(0)
        base, hidden = torch.randn(2, 3, 7), torch.randn(2, 3, 5, requires_grad=True)
        a, b = torch.randn(4, 5, requires_grad=True), torch.randn(7, 4, requires_grad=True)
        plain = base + 1.5 * hidden @ a.T @ b.T
        fast = low_rank(base, hidden, a, b, 1.5)
        torch.testing.assert_close(fast, plain)
        weights = torch.randn_like(plain)
        for ours, expected in zip(
            torch.autograd.grad(fast, (hidden, a, b), weights),
            torch.autograd.grad(plain, (hidden, a, b), weights),
            strict=True,
        ):
            torch.testing.assert_close(ours, expected)

    def test_its_derivatives_are_those_of_small_differences(self) -> None:
        torch.manual_seed(0)
        shapes = ((3, 5), (2, 5), (4, 2))
        hidden, a, b = (torch.randn(shape, dtype=torch.float64, requires_grad=True) for shape in shapes)

        def layer(*parts: Tensor, dropout: float = 0.0) -> Tensor:
            torch.manual_seed(1)  # the same inputs are dropped at every call
            return low_rank(torch.zeros(3, 4, dtype=torch.float64), *parts, 2.0, dropout)

        assert torch.autograd.gradcheck(layer, (hidden, a, b))
        assert torch.autograd.gradcheck(lambda *parts: layer(*parts, dropout=0.4), (hidden, a, b))

    def test_dropout_hides_its_share_of_inputs_and_keeps_the_mean(self) -> None:
        torch.manual_seed(0)
        hidden, eye = torch.ones(400, 50), torch.eye(50)
        seen = low_rank(torch.zeros(400, 50), hidden, eye, eye, 1.0, dropout=0.3)
        values = seen.unique()
        torch.testing.assert_close(values, torch.tensor([0.0, 1 / 0.7]), rtol=1e-4, atol=0)
        assert abs(float((seen == 0).float().mean()) - 0.3) < 0.02
        columns = (seen == 0).float().mean(0)
        assert 0.2 < float(columns.min()) < float(columns.max()) < 0.4, "every input alike"

    def test_dropout_is_for_training_only(self) -> None:
        layer = spread(LoraLinear(nn.Linear(5, 3), LoraSettings(rank=2, dropout=0.5)))
        hidden = torch.randn(4, 5)
        assert torch.equal(layer.eval()(hidden), layer(hidden))
        assert not torch.equal(layer.train()(hidden), layer(hidden))

    def test_a_new_adapter_changes_nothing(self, tiny: ModuleType) -> None:
        ids = tiny.words(2, 9)
        model = tiny.fresh("gemma3")
        before = model(input_ids=ids).logits
        add_lora(model, LoraSettings())
        assert torch.equal(model(input_ids=ids).logits, before)

    def test_it_keeps_neither_its_output_nor_copies_of_its_input(self) -> None:
        layer = LoraLinear(nn.Linear(64, 96, bias=False).bfloat16(), LoraSettings(rank=2, dropout=0.0))
        hidden = torch.randn(50, 64).bfloat16().requires_grad_()
        kept: list[Tensor] = []

        def keep(tensor: Tensor) -> Tensor:
            kept.append(tensor)
            return tensor

        with torch.autograd.graph.saved_tensors_hooks(keep, keep):
            layer(hidden)
        large = {tensor.data_ptr() for tensor in kept if tensor.numel() >= hidden.numel()}
        assert large == {hidden.data_ptr(), layer.base_layer.weight.data_ptr()}


class TestTraining:
    @pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["float32", "bfloat16"])
    def test_the_models_own_weights_stay_bit_by_bit(self, tiny: ModuleType, dtype: torch.dtype) -> None:
        model = tiny.fresh("paligemma").to(dtype)
        before = {id(weight): weight.clone() for weight in model.parameters()}
        add_lora(model, LoraSettings(rank=4))
        own = [weight for weight in model.parameters() if id(weight) in before]
        learning = [weight for weight in model.parameters() if weight.requires_grad]
        assert len(own) == len(before)
        assert {weight.dtype for weight in learning} == {torch.float32}
        batch = tiny.prompt("paligemma")
        labels = batch["input_ids"].clone()
        labels[:, :6] = -100
        losses = []
        optimizer = torch.optim.AdamW(learning, lr=0.02)
        for _ in range(12):
            loss = model.train()(**batch, labels=labels).loss
            loss.backward()
            optimizer.step()
            optimizer.zero_grad()
            losses.append(float(loss.detach()))
        assert losses[-1] < 0.7 * losses[0]
        assert all(torch.equal(weight, before[id(weight)]) for weight in own)

    def test_gradients_in_bfloat16_are_near_those_in_float32(self, tiny: ModuleType) -> None:
        gradients = []
        for dtype in (torch.float32, torch.bfloat16):
            model = tiny.fresh("gemma3").bfloat16().to(dtype)
            torch.manual_seed(0)
            add_lora(model, SETTINGS)
            spread(model)
            model.train()(input_ids=(ids := tiny.words(2, 9)), labels=ids).loss.backward()
            learning = [weight for weight in model.parameters() if weight.requires_grad]
            gradients.append(torch.cat([weight.grad.flatten() for weight in learning]))
        assert F.cosine_similarity(*gradients, dim=0) > 0.99

    def test_checkpointing_with_dropout_gives_the_same_gradients(self, tiny: ModuleType) -> None:
        """The layers are computed twice, and must drop the same inputs both times."""
        gradients = []
        model = tiny.fresh("gemma3")
        add_lora(model, LoraSettings(rank=4, dropout=0.5))
        spread(model)
        for checkpointing in (False, True):
            if checkpointing:
                model.gradient_checkpointing_enable()
            torch.manual_seed(7)
            model.zero_grad()
            model.train()(input_ids=(ids := tiny.words(2, 9)), labels=ids).loss.backward()
            gradients.append([weight.grad for weight in model.parameters() if weight.requires_grad])
        for kept, again in zip(*gradients, strict=True):
            assert torch.equal(kept, again)

    def test_an_adapter_in_bfloat16_is_kept_in_it(self, tiny: ModuleType) -> None:
        model = tiny.fresh("gemma3")
        add_lora(model, LoraSettings(dtype="bfloat16"))
        assert {weight.dtype for weight in model.parameters() if weight.requires_grad} == {torch.bfloat16}
        model.train()(input_ids=(ids := tiny.words(2, 9)), labels=ids).loss.backward()


class TestTargets:
    def leaves(self, names: list[str]) -> set[str]:
        return {name.rpartition(".")[2] for name in names}

    @pytest.mark.parametrize("family", ["paligemma", "gemma3-pictures"])
    def test_the_default_is_the_decoder_and_never_the_picture_encoder(self, tiny: ModuleType, family: str) -> None:
        model = tiny.model(family)
        names = chosen(model, LoraSettings().targets)
        assert self.leaves(names) == {"q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"}
        assert all(name.startswith("model.language_model.layers.") for name in names)
        assert len(names) == 7 * len(model.language_model.layers)

    def test_a_plain_name_is_not_that_of_the_picture_encoders_layer(self, tiny: ModuleType) -> None:
        names = chosen(tiny.model("paligemma"), ["q_proj", "self_attn.k_proj"])
        assert self.leaves(names) == {"q_proj", "k_proj"}
        assert not [name for name in names if "vision" in name]

    def test_the_picture_encoder_is_asked_for(self, tiny: ModuleType) -> None:
        names = chosen(tiny.model("paligemma"), ["vision"])
        assert self.leaves(names) == {"q_proj", "k_proj", "v_proj", "out_proj", "fc1", "fc2"}
        assert all("vision_tower" in name for name in names)
        only = chosen(tiny.model("paligemma"), [r".*vision_tower.*\.fc1"])
        assert self.leaves(only) == {"fc1"}

    def test_all_linear_is_everything_but_the_head(self, tiny: ModuleType) -> None:
        model = tiny.model("paligemma")
        every = {name for name, module in model.named_modules() if isinstance(module, nn.Linear)}
        assert set(chosen(model, ["all-linear"])) == every - {"lm_head"}

    def test_whole_names_and_several_targets(self, tiny: ModuleType) -> None:
        model = tiny.model("paligemma")
        names = chosen(model, ["multi_modal_projector.linear", "lm_head", "vision", "q_proj"])
        assert {"model.multi_modal_projector.linear", "lm_head"} < set(names)
        assert len(names) == len(set(names)) == 2 + 12 + 3

    @pytest.mark.parametrize("target", ["qproj", "proj", "model.language_model", "embed_tokens", "", "input_layernorm"])
    def test_a_name_of_no_linear_layer_is_refused_with_the_known_ones(self, tiny: ModuleType, target: str) -> None:
        with pytest.raises(InputError, match=rf"^'{target}' is to get LoRA.* known are language, .*q_proj.*'model\."):
            add_lora(tiny.fresh("gemma3"), LoraSettings(targets=("q_proj", target)))

    def test_a_broken_pattern_is_refused(self, tiny: ModuleType) -> None:
        with pytest.raises(InputError, match=r"'\(q_proj' is neither the name of a layer nor a regular expression"):
            chosen(tiny.model("gemma3"), ["(q_proj"])

    def test_a_text_model_has_no_picture_encoder(self, tiny: ModuleType) -> None:
        with pytest.raises(InputError, match="'vision' is to get LoRA"):
            chosen(tiny.model("gemma3"), ["vision"])

    def test_a_second_adapter_is_refused(self, tiny: ModuleType) -> None:
        model = tiny.fresh("gemma3")
        add_lora(model, SETTINGS)
        with pytest.raises(InputError, match="has an adapter already"):
            add_lora(model, SETTINGS)

    @pytest.mark.parametrize(
        "wrong",
        [
            {"rank": 0}, {"rank": 1.5}, {"alpha": float("nan")}, {"alpha": "16"}, {"dropout": 1.0}, {"dropout": -0.1},
            {"dtype": "float16"}, {"targets": ()}, {"targets": "q_proj"},
        ],
        ids=str,
    )  # fmt: skip
    def test_settings_out_of_range_are_refused(self, wrong: dict[str, Any]) -> None:
        name = min(wrong)
        with pytest.raises(InputError, match=rf"^The {name} of LoRA (is|are) "):
            LoraSettings(**wrong)


class TestMerging:
    def test_a_merged_model_gives_the_logits_of_the_adapter(self, tiny: ModuleType) -> None:
        for family in tiny.FAMILIES:
            model = tiny.fresh(family)
            add_lora(model, SETTINGS)
            spread(model)
            probe = tiny.prompt(family)
            before = model(**probe).logits
            assert merge_verified(model.train(), probe) < 1e-5
            assert model.training
            assert not lora_layers(model)
            assert gap(before, model.eval()(**probe).logits) < 1e-4

    def test_it_is_computed_in_float32_and_rounded_once(self, tiny: ModuleType) -> None:
        model = tiny.fresh("gemma3").bfloat16()
        add_lora(model, LoraSettings(rank=4))
        spread(model)
        layer = next(iter(lora_layers(model).values()))
        weight = layer.base_layer.weight.double()
        exact = weight + layer.lora_B.double() @ layer.lora_A.double() * layer.scale
        assert torch.equal(layer.merged().weight, exact.float().bfloat16())

    def test_a_merged_model_is_an_ordinary_checkpoint(self, tiny: ModuleType, tmp_path: Any) -> None:
        import transformers

        model = tiny.fresh("gemma3")
        add_lora(model, SETTINGS)
        spread(model)
        ids = tiny.words(2, 9)
        expected = model(input_ids=ids).logits
        merge_lora(model)
        model.save_pretrained(tmp_path)
        with torch.no_grad():
            theirs = transformers.AutoModelForCausalLM.from_pretrained(tmp_path, attn_implementation="eager")
            assert gap(expected, theirs(input_ids=ids).logits) < 1e-4
        assert gap(expected, type(model).from_pretrained(tmp_path)(input_ids=ids).logits) < 1e-4

    def test_a_tied_head_with_an_adapter_leaves_the_embedding_alone(self, tiny: ModuleType, tmp_path: Any) -> None:
        model = tiny.fresh("gemma3")
        embedding = model.get_input_embeddings().weight.clone()
        add_lora(model, LoraSettings(rank=4, dropout=0.0, targets=("lm_head", "language")))
        spread(model)
        ids = tiny.words(2, 9)
        expected = model(input_ids=ids).logits
        merge_lora(model)
        assert torch.equal(model.get_input_embeddings().weight, embedding)
        model.save_pretrained(tmp_path)
        assert gap(expected, type(model).from_pretrained(tmp_path)(input_ids=ids).logits) < 1e-4

    def test_a_merge_that_changes_the_answers_is_told(self, tiny: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
        model = tiny.fresh("gemma3")
        add_lora(model, SETTINGS)
        spread(model)
        merged = LoraLinear.merged

        def twice(layer: LoraLinear) -> nn.Linear:
            layer.scale *= 2
            return merged(layer)

        monkeypatch.setattr(LoraLinear, "merged", twice)
        with pytest.raises(CheckpointError, match=r"logits differ from those with the adapter by .* do not use it"):
            merge_verified(model, {"input_ids": tiny.words(2, 9)})

    def test_a_model_without_an_adapter_is_refused(self, tiny: ModuleType) -> None:
        with pytest.raises(InputError, match="no adapter that could be merged"):
            merge_lora(tiny.fresh("gemma3"))


class TestRoundedWeights:
    """QLoRA (arXiv 2305.14314): gradients go through weights that torchao has rounded, which stay as they are."""

    def linear(self, scheme: str, dtype: torch.dtype, **arguments: int) -> tuple[nn.Linear, Tensor]:
        """A rounded layer, and its weight as its kernel reads it."""
        layer = nn.Sequential(nn.Linear(64, 48).to(dtype))
        weight = layer[0].weight.detach().clone()
        rounded = replace(layer, ["0"], TorchAoConfig(scheme, **arguments).scheme)["0"]
        rounded.weight = nn.Parameter(rounded.keep(weight, dtype), requires_grad=False)
        return rounded, F.linear(torch.eye(64, dtype=dtype), rounded.weight).T.float()

    @pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["float32", "bfloat16"])
    @pytest.mark.parametrize(
        ("scheme", "arguments"),
        [
            ("int8_weight_only", {}),
            ("int8_weight_only", {"group_size": 32}),
            ("int8_dynamic_activation_int8_weight", {}),
            ("int4_weight_only", {"group_size": 32}),
        ],
    )
    def test_the_layer_computes_and_learns_as_with_the_weight_that_it_stands_for(
        self, scheme: str, arguments: dict[str, int], dtype: torch.dtype
    ) -> None:
        torch.manual_seed(0)
        rounded, weight = self.linear(scheme, dtype, **arguments)
        layer = spread(LoraLinear(rounded, SETTINGS))
        hidden = torch.randn(2, 5, 64).to(dtype).requires_grad_()
        full = hidden.detach().float().requires_grad_()
        a, b = (each.detach().clone().requires_grad_() for each in (layer.lora_A, layer.lora_B))
        expected = full @ weight.T + rounded.bias.float() + layer.scale * full @ a.T @ b.T
        found = layer(hidden)
        tolerance = 0.02 if "dynamic" in scheme or dtype is torch.bfloat16 else 1e-4
        assert gap(expected, found) < tolerance * float(expected.detach().abs().max())
        direction = torch.randn_like(expected)
        expected.backward(direction)
        found.backward(direction.to(dtype))
        for ours, theirs in ((hidden, full), (layer.lora_A, a), (layer.lora_B, b)):
            assert gap(theirs.grad, ours.grad) < tolerance * float(theirs.grad.abs().max())

    @pytest.mark.parametrize("scheme", ["int8_weight_only", "int4_weight_only"])
    def test_a_rounded_model_learns_and_keeps_its_weights(self, tiny: ModuleType, scheme: str, tmp_path: Path) -> None:
        wide = {"hidden_size": 64, "intermediate_size": 128, "head_dim": 32}
        tiny.fresh("gemma3", **wide).save_pretrained(tmp_path)
        config = TorchAoConfig(scheme, **({"group_size": 32} if "int4" in scheme else {}))
        model = gemlens.Gemma3ForCausalLM.from_pretrained(tmp_path, quantization_config=config, dtype=torch.bfloat16)
        add_lora(model, LoraSettings(rank=4, dropout=0.0))
        ids = tiny.words(2, 9)
        learning = [weight for weight in model.parameters() if weight.requires_grad]
        first = next(iter(lora_layers(model).values())).base_layer
        before = F.linear(torch.eye(64).bfloat16(), first.weight)
        optimizer, losses = torch.optim.AdamW(learning, lr=0.02), []
        for _ in range(12):
            loss = model.train()(input_ids=ids, labels=ids).loss
            loss.backward()
            optimizer.step()
            optimizer.zero_grad()
            losses.append(float(loss.detach()))
        assert losses[-1] < 0.7 * losses[0]
        assert torch.equal(before, F.linear(torch.eye(64).bfloat16(), first.weight))
        with pytest.raises(InputError, match=r"cannot be merged into weights that are rounded to integers, .*q_proj'"):
            merge_lora(model)
        assert len(lora_layers(model)) == 21
