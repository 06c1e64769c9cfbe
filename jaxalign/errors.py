"""User errors: exceptions with a one-line message.

The command line prints the message of a `UserError` and exits with status 2; any other exception is a bug and keeps
its traceback.
"""


class UserError(Exception):
    """An error the user can fix. The message names the file, line or field and what was expected."""


class ConfigError(UserError):
    """A configuration key or value is wrong."""


class DataError(UserError):
    """A data file or row is wrong."""


class ModelError(UserError):
    """A model folder, tensor or tokenizer is wrong."""


class CheckpointError(UserError):
    """A checkpoint is missing, damaged or belongs to another run."""


class DamagedCheckpointError(CheckpointError):
    """The files of a checkpoint are not those that were saved; another checkpoint may be whole.

    Attributes:
      step: of the checkpoint.
    """

    def __init__(self, message: str, step: int) -> None:
        super().__init__(message)
        self.step = step


class RemoteError(UserError):
    """A URL cannot be read or written, or is of a kind that is not known."""


class DeviceError(UserError):
    """A device does not exist, or its memory is too small."""
