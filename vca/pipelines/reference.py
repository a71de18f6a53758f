"""The configuration reference, made from the models: `python -m vca.pipelines.reference > docs/configuration.md`."""

import json
import re
import sys
from collections.abc import Iterator
from dataclasses import dataclass, field
from enum import Enum
from types import NoneType, UnionType
from typing import Annotated, Any, Literal, Union, get_args, get_origin

from pydantic import BaseModel
from pydantic.fields import FieldInfo

from vca.pipelines.config import TagConfig
from vca.pipelines.finetune_config import FinetuneConfig

_HEAD = """# Configuration

Made from the configuration classes by `python -m vca.pipelines.reference > docs/configuration.md`; do not edit.

One YAML file holds the settings of the tagging job. `--set a.b=value` replaces one of them, as often as needed; the
value is read as YAML, so `null`, `true`, numbers and lists `[a, b]` work, and text with special characters wants
quotes of its own:

```
vca tag --config configs/local.yaml --set archive.uri=/videos --set run.failure_budget=0.1
vca tag --config configs/local.yaml --set "archive.exclude=['**/trash/**']" --dry-run
```

- Only `archive.uri` and `output.uri` must be given; everything else has the default below.
- Keys are strict. An unknown key, a value of the wrong type or out of its range ends the job with exit code 2 and one
  line for each problem, before anything is written.
- `--dry-run` prints the resolved configuration and the plan, and publishes nothing; `vca plan` prints the plan alone.
  Neither writes anything. `vca tag` on S3 puts one empty object under the output and deletes it again, to see whether
  it may. While it works it holds the lock of the output ([housekeeping.md](housekeeping.md)).
- Every run keeps its resolved configuration: column `config` of the table `runs`, and `config.json` in MLflow.
- Paths are relative to the working directory. With `ray job submit --working-dir .` that is the folder submitted, so
  use `s3://` or a folder that all nodes share for archive and output.
- Files in `configs/`: `local.yaml` (a folder on this machine), `nightly.yaml` (a cluster and S3), `demo.yaml` (`make
  demo`), and for fine-tuning `finetune.yaml` and `demo_finetune.yaml`. The label space is a file of its own,
  `configs/taxonomy.yaml`.

## Credentials

Credentials never stand in a configuration file or in a URI; one that looks so is refused. They come from the
environment, from a named profile (`archive.storage.profile`, `output.storage.profile`) or from the role of the
machine, in the usual order of the AWS libraries. Every node that reads the archive needs them; only the driver
writes, so the workers can do with read-only ones. The decoding child gets none.

## Environment variables

| variable | effect |
|---|---|
| `AWS_ACCESS_KEY_ID`, `AWS_SECRET_ACCESS_KEY`, `AWS_SESSION_TOKEN`, `AWS_PROFILE`, `AWS_DEFAULT_REGION` | access \
to S3 and to servers that speak its protocol |
| `MLFLOW_TRACKING_URI` | tracking server, where `tracking.uri` is null |
| `MLFLOW_TRACKING_USERNAME`, `MLFLOW_TRACKING_PASSWORD` | its credentials |
| `RAY_ADDRESS` | cluster to join, where `ray.address` is null; set by `ray job submit` inside a job |
| `RAY_AUTH_MODE` | `token`: Ray refuses callers without the shared secret. Set it for `ray start`, `ray up` and \
`ray job submit` alike. Where none is set, a local run has a token of its own |
| `HF_HUB_OFFLINE` | `1`: models come from the local cache only. `make` sets it for its own commands |
| `HF_HOME`, `HF_TOKEN` | place of that cache; access to gated models |

A setting wins over a variable. Where they are not set, the job sets `RAY_USAGE_STATS_ENABLED=0`,
`RAY_DATA_DISABLE_PROGRESS_BARS=1`, `RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO=0`, `RAY_BACKEND_LOG_LEVEL=fatal`,
`MLFLOW_DISABLE_TELEMETRY=true`, `GIT_PYTHON_REFRESH=quiet` and a short timeout for MLflow (`tracking.timeout_s`, one
retry).
"""

