"""The earlier place of `mesa_eval.evaluate.evaluate`."""

from mesa_eval.evaluate import evaluate as evaluate
