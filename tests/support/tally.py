"""What the fault tests have measured, for the table at their end. Fed by the tests' own comparisons."""

from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field


@dataclass
class Tally:
    injected: Counter[str] = field(default_factory=Counter)
    """Faults by kind."""
    resumed: Counter[str] = field(default_factory=Counter)
    """Runs after a fault that published, by kind."""
    compared: int = 0
    """Published rows that were held against those of an undisturbed run."""
    lost: int = 0
    doubled: int = 0
    differing: int = 0
    hangs: int = 0
    """Waits that ended at their limit."""
    peak_bytes: int = 0
    seeds: dict[str, int] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)

    def compare(self, expected: Iterable[tuple[str, str]], found: Iterable[tuple[str, str]]) -> tuple[int, int, int]:
        """Count rows, each given as (identity, whole row). Returns rows lost, doubled and differing."""
        expected, found = list(expected), list(found)
        wanted, had = Counter(name for name, _ in expected), Counter(name for name, _ in found)
        lost, doubled = (wanted - had).total(), (had - wanted).total()
        differing = max(0, (Counter(expected) - Counter(found)).total() - lost)
        self.compared += len(expected)
        self.lost, self.doubled, self.differing = self.lost + lost, self.doubled + doubled, self.differing + differing
        return lost, doubled, differing

    def lines(self) -> list[str]:
        """The table."""
        kinds = sorted(self.injected | self.resumed)
        width = max(map(len, kinds), default=0)
        rows = [f"{kind:<{width}}  {self.injected[kind]:>8}  {self.resumed[kind]:>12}" for kind in kinds]
        return [
            f"{'fault':<{width}}  {'injected':>8}  {'runs resumed':>12}",
            *rows,
            f"{'in all':<{width}}  {self.injected.total():>8}  {self.resumed.total():>12}",
            "",
            f"rows compared   {self.compared}",
            f"rows lost       {self.lost}",
            f"rows doubled    {self.doubled}",
            f"rows differing  {self.differing}",
            f"hangs           {self.hangs}",
            f"peak memory     {self.peak_bytes / 2**30:.2f} GiB (tests, drivers, Ray and decoders together)",
            "seeds           " + (", ".join(f"{name} {seed}" for name, seed in sorted(self.seeds.items())) or "none"),
            *self.notes,
        ]


TALLY = Tally()
"""Of this process: `make faults` runs all its tests in one."""
