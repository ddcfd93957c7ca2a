"""AMC: an agent learns how much of each layer to keep (He, Lin, Liu, Wang, Li and Han 2018, arXiv 1802.03494).

The network is walked group by group. The agent sees where it is (the paper's state, section 3.1: which group, its size,
its cost, what the groups before it saved, what those behind it could still save, its last action) and says how much of
the group goes, a number in 0..1. The action is bounded so that the cost wanted can still be reached by the groups
behind (algorithm 1); the reward of all actions of a walk is the accuracy of what came out, before any training. The
agent is DDPG (Lillicrap et al. 2015, arXiv 1509.02971): a critic learns the reward of an action in a state, without a
discount, the mean reward taken off as a baseline; an actor climbs the critic; exploration is a truncated normal around
the actor's action, narrower from walk to walk.

Deviations: two hidden layers of 32, not 300, and no target networks, since every reward is a walk's own and nothing is
bootstrapped; the reward is the damage that a probe tells, negative. Groups of channels alone are chosen from: an
exact allocation (:mod:`.allocate`) needs a probe per group, an agent one per walk, and a hundred walks at least. So the
search does not use it; it is the control that needs no additivity.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np

from laconic.core import Array
from laconic.search.costs import Costs
from laconic.search.space import CHANNELS, KEEPS, Allocation

_HIDDEN = 32
_WARM_UP = 20  # walks of random actions
_SIGMA, _SIGMA_DECAY = 0.5, 0.96
_BATCH, _REPLAYED, _LESSONS = 64, 1000, 5  # lessons for each action of a walk
_BASELINE_DECAY = 0.95
_STATE = 7


@dataclass(frozen=True)
class Found:
    """The best walk: its allocation and damage; ``damages`` of all walks, in order."""

    allocation: Allocation
    damage: float
    damages: tuple[float, ...]


def amc(costs: Costs, probe: Callable[[Allocation], float | None], target: float, walks: int, seed: int) -> Found:
    """The allocation of least damage, of ``walks`` that all cost at most ``target`` of the original's."""
    random = np.random.default_rng(seed)
    agent, sigma = Agent(random), _SIGMA
    best, damages = (np.inf, Allocation()), []
    for walk in range(walks):
        explore = None if walk < _WARM_UP else sigma
        allocation, steps = _walk(costs, agent, target, random, explore)
        found = probe(allocation)
        damage = 1.0 if found is None else found
        damages.append(damage)
        best = min(best, (damage, allocation), key=lambda pair: pair[0])
        agent.remember(steps, -damage)
        if walk >= _WARM_UP:
            sigma *= _SIGMA_DECAY
            for _ in range(_LESSONS * len(steps)):
                agent.learn()
    return Found(best[1], float(best[0]), tuple(damages))


def _walk(
    costs: Costs, agent: Agent, target: float, random: np.random.Generator, sigma: float | None
) -> tuple[Allocation, list[tuple[Array, float]]]:
    """One walk: what it leaves, and each state with the action taken there."""
    units = {group: costs.space.groups[group].units for group in costs.space.removed_by(CHANNELS)}
    groups, widest, last = list(units), max(units.values()), 0.0
    keeps: dict[str, float] = {}
    steps = []
    for i, group in enumerate(groups):
        rest = dict.fromkeys(groups[i + 1 :], KEEPS[-1])
        here, alone = costs.of(Allocation(keeps)), costs.of(Allocation({group: KEEPS[-1]}))
        behind = here - costs.of(Allocation(keeps | rest))
        numbers = [
            i / len(groups),
            units[group] / widest,
            1 - alone,
            1 - here,
            behind,
            here - target,
            last,
        ]
        state = np.array(numbers)
        wish = random.uniform() if sigma is None else _near(agent.action(state), sigma, random)
        notch = min(range(len(KEEPS)), key=lambda i: abs(KEEPS[i] - (1 - wish)))
        while notch + 1 < len(KEEPS) and costs.of(Allocation(keeps | {group: KEEPS[notch]} | rest)) > target:
            notch += 1  # else the groups behind could not make up for it
        last = 1 - KEEPS[notch]
        keeps[group] = KEEPS[notch]
        steps.append((state, last))
    return Allocation({group: keep for group, keep in keeps.items() if keep < 1}), steps


