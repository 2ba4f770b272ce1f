"""Every error that onnxcomp raises on purpose; the command line prints its message on one line and ends with exit
code 1, or 2 where what was asked for cannot be (``WrongUsage``)."""


class OnnxcompError(Exception):
    """Base of all errors that carry a message meant for the user: one line, whatever names it holds."""

    def __str__(self) -> str:
        return " ".join(super().__str__().splitlines())


class ModelError(OnnxcompError):
    """A file that is not a model, or a model that cannot be read, checked or written."""


class PackError(OnnxcompError):
    """A packed file that is broken, of an unknown version or locked; or a library that packing needs is missing."""


class RoomError(OnnxcompError):
    """A disk without the room that a run needs for what it keeps aside."""


class TimeIsUp(OnnxcompError):
    """The deadline came in the middle of what is worth nothing in part; the pipeline goes on without it."""


class WrongUsage(OnnxcompError):
    """What was asked for cannot be: an unknown name, a value out of range, something without what it needs."""


class ParameterError(WrongUsage):
    """A pass's field, an option or an argument outside its allowed range."""


class RecipeError(OnnxcompError):
    """A recipe with a wrong key, a wrong value, an unmet need or an order that undoes itself."""


class CalibrationError(OnnxcompError):
    """Calibration data whose names, types or shapes do not fit the model."""


class TargetError(OnnxcompError):
    """An execution provider that is not installed or cannot run the model."""


class VerificationError(OnnxcompError):
    """The original model cannot be run as the reference."""


class PassError(OnnxcompError):
    """A pass that is unknown, broken, or left the graph invalid."""


class UnknownRecipe(RecipeError, WrongUsage):
    """A recipe that is neither a preset nor a file."""


class LacksData(RecipeError, WrongUsage):
    """A recipe one of whose passes needs calibration data, without such."""


class UnknownPass(PassError, WrongUsage):
    """A pass that there is not."""
