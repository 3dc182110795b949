"""Stand-in: the source distribution leaves the tests of the exporters out."""


class ExportTesterMixin:
    """Base class of the model suite."""
