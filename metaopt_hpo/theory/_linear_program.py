"""A small exact linear program: minimise the largest of several affine functions, in rational arithmetic.

The programs of `verify` have two to four unknowns and about ten rows, so every basis is enumerated in fractions. The
answer comes with dual multipliers, checked exactly: that certificate is what allows the label *proved*.
"""

from __future__ import annotations

from dataclasses import dataclass
from fractions import Fraction
from itertools import combinations

Row = tuple[Fraction, ...]


@dataclass(frozen=True, slots=True)
class Solution:
    """Minimum of max_j(a_j·x + b_j) over {x : c_i·x <= d_i}."""

    value: Fraction
    vertices: tuple[Row, ...]
    """All vertices of the optimal face."""
    certificate: tuple[tuple[str, Fraction], ...]
    """Dual multipliers by row name: non-negative, they prove that no smaller maximum exists."""


def minimax(
    terms: list[tuple[str, Row, Fraction]], limits: list[tuple[str, Row, Fraction]], unknowns: int
) -> Solution:
    """Solve the program; `terms` are (name, a, b) and `limits` (name, c, d).

    Raises:
        ArithmeticError: no vertex is optimal (the program is infeasible or unbounded).
    """
    one, zero = Fraction(1), Fraction(0)
    # Rows act on (x, t): a·x − t <= −b and c·x <= d.
    rows = [(n, (*a, -one), -b) for n, a, b in terms] + [(n, (*c, zero), d) for n, c, d in limits]
    best: Fraction | None = None
    vertices: list[Row] = []
    certificate: tuple[tuple[str, Fraction], ...] | None = None
    for basis in combinations(rows, unknowns + 1):
        point = _solve([r[1] for r in basis], [r[2] for r in basis])
        if point is None or any(sum(c * x for c, x in zip(r, point, strict=True)) > d for _, r, d in rows):
            continue
        value = point[-1]
        if best is None or value < best:
            best, vertices, certificate = value, [], None
        if value == best:
            if point[:-1] not in vertices:
                vertices.append(point[:-1])
            certificate = certificate or _multipliers(basis, unknowns)
    if best is None or certificate is None:
        raise ArithmeticError("the linear program has no optimal vertex")
    return Solution(best, tuple(sorted(vertices)), certificate)


def _multipliers(
    basis: tuple[tuple[str, Row, Fraction], ...], unknowns: int
) -> tuple[tuple[str, Fraction], ...] | None:
    """y >= 0 with Σ y·row = −(0, …, 0, 1): then t >= −Σ y·d for every feasible point, with equality at the vertex."""
    columns = [tuple(r[1][i] for r in basis) for i in range(unknowns + 1)]
    target = [Fraction(0)] * unknowns + [Fraction(-1)]
    y = _solve(columns, target)
    if y is None or any(v < 0 for v in y):
        return None
    return tuple((r[0], v) for r, v in zip(basis, y, strict=True) if v)


def _solve(matrix: list[Row], right: list[Fraction]) -> Row | None:
    """Gaussian elimination in fractions; None when singular."""
    n = len(matrix)
    m = [[*row, b] for row, b in zip(matrix, right, strict=True)]
    for i in range(n):
        pivot = next((r for r in range(i, n) if m[r][i]), None)
        if pivot is None:
            return None
        m[i], m[pivot] = m[pivot], m[i]
        m[i] = [v / m[i][i] for v in m[i]]
        for r in range(n):
            if r != i and m[r][i]:
                factor = m[r][i]
                m[r] = [v - factor * w for v, w in zip(m[r], m[i], strict=True)]
    return tuple(row[n] for row in m)
