"""Everything that can be wrong with a checkpoint. Each message names the file or key at fault.

::

    CheckpointError
    ├── NotACheckpoint          the path is no LLaVA-Med checkpoint at all
    ├── UnsupportedConfig       config.json asks for something that the target network cannot do
    ├── MissingFile             a needed file is not there (shard, tokenizer.model, CLIP folder)
    ├── CorruptFile             a file is truncated or not what its name says
    ├── TensorMismatch          the tensors are not those that config.json describes
    │   ├── MissingTensors
    │   ├── UnexpectedTensors
    │   ├── WrongShape
    │   └── NotFinite           a weight is NaN or infinite
    ├── VocabularyMismatch      tokenizer.model and the embedding disagree
    ├── DestinationInUse        the destination holds something else
    └── NoSpace                 the destination's disk is too full
"""

from __future__ import annotations


class CheckpointError(Exception):
    """Base of the tree. ``str(error)`` is one sentence for the user: what, where, what to do."""


class NotACheckpoint(CheckpointError):
    """The path is no LLaVA-Med checkpoint."""


class UnsupportedConfig(CheckpointError):
    """``config.json`` holds a value that cannot be converted."""


class MissingFile(CheckpointError):
    """A file of the checkpoint is missing."""


class CorruptFile(CheckpointError):
    """A file is truncated or damaged."""


class TensorMismatch(CheckpointError):
    """The tensors are not those that ``config.json`` describes."""


class MissingTensors(TensorMismatch):
    """Tensors that the configuration calls for are missing."""


class UnexpectedTensors(TensorMismatch):
    """Tensors are there that the configuration does not call for."""


class WrongShape(TensorMismatch):
    """A tensor has another shape than the configuration says."""


class NotFinite(TensorMismatch):
    """A weight is NaN or infinite."""


class VocabularyMismatch(CheckpointError):
    """``tokenizer.model`` does not fit the embedding, or is of a kind that cannot be converted."""


class DestinationInUse(CheckpointError):
    """The destination exists and holds something other than this very conversion."""


class NoSpace(CheckpointError):
    """Too little free space for the converted checkpoint."""
