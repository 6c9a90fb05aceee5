"""transformers' own model tests over our kinds of model; run by `test_mixins.py` in an interpreter of its own.

What is adapted, and why, stands beside it. Everything else is theirs as it is.
"""

from __future__ import annotations

import inspect
import tempfile
import unittest
from unittest import mock

import torch
from transformers import PreTrainedModel
from transformers.models.auto import modeling_auto

from mesalm import MesaConfig, MesaForCausalLM, MesaForSequenceClassification, MesaModel
from mesalm.model.mixers import MIXERS
from mesalm.model.modeling_mesa import MesaPreTrainedModel
from tests import causal_lm_tester

# their tests tell base models and classifiers by these tables; the table of causal models knows ours by itself
modeling_auto.MODEL_MAPPING_NAMES["mesa"] = "MesaModel"
modeling_auto.MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING_NAMES["mesa"] = "MesaForSequenceClassification"

NO_ATTENTION = "the model has no softmax layer, so no attention weights"
NO_ROTARY = "the model has no softmax layer, so no rotary positions"
NO_WAY_BACK = "a recurrent state cannot be taken back by a token; generate refuses with one clear line"
NO_FOUR = "a recurrent layer can only leave out tokens; a four-dimensional mask is refused with one clear line"
NO_RIDGE = "the model has no ridge, the only parameter that had another name"
NO_GATES = "the model has no parameter that must stay in float32"

WITHOUT_SOFTMAX = {
    "test_attention_outputs": NO_ATTENTION,
    "test_model_rope_scaling_frequencies": NO_ROTARY,
    "test_model_rope_scaling_from_config_0_linear": NO_ROTARY,
    "test_model_rope_scaling_from_config_1_dynamic": NO_ROTARY,
    "test_model_rope_scaling_from_config_2_yarn": NO_ROTARY,
}
WITH_RECURRENCE = {
    "test_assisted_decoding_matches_greedy_search_0_random": NO_WAY_BACK,
    "test_assisted_decoding_matches_greedy_search_1_same": NO_WAY_BACK,
    "test_assisted_decoding_sample": NO_WAY_BACK,
    "test_custom_4d_attention_mask": NO_FOUR,
}


class MesaTester(causal_lm_tester.CausalLMModelTester):
    """Describe the model to their tests."""

    config_class = MesaConfig
    base_model_class = MesaModel
    causal_lm_class = MesaForCausalLM
    sequence_classification_class = MesaForSequenceClassification
    mixers: str | list[str]

    def __init__(self, parent: unittest.TestCase) -> None:
        super().__init__(parent=parent)
        self.mixers = type(self).mixers
        self.hidden_act = "silu"  # their default, gelu, would do as well


class MesaShapes:
    """Tell their cache checks the shapes of our states, and count only attention weights that exist."""

    def _get_conv_state_shape(self, batch_size: int, config: MesaConfig) -> tuple[int, ...]:
        heads, groups, size = config.head_shape
        return batch_size, (heads + groups) * size, config.conv_size_of("mesa") - 1

    def _get_recurrent_state_shape(self, batch_size: int, config: MesaConfig) -> tuple[int, ...]:
        _, groups, size = config.head_shape
        return batch_size, groups, size, size if config.mixers in ("delta", "linear") else 2 * size

    def test_can_init_all_missing_weights(self) -> None:
        """Run theirs, which leaves out models of before 2023 and tells the year by the head of the source."""
        with tempfile.NamedTemporaryFile("w", suffix=".py") as head:
            head.write("# Copyright 2026\n")
            head.flush()
            getfile = inspect.getfile
            with mock.patch("inspect.getfile", lambda value: head.name if value is MesaConfig else getfile(value)):
                super().test_can_init_all_missing_weights()

    def test_attention_outputs(self) -> None:
        """Ask for attention weights by argument and by configuration: after the hidden states, where there are some.

        Theirs expects one a layer; the hybrids of the library replace it too.
        """
        config, inputs = self.model_tester.prepare_config_and_inputs_for_common()
        layers = sum(MIXERS[name].attention is not None for name in config.layer_mixers)
        shape = (config.num_attention_heads, self.model_tester.seq_length, self.model_tester.seq_length)
        for model_class in self.all_model_classes:
            for by_argument in (True, False):
                config.output_attentions = not by_argument
                model = model_class._from_config(config, attn_implementation="eager").eval()
                arguments = self._prepare_for_class(inputs, model_class)
                if by_argument:
                    arguments |= {"output_attentions": True}
                with torch.no_grad():
                    plain = model(**arguments)
                    more = model(**arguments, output_hidden_states=True)
                assert len(plain.attentions) == layers
                assert {weights.shape[-3:] for weights in plain.attentions} == {torch.Size(shape)}
                assert len(more) == len(plain) + 1
                assert list(more.keys())[-1] == "attentions"

    def test_reverse_loading_mapping(self) -> None:
        """Run theirs with the library's way of saving, under the names of old; ours keeps those of now unless told."""
        with mock.patch.object(MesaPreTrainedModel, "save_pretrained", PreTrainedModel.save_pretrained):
            super().test_reverse_loading_mapping()

    def test_retain_grad_hidden_states_attentions(self) -> None:
        """Run theirs with attention weights where there are any."""
        self.has_attentions = has_attention(self.model_tester.mixers)
        super().test_retain_grad_hidden_states_attentions()


def has_attention(mixers: str | list[str]) -> bool:
    """Tell whether a model with these mixers has attention weights."""
    return MesaConfig(mixers=mixers).has_attention


def suite(mixers: str | list[str]) -> type[unittest.TestCase]:
    """Return their tests over models with these mixers, in two layers."""
    inapplicable = {}
    if not has_attention(mixers):
        inapplicable |= WITHOUT_SOFTMAX
    if MesaConfig(mixers=mixers).has_states:
        inapplicable |= WITH_RECURRENCE
    else:
        inapplicable |= {"test_keep_in_fp32_modules_exist": NO_GATES}
    if "mesa" not in MesaConfig(mixers=mixers).layer_mixers:
        inapplicable |= {"test_reverse_loading_mapping": NO_RIDGE}
    tester = type("Tester", (MesaTester,), {"mixers": mixers})
    body = {name: unittest.skip(reason)(lambda self: None) for name, reason in inapplicable.items()}
    bases = (MesaShapes, causal_lm_tester.CausalLMModelTest, unittest.TestCase)
    return type("Suite", bases, {"model_tester_class": tester, **body})


TestMesa = suite("mesa")
TestHybrid = suite(["mesa", "softmax"])
TestLinear = suite("linear")
TestDelta = suite("delta")
TestKalman = suite("kalman")
TestSoftmax = suite("softmax")
TestWindow = suite("window")