_EXAMPLES = """## Examples

### A laptop

A folder in, a folder out, MLflow in a local file. OCR is most of the encoding time; fewer frames are cheaper.

```yaml
archive:
  uri: /videos
output:
  uri: out
encoders:
  ocr:
    frames_per_minute: 2
ray:
  num_cpus: 4
  object_store_mb: 512
tracking:
  uri: sqlite:///mlflow.db
  artifact_uri: mlartifacts
```

### S3 by MinIO

Any server that speaks S3; credentials come from `AWS_ACCESS_KEY_ID` and `AWS_SECRET_ACCESS_KEY`, or from the profile.
Archive and output are reached with settings of their own.

```yaml
archive:
  uri: s3://archive/videos
  exclude: ["**/trash/**", "*.part.mp4"]
  storage:
    endpoint_url: http://minio:9000
    region: us-east-1
    profile: archive-reader
output:
  uri: s3://tags/vca
  storage:
    endpoint_url: http://minio:9000
    region: us-east-1
    profile: tags-writer
decode:
  stage_limit_mb: 2048
run:
  failure_budget: 0.02
tracking:
  uri: http://mlflow:5000
```

### A cluster with GPUs and large encoders

SigLIP2 for the picture, the Audio Spectrogram Transformer for sound, Whisper for words. SigLIP2 has a text tower, so
frames are compared with the labels too. The models are fetched from the hub by every node that encodes; fill the
cache beforehand and set `HF_HUB_OFFLINE=1`, or give folders. Set `revision` to a commit: without it the newest commit
counts, and a new one makes a new feature set. `autoscaling` starts GPU nodes that are not there yet and needs the
counts of workers. `device` stays `auto`: the predictors load the text tower of SigLIP2 as well and have no GPU here;
`cuda` would be refused there.

```yaml
archive:
  uri: s3://archive/videos
output:
  uri: s3://archive-tags/vca
encoders:
  vision:
    kind: huggingface
    model: google/siglip2-base-patch16-224
    frames_per_second: 2
    batch_size: 128
  audio:
    kind: huggingface
    model: MIT/ast-finetuned-audioset-10-10-0.4593
    batch_size: 32
  speech:
    asr_model: openai/whisper-large-v3-turbo
    asr_language: en
    batch_size: 8
predict:
  zeroshot:
    vision_temperature: 1.0
  thresholds:
    moderation: 0.85
    content.news: 0.4
resources:
  readers: 48
  encoders: 4
  encoder_gpus: 1
  predictors: 4
  autoscaling: true
```

The features of these three models were not measured by this project; see [zeroshot.md](zeroshot.md) for what was.

"""


_FINETUNING = """## Fine-tuning

`vca finetune` and `vca evaluate` have a file of their own, such as `configs/finetune.yaml`. Sections that are not
listed here are those of the tagging job. [finetuning.md](finetuning.md) tells what they are for.
"""


@dataclass
class _Section:
    model: type[BaseModel]
    meaning: str
    paths: list[str] = field(default_factory=list)


def sections(root: type[BaseModel] = TagConfig) -> list[_Section]:
    """Every section of a job in the order of its file; sections of one class share a table."""
    found: list[_Section] = []

    def visit(model: type[BaseModel], path: str, meaning: str) -> None:
        same = next((s for s in found if s.model is model), None)
        if same is None:
            same = _Section(model, meaning)
            found.append(same)
        same.paths.append(path)
        for name, info in model.model_fields.items():
            if (inner := section_class(info)) is not None:
                assert info.is_required() or info.get_default() == inner(), f"{path}.{name}: a default of its own"
                visit(inner, f"{path}.{name}".removeprefix("."), _plain(info.description))

    visit(root, "", "")
    return found


