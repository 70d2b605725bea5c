"""Every exception that simclr_hub raises on purpose.

SimCLRHubError
+-- ImageError (ValueError)             one image cannot be used; names it and says why
|   +-- UnreadableImageError            missing, no permission, changed while read, not a regular file
|   +-- UnsupportedImageError           not an image, or of a format that is not allowed
|   +-- CorruptImageError               truncated or damaged
|   +-- ImageTooLargeError              more bytes or pixels than the limits
+-- CheckpointError (ValueError)        weights cannot be used: damaged, incomplete, of an unknown layout
+-- IndexError_                         the index on disk
|   +-- IndexExistsError / IndexNotFoundError
|   +-- IndexLockedError                another process writes to it; names the pid
|   +-- IndexWriteError                 it could not be written; what was committed is safe
|   +-- RootUnavailableError            a photo folder is not there or cannot be listed
|   +-- IndexDamagedError               its store is broken; says what can be saved
|   +-- IndexMismatchError (ValueError) made by another model or processing; names both
|   +-- ExportError (ValueError)        an exported file that is damaged, or that no import can take
|   +-- PruneRefusedError               too much is missing at once: a disk may be unplugged
+-- LabelError (ValueError)             examples that do not teach classes
+-- OutputError (OSError)               a file or folder cannot be written under the name that was given
+-- PartsError (ValueError)             a plan, its parts or their folder: damaged, of another run, not to be used so
+-- VectorServerError                   a vector server: not there, refuses, or holds something else
+-- RecipeError (ValueError)            a training recipe or one of its key=value settings
+-- PublishError                        a model cannot be published; the repository is as it was
+-- TrainingError                       a run that cannot go on; names the step
+-- MissingExtraError (ImportError)     an optional dependency; says the pip command
"""


class SimCLRHubError(Exception):
    """Base of every error here: one line that names the bad thing and says what to do."""


class ImageError(SimCLRHubError, ValueError):
    """One image cannot be used."""


class UnreadableImageError(ImageError):
    """The bytes cannot be read."""


class UnsupportedImageError(ImageError):
    """The bytes are not an image of an allowed format."""


class CorruptImageError(ImageError):
    """The bytes are an image, but a damaged one."""


class ImageTooLargeError(ImageError):
    """More bytes or pixels than the limits allow."""


class CheckpointError(SimCLRHubError, ValueError):
    """Weights that are damaged, incomplete or of an unknown layout."""


class IndexError_(SimCLRHubError):
    """Base of the index's errors; the underscore keeps Python's IndexError apart."""


class IndexExistsError(IndexError_):
    """There is something at the place where an index should be created."""


class IndexNotFoundError(IndexError_):
    """There is no index at that place."""


class IndexLockedError(IndexError_):
    """Another process writes to the index."""


class IndexDamagedError(IndexError_):
    """The index's store is broken."""


class IndexMismatchError(IndexError_, ValueError):
    """The index was made by another model, processing or version."""


class IndexWriteError(IndexError_):
    """The index could not be written; it is as it was before."""


class ExportError(IndexError_, ValueError):
    """A file that cannot be imported as an index."""


class RootUnavailableError(IndexError_):
    """The photo folder is not there or cannot be listed."""


class PruneRefusedError(IndexError_):
    """So much is missing that a disk may be unplugged."""


class LabelError(SimCLRHubError, ValueError):
    """Examples that do not teach classes, or a model that has none."""


class OutputError(SimCLRHubError, OSError):
    """Nothing is written under this name: a wrong suffix, below the photos, no such folder."""


class PartsError(SimCLRHubError, ValueError):
    """A source, a plan or a folder of parts that cannot be used."""


class VectorServerError(SimCLRHubError):
    """A vector server that cannot be reached or used so; what it acknowledged is kept."""


class RecipeError(SimCLRHubError, ValueError):
    """A training recipe or one of its settings."""


class PublishError(SimCLRHubError):
    """A model cannot be published; the repository is as it was."""


class TrainingError(SimCLRHubError):
    """A run that cannot go on, such as one whose loss is no longer a number."""


class MissingExtraError(SimCLRHubError, ImportError):
    """An optional dependency is not installed."""

    def __init__(self, module: str, extra: str):
        super().__init__(f"{module} is not installed; run: pip install 'simclr-hub[{extra}]'")
