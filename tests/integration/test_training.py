"""Training with Ray Train and DeepSpeed on two workers, on a tiny model with dropout, noise and short last steps.

Each start of the workers costs some ten seconds, so that one run is looked at from several sides.
"""

import json
import os
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from safetensors.numpy import load, save
from safetensors.torch import load_file

from tests.support.processes import meanwhile, titled, wait_for
from tests.support.s3 import s3_server
from tests.support.training import Training, config, tiny_model
from vca.core.errors import ConfigError
from vca.models.fusion_inputs import collate
from vca.pipelines.training import TrainResult
from vca.pipelines.window_set import WindowSet

pytestmark = [pytest.mark.integration, pytest.mark.usefixtures("ray_cluster")]

GOLDEN = Path(__file__).parents[1] / "golden" / "train_losses.json"
GOLDEN_RTOL = 1e-3
"""Other processors sum in another order; ten steps amplify it."""
ZERO_RTOL = 1e-5
"""Between ZeRO stages, numbers of workers, before and after a restart: the order of float32 sums. Measured: 8e-8."""
BF16_RTOL = 0.02
"""Products in bfloat16, with 8 bits of mantissa. Measured: 2e-3."""
STEPS = 12


@pytest.fixture(scope="module")
def training(tmp_path_factory: pytest.TempPathFactory) -> Training:
    folder = tmp_path_factory.mktemp("training")
    return Training(str(folder / "out"), tiny_model(folder / "model"))


@pytest.fixture(scope="module")
def window_set(training: Training) -> WindowSet:
    return training.window_set()


@pytest.fixture(scope="module")
def undisturbed(training: Training, window_set: WindowSet) -> TrainResult:
    """Two epochs of six steps on two workers, without ZeRO."""
    result = training.train(window_set, config(), "undisturbed")
    assert result.resumed_from is None
    assert [m.epoch for m in training.reported] == [1, 2]
    assert [line.split(":")[0] for line in training.said] == ["epoch 1/2", "epoch 2/2"], training.said
    return result


def test_ten_steps_reproduce_golden_losses(undisturbed: TrainResult) -> None:
    """The model, its losses, the order of the data, the schedule and the optimiser are what they were.

    `VCA_RENEW_GOLDEN=1` writes the file anew.
    """
    if os.environ.get("VCA_RENEW_GOLDEN"):
        GOLDEN.write_text(json.dumps([round(loss, 6) for loss in undisturbed.step_losses[:10]]) + "\n")
    golden = json.loads(GOLDEN.read_text("utf-8"))
    assert len(golden) == 10
    np.testing.assert_allclose(undisturbed.step_losses[:10], golden, rtol=GOLDEN_RTOL)
    assert undisturbed.epochs[1].train["loss"] < undisturbed.epochs[0].train["loss"]


def test_the_best_weights_give_the_validation_loss(
    training: Training, window_set: WindowSet, undisturbed: TrainResult
) -> None:
    """The file that is handed out holds the weights of the best epoch: judged here, they give its figures."""
    from vca.models.learning import build_learner, load_trainable, validation_metric

    learner = build_learner(training.fusion, training.spec, seed=99)
    load_trainable(learner, load_file(training.output.path(undisturbed.weights)))
    learner.eval()
    judged = []
    for name in window_set.blocks:
        rows = pq.read_table(training.output.path(window_set.folder, name)).to_pylist()
        judged += [learner.judge(collate([row["arrays"]])) for row in rows if row["split"] == "validation"]
    figures = validation_metric(judged, training.spec.taxonomy.tasks)
    assert figures == pytest.approx(dict(undisturbed.best.validation), rel=1e-4)
    assert undisturbed.best.validation["score"] == max(m.validation["score"] for m in undisturbed.epochs)


@pytest.mark.long  # in short, the worker that is killed below trains with stage 3
@pytest.mark.parametrize("stage", [2, 3])
def test_zero_stages_agree(training: Training, window_set: WindowSet, undisturbed: TrainResult, stage: int) -> None:
    """What DeepSpeed splits over the workers changes the losses and the weights by rounding only."""
    result = training.train(window_set, config(deepspeed={"zero_stage": stage, "whole_elements": 0}), f"zero-{stage}")
    np.testing.assert_allclose(result.step_losses, undisturbed.step_losses, rtol=ZERO_RTOL)
    ours, theirs = (load_file(training.output.path(r.weights)) for r in (result, undisturbed))
    for name, tensor in theirs.items():
        torch.testing.assert_close(ours[name], tensor, rtol=1e-2, atol=1e-3)


@pytest.mark.long
def test_bf16_and_offload_stay_close(training: Training, window_set: WindowSet, undisturbed: TrainResult) -> None:
    """Products in bfloat16 and optimiser states in main memory train the same model, within bfloat16's rounding."""
    settings = config(precision="bf16", deepspeed={"zero_stage": 2, "offload": "cpu"})
    result = training.train(window_set, settings, "bf16")
    np.testing.assert_allclose(result.step_losses, undisturbed.step_losses, rtol=BF16_RTOL)
    assert not np.allclose(result.step_losses, undisturbed.step_losses, rtol=1e-5), "bf16 was not switched on"


def only_first_epoch(training: Training, run_name: str) -> Path:
    """The undisturbed run as it was after its first epoch, under another name."""
    folder = Path(training.root) / "training"
    shutil.copytree(folder / "undisturbed", folder / run_name)
    shutil.rmtree(folder / run_name / f"checkpoint-{STEPS:08d}")
    return folder / run_name


