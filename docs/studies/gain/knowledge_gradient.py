"""A rival of `policy.design`: pilots bought by the knowledge gradient, the fall of expected excess that a run brings.

The next run is the one that lowers the expected excess at the target most for its cost (Frazier, Powell and Dayanik
2008; blocks of runs as in Frazier and Powell 2010, because the first run of a cell shows nothing). The excess is ½·h·V
with V the variance of the target's optimum, so that no tolerance and no curvature enters: h cancels. The target is one
of the candidates: placed best, a second run of it takes `AGAIN` of the excess of one direction.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from metaopt_hpo.scaling.policy.design import LEVELS, Cell, Design, run_weights

AGAIN = 0.405
"""max over a of 4a·(φ(a) − a·Φ(−a)): the part of E[u²] that min(u², (u − δ)²) saves, u normal, δ = 2a standard
deviations."""


class KnowledgeGradient(Design):
    """What is known of the optimum at a target, and the run that takes most off its expected excess for its cost."""

    def best_pilot(self, pilots: Sequence[Cell], *, two: bool) -> Cell | None:
        """The pilot to run next, or None where a run of the target takes off more."""
        if not pilots:
            return None
        unit = self.target[0] * self.target[1]
        cost = np.array([s * t / unit for s, t in pilots])
        outer = np.array([self._outer(c) for c in pilots])
        runs, levels = np.array([self.counts.get(c, 0) for c in pilots]), np.array(LEVELS)
        extra = levels[None, :] - runs[:, None]
        more = run_weights(levels)[None, :] - run_weights(runs)[:, None]
        j, k = np.nonzero(extra > 0)
        if not j.size:
            return None
        now = float(self._at_target(self._information[None])[0])
        then = self._at_target(self._information + more[j, k, None, None] * outer[j])
        gain = (now - then) / (extra[j, k] * cost[j])
        i = int(np.argmax(gain))
        return pilots[int(j[i])] if gain[i] > AGAIN * now / (2 if two else 1) else None
