"""The earlier place of `mesa_eval.evaluate.compare`."""

from mesa_eval.evaluate import compare as compare
