"""Errors a user can act on. The command line prints their message as one line, without a traceback."""


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
