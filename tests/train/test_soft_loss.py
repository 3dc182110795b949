"""The loss from a teacher equals one of full logits, and so do its gradients."""

import pytest
import torch
from torch.nn import functional as F

from hf_tfm.train.soft_loss import LinearSoftLoss, SoftLabels, SoftLoss


pytestmark = pytest.mark.quick

ROWS, HIDDEN, VOCABULARY = 300, 16, 50


@pytest.fixture
def batch():
    torch.manual_seed(0)
    states = torch.randn(ROWS, HIDDEN, requires_grad=True)
    layer = torch.nn.Linear(HIDDEN, VOCABULARY)
    labels = torch.randint(VOCABULARY, (ROWS,))
    labels[::7] = -100
    teacher = torch.randn(int((labels != -100).sum()), VOCABULARY) * 3
    return states, layer, labels, teacher


def reference(logits, labels, teacher, k, weight, temperature):
    """Mean loss by torch's own functions, over all tokens or over k of them and the rest."""
    student, target = (F.log_softmax(values / temperature, dim=-1) for values in (logits, teacher))
    if k < VOCABULARY:
        ids = target.topk(k).indices
        is_other = torch.ones_like(target, dtype=torch.bool).scatter_(-1, ids, False)
        student, target = (
            torch.cat(
                [values.gather(-1, ids), values.masked_fill(~is_other, -torch.inf).logsumexp(-1, keepdim=True)], -1
            )
            for values in (student, target)
        )
    divergence = F.kl_div(student, target, log_target=True, reduction="batchmean") * temperature**2
    return weight * divergence + (1 - weight) * F.cross_entropy(logits, labels)


def gradients(loss, states, layer):
    return torch.autograd.grad(loss, [states, layer.weight, layer.bias], retain_graph=True)


@pytest.mark.parametrize("k", [1, 8, VOCABULARY, 2 * VOCABULARY])
@pytest.mark.parametrize("weight,temperature", [(1.0, 1.0), (0.3, 1.0), (0.3, 2.0)])
def test_loss_and_gradients_equal_those_of_full_logits(batch, k, weight, temperature):
    states, layer, labels, teacher = batch
    is_predicted = labels != -100
    logits = layer(states)[is_predicted]
    expected = reference(logits, labels[is_predicted], teacher, k, weight, temperature)
    soft, loss = SoftLabels.of_logits(teacher, k, temperature), SoftLoss(weight, temperature)
    torch.testing.assert_close(soft.log_probs.exp().sum(-1), torch.ones(len(teacher)))

    linear = LinearSoftLoss(loss)
    with linear.using(soft):
        chunked = linear(states, layer, labels)
    of_logits = loss.of_logits(logits, labels[is_predicted], soft, is_predicted.sum())
    expected_gradients = gradients(expected, states, layer)
    for value in (chunked, of_logits):
        torch.testing.assert_close(value, expected)
        torch.testing.assert_close(gradients(value, states, layer), expected_gradients)


def test_outside_of_using_the_loss_is_plain_cross_entropy(batch):
    states, layer, labels, _ = batch
    torch.testing.assert_close(
        LinearSoftLoss(SoftLoss(1.0))(states, layer, labels), F.cross_entropy(layer(states), labels)
    )


def test_a_certain_label_is_cross_entropy(batch):
    """Tokens without a teacher have their label k times, only the first of them with a probability."""
    states, layer, labels, _ = batch
    ids = labels[labels != -100][:, None].repeat(1, 4)
    log_probs = torch.full((len(ids), 5), -torch.inf)
    log_probs[:, 0] = 0
    linear = LinearSoftLoss(SoftLoss(1.0))
    with linear.using(SoftLabels(ids, log_probs)):
        loss = linear(states, layer, labels)
    expected = F.cross_entropy(layer(states), labels)
    torch.testing.assert_close(loss, expected)
    torch.testing.assert_close(gradients(loss, states, layer), gradients(expected, states, layer))


def test_a_student_that_excludes_what_the_teacher_expects_has_a_finite_loss():
    logits = torch.tensor([[200.0, 0.0, 0.0]], requires_grad=True)
    soft = SoftLabels(torch.tensor([[0]]), torch.tensor([[0.5, 0.5]]).log())
    loss = SoftLoss(1.0).of_logits(logits, torch.tensor([1]), soft, 1)
    loss.backward()
    assert 30 < loss < 40 and torch.isfinite(logits.grad).all() and logits.grad[0, 0] > 0.4
