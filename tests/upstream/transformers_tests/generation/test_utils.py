"""Stand-in: the source distribution lacks the tests of `generate`."""


class GenerationTesterMixin:
    """Base class that the suites require of models with `generate`."""