@pytest.mark.long
def test_a_run_goes_on_with_another_number_of_workers(
    training: Training, window_set: WindowSet, undisturbed: TrainResult
) -> None:
    """Checkpoints fit any number of workers, and one worker computes what two do, dropout included."""
    only_first_epoch(training, "again")
    result = training.train(window_set, config(workers=1), "again")
    assert result.resumed_from == STEPS // 2
    assert [m.epoch for m in training.reported] == [1, 2], "epochs of the first start are told again"
    np.testing.assert_allclose(result.step_losses, undisturbed.step_losses, rtol=ZERO_RTOL)

    again = training.train(window_set, config(), "again")
    assert again.resumed_from == STEPS, "a finished run is not trained again"
    assert again.step_losses == result.step_losses

    with pytest.raises(ConfigError, match=r"'again' was begun with train\.seed = 0, now it is 1; .*take another"):
        training.train(window_set, config(seed=1), "again")


def test_a_killed_worker_changes_nothing(training: Training, window_set: WindowSet, undisturbed: TrainResult) -> None:
    """Ray Train starts the workers again; they go on in the middle of the epoch and end with the same losses."""
    folder = Path(training.root) / "training" / "killed"

    def kill_worker() -> None:
        # Step 8 is the second of the second epoch.
        wait_for(lambda: (folder / "checkpoint-00000008" / "checkpoint.json").exists(), "a checkpoint")
        titled(os.getpid(), "RayTrainWorker")[0].kill()

    with meanwhile(kill_worker):
        result = training.train(window_set, config(checkpoint_steps=2, deepspeed={"zero_stage": 3}), "killed")
    assert any("going on from the newest checkpoint" in line for line in training.said), training.said
    np.testing.assert_allclose(result.step_losses, undisturbed.step_losses, rtol=ZERO_RTOL)
    assert result.best.validation == pytest.approx(dict(undisturbed.best.validation), rel=1e-3)
    assert [m.epoch for m in training.reported] == [1, 2], "no epoch is told twice"
    names = sorted(path.name for path in folder.glob("checkpoint-*"))
    assert names == ["checkpoint-00000010", f"checkpoint-{STEPS:08d}"], "old checkpoints are deleted"


def test_a_damaged_checkpoint_is_one_clear_line(
    training: Training, window_set: WindowSet, undisturbed: TrainResult
) -> None:
    """A bit that flipped in the weights or a cut-off index is noticed and named, with the way out."""
    folder = only_first_epoch(training, "damaged")
    state = folder / "checkpoint-00000006" / "state.safetensors"
    data = bytearray(state.read_bytes())
    data[-5] ^= 1
    state.write_bytes(data)
    with pytest.raises(ConfigError) as refusal:
        training.train(window_set, config(workers=1), "damaged")
    assert "\n" not in str(refusal.value)
    assert "training/damaged/checkpoint-00000006/state.safetensors is damaged; delete the folder" in str(refusal.value)

    (folder / "checkpoint-00000006" / "checkpoint.json").write_text('{"definition": {')
    with pytest.raises(ConfigError, match=r"checkpoint-00000006/checkpoint\.json is damaged; delete the folder"):
        training.train(window_set, config(), "damaged")


def test_a_loss_that_is_not_finite_stops_with_one_line(training: Training, window_set: WindowSet) -> None:
    """Training on does not help, and weights of it are never handed out."""
    broken = replace(window_set, folder="training/windows/broken")
    source = Path(training.root) / window_set.folder
    target = Path(training.root) / broken.folder
    shutil.copytree(source, target)
    for path in target.glob("*.parquet"):
        rows = pq.read_table(path)
        blobs = []
        for row in rows.to_pylist():
            arrays = {name: array.copy() for name, array in load(row["arrays"]).items()}
            arrays["vision"][0, 0] = np.nan
            blobs.append(row | {"arrays": save(arrays)})
        pq.write_table(type(rows).from_pylist(blobs, schema=rows.schema), path)
    with pytest.raises(ConfigError) as refusal:
        training.train(broken, config(workers=1), "nan")
    message = str(refusal.value)
    assert "\n" not in message
    assert "the loss of topic, mood, events is not finite in step 1; lower train.lr_plm" in message, message
    assert not list((Path(training.root) / "training" / "nan").glob("checkpoint-*"))


def test_what_cannot_work_is_refused_before_any_worker_starts(training: Training, window_set: WindowSet) -> None:
    """An empty split, a cluster that is too small, a run name that is a path: one line each."""
    empty = replace(window_set, blocks=())
    with pytest.raises(ConfigError, match="the train split has no windows; put videos into it"):
        training.train(empty, config(), "empty")
    with pytest.raises(ConfigError, match=r"train\.workers = 4 with train\.cpus = 0\.9 need 3\.65 CPUs"):
        training.train(window_set, config(workers=4), "large")
    with pytest.raises(ConfigError, match=r"train\.gpus = 1 need 2 GPUs"):
        training.train(window_set, config(gpus=1), "gpus")
    with pytest.raises(ConfigError, match="a run name has letters"):
        training.train(window_set, config(), "../elsewhere")


@pytest.mark.long
def test_the_output_may_be_a_bucket(training: Training, undisturbed: TrainResult) -> None:
    """Windows are read from S3 and checkpoints written to it; the losses are those of a folder."""
    with s3_server("models") as server:
        remote = Training("s3://models/vca", training.model, storage=server.storage().model_dump())
        window_set = remote.window_set()
        result = remote.train(window_set, config(), "run")
        np.testing.assert_allclose(result.step_losses, undisturbed.step_losses, rtol=ZERO_RTOL)
        keys = [key for key in server.keys("models") if "/training/run/" in key]
        assert f"vca/{result.weights}" in keys
