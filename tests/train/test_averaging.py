"""The moving average of the weights: how it follows, forgets, and resumes."""

import copy

import pytest
import torch
from optimizer_families import llama
from torch import nn

from hf_tfm.core.errors import InputError
from hf_tfm.train.averaging import EMA


pytestmark = pytest.mark.quick


def test_average_follows_and_swaps():
    model = llama()
    ema = EMA(model, decay=0.75)
    weight = model.model.norm.weight
    with torch.no_grad():
        weight.fill_(5.0)
    ema.update()
    with ema.swapped():
        assert weight.mean().item() == pytest.approx(4.6)  # 0.1 * 1 + 0.9 * 5: the first decay is 1 / 10
    assert weight.mean() == 5.0
    with pytest.raises(InputError, match="decay"):
        EMA(model, decay=1.0)


def averaged(decay, values, state=None):
    """Return the average of one weight over a run, and its state."""
    weight = nn.Linear(1, 1, bias=False)
    weight.weight.data.fill_(1e3)  # far from its later values, as a random weight is
    ema = EMA(weight, decay)
    if state is not None:
        ema.load_state_dict(state)
    for value in values:
        weight.weight.data.fill_(value)
        ema.update()
    return ema.averages["weight"].item(), copy.deepcopy(ema.state_dict())


def test_an_average_soon_forgets_the_initial_weights():
    run = [1 + 0.1 * step for step in range(40)]
    average, _ = averaged(0.999, run)
    assert run[20] < average < run[-1]
    # `decay` is the limit, reached here at t = 8, where (1 + t) / (10 + t) = 0.5.
    previous, state = averaged(0.5, run)
    assert averaged(0.5, [9.0], state)[0] == pytest.approx(0.5 * previous + 0.5 * 9.0)


@pytest.mark.parametrize("steps_done", [1, 7, 30])
def test_a_resumed_average_is_exact(steps_done, tmp_path):
    run = torch.randn(40).tolist()
    torch.save(averaged(0.9, run[:steps_done])[1], tmp_path / "averages.pt")
    state = torch.load(tmp_path / "averages.pt", weights_only=True)
    assert averaged(0.9, run[steps_done:], state) == averaged(0.9, run)


def test_older_averages_without_a_count_are_past_the_warm_up():
    average, _ = averaged(0.9, [0.0], {"weight": torch.full((1, 1), 2.0)})
    assert average == pytest.approx(0.9 * 2.0)
