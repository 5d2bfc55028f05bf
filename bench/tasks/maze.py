"""A maze that asks for memory: a cue at the start says which way to turn at the end of a corridor."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

FORWARD, LEFT, RIGHT = ACTIONS = range(3)
OBSERVATIONS = 4  # one-hot: the cue for left, the cue for right, corridor, junction
BUMP = -0.1


class TMaze:
    """Many T-mazes side by side (Bakker, Reinforcement Learning with Long Short-Term Memory, NIPS 2001).

    An episode starts where a cue is seen. FORWARD walks the corridor, whose length (steps to the junction) is drawn
    anew for each episode; at the junction LEFT or RIGHT ends the episode, with reward 1 for the side that the cue said
    and -1 for the other. Any other action leaves the walker where it is and costs 0.1. After `limit` steps an episode
    ends by itself. A finished episode is followed by the next.

    With memory every episode can return 1; without, no better than 0 is to be had on average. That of the first
    episodes is exact: half of the mazes, an even number, begin with each cue.

    corridor:  shortest and longest length.
    """

    optimum = 1.0
    memoryless_optimum = 0.0

    def __init__(self, mazes: int, corridor: tuple[int, int] = (4, 12), seed: int = 0) -> None:
        self.shortest, self.longest = corridor
        self.limit = 2 * self.longest + 4
        self.generator = torch.Generator().manual_seed(seed)
        self.cue = torch.zeros(mazes, dtype=torch.int64)  # LEFT or RIGHT
        self.length = torch.zeros(mazes, dtype=torch.int64)
        self.position = torch.zeros(mazes, dtype=torch.int64)
        self.age = torch.zeros(mazes, dtype=torch.int64)
        self.start(torch.ones(mazes, dtype=torch.bool))
        self.cue = LEFT + torch.arange(mazes) % 2

    def start(self, which: Tensor) -> None:
        """Begin a new episode in the mazes marked, bool [mazes]."""
        mazes = which.shape
        self.cue = torch.where(which, torch.randint(LEFT, RIGHT + 1, mazes, generator=self.generator), self.cue)
        lengths = torch.randint(self.shortest, self.longest + 1, mazes, generator=self.generator)
        self.length = torch.where(which, lengths, self.length)
        self.position = self.position.masked_fill(which, 0)
        self.age = self.age.masked_fill(which, 0)

    def observe(self) -> Tensor:
        """What each walker sees: float32 [mazes, OBSERVATIONS]."""
        seen = torch.where(self.position == 0, self.cue - LEFT, torch.where(self.position < self.length, 2, 3))
        return torch.nn.functional.one_hot(seen, OBSERVATIONS).float()

    def step(self, actions: Tensor) -> tuple[Tensor, Tensor]:
        """Take actions [mazes]. Returns rewards, float32 [mazes], and which episodes ended, bool [mazes]."""
        at_junction = self.position == self.length
        turned = at_junction & (actions != FORWARD)
        walked = ~at_junction & (actions == FORWARD)
        rewards = torch.where(turned, torch.where(actions == self.cue, 1.0, -1.0), torch.where(walked, 0.0, BUMP))
        self.position = self.position + walked
        self.age = self.age + 1
        ended = turned | (self.age == self.limit)
        self.start(ended)
        return rewards, ended


@torch.no_grad()
def mean_return(act: Callable[[Tensor, Any, Tensor], tuple[Tensor, Any]], maze: TMaze) -> float:
    """The mean over all mazes of the rewards that their first episode brings in total.

    act:  from observations [mazes, OBSERVATIONS], its own state (None at first) and which episodes begin, bool [mazes],
          to actions [mazes] and the next state.
    """
    begins = torch.ones_like(maze.age, dtype=torch.bool)
    over = ~begins
    total = torch.zeros(len(begins))
    state = None
    for _ in range(maze.limit):
        actions, state = act(maze.observe(), state, begins)
        rewards, begins = maze.step(actions)
        total += rewards.masked_fill(over, 0.0)
        over = over | begins
    return float(total.mean())
