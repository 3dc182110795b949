"""Names of classes that a dataset of the Hub describes in its features."""

from collections.abc import Callable
from typing import Any


_LISTS = ("Sequence", "List", "LargeList")


def class_names(feature: Any) -> list[str] | None:
    """Returns the names of a `ClassLabel` of `datasets`, also of a list of these; None of other features."""
    if isinstance(feature, list) and len(feature) == 1:
        return class_names(feature[0])
    if not isinstance(feature, dict):
        return None
    if feature.get("_type") == "ClassLabel":
        return feature.get("names")
    return class_names(feature.get("feature")) if feature.get("_type") in _LISTS else None


def name_classes(feature: Any) -> Callable[[Any], Any] | None:
    """Returns a function that puts names in the place of a feature's numbers; None if it has no classes."""
    names = class_names(feature)
    if not names:
        return None

    def convert(value: Any) -> Any:
        if isinstance(value, list):
            return [convert(item) for item in value]
        # -1 stands for "no label"; other numbers without a name stay too.
        is_class = isinstance(value, int) and not isinstance(value, bool) and 0 <= value < len(names)
        return names[value] if is_class else value

    return convert
