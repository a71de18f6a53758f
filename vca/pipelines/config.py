"""The configuration of the tagging job: sections owned by the rooms, put together here, read from one YAML file."""

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Self

from pydantic import Field, field_validator, model_validator

from vca.core.config import Config, apply_overrides, build_config, parse_yaml
from vca.core.errors import ConfigError, ErrorCode
from vca.core.taxonomy import Taxonomy, parse_taxonomy
from vca.media.decode_config import DecodeConfig, SamplingConfig
from vca.media.output import OutputConfig
from vca.media.storage import ArchiveConfig
from vca.models.encode import EncodersConfig
from vca.models.text import TextModelConfig
from vca.models.zeroshot import ZeroShotConfig
from vca.pipelines.watch import DEADLINE


class PredictConfig(Config):
    model: str = Field("auto", pattern=r"^(auto|zeroshot|[A-Za-z0-9][A-Za-z0-9._-]*)$")
    """`auto`: the champion of the registry, zero-shot while there is none. `zeroshot`: no trained model. Else the name
    of a model in the output, such as fusion-0123456789ab."""
    registered: str = Field("vca-fusion", pattern=r"^[^/:']+$")
    """Name under which `auto` looks for the champion."""
    text_model: TextModelConfig = TextModelConfig()
    """The pretrained language model that compares text with the labels."""
    zeroshot: ZeroShotConfig = ZeroShotConfig()
    """The rule that turns similarities into scores; see docs/zeroshot.md."""
    thresholds: dict[str, float] = Field(default_factory=dict)
    """Thresholds by `task.label` or `task`, each above 0 and below 1, over those of the taxonomy file."""


class RunConfig(Config):
    failure_budget: float = Field(0.05, ge=0.0, le=1.0)
    """Share of the attempted files that may end in quarantine before the exit code is 1."""
    max_attempts: int = Field(3, ge=1)
    """Runs that try the same content again after a transient failure."""
    retry: tuple[ErrorCode, ...] = ()
    """Codes of quarantined files that this run tries again, whatever was decided before; `vca tag --retry` sets it."""
    deadline: str | None = None
    """Time of day such as "06:00" (UTC) or "06:00+02:00". From then on no video is begun: what is in work is
    finished, the rest is published as deferred, and the next run starts with it. It is the first such moment after
    the start of the run."""
    max_video_hours: float | None = Field(None, gt=0)
    """Hours of video that this run decodes; the rest is deferred as by a deadline."""
    stall_s: float = Field(600.0, gt=0)
    """A video that a worker has not let go for so long is named in the log."""
    wave_videos: int = Field(5000, ge=1)
    """Videos probed and decoded in one go; bounds the driver's memory."""
    flush_s: float = Field(120.0, gt=0)
    """A part of the feature store is written at least this often; what a killed run can lose."""
    part_mb: int = Field(64, ge=1)
    """Size of a part of the feature store before compression."""
    progress_s: float = Field(10.0, gt=0)
    """Seconds between two progress lines."""

    @field_validator("deadline", mode="before")
    @classmethod
    def _check_deadline(cls, value: object) -> object:
        if isinstance(value, int) and 0 <= value < 24 * 60:  # YAML reads 22:00 without quotes to the base of 60
            value = f"{value // 60:02d}:{value % 60:02d}"
        if value is not None and not (isinstance(value, str) and DEADLINE.fullmatch(value)):
            raise ValueError('write it as "HH:MM", "HH:MMZ" or "HH:MM+02:00"')
        return value


class RayConfig(Config):
    address: str | None = None
    """None: the cluster of the environment (RAY_ADDRESS, `ray job submit`), else a local one for this run."""
    num_cpus: int | None = Field(None, ge=1)
    """CPUs of the local cluster; None is all of this machine."""
    object_store_mb: int = Field(512, ge=100)
    """Shared memory of the local cluster."""


class ResourcesConfig(Config):
    """Who gets what. None is worked out from the cluster when the run starts."""

    readers: int | None = Field(None, ge=1)
    """Decoding slots, each with its own child process."""
    encoders: int | None = Field(None, ge=1)
    """Encoder processes; each holds the models of `encoders`. Null with GPUs: as many as these have room for; without:
    none, every reader encodes what it reads. With models too large for that, ask for a few encoders."""
    encoder_gpus: float = Field(0.0, ge=0.0)
    """GPUs for each encoder."""
    predictors: int | None = Field(None, ge=1)
    """Tagger processes, at most; each holds the text model. A few videos start fewer."""
    predictor_gpus: float = Field(0.0, ge=0.0)
    """GPUs for each predictor."""
    autoscaling: bool = False
    """Resources the cluster does not have yet may be started for this run; needs `readers` and `predictors`, and with
    GPUs `encoders`."""

    @model_validator(mode="after")
    def _check(self) -> Self:
        needed = {"readers": self.readers, "predictors": self.predictors}
        if self.encoder_gpus > 0:
            needed["encoders"] = self.encoders
        if self.autoscaling and None in needed.values():
            raise ValueError(f"autoscaling needs {', '.join(needed)}: they cannot be worked out")
        return self


class RetentionConfig(Config):
    runs: int = Field(30, ge=1)
    """Newest runs that `vca prune` leaves, so that they can be rolled back to. The run in force always stays."""
    min_age_h: float = Field(24.0, ge=0.0)
    """Hours since its last change before a file may be deleted."""


