"""A checkpoint with two key/value heads."""

from llamagen import api

api.random_checkpoint("tiny.yaml", "checkpoint")
