"""Errors a user can act on. The command line prints their message as one line, without a traceback."""

# torch and OpenCV raise types of their own, which other errors share: only their words tell.
_OUT_OF_MEMORY = ("can't allocate memory", "not enough memory", "out of memory", "Insufficient memory")


class IrnError(Exception):
    """Base of every error this package raises on purpose."""


class ShapeError(IrnError, ValueError):
    """An array does not have the shape or dtype that its name promises."""


class DataError(IrnError):
    """A file of the user's data set is missing, unreadable or says something impossible."""


class ArtifactError(IrnError):
    """A file of the run folder is missing, damaged, or was made with other parameters."""


class CheckpointError(IrnError):
    """A file of network weights is missing, unreadable, or of another network."""


class ConfigError(IrnError):
    """A parameter or configuration file is wrong."""


class MemoryExhausted(IrnError):
    """There was not enough memory; `image_id` is the picture that was worked on, if it is known."""

    def __init__(self, message: str, image_id: str | None = None) -> None:
        super().__init__(message, image_id)
        self.image_id = image_id

    def __str__(self) -> str:
        return str(self.args[0])


def is_out_of_memory(error: Exception) -> bool:
    """Whether an error says that memory was refused, on whichever device."""
    if isinstance(error, IrnError):
        return isinstance(error, MemoryExhausted)
    return isinstance(error, MemoryError) or any(text in str(error) for text in _OUT_OF_MEMORY)


def require_memory(error: Exception, what: object) -> None:
    """Say that there is not enough memory, where that is what an error of any type means.

    Args:
        error: raised while a file was read, by a library whose errors for damaged files are of any type too.
        what: the file, for the message.

    Raises:
        MemoryExhausted: it is such an error.
    """
    if is_out_of_memory(error):
        raise MemoryExhausted(f"{what}: not enough memory to load it ({first_line(error)})") from error


def first_line(error: Exception) -> str:
    """The first line of an error's message, at most 200 characters; its type where it has none."""
    return (str(error).strip() or type(error).__name__).splitlines()[0][:200]
