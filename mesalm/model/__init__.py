"""The model: configuration, blocks, mixers and the operator. This folder can be copied flat beside a checkpoint."""