def section_class(info: FieldInfo) -> type[BaseModel] | None:
    """The class of a field that is a section of its own."""
    kind = info.annotation
    return kind if isinstance(kind, type) and issubclass(kind, BaseModel) else None


def configuration_reference() -> str:
    """Markdown: how to configure, examples, then a table for every section. Equal models give equal text."""
    tagging = sections()
    known = {section.model for section in tagging}
    finetuning = [section for section in sections(FinetuneConfig) if section.model not in known]
    parts = [_HEAD, _EXAMPLES + "## All settings\n", *_tables(tagging, "Top level")]
    parts += [_FINETUNING, *_tables(finetuning, "Fine-tuning, top level")]
    return "\n".join(parts)


def _tables(found: list[_Section], top: str) -> Iterator[str]:
    for section in found:
        yield "### " + (" and ".join(f"`{path}`" for path in section.paths if path) or top) + "\n"
        text = _section_text(section)
        if text:
            yield text + "\n"
        yield _table(section)


def _section_text(section: _Section) -> str:
    """The class says more than the field that holds it; where it says nothing, the field does."""
    own = _plain(section.model.__doc__) if section.model not in (TagConfig, FinetuneConfig) else ""
    for path in section.paths:
        own = own.removeprefix(f"`{path}`. ").removeprefix(f"`{path}`.")
    return own or section.meaning


def _table(section: _Section) -> str:
    heads = ("key", "type", "default", "range", "meaning")
    rows = [heads, tuple("---" for _ in heads)]
    for name, info in section.model.model_fields.items():
        inner = section_class(info)
        if inner is not None:
            rows.append(
                (f"`{name}`", "section", "required" if info.is_required() else "", "", _plain(info.description))
            )
            continue
        default = "required" if info.is_required() else f"`{_default(info)}`"
        rows.append((f"`{name}`", type_name(info.annotation), default, _range(info), _plain(info.description)))
    return "".join("| " + " | ".join(cell.replace("|", "\\|") for cell in row) + " |\n" for row in rows)


def type_name(kind: Any) -> str:
    """A type as a YAML file has it."""
    origin, arguments = get_origin(kind), get_args(kind)
    if origin in (Union, UnionType):
        return " or ".join("null" if item is NoneType else type_name(item) for item in arguments)
    if origin is Annotated:
        return type_name(arguments[0])
    if isinstance(kind, type) and issubclass(kind, Enum):
        return ", ".join(f"`{item.value}`" for item in kind)
    if origin is Literal:
        return ", ".join(f"`{item}`" for item in arguments)
    if origin is tuple:
        return f"list of {type_name(arguments[0])}"
    if origin is dict:
        return f"map of {type_name(arguments[0])} to {type_name(arguments[1])}"
    names = {str: "text", int: "integer", float: "number", bool: "`true`, `false`"}
    return names[kind]


def _default(info: FieldInfo) -> str:
    value = info.get_default(call_default_factory=True, validated_data={})
    return value if isinstance(value, str) and value else json.dumps(value)


def _range(info: FieldInfo) -> str:
    """Limits of the field itself. Rules between fields are in the meanings."""
    return ", ".join(_limits(info.metadata))


def _limits(metadata: list[Any]) -> Iterator[str]:
    words = {"gt": "above", "ge": "from", "lt": "below", "le": "to"}
    for item in metadata:
        if (shortest := getattr(item, "min_length", None)) is not None:
            assert shortest == 1, "say in words what a longer minimum means"
            yield "not empty"
        for name, word in words.items():
            if (limit := getattr(item, name, None)) is not None:
                yield f"{word} {limit:g}" if abs(limit) < 1e5 else f"{word} {limit}"


def _plain(text: str | None) -> str:
    """A docstring as one line of Markdown, with YAML's word for nothing."""
    return re.sub(r"(?<!`)\bNone\b(?!`)", "`null`", " ".join((text or "").split()))


if __name__ == "__main__":
    sys.stdout.write(configuration_reference())
