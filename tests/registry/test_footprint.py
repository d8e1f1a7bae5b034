"""What a decoder holds and computes, against numbers that are added up by hand and against torch itself."""

from __future__ import annotations

from pathlib import Path

import pytest
import tiny

from registry.methods import footprint
from registry.methods.footprint import Shape, Work
from registry.models import CATALOGUE
from registry.shapes import shape_in

# One layer: four attention maps (4 x 4, 4 x 2, 4 x 2, 4 x 4) and three of 4 x 8; a vocabulary of 10.
SMALL = Shape(
    parameters=40 + 48 + 96, linear=48 + 96, ends=8 + 6 + 6 + 8 + 36, layers=1, width=4, inner=8, queries=4, keys=2,
    vocabulary=10,
)  # fmt: skip


def test_weights_are_counted_in_their_own_precision_and_in_four_bits_but_for_the_embedding() -> None:
    assert footprint.weights(SMALL, "fp32") == 184 * 4
    assert footprint.weights(SMALL, "bf16") == 184 * 2
    assert footprint.weights(SMALL, "bf16", four_bits=True) == 40 * 2 + 144 * 0.5625


def test_an_adapter_has_two_factors_on_each_map() -> None:
    assert footprint.adapter(SMALL, 3) == 3 * (8 + 6 + 6 + 8 + 12 + 12 + 12)


def test_a_forward_pass_is_two_operations_for_each_weight_that_a_position_meets() -> None:
    time = 1 + 600 / 4  # to that of wide matrices
    assert footprint.forward(SMALL, 5) == 5 * 2 * 144 * time
    assert footprint.forward(SMALL, 5, 2) == (5 * 2 * 144 + 2 * 2 * 40) * time
    assert footprint.forward(SMALL, 5, span=3) == 5 * (2 * 144 + 2 * 2 * 4 * 3) * time


def test_keys_and_values_of_a_position_are_two_rows_of_every_layer() -> None:
    assert footprint.cached(SMALL, "bf16") == 2 * 2 * 2


def test_recomputing_keeps_the_inputs_of_the_layers_and_one_layer_whole() -> None:
    deep = Shape(**{name: getattr(SMALL, name) for name in SMALL.__slots__} | {"layers": 10})
    one = footprint.saved(deep, None, "fp32")
    assert footprint.kept(deep, 7, None, "fp32", recomputed=False) == 7 * 10 * one
    assert footprint.kept(deep, 7, None, "fp32", recomputed=True) == 7 * (10 * 4 * 4 + one)
    half = footprint.kept(deep, 7, 2, "bf16", recomputed=True)
    assert half == footprint.kept(deep, 7, 2, "fp32", recomputed=True) / 2


@pytest.mark.parametrize(("batch", "width"), [(1, 2.0), (2, (1 + 3 * 2 + 5 * 3) / 9), (100, 3.0)])
def test_a_batch_is_as_wide_as_its_longest_row(batch: int, width: float) -> None:
    """Of two drawn from 1, 2, 3 the longest is 1 in one case of nine, 2 in three, 3 in five."""
    assert footprint.padded([3, 1, 2], batch) == pytest.approx(width)


def test_work_adds_up() -> None:
    assert Work(operations=1.0, moved=2.0) + Work(operations=3.0) * 2 == Work(operations=7.0, moved=2.0)


def test_a_shape_is_read_off_the_headers_as_torch_counts_it(tmp_path: Path) -> None:
    from transformers import AutoModelForCausalLM

    changes = {"hidden_size": 48, "intermediate_size": 80, "num_hidden_layers": 3, "head_dim": 20, "vocab_size": 300}
    folder = tiny.language_model(tmp_path / "model", tie_word_embeddings=False, **changes)
    shape = shape_in(folder)
    model = AutoModelForCausalLM.from_pretrained(folder)
    maps = [m for n, m in model.named_modules() if type(m).__name__ == "Linear" and n != "lm_head"]
    assert shape == Shape(
        parameters=sum(p.numel() for p in model.parameters()),
        linear=sum(m.weight.numel() for m in maps),
        ends=sum(m.in_features + m.out_features for m in maps),
        layers=3, width=48, inner=80, queries=80, keys=40, vocabulary=300,
    )  # fmt: skip


def test_the_catalogue_knows_the_shape_of_a_model_before_it_is_fetched(tmp_path: Path) -> None:
    """Its settings, and the weights that such settings make."""
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    config = LlamaConfig(
        hidden_size=576, intermediate_size=1536, num_hidden_layers=30, num_attention_heads=9, num_key_value_heads=3,
        vocab_size=49152, tie_word_embeddings=True,
    )  # fmt: skip
    with torch.device("meta"):
        model = LlamaForCausalLM(config)
    maps = [m for n, m in model.named_modules() if type(m).__name__ == "Linear" and n != "lm_head"]
    shape = CATALOGUE["smollm2-135m-instruct"].shape
    assert shape.parameters == sum(p.numel() for p in model.parameters())
    assert shape.linear == sum(m.weight.numel() for m in maps)
    assert shape.ends == sum(m.in_features + m.out_features for m in maps)
    assert (shape.layers, shape.width, shape.inner, shape.queries, shape.keys) == (30, 576, 1536, 576, 192)


@pytest.mark.parametrize("rank", [16, None])
def test_what_layers_keep_for_the_backward_pass_is_what_torch_saves(rank: int | None) -> None:
    import torch
    from peft import LoraConfig, get_peft_model
    from transformers import LlamaForCausalLM

    rows, length = 2, 32

    def saved(layers: int) -> float:
        config = tiny.config(
            num_hidden_layers=layers,
            hidden_size=96,
            intermediate_size=256,
            num_attention_heads=6,
            num_key_value_heads=2,
        )
        model = LlamaForCausalLM(config)
        if rank:
            model = get_peft_model(model, LoraConfig(r=rank, target_modules="all-linear", task_type="CAUSAL_LM"))
        own = {p.untyped_storage().data_ptr() for p in model.parameters()}
        found: dict[int, int] = {}

        def keep(tensor: torch.Tensor) -> torch.Tensor:
            storage = tensor.untyped_storage()
            if storage.data_ptr() not in own:
                found[storage.data_ptr()] = storage.nbytes()
            return tensor

        mask = torch.ones(rows, length, dtype=torch.long)
        mask[0, 20:] = 0
        with torch.autograd.graph.saved_tensors_hooks(keep, lambda t: t):
            output = model(input_ids=torch.zeros(rows, length, dtype=torch.long), attention_mask=mask)
        output.logits.sum().backward()
        return float(sum(found.values()))

    shape = Shape(0, 0, 0, 1, width=96, inner=256, queries=96, keys=32, vocabulary=0)
    assert footprint.saved(shape, rank, "fp32") == pytest.approx((saved(3) - saved(1)) / 2 / (rows * length), rel=0.03)
