"""The user's mistakes: exceptions whose message is one line for a person.

The command line prints the message of a `UserError` and exits with status 2; any
other exception is a bug of ours and keeps its traceback.
"""


class UserError(Exception):
    """A mistake the user can mend. The message names the file, line or field and what was expected."""


class ConfigError(UserError):
    """A configuration key or value is wrong."""


class DataError(UserError):
    """A data file or row is wrong."""


class ModelError(UserError):
    """A model folder, tensor or tokenizer is wrong."""


class CheckpointError(UserError):
    """A checkpoint is missing, damaged or belongs to another run."""


class DeviceError(UserError):
    """A device is not there, or its memory is too small."""
