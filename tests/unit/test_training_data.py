"""The order in which windows are learned from, and what each worker gets of it."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from vca.core.config import build_config
from vca.core.errors import ConfigError
from vca.pipelines.train_config import TrainConfig, engine_settings, learning_rate_factor
from vca.pipelines.training_checkpoint import EpochMetrics, RunState, check_same, is_kept
from vca.pipelines.training_data import Index, denominators_of, epoch_order, slots_of, visits

SIZES = st.lists(st.integers(0, 9), min_size=1, max_size=6).filter(any)


def index_of(sizes: list[int]) -> Index:
    """Blocks with so many windows of a split; the rows between are of other splits."""
    block = np.repeat(np.arange(len(sizes)), sizes)
    row = np.concatenate([2 * np.arange(n) for n in sizes]).astype(np.int64)
    annotated = np.stack([np.arange(len(row)) % 2 == 0, np.ones(len(row), np.bool_)], axis=1)
    return Index("set", tuple(f"block-{i}" for i in range(len(sizes))), block, row, annotated)


@settings(deadline=None)
@given(sizes=SIZES, seed=st.integers(0, 5), epoch=st.integers(0, 5))
def test_an_epoch_is_every_window_once_block_by_block(sizes: list[int], seed: int, epoch: int) -> None:
    """Nothing is learned twice or left out, a block is read in one go, and the same epoch has the same order."""
    index = index_of(sizes)
    order = epoch_order(index, seed, epoch)
    assert sorted(order) == list(range(len(index)))
    assert int((np.diff(index.block[order]) != 0).sum()) == sum(n > 0 for n in sizes) - 1
    assert (order == epoch_order(index, seed, epoch)).all()


def test_epochs_and_seeds_differ() -> None:
    """The model does not see the same order again and again."""
    index = index_of([9, 9, 9])
    orders = {tuple(epoch_order(index, seed, epoch)) for seed in (0, 1) for epoch in (0, 1, 2)}
    assert len(orders) == 6


@settings(deadline=None)
@given(
    sizes=SIZES,
    micro=st.integers(1, 3),
    workers=st.integers(1, 3),
    accumulation=st.integers(1, 3),
    first=st.integers(0, 3),
)
def test_workers_share_every_step(sizes: list[int], micro: int, workers: int, accumulation: int, first: int) -> None:
    """Each window of a step counts in one forward pass of one worker; all workers make the same number of passes; the
    cuts do not depend on the number of workers; a run that goes on in the middle gets the rest."""
    index = index_of(sizes)
    order = epoch_order(index, 0, 0)
    batch = micro * workers * accumulation
    parts = [slots_of(order, batch, micro, workers, worker, first) for worker in range(workers)]
    assert len({len(part) for part in parts}) == 1
    counting = [slot for part in parts for slot in part if slot.counts]
    assert sorted(w for slot in counting for w in slot.windows) == sorted(order[first * batch :])
    assert all(0 < len(slot.windows) <= micro for part in parts for slot in part)
    alone = {(s.step, s.number): tuple(s.windows) for s in slots_of(order, batch, micro, 1, 0, first)}
    assert all(alone[slot.step, slot.number] == tuple(slot.windows) for part in parts for slot in part)


@settings(deadline=None)
@given(sizes=SIZES, batch=st.integers(1, 8))
def test_denominators_count_the_annotated_windows_of_a_step(sizes: list[int], batch: int) -> None:
    """Over all steps every annotated window is counted once."""
    index = index_of(sizes)
    order = epoch_order(index, 0, 0)
    total = sum(denominators_of(index, order, batch, step) for step in range(-(-len(order) // batch)))
    np.testing.assert_array_equal(total, index.annotated.sum(axis=0))


@settings(deadline=None)
@given(sizes=SIZES, seed=st.integers(0, 5))
def test_visits_give_the_windows_back_in_order(sizes: list[int], seed: int) -> None:
    """What is read from the blocks is what the slots ask for, and each block is visited once in an epoch."""
    index = index_of(sizes)
    order = epoch_order(index, seed, 0)
    plan = visits(index, order).to_pylist()
    assert [(v["block"], row) for v in plan for row in v["rows"]] == [
        (f"set/{index.blocks[index.block[w]]}", index.row[w]) for w in order
    ]
    assert len(plan) == len({v["block"] for v in plan})


def test_learning_rate_rises_and_ends_at_zero() -> None:
    """A linear rise over the first tenth, the top after it, half of it in the middle of the cosine, 0 at the end."""
    factors = [learning_rate_factor(step, 100, 0.1) for step in range(101)]
    assert factors[0] == pytest.approx(1 / 11)
    assert factors[10] == 1.0
    assert factors[55] == pytest.approx(0.5)
    assert factors[100] == pytest.approx(0.0)
    assert all(0 <= f <= 1 for f in factors)


def test_settings_that_do_not_divide_are_refused_with_ones_that_do() -> None:
    """A batch that cannot be cut into equal passes is refused before anything starts."""
    with pytest.raises(ConfigError, match=r"10 is no multiple of micro_windows 4 x workers 2 = 8; set .* to 8"):
        build_config(TrainConfig, {"batch_windows": 10, "micro_windows": 4, "workers": 2}, "finetune.yaml")
    with pytest.raises(ConfigError, match="zero_stage 0 splits nothing off"):
        build_config(TrainConfig, {"deepspeed": {"offload": "cpu"}}, "finetune.yaml")


def test_deepspeed_is_told_what_the_settings_say() -> None:
    """Batch, passes, stage and offload reach DeepSpeed, and nothing makes it compile an optimiser."""
    config = TrainConfig.model_validate(
        {"batch_windows": 24, "micro_windows": 3, "workers": 2, "deepspeed": {"zero_stage": 3, "offload": "cpu"}}
    )
    settings = engine_settings(config)
    assert settings["train_batch_size"] == 3 * 2 * settings["gradient_accumulation_steps"] == 24
    assert settings["zero_optimization"]["stage"] == 3
    assert settings["zero_optimization"]["offload_param"]["device"] == "cpu"
    assert "optimizer" not in settings
    assert settings["zero_force_ds_cpu_optimizer"] is False


def test_a_run_goes_on_only_with_what_shapes_it() -> None:
    """Workers and ZeRO stage may change between two starts; the learning rate may not, and is named."""
    before = TrainConfig()
    moved = TrainConfig.model_validate({"workers": 1, "threads": 2, "deepspeed": {"zero_stage": 2}})
    check_same("night", {"train": before.shaping}, {"train": moved.shaping})
    other = TrainConfig(lr_new=1e-3)
    with pytest.raises(ConfigError, match=r"'night' was begun with train\.lr_new = 0.0005, now it is 0.001"):
        check_same("night", {"train": before.shaping}, {"train": other.shaping})


@given(st.lists(st.floats(0, 1), min_size=1, max_size=12), st.sampled_from([0.0, 0.05]))
def test_which_epoch_is_kept(scores: list[float], tolerance: float) -> None:
    """Without a tolerance the earliest best one; with it the last one that was as good as all before, give or take."""
    state = RunState()
    for epoch, score in enumerate(scores, start=1):
        kept = is_kept(score, state.history, tolerance)
        best = epoch if kept or state.best is None else state.best.best_epoch
        state.history.append(EpochMetrics(epoch, len(scores), 0, {}, {"score": score}, best, 0.0, 0.0, 0.0))
    assert state.best is not None
    found = state.best.epoch
    if tolerance == 0.0:
        assert found == scores.index(max(scores)) + 1
    else:
        as_good = [i for i, score in enumerate(scores) if score > max([*scores[:i], -1.0]) - tolerance]
        assert found == as_good[-1] + 1
