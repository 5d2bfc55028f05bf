"""The maze as a task: a recurrent policy learns by advantage actor-critic from rollouts that cross episodes."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from ..demo.model import detach
from .actor_critic import Rollout, actor_critic_loss
from .maze import ACTIONS, OBSERVATIONS, TMaze, mean_return
from .models import MODELS, NoMemory, Policy, Recurrent
from .task import Task

EVALUATION_SEED = 12345


class Recall(Task):
    """Turn to the side that a cue named, 4 to 12 steps later. Quality is the mean return of whole episodes."""

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
