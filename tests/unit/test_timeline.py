"""Ticks of streams become microseconds exactly, whatever their time base."""

from fractions import Fraction

from hypothesis import example, given
from hypothesis import strategies as st

from vca.core.timeline import US_PER_S, ticks_to_us


@given(
    st.integers(-(2**63), 2**63 - 1),
    st.builds(Fraction, st.integers(1, 2**31 - 1), st.integers(1, 2**31 - 1)),
)
@example(1, Fraction(1, 2_000_000))  # half a microsecond: to even, here down
@example(3, Fraction(1, 2_000_000))  # and here up
@example(-1, Fraction(1, 2_000_000))
@example(-3, Fraction(1, 2_000_000))
def test_ticks_are_rounded_as_fractions_are(ticks: int, time_base: Fraction) -> None:
    """The fast way through whole numbers is the definition."""
    assert ticks_to_us(ticks, time_base) == round(ticks * time_base * US_PER_S)
    assert type(ticks_to_us(ticks, time_base)) is int
