"""Stand-in: the source distribution lacks the tests of the exporters."""


class ExportTesterMixin:
    """Base class of the model suite."""