def _near(mean: float, sigma: float, random: np.random.Generator) -> float:
    """A normal around ``mean``, cut off at 0 and 1."""
    while True:
        found = float(random.normal(mean, sigma))
        if 0 <= found <= 1:
            return found


class Agent:
    """DDPG on states (n,) and one action in 0..1."""

    def __init__(self, random: np.random.Generator) -> None:
        self._random = random
        self._actor, self._critic = Net(_STATE, random), Net(_STATE + 1, random)
        self._memory: list[tuple[Array, float, float]] = []
        self._mean: float | None = None

    def action(self, state: Array) -> float:
        """What the actor does in ``state``."""
        return float(_sigmoid(self._actor.forward(state[None])[0]))

    def remember(self, steps: list[tuple[Array, float]], reward: float) -> None:
        """A walk's states and actions, all with its reward; the moving mean of rewards is taken off."""
        mean = reward if self._mean is None else self._mean
        self._mean = _BASELINE_DECAY * mean + (1 - _BASELINE_DECAY) * reward
        self._memory += [(state, action, reward) for state, action in steps]
        del self._memory[:-_REPLAYED]

    def learn(self) -> None:
        """One step of the critic towards rewards seen, and one of the actor up the critic."""
        chosen = self._random.integers(len(self._memory), size=_BATCH)
        states = np.stack([self._memory[i][0] for i in chosen])  # n s
        actions = np.array([self._memory[i][1] for i in chosen])
        rewards = np.array([self._memory[i][2] for i in chosen]) - (self._mean or 0.0)
        told = self._critic.forward(np.column_stack([states, actions]))
        self._critic.step(2 * (told - rewards) / _BATCH, lr=1e-2)
        wishes = _sigmoid(self._actor.forward(states))
        self._critic.forward(np.column_stack([states, wishes]))
        upwards = self._critic.backward(np.full(_BATCH, 1 / _BATCH))[1][:, -1]  # d reward / d action
        self._actor.step(-upwards * wishes * (1 - wishes), lr=1e-3)


class Net:
    """Two hidden layers with relu and one output, with Adam; ``backward`` and ``step`` are of the last ``forward``."""

    def __init__(self, inputs: int, random: np.random.Generator) -> None:
        sizes = (inputs, _HIDDEN, _HIDDEN, 1)
        self._weights = [random.normal(0, (2 / a) ** 0.5, (a + 1, b)) for a, b in itertools.pairwise(sizes)]
        self._weights[-1] *= 0.01
        self._moments = [(np.zeros_like(w), np.zeros_like(w)) for w in self._weights]
        self._seen: list[Array] = []
        self._steps = 0

    def forward(self, x: Array) -> Array:
        """(n, inputs) to (n,)."""
        self._seen = []
        for i, weight in enumerate(self._weights):
            x = np.column_stack([x, np.ones(len(x))])  # the last row of a weight is its bias
            self._seen.append(x)
            x = x @ weight
            x = np.maximum(x, 0) if i + 1 < len(self._weights) else x
        found: Array = x[:, 0]
        return found

    def backward(self, gradient: Array) -> tuple[list[Array], Array]:
        """From the gradient of the output (n,): those of the weights, and of the input (n, inputs)."""
        found: list[Array] = []
        back: Any = gradient[:, None]
        for i in reversed(range(len(self._weights))):
            found.insert(0, self._seen[i].T @ back)
            back = (back @ self._weights[i].T)[:, :-1]
            if i:
                back = back * (self._seen[i][:, :-1] > 0)
        return found, back

    def step(self, gradient: Array, lr: float, beta: tuple[float, float] = (0.9, 0.999)) -> None:
        """One step of Adam down the gradient of the output (n,)."""
        self._steps += 1
        for i, g in enumerate(self.backward(gradient)[0]):
            first, second = self._moments[i]
            self._moments[i] = beta[0] * first + (1 - beta[0]) * g, beta[1] * second + (1 - beta[1]) * g * g
            mean, spread = (m / (1 - b**self._steps) for m, b in zip(self._moments[i], beta, strict=True))
            self._weights[i] = self._weights[i] - lr * mean / (np.sqrt(spread) + 1e-8)


def _sigmoid(x: Any) -> Any:
    return 1 / (1 + np.exp(-x))
