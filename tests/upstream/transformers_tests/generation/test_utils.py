"""Stand-in: the source distribution leaves the tests of `generate` out."""


class GenerationTesterMixin:
    """The suites ask every model that generates for this base class."""