class TrackingConfig(Config):
    enabled: bool = True
    """Log the run to MLflow. A tracking server that fails never fails the run."""
    uri: str | None = None
    """MLflow tracking server or sqlite:///path; None is MLFLOW_TRACKING_URI."""
    experiment: str = Field("vca", min_length=1)
    """MLflow experiment; made if it does not exist."""
    artifact_uri: str | None = None
    """Where a new experiment keeps its artifacts; None is the default of the tracking server."""
    timeout_s: float = Field(10.0, gt=0)
    """Longest wait for the tracking server, seconds."""

    @model_validator(mode="after")
    def _check(self) -> Self:
        for name, value in (("uri", self.uri), ("artifact_uri", self.artifact_uri)):
            if value is not None and re.search(r"//[^/]*@|[?&](user|password|token|key|secret)=", value, re.IGNORECASE):
                raise ValueError(
                    f"{name} holds credentials; put them into the environment, for example MLFLOW_TRACKING_TOKEN"
                )
        return self


class TagConfig(Config):
    archive: ArchiveConfig
    """What to tag."""
    output: OutputConfig
    """Where features and tables go. An output belongs to one archive."""
    taxonomy: str = "configs/taxonomy.yaml"
    """Path of the taxonomy file, relative to the working directory."""
    sampling: SamplingConfig = SamplingConfig()
    """The time grid."""
    decode: DecodeConfig = DecodeConfig()
    """How media are decoded, and the limits of the decoding child."""
    encoders: EncodersConfig = EncodersConfig()
    """What is taken from picture, sound and text. A change makes a new feature set: the archive is decoded again."""
    predict: PredictConfig = PredictConfig()
    """How features become tags. A change tags again from the stored features, without decoding."""
    run: RunConfig = RunConfig()
    """Batch sizes, retries, the failure budget, and how long a run may go on."""
    ray: RayConfig = RayConfig()
    """Which Ray cluster does the work."""
    resources: ResourcesConfig = ResourcesConfig()
    """How many workers of each kind."""
    tracking: TrackingConfig = TrackingConfig()
    """The record of runs in MLflow."""
    retention: RetentionConfig = RetentionConfig()
    """What `vca prune` leaves. `vca tag` deletes no run."""

    @model_validator(mode="after")
    def _check(self) -> Self:
        encoder_gpus, predictor_gpus = self.resources.encoder_gpus, self.resources.predictor_gpus
        for field, device, share, gpus in (
            ("encoders.vision", self.encoders.vision.device, "encoder_gpus", encoder_gpus),
            ("encoders.audio", self.encoders.audio.device, "encoder_gpus", encoder_gpus),
            ("encoders.speech", self.encoders.speech.device, "encoder_gpus", encoder_gpus),
            ("predict.text_model", self.predict.text_model.device, "predictor_gpus", predictor_gpus),
        ):
            if device == "cuda" and gpus == 0:
                raise ValueError(f"{field}.device is cuda, but resources.{share} is 0; set it to 1 or a share of 1")
        return self

    @property
    def step_us(self) -> int:
        return self.sampling.step_ms * 1000

    @property
    def segment_us(self) -> int:
        return self.sampling.segment_s * 1_000_000


def read_config(path: str, overrides: Sequence[str] = ()) -> TagConfig:
    """The configuration in `path` with `a.b=c` overrides applied; every problem is a `ConfigError`."""
    values = apply_overrides(parse_yaml(read_text(path, "--config"), path), overrides)
    return build_config(TagConfig, values, path)


def read_output_config(path: str, overrides: Sequence[str], output_uri: str | None) -> OutputConfig:
    """The output that `--output` or the configuration names. Only this section must be valid."""
    values = {} if output_uri and not overrides else parse_yaml(read_text(path, "--config"), path)
    section = apply_overrides(values, overrides).get("output") or {}
    if not isinstance(section, dict):
        raise ConfigError(f"{path}: output must be a section with a uri")
    if output_uri:
        section = section | {"uri": output_uri}
    return build_config(OutputConfig, section, f"{path}: output")


def read_retention(path: str, overrides: Sequence[str]) -> RetentionConfig:
    """What `vca prune` leaves. Always read from the file, with `--output` too: defaults must not delete by surprise."""
    section = apply_overrides(parse_yaml(read_text(path, "--config"), path), overrides).get("retention") or {}
    if not isinstance(section, dict):
        raise ConfigError(f"{path}: retention must be a section")
    return build_config(RetentionConfig, section, f"{path}: retention")


def read_taxonomy(config: TagConfig) -> Taxonomy:
    """The taxonomy the configuration names, with its threshold overrides applied."""
    taxonomy = parse_taxonomy(read_text(config.taxonomy, "taxonomy"), config.taxonomy)
    return taxonomy.with_thresholds(config.predict.thresholds, "predict.thresholds")


def read_text(path: str, field: str) -> str:
    """A settings file; a missing or unreadable one is a `ConfigError` that names `field`."""
    try:
        return Path(path).read_text(encoding="utf-8")
    except FileNotFoundError as error:
        raise ConfigError(f"{field} = {path!r}: no such file; give a path relative to {Path.cwd()}") from error
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "not UTF-8 text"
        raise ConfigError(f"{field} = {path!r}: {reason}") from error
