"""Excludes transformers' suites from runs without `-m upstream`: importing them downloads them."""

import pytest


collect_ignore = ["transformers_tests"]

# Markers of transformers' tests.
MARKS = (
    "accelerate_tests",
    "all_flash_attn_test",
    "flash_attn_test",
    "flash_attn_3_test",
    "flash_attn_4_test",
    "generate",
    "is_fsdp_test",
    "is_tensor_parallel_test",
    "is_training_test",
    "order",
    "torch_compile_test",
)


def pytest_configure(config: pytest.Config) -> None:
    for mark in MARKS:
        config.addinivalue_line("markers", f"{mark}: a mark of transformers' own tests")


def pytest_ignore_collect(config: pytest.Config) -> bool | None:
    expression = config.option.markexpr
    return None if "upstream" in expression and "not upstream" not in expression else True
