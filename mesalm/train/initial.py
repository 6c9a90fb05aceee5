"""The initial model of a run: seeded fresh weights, or those of an earlier model."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import torch
from torch import nn
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer, PreTrainedModel, PreTrainedTokenizerBase
from transformers.configuration_utils import PreTrainedConfig

from mesalm.data.prepared import Prepared
from mesalm.model.configuration_mesa import MesaConfig
from mesalm.model.modeling_mesa import MesaForCausalLM
from mesalm.pretrained import load, load_model
from mesalm.runs import resolve
from mesalm.settings import SettingsError
from mesalm.train.optim import scale_first_weights
from mesalm.train.randomness import seed_everything
from mesalm.train.recipe import Recipe
from mesalm.train.token_loss import TokenLoss


def initial_model(recipe: Recipe, prepared: Prepared, tokenizer: PreTrainedTokenizerBase | None) -> PreTrainedModel:
    """Return the initial model of a run, in float32 on the CPU.

    Vocabulary size and special ids come from the tokenizer, unless ``model.vocab_size`` is larger. Raises
    SettingsError if recipe, tokenizer and the weights of ``init_from`` do not fit together.
    """
    seed_everything(recipe.seed)
    fresh = recipe.init_from is None
    model = _fresh_model(recipe, prepared) if fresh else _earlier_model(recipe, prepared, tokenizer)
    _end_at_start_token(model, prepared)
    return model


def _fresh_model(recipe: Recipe, prepared: Prepared) -> PreTrainedModel:
    wanted = recipe.model.get("vocab_size")
    if wanted is not None and wanted < prepared.vocab_size:
        raise SettingsError(f"model.vocab_size: must be at least the tokenizer's {prepared.vocab_size}, not {wanted}")
    special = prepared.manifest["tokenizer"]
    fields: dict[str, Any] = {
        "vocab_size": prepared.vocab_size,
        "max_position_embeddings": max(prepared.sequence_length, 2048),
        "bos_token_id": special["bos_token_id"],
        "eos_token_id": special["eos_token_id"],
        "pad_token_id": special["pad_token_id"],
    }
    model = MesaForCausalLM(MesaConfig(**{**fields, **copy.deepcopy(recipe.model)}))
    if recipe.optim.base_width is not None:
        scale_first_weights(model, recipe.optim.base_width)
    return model


def _end_at_start_token(model: PreTrainedModel, prepared: Prepared) -> None:
    """Let `generate` end a text at the token that begins the next document: rows mark its end by nothing else."""
    special = prepared.manifest["tokenizer"]
    begin = special["eos_token_id"] if special["bos_token_id"] is None else special["bos_token_id"]
    configs: list[Any] = [model.config, model.generation_config]
    for config in configs:
        held = config.eos_token_id
        ends = held if isinstance(held, list) else [held] if held is not None else []
        if begin is not None and begin not in ends:
            config.eos_token_id = [*ends, begin] if ends else begin


def set_step(model: PreTrainedModel, recipe: Recipe, micro_rows: int) -> None:
    """Set gradient checkpointing, the loss in parts and z-loss of a model as the recipe says.

    A model of another class is called without a cache: with one, transformers attends across the documents of a row.

    Raises SettingsError if the model does not have the z-loss asked for.
    """
    train = recipe.train
    if train.gradient_checkpointing:
        # transformers before 5.23 has only the second name
        getattr(model, "activation_checkpointing_enable", model.gradient_checkpointing_enable)()
    if isinstance(model, MesaForCausalLM):
        if train.z_loss or micro_rows * recipe.data.sequence_length * model.config.vocab_size > train.logits_at_once:
            model.token_loss = TokenLoss(train.logits_at_once, train.z_loss)
        return
    if train.z_loss:
        raise SettingsError(f"train.z_loss: {type(model).__name__} has no z-loss; set it to 0")
    model.register_forward_pre_hook(_without_cache, with_kwargs=True)


def _without_cache(model: nn.Module, arguments: tuple[Any, ...], options: dict[str, Any]) -> Any:
    return arguments, {**options, "use_cache": False} if "labels" in options else options


def earlier_config(recipe: Recipe) -> PreTrainedConfig:
    """Return the configuration of ``init_from``.

    Raises SettingsError if there is none, or if it does not fit ``model`` and ``data``.
    """
    folder = _weights_folder(recipe)
    config: PreTrainedConfig = load(AutoConfig, folder, "model", name=f"init_from: {folder}")
    _compare_configs(recipe, config, folder)
    if recipe.parallelism.context > 1 and (not isinstance(config, MesaConfig) or config.attention_dropout):
        raise SettingsError(
            f"parallelism.context: needs a model of this package without attention dropout, unlike {folder}; "
            "set parallelism.context=1"
        )
    positions = getattr(config, "max_position_embeddings", None)
    if positions is not None and positions < recipe.data.sequence_length:
        raise SettingsError(
            f"data.sequence_length: {recipe.data.sequence_length} is more than the {positions} positions of {folder}; "
            f"set data.sequence_length={positions} or less"
        )
    return config


def _weights_folder(recipe: Recipe) -> str:
    try:
        return resolve(str(recipe.init_from), unfinished=True).load_from
    except ValueError as error:
        raise SettingsError(f"init_from: {error}") from None


def _earlier_model(recipe: Recipe, prepared: Prepared, tokenizer: PreTrainedTokenizerBase | None) -> PreTrainedModel:
    folder, config = _weights_folder(recipe), earlier_config(recipe)
    if prepared.vocab_size > config.vocab_size:
        raise SettingsError(
            f"init_from: {folder} knows {config.vocab_size} tokens but the data have {prepared.vocab_size}; "
            f"set data.tokenizer={folder}"
        )
    if tokenizer is not None and _has_tokenizer(folder):
        theirs = load(AutoTokenizer, folder, "tokenizer", name=f"init_from: {folder}")
        if theirs.get_vocab() != tokenizer.get_vocab():
            raise SettingsError(
                f"init_from: the data and {folder} have different tokenizers; set data.tokenizer={folder}"
            )
    model: PreTrainedModel = load_model(AutoModelForCausalLM, folder, name=f"init_from: {folder}", dtype=torch.float32)
    return model


def _compare_configs(recipe: Recipe, config: PreTrainedConfig, folder: str) -> None:
    wanted: Any = MesaConfig(**copy.deepcopy(recipe.model)) if isinstance(config, MesaConfig) else None
    for key, given in recipe.model.items():
        value = given if wanted is None else getattr(wanted, key)
        there = getattr(config, key, None)
        if value != there:
            raise SettingsError(
                f"model.{key}: is {value!r} in the recipe but {there!r} in {folder}; leave out the fields of model "
                "to take those of init_from"
            )


def _has_tokenizer(folder: str) -> bool:
    path = Path(folder)
    return not path.is_dir() or (path / "tokenizer_config.json").is_file() or (path / "tokenizer.json").is_file()
