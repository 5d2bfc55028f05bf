"""A maze that asks for memory, and the task that it is: a cue at the start says which way to turn at the end."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from ..demo.model import detach
from .actor_critic import Rollout, actor_critic_loss
from .models import MODELS, NoMemory, Policy, Recurrent
from .task import Task

FORWARD, LEFT, RIGHT = ACTIONS = range(3)
OBSERVATIONS = 4  # one-hot: the cue for left, the cue for right, corridor, junction
BUMP = -0.1
EVALUATION_SEED = 12345


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


class Recall(Task):
    """Turn to the side that a cue named, 4 to 12 steps later. Quality is the mean return of whole episodes.

    A recurrent policy learns by advantage actor-critic from rollouts that cross episodes.
    """

    name = "maze"
    title = "T-maze: recall a cue 4 to 12 steps later, reinforcement learning with episode resets"
    metric = "mean return (1 is perfect)"
    higher_is_better = True
    optimum = TMaze.optimum
    parameters = 5_000
    epochs = 25.0
    quick_epochs = 14.0
    epoch_seconds = 2.6
    models: ClassVar = {**MODELS, "no memory": NoMemory}
    learning_rates: ClassVar = {
        "RNN": 5e-3,
        "GRU": 2e-2,
        "GRU reset_after=False": 2e-2,
        "LSTM": 3e-2,
        "no memory": 5e-3,
    }

    mazes = 64
    length = 32
    updates_per_epoch = 10  # 20,480 steps of the environment
    evaluated = 256  # episodes that a measure of quality takes

    def model(self, recurrent: Recurrent, hidden_size: int) -> Policy:
        return Policy(recurrent, OBSERVATIONS, hidden_size, len(ACTIONS))

    def losses(self, model: nn.Module, seed: int) -> Iterator[Tensor]:
        """One loss a rollout of [length, mazes] steps. The state goes on from rollout to rollout, gradients do not."""
        maze = TMaze(self.mazes, seed=seed)
        generator = torch.Generator().manual_seed(seed)
        begins = torch.ones(self.mazes, dtype=torch.bool)
        state = None
        while True:
            steps = []
            with torch.no_grad():
                walked = state
                for _ in range(self.length):
                    x = maze.observe()
                    logits, _, walked = self.look(model, x, walked, begins)
                    actions = torch.multinomial(logits.softmax(-1), 1, generator=generator).squeeze(-1)
                    rewards, ends = maze.step(actions)
                    steps.append((x, begins, actions, rewards, ends))
                    begins = ends
                _, after, _ = self.look(model, maze.observe(), walked, begins)
            rollout = Rollout(*(torch.stack(part).to(self.device) for part in zip(*steps, strict=True)))
            logits, values, state = model(rollout.x, state, rollout.begins)
            state = None if state is None else detach(state)
            yield actor_critic_loss(rollout, logits, values, after.to(self.device))

    def look(self, model: nn.Module, x: Tensor, state: Any, begins: Tensor) -> tuple[Tensor, Tensor, Any]:
        """Logits [B, actions] and values [B] of one step on the CPU, where the mazes are, and the next state."""
        logits, values, state = model(x[None].to(self.device), state, begins[None].to(self.device))
        return logits[0].cpu(), values[0].cpu(), state

    def quality(self, model: nn.Module) -> float:
        """By the likeliest action at each step."""

        def act(x: Tensor, state: Any, begins: Tensor) -> tuple[Tensor, Any]:
            logits, _, state = self.look(model, x, state, begins)
            return logits.argmax(-1), state

        return mean_return(act, TMaze(self.evaluated, seed=EVALUATION_SEED))

    def baselines(self) -> dict[str, float]:
        return {"best without memory": TMaze.memoryless_optimum}
