"""Scores on rows of a synthetic task, of a model and of guesses computed from the rows alone.

All models of a grid see the same rows, which depend only on the task, the split and the seed.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator

import numpy as np
import torch
from torch import nn

from mesa_eval.synthetic.markov_scores import markov_guesses, markov_scores
from mesa_eval.synthetic.ngrams import ngram_distributions
from mesa_eval.synthetic.row_scores import RowScores, SyntheticScores
from mesa_eval.synthetic.vector_scores import score_vectors, vector_guesses
from mesalm.data.stream import epoch_batches
from mesalm.data.synthetic.automata import Automata
from mesalm.data.synthetic.markov import Markov
from mesalm.data.synthetic.tasks import SyntheticTask
from mesalm.data.synthetic.token_task import NOT_SCORED, Split, TokenRows, TokenTask, collate_rows
from mesalm.data.synthetic.vector_task import VectorTask

Batch = dict[str, torch.Tensor]


def score_model(
    model: nn.Module, task: SyntheticTask, split: Split, rows: int, *, seed: int, batch_rows: int
) -> SyntheticScores:
    """Score a model in evaluation mode on ``rows`` rows of a split."""
    if isinstance(task, VectorTask):
        return score_vectors(model, task, split, rows, seed=seed, batch_rows=batch_rows)
    device = next(model.parameters()).device
    data = TokenRows(task, split, seed, rows, keep=False)

    def logits() -> Iterator[np.ndarray]:
        for batch in epoch_batches(data, batch_rows, collate=collate_rows):
            with torch.no_grad():
                yield from predictions(model, task, batch["input_ids"].to(device)).float().cpu().numpy()

    return score_logits(task, data, logits())


def predictions(model: nn.Module, task: TokenTask, input_ids: torch.Tensor) -> torch.Tensor:
    """Return the logits for each position's label, [B, T, V]; zeros at the first position if it has no prediction."""
    if task.reads_last_state:
        return model(input_ids=input_ids).logits
    logits = model(input_ids=input_ids, use_cache=False).logits
    return torch.cat((torch.zeros_like(logits[:, :1]), logits[:, :-1]), dim=1)


def score_guesses(task: SyntheticTask, rows: int, *, seed: int) -> dict[str, SyntheticScores]:
    """Score the guesses without a model, by name, on the test rows, for tasks whose guesses depend on the row.

    Raise `mesa_eval.synthetic.grid.GUESSES` with every change of what they are.
    """
    if isinstance(task, VectorTask):
        return vector_guesses(task, rows, seed=seed)
    if isinstance(task, Markov):
        return markov_guesses(task, rows, seed=seed)
    data = TokenRows(task, "test", seed, rows, keep=False)
    if not isinstance(task, Automata):
        return answers_shown(task, data) if task.answers else {}
    orders = {"uniform": 0, "unigram": 1, "bigram": 2, "trigram": 3}
    found = {}
    for name, order in orders.items():
        chances = (ngram_distributions(data[index]["input_ids"], task.symbols, order) for index in range(rows))
        found[name] = score_logits(task, data, (np.log(np.maximum(one, 1e-300)) for one in chances))
    return found


def scored_places(task: TokenTask, labels: np.ndarray) -> np.ndarray:
    """Return the scored positions of a row; the first has no context, so it is scored only from the last state."""
    places = np.flatnonzero(labels != NOT_SCORED)
    return places if task.reads_last_state else places[places > 0]


def answers_shown(task: TokenTask, data: TokenRows) -> dict[str, SyntheticScores]:
    """Score guesses that ignore the query, among the answers in the tokens before it (from the last state: in the row).

    They are any of the different answers shown; the commonest; and, where an answer has several tokens, the commonest
    after as many of them, without repetition. Guesses that are equally good share their hits.
    """
    names = ["an answer shown", "the commonest answer shown", "the commonest at its place"]
    right, scored, several = [], [], False
    for index in range(len(data)):
        tokens, labels = data[index]["input_ids"], data[index]["labels"]
        at, shown = np.arange(len(tokens)), np.isin(tokens, task.answers)
        newest_other = np.maximum.accumulate(np.where(shown, -1, at))
        given = at - 1 - np.append(-1, newest_other[:-1])  # the number of answers directly before each token
        hits, places = np.zeros(3), scored_places(task, labels)
        for place in places:
            before = shown if task.reads_last_state else shown & (at < place)
            counts = np.bincount(tokens[before], minlength=task.vocab_size)
            alike = np.bincount(tokens[before & (given == given[place])], minlength=task.vocab_size)
            alike[tokens[place - given[place] : place]] = 0
            hits += (
                (counts[labels[place]] > 0) / max(1, np.count_nonzero(counts)),
                _shared_hit(counts[task.answers], labels[place] - task.answers.start),
                _shared_hit(alike[task.answers], labels[place] - task.answers.start),
            )
            several |= given[place] > 0 and not task.reads_last_state
        right.append(hits.tolist())
        scored.append([float(len(places))])
    return {
        name: SyntheticScores([RowScores("accuracy", "accuracy", "higher", [[row[of]] for row in right], scored)])
        for of, name in enumerate(names if several else names[:2])
    }


def _shared_hit(counts: np.ndarray, label: int) -> float:
    """Return the chance to name ``label`` by one of the largest counts."""
    best = counts == counts.max()
    return float(best[label] / best.sum())


def score_logits(task: TokenTask, data: TokenRows, logits_of_rows: Iterable[np.ndarray]) -> SyntheticScores:
    """Score the logits [T, V] of each row, in order."""
    if isinstance(task, Automata):
        return _language_scores(task, data, logits_of_rows)
    if isinstance(task, Markov):
        return markov_scores(task, data, logits_of_rows)
    right, scored = [], []
    for index, logits in enumerate(logits_of_rows):
        labels = data[index]["labels"]
        places = scored_places(task, labels)
        hits = logits[places].argmax(-1) == labels[places]
        right.append([float(hits.sum())])
        scored.append([float(len(places))])
    return SyntheticScores([RowScores("accuracy", "accuracy", "higher", right, scored)])


def _language_scores(task: Automata, data: TokenRows, logits_of_rows: Iterable[np.ndarray]) -> SyntheticScores:
    """Score how often the most likely symbol is legal, and the total variation distance to the true distribution.

    The model's distribution is renormalized over symbols, without separator and padding, for which the language defines
    no probabilities. The first position of a row, which has no context, is not scored.
    """
    legal, distance, counted = [], [], []
    for index, row_logits in enumerate(logits_of_rows):
        truth = task.next_symbols(task.automaton(data.random(index), data.split), data[index]["input_ids"])[1:]
        logits = row_logits[1:, : task.symbols].astype(np.float64)
        places = truth.sum(-1) > 0
        truth, logits = truth[places], logits[places]
        guess = np.exp(logits - logits.max(-1, keepdims=True))
        guess /= guess.sum(-1, keepdims=True)
        likeliest = logits.argmax(-1)
        legal.append([float((truth[np.arange(len(truth)), likeliest] > 0).sum())])
        distance.append([float(np.abs(guess - truth).sum() / 2)])
        counted.append([float(len(truth))])
    return SyntheticScores(
        [
            RowScores("legal", "likeliest symbol is legal", "higher", legal, counted),
            RowScores("distance", "total variation to the true distribution", "lower", distance, counted),
        ]
    )
