"""What is written down of a model beside its scores: sizes, fingerprints, training record, versions."""

from __future__ import annotations

from mesa_eval.measures.scores import ModelCard
from mesa_eval.reading.model_source import tokenizer_fingerprint
from mesa_eval.reading.scoring import Scorer

VERSIONED = ("mesalm", "torch", "transformers", "tokenizers", "numpy", "datasets")


def describe_model(scorer: Scorer, window: int) -> ModelCard:
    """Return the model's sizes, fingerprints and training record; the state is measured by filling a cache."""
    config = getattr(scorer.model, "config", None)
    mixers = getattr(config, "mixers", None) or getattr(config, "model_type", "unknown")
    if isinstance(mixers, list | tuple):
        mixers = mixers[0] if len(set(mixers)) == 1 else ", ".join(mixers)
    half, whole = scorer.state_numbers(max(1, window // 2)), scorer.state_numbers(window)
    return ModelCard(
        name=scorer.name,
        argument=scorer.source.argument,
        architecture=type(scorer.model).__name__,
        mixers=str(mixers),
        parameters=scorer.parameters(),
        fingerprint=scorer.fingerprint(),
        tokenizer=tokenizer_fingerprint(scorer.tokenizer),
        vocab_size=scorer.vocab_size,
        max_length=scorer.max_length,
        start_token=scorer.start_token,
        tokens_trained=scorer.source.tokens_trained,
        state_numbers=whole,
        state_grows=None if half is None or whole is None else whole > half,
        training=scorer.source.training,
        seed=scorer.source.seed,
        recipe=scorer.source.recipe,
        seconds_trained=scorer.source.seconds_trained,
    )
