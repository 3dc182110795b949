"""Learning-rate schedules."""

import pytest
from optimizer_families import llama

from hf_tfm.core.errors import InputError
from hf_tfm.train.optim import build_optimizer
from hf_tfm.train.schedule import build_scheduler, schedule


pytestmark = pytest.mark.quick


def test_wsd():
    factor = schedule("wsd", 100, warmup=0.1, decay=0.4, final=0.02)
    assert [factor(s) for s in (0, 4, 9, 10, 60)] == pytest.approx([0.1, 0.5, 1, 1, 1])
    assert factor(80) == pytest.approx(0.51) and factor(100) == factor(200) == pytest.approx(0.02)


def test_cosine_and_constant():
    cosine = schedule("cosine", 110, warmup=10, final=0.1)
    assert [cosine(s) for s in (4, 10, 60, 110, 300)] == pytest.approx([0.5, 1, 0.55, 0.1, 0.1])
    constant = schedule("constant", 10, warmup=0)
    assert constant(0) == constant(9) == 1


def test_scheduler_keeps_the_ratio_of_group_rates():
    optimizer = build_optimizer(llama(), lr=0.01, embedding_lr=0.03)
    scheduler = build_scheduler(optimizer, "wsd", 10, warmup=0, decay=0.5, final=0.0)
    for _ in range(7):
        optimizer.step()
        scheduler.step()
    rates = {group["name"]: group["lr"] for group in optimizer.param_groups}
    assert rates["matrices"] == pytest.approx(0.006) and rates["embeddings"] == pytest.approx(0.018)


@pytest.mark.parametrize(
    "arguments, part",
    [
        (dict(name="linear"), "linear"),
        (dict(warmup=60, decay=60), "fit"),
        (dict(warmup=-0.1), "fit"),
        (dict(total_steps=0), "empty"),
    ],
)
def test_wrong_schedules_are_named(arguments, part):
    with pytest.raises(InputError, match=part):
        schedule(**dict(name="wsd", total_steps=100) | arguments)
