"""The sections of a recipe; each field's description is its line in ``--help``."""

from __future__ import annotations

from typing import Literal, Self

from pydantic import Field, field_validator, model_validator

from mesalm.settings import Settings, nearest
from mesalm.train.optim import OPTIMISERS
from mesalm.train.schedule import SCHEDULES

TRACKERS = ("aim", "clearml", "comet_ml", "dvclive", "mlflow", "swanlab", "tensorboard", "trackio", "wandb")


def _one_of(word: str, choices: tuple[str, ...], what: str) -> str:
    if word not in choices:
        guess = nearest(word, choices)
        hint = f"did you mean {guess!r}?" if guess else f"choose from {', '.join(choices)}"
        raise ValueError(f"{word!r} is not {what}; {hint}")
    return word


class OptimSettings(Settings):
    """Describe the optimiser."""

    name: str = Field(default="adamw", description="Optimiser, by its name in mesalm.train.optim.OPTIMISERS.")
    learning_rate: float = Field(default=1e-3, gt=0, description="Peak learning rate, reached when warm-up ends.")
    betas: tuple[float, float] = Field(
        default=(0.9, 0.95), description="Decay of the running means of the gradient and of its square."
    )
    eps: float = Field(default=1e-8, gt=0, description="Guard added to AdamW's denominator.")
    weight_decay: float = Field(
        default=0.1, ge=0, description="Decoupled weight decay of matrices; gains, biases and ridges never decay."
    )
    decay_embeddings: bool = Field(default=False, description="Whether weight decay acts on embeddings too.")

    @field_validator("name")
    @classmethod
    def _known_name(cls, name: str) -> str:
        return _one_of(name, tuple(OPTIMISERS), "an optimiser")

    @field_validator("betas")
    @classmethod
    def _betas_in_range(cls, betas: tuple[float, float]) -> tuple[float, float]:
        if not all(0 <= beta < 1 for beta in betas):
            raise ValueError(f"both must be at least 0 and below 1, not {list(betas)}")
        return betas


class ScheduleSettings(Settings):
    """Describe how the learning rate moves over the run."""

    name: str = Field(default="cosine", description="Shape: cosine, wsd (warm-up, stable, decay) or constant.")
    warmup_fraction: float = Field(
        default=0.02, ge=0, le=1, description="Share of all steps in which the rate rises linearly from zero."
    )
    warmup_steps: int | None = Field(
        default=None, ge=0, description="Steps of warm-up; takes the place of warmup_fraction when given."
    )
    final_fraction: float = Field(
        default=0.1, ge=0, le=1, description="Learning rate of the last step as a share of the peak (cosine, wsd)."
    )
    decay_fraction: float = Field(
        default=0.2, ge=0, le=1, description="Share of all steps in which wsd falls linearly at the end."
    )

    @field_validator("name")
    @classmethod
    def _known_name(cls, name: str) -> str:
        return _one_of(name, tuple(SCHEDULES), "a schedule")


class TrainSettings(Settings):
    """Describe the length of the run, its batches and its arithmetic."""

    tokens: int | None = Field(
        default=None, gt=0, description="Tokens to train on, rounded up to whole steps; give this or train.steps."
    )
    steps: int | None = Field(default=None, gt=0, description="Optimiser steps; give this or train.tokens.")
    batch_rows: int = Field(
        default=32, gt=0, description="Rows of one optimiser step, over all processes and micro-batches together."
    )
    micro_rows: int | None = Field(
        default=None, gt=0, description="Rows one process runs at once; none: its whole share of batch_rows."
    )
    precision: Literal["fp32", "bf16"] = Field(
        default="fp32", description="fp32, or bf16 autocast with weights and optimiser kept in fp32."
    )
    clip: float | None = Field(
        default=1.0, gt=0, description="Largest global norm of the gradient; longer ones are scaled down. none: off."
    )
    device: Literal["auto", "cpu"] = Field(
        default="auto", description="auto: the accelerator if there is one; cpu: never (also for several processes)."
    )
    compile: bool = Field(default=False, description="Whether to run the model through torch.compile.")
    gradient_checkpointing: bool = Field(
        default=False, description="Whether to recompute activations in the backward pass to save memory."
    )
    workers: int = Field(
        default=0, ge=0, description="Processes that read rows ahead of the loop; 0: read in the loop."
    )
    log_every: int = Field(
        default=10, gt=0, description="Steps between the journal's step lines (means since the last)."
    )
    max_skipped: int = Field(
        default=10, gt=0, description="Steps in a row with a non-finite gradient after which the run stops."
    )

    @model_validator(mode="after")
    def _one_length(self) -> Self:
        if (self.tokens is None) == (self.steps is None):
            raise ValueError("give exactly one of tokens and steps")
        return self


class ValidateSettings(Settings):
    """Describe validation while training."""

    every: int = Field(default=100, ge=0, description="Steps between validations; 0: only after the last step.")
    rows: int = Field(default=256, ge=0, description="Rows of the validation split to score, evenly spaced; 0: all.")


class SampleSettings(Settings):
    """Describe the texts sampled while training."""

    every: int = Field(default=0, ge=0, description="Steps between samples, the last step included; 0: never.")
    prompts: list[str] = Field(default_factory=lambda: ["def "], description="Beginnings to be continued.")
    tokens: int = Field(default=48, gt=0, description="Tokens to generate for each prompt.")
    temperature: float = Field(default=0.8, ge=0, description="Sampling temperature; 0: always the likeliest token.")


class CheckpointSettings(Settings):
    """Describe how often the run can be taken up again."""

    every: int = Field(
        default=500, ge=0, description="Steps between checkpoints; 0: only on interruption and at the end."
    )
    keep: int = Field(default=2, gt=0, description="Newest checkpoints to keep; older ones are deleted.")
