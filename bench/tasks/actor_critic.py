"""Advantage actor-critic (Mnih et al. 2016) with generalised advantage estimates (Schulman et al. 2016)."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

DISCOUNT = 0.98
TRACE = 0.95  # the lambda of the estimates
VALUE_WEIGHT = 0.5
ENTROPY_WEIGHT = 0.01


class Rollout(NamedTuple):
    """What happened in T steps of B environments, episodes after one another.

    x:        observations [T, B, features].
    begins:   bool [T, B], an episode's first step.
    actions:  int64 [T, B].
    rewards:  float32 [T, B].
    ends:     bool [T, B], an episode's last step.
    """

    x: Tensor
    begins: Tensor
    actions: Tensor
    rewards: Tensor
    ends: Tensor


def advantages(rewards: Tensor, ends: Tensor, values: Tensor, after: Tensor) -> Tensor:
    """How much better than expected each step turned out, [T, B].

    values:  the critic's [T, B].
    after:   the critic's [B] of the step after the last.
    """
    going_on = (~ends).to(values.dtype)
    following = torch.cat((values[1:], after[None]))
    surprises = rewards + DISCOUNT * going_on * following - values
    advantage = torch.zeros_like(after)
    estimates = []
    for surprise, goes_on in zip(surprises.flip(0), going_on.flip(0), strict=True):
        advantage = surprise + DISCOUNT * TRACE * goes_on * advantage
        estimates.append(advantage)
    return torch.stack(estimates).flip(0)


def actor_critic_loss(rollout: Rollout, logits: Tensor, values: Tensor, after: Tensor) -> Tensor:
    """The scalar loss of a rollout, given the model's logits [T, B, actions] and values [T, B] of its steps."""
    advantage = advantages(rollout.rewards, rollout.ends, values.detach(), after)
    returns = advantage + values.detach()
    advantage = (advantage - advantage.mean()) / (advantage.std() + 1e-8)
    log_probabilities = logits.log_softmax(-1)
    taken = log_probabilities.gather(-1, rollout.actions[..., None]).squeeze(-1)
    entropy = -(log_probabilities.exp() * log_probabilities).sum(-1)
    actor = -(advantage * taken).mean()
    critic = (returns - values).square().mean()
    return actor + VALUE_WEIGHT * critic - ENTROPY_WEIGHT * entropy.mean()
