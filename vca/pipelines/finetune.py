"""Fine-tuning from stored features to a registered model: windows, training, calibration, evaluation, registration.

Everything lies in the output: windows and checkpoints below `training/`, the finished model below `models/`, the report
below `reports/`. A run that was stopped goes on where it was when it is started again with the same settings; what is
finished is found and not done again.
"""

import json
import re
import tempfile
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from vca.core.annotations import Split, VideoTruth, annotation_version
from vca.core.errors import ConfigError
from vca.core.identity import canonical_json, digest
from vca.core.taxonomy import Taxonomy, parse_taxonomy
from vca.media.output import Output
from vca.models.calibration import Calibration, uncalibrated
from vca.models.fusion_config import FusionConfig
from vca.models.saved_model import ModelCard, read_card, save_model
from vca.pipelines import cluster, registry
from vca.pipelines.annotations import load_annotations, write_truths
from vca.pipelines.config import read_text
from vca.pipelines.features import FeatureStore
from vca.pipelines.finetune_config import FinetuneConfig
from vca.pipelines.judging import (
    CHAMPION,
    FROZEN,
    FUSION,
    Comparison,
    Decider,
    by_split,
    fit_deciders,
    judge,
    require_splits,
)
from vca.pipelines.model_store import local_folder, model_place, store_folder, store_model
from vca.pipelines.predict import StoredVideo, complete_videos, group_by_part
from vca.pipelines.promotion import JudgedOn, RegisteredVersion, Trial
from vca.pipelines.registry import check_registry, facts_of, fetch_model, find_version, log_and_register, promote
from vca.pipelines.scoring import Scored, ScoreSettings, Wanted, unpack
from vca.pipelines.train_config import TrainConfig
from vca.pipelines.training import TrainResult, train
from vca.pipelines.training_checkpoint import EpochMetrics
from vca.pipelines.training_tracking import DatasetVersion, TrainingTracker, report_figures
from vca.pipelines.window_set import WindowSet, make_window_set, trained_taxonomy
from vca.tables.report import comparison_text, write_report

Say = Callable[[str], None]


def finetune(config: FinetuneConfig, say: Say = print) -> int:
    """Train, evaluate, register. Returns 0; raises `ConfigError` for what a user can mend.

    The model is in the output before MLflow is asked for anything: a registry that fails costs the registration, not
    the training, and the same call registers it later without training again.
    """
    output = Output(config.output)
    material = gather(config, output)
    if config.registry.enabled:
        check_registry(config.registry, config.tracking)
    output.check_writable()
    say(material.describe())
    started_here = cluster.connect(config.ray)
    try:
        return _Finetuning(config, output, material, say).run()
    finally:
        cluster.disconnect(started_here)


def dry_run(config: FinetuneConfig) -> str:
    """The resolved configuration and what there is to learn from, as text. Writes nothing."""
    material = gather(config, Output(config.output))
    return json.dumps(config.model_dump(mode="json"), indent=2) + "\n" + material.describe()


def evaluate_model(config: FinetuneConfig, say: Say = print) -> int:
    """Judge a finished model, as it is, on the test split beside the baselines. Trains and registers nothing."""
    output = Output(config.output)
    material = gather(config, output)
    version = None
    if config.evaluated in (registry.CHAMPION, registry.CANDIDATE):
        version = find_version(config.registry.name, config.evaluated, config.tracking)
        if version is None:
            raise ConfigError(
                f"evaluated = {config.evaluated!r}: the registry has none of {config.registry.name!r}; "
                "train with `vca finetune`, or name a model of the output"
            )
    output.check_writable()
    place = fetch_model(version, output, config.tracking) if version else model_place(config.evaluated)
    decider, card = read_decider(output, place)
    if card.spec.feature_set != material.feature_set:
        raise ConfigError(
            f"feature_set = {material.feature_set}: {card.model_version} was trained on {card.spec.feature_set}; "
            "set feature_set to that, or train on these features"
        )
    say(material.describe())
    started_here = cluster.connect(config.ray)
    try:
        scored = score_all(config, output, material, {FUSION: place}, say)
        splits = by_split(material.truths, scored)
        trained = decider.taxonomy
        comparison = judge(
            splits, scored, trained, material.taxonomy, {FUSION: decider}, config.evaluation, card.fusion.inputs
        )
    finally:
        cluster.disconnect(started_here)
    about = {"model": card.model_version, "annotations": material.annotations, "features": material.feature_set}
    with tempfile.TemporaryDirectory(prefix="vca-evaluate-") as folder:
        report = Path(folder)
        _write_report(comparison, report, about)
        place = _store_report(output, report, f"{card.model_version}-{material.annotations[:8]}")
        say("\n" + comparison_text(comparison.to_dict()))
        say(f"{evidence_line(comparison)}\n\nreport     {place}/report.html")
        tracker = TrainingTracker(config.tracking, f"evaluate-{card.model_version}")
        tracker.parameters(config.model_dump(mode="json"))
        _track(tracker, output, report, material, comparison)
        tracker.finish(
            _figures(comparison), _tags(material, card), {"config.json": config.model_dump_json(indent=2)}, {}
        )
    say(f"tracking   {tracker.state}")
    return 0


def read_decider(output: Output, place: str) -> tuple[Decider, ModelCard]:
    """Labels and calibration of a model in the output."""
    with local_folder(output, place) as folder:
        saved = read_card(folder)
    return Decider(saved.card.spec.taxonomy, saved.calibration), saved.card


@dataclass(frozen=True, slots=True)
class Material:
    """What there is to learn from: annotated videos whose features are stored."""

    taxonomy: Taxonomy
    """The whole label space."""
    trained: Taxonomy
    """The part of it that is annotated enough."""
    truths: tuple[VideoTruth, ...]
    feature_set: str
    videos: Mapping[str, StoredVideo]
    annotations: str
    """Version of the truths."""

    def describe(self) -> str:
        """What is learned from, as text."""
        counts = ", ".join(f"{sum(t.split is split for t in self.truths)} {split}" for split in Split)
        tasks = ", ".join(f"{task.name} ({len(task.labels)} labels)" for task in self.trained.tasks)
        return f"{len(self.truths)} annotated videos: {counts}\ntasks: {tasks}\nfeature set {self.feature_set}"


def gather(config: FinetuneConfig, output: Output) -> Material:
    """Annotations and features, checked against each other. Raises `ConfigError`; writes nothing."""
    taxonomy = parse_taxonomy(read_text(config.taxonomy, "taxonomy"), config.taxonomy)
    feature_set = config.feature_set or only_feature_set(output)
    store = FeatureStore(output, feature_set)
    truths = load_annotations(config.annotations, taxonomy, store.videos().column("key").to_pylist())
    videos = complete_videos(store.contents())
    known = tuple(truth for truth in truths if truth.video_id in videos)
    if not known:
        raise ConfigError(
            f"annotations: none of the {len(truths)} annotated videos has features in {output.uri_of('')!r}; "
            "tag the archive first, and check that keys are relative to archive.uri"
        )
    require_splits({split: [t for t in known if t.split is split] for split in Split})
    return Material(
        taxonomy=taxonomy,
        trained=trained_taxonomy(taxonomy, known, config.min_positives),
        truths=known,
        feature_set=feature_set,
        videos={truth.video_id: videos[truth.video_id] for truth in known},
        annotations=annotation_version(known),
    )


def only_feature_set(output: Output) -> str:
    """The id of the one feature set in the output; none or several are a `ConfigError` that names them."""
    found = [name.rpartition("/")[2] for name in output.folders("features")]
    if len(found) != 1:
        raise ConfigError(
            f"feature_set: the output {output.uri_of('')!r} holds {len(found)} feature sets "
            f"({', '.join(sorted(found)) or 'none'}); name one, or tag an archive or import features first"
        )
    return found[0]


@dataclass(frozen=True, slots=True)
class Trained:
    """A model that was trained and stored without calibration."""

    fusion: FusionConfig
    run_name: str
    place: str
    result: TrainResult


def train_system(
    config: FinetuneConfig,
    output: Output,
    material: Material,
    fusion: FusionConfig,
    report: Callable[[EpochMetrics], None],
    say: Say,
) -> tuple[WindowSet, Trained]:
    """Cut windows, train, and store the model as it is before calibration, for the scorers."""
    windows = make_window_set(
        output,
        material.feature_set,
        material.videos,
        material.truths,
        material.trained,
        fusion,
        lambda groups, settings: cluster.cut_windows(groups, settings, config.scorers),
    )
    name = run_name(windows, fusion, config.train)
    result = train(windows, fusion, windows.spec, config.train, output, name, report, say)
    trained = Trained(fusion, name, f"training/{name}/model", result)
    with tempfile.TemporaryDirectory(prefix="vca-finetune-") as folder:
        _save(Path(folder), output, trained, windows, uncalibrated(material.trained), {})
        store_folder(output, Path(folder), trained.place)
    return windows, trained


def run_name(windows: WindowSet, fusion: FusionConfig, config: TrainConfig) -> str:
    """Same data, model and settings, same run: it is found finished, or gone on with."""
    parts = [windows.folder, canonical_json(fusion.model_dump(mode="json")), canonical_json(config.shaping)]
    return f"{fusion.plm.tune}-{digest('training run', *parts)[:12]}"


def _save(
    folder: Path,
    output: Output,
    trained: Trained,
    windows: WindowSet,
    calibration: Calibration,
    trained_on: Mapping[str, Any],
) -> ModelCard:
    from safetensors.torch import load

    state = load(output.read_bytes(trained.result.weights))
    return save_model(folder, trained.fusion, windows.spec, state, calibration, trained_on)


def score_all(
    config: FinetuneConfig, output: Output, material: Material, systems: Mapping[str, str], say: Say
) -> dict[str, Scored]:
    """What every system says about the videos that it is asked about, by video id."""
    zeroshot, probe = "zeroshot" in config.baselines, "probe" in config.baselines
    by_use = {
        Split.TRAIN: Wanted(probe=probe),
        Split.VALIDATION: Wanted(),
        Split.CALIBRATION: Wanted(models=tuple(systems), probe=probe),
        Split.TEST: Wanted(models=tuple(systems), subsets=True, zeroshot=zeroshot, probe=probe),
    }
    wanted = {truth.video_id: by_use[truth.split] for truth in material.truths}
    settings = ScoreSettings(
        output=output,
        feature_set=material.feature_set,
        wanted=wanted,
        models=systems,
        taxonomy=material.taxonomy,
        text_model=config.predict.text_model,
        vision=config.vision,
        zeroshot=config.predict.zeroshot,
        inputs=config.fusion.inputs,
        gpus=config.scorer_gpus,
    )
    groups = group_by_part({name: material.videos[name] for name, w in wanted.items() if w != Wanted()})
    found: dict[str, Scored] = {}
    for rows in cluster.score(groups, settings, config.scorers, config.scorer_gpus):
        for row in rows.to_pylist():
            found[row["video_id"]] = unpack(row, material.taxonomy)
    others = [name for name in config.baselines if name != "frozen"]  # a trained system, named already
    say(f"scored {len(found)} videos with {', '.join([*systems, *others])} and with fewer modalities")
    return found


class _Finetuning:
    """One call of `finetune`: what is known so far, step by step."""

    def __init__(self, config: FinetuneConfig, output: Output, material: Material, say: Say) -> None:
        self.config, self.output, self.material, self.say = config, output, material, say
        self.tracker = TrainingTracker(config.tracking, f"finetune-{material.annotations[:8]}")
        self.finished = False

    def run(self) -> int:
        config, material = self.config, self.material
        self.tracker.parameters(config.model_dump(mode="json"))
        try:
            windows, trained = self._train(FUSION, config.fusion)
            systems = {FUSION: trained.place}
            if "frozen" in config.baselines:
                frozen = config.fusion.plm.model_copy(update={"tune": "frozen"})
                _, baseline = self._train(FROZEN, config.fusion.model_copy(update={"plm": frozen}))
                systems[FROZEN] = baseline.place
            champion = self._champion()
            if champion is not None:
                systems[CHAMPION] = fetch_model(champion, self.output, config.tracking)
            scored = score_all(config, self.output, material, systems, self.say)
            splits = by_split(material.truths, scored)
            own = [system for system in systems if system != CHAMPION]
            deciders = fit_deciders(splits[Split.CALIBRATION], scored, material.trained, own)
            if champion is not None:
                deciders[CHAMPION], _ = read_decider(self.output, systems[CHAMPION])
            inputs = config.fusion.inputs
            comparison = judge(splits, scored, material.trained, material.taxonomy, deciders, config.evaluation, inputs)
            self._finish(windows, trained, comparison, champion)
        except BaseException as error:
            if not self.finished:
                self.tracker.fail(type(error).__name__)
            raise
        return 0

    def _train(self, system: str, fusion: FusionConfig) -> tuple[WindowSet, Trained]:
        self.say(f"training {system}")

        def report(epoch: EpochMetrics) -> None:
            curves = {f"train.{name}": value for name, value in epoch.train.items()}
            curves |= {f"validation.{name}": value for name, value in epoch.validation.items()}
            curves |= {"train.learning_rate": epoch.learning_rate, "train.windows_per_s": epoch.windows_per_s}
            prefix = "" if system == FUSION else "frozen."
            self.tracker.epoch(epoch.epoch, {f"{prefix}{name}": value for name, value in curves.items()})

        return train_system(self.config, self.output, self.material, fusion, report, self.say)

    def _champion(self) -> RegisteredVersion | None:
        """The present champion, if it can tag these features: what a new model has to beat."""
        if not self.config.registry.enabled:
            return None
        found = find_version(self.config.registry.name, registry.CHAMPION, self.config.tracking)
        return found if found is not None and found.feature_set == self.material.feature_set else None

    def _finish(
        self, windows: WindowSet, trained: Trained, comparison: Comparison, champion: RegisteredVersion | None
    ) -> None:
        """Store the model, write the report, register, and say how it went."""
        material, config = self.material, self.config
        write_truths(self.output, material.truths)
        with tempfile.TemporaryDirectory(prefix="vca-finetune-") as temporary:
            folder, report_folder = Path(temporary, "model"), Path(temporary, "report")
            headline = {name: asdict(figure) for name, figure in comparison.reports[FUSION].headline.items()}
            notes = {"annotations": material.annotations, "run": trained.run_name, "test": headline}
            card = _save(folder, self.output, trained, windows, comparison.calibration, notes)
            place = store_model(self.output, folder, card.model_version)
            about = {"model": card.model_version, "annotations": material.annotations, "features": material.feature_set}
            _write_report(comparison, report_folder, about)
            reports = _store_report(self.output, report_folder, card.model_version)
            self.say("\n" + comparison_text(comparison.to_dict()))
            self.say(evidence_line(comparison))
            self.say(f"\nmodel      {self.output.uri_of(place)}\nreport     {reports}/report.html")
            _track(self.tracker, self.output, report_folder, material, comparison)
            try:
                if config.registry.enabled:
                    self.say(self._register(folder, comparison, champion))
            finally:  # a registry that fails must not cost the figures
                resolved = {"config.json": config.model_dump_json(indent=2)}
                self.tracker.finish(_figures(comparison), _tags(material, card), resolved, {})
                self.finished = True
        self.say(f"tracking   {self.tracker.state}")

    def _register(self, folder: Path, comparison: Comparison, champion: RegisteredVersion | None) -> str:
        """Register and put the model before the gate; one line about how it went."""
        config = self.config
        name = config.registry.name
        before = find_version(name, registry.CHAMPION, config.tracking)
        facts = facts_of(folder)
        if before is not None and before.model_version == facts.model_version:
            return f"registry   {before.uri} is this model already, and the champion"
        candidate = log_and_register(folder, facts, name, config.tracking, self.tracker.run_id)
        test = [truth for truth in self.material.truths if truth.split is Split.TEST]
        judged_on = JudgedOn(
            annotation_version=self.material.annotations,
            split=digest("split", *sorted(truth.video_id for truth in test)),
            feature_set=self.material.feature_set,
            n_videos=len(test),
        )
        same = champion is not None and before is not None and champion.version == before.version
        trial = Trial(
            judged_on=judged_on,
            score=comparison.reports[FUSION].score,
            champion=before,
            champion_judged_on=judged_on if same else None,
            difference=comparison.differences[CHAMPION]["score"] if same else None,
        )
        verdict = promote(candidate, trial, config.registry.gate, config.tracking)
        return f"registry   {candidate.uri}: {'champion' if verdict.promoted else 'candidate'}, {verdict.reason}"


def _write_report(comparison: Comparison, folder: Path, about: Mapping[str, str]) -> None:
    write_report(comparison.to_dict(), folder, about)


def _store_report(output: Output, folder: Path, name: str) -> str:
    for path in sorted(folder.rglob("*")):
        if path.is_file():
            output.write_bytes(f"reports/{name}/{path.relative_to(folder).as_posix()}", path.read_bytes())
    return output.uri_of(f"reports/{name}")


def _track(tracker: TrainingTracker, output: Output, report: Path, material: Material, comparison: Comparison) -> None:
    """What an evaluation was made of, and its report."""
    features = output.uri_of(f"features/{material.feature_set}")
    truths = output.uri_of(f"annotations/{material.annotations}.parquet")
    tracker.datasets(
        [
            DatasetVersion("features", features, material.feature_set, "training"),
            DatasetVersion("annotations", truths, material.annotations, "training"),
        ]
    )
    tracker.folder(report, "report")
    tracker.figures(report_figures(comparison.reports[comparison.examined].to_dict()))


def _figures(comparison: Comparison) -> dict[str, float]:
    """Headline figures of the systems it was compared with, and what the evidence is worth."""
    figures = {
        f"compared.{_plain(system)}.{name}": figure.value
        for system, found in comparison.reports.items()
        for name, figure in ({"score": found.score} | found.headline).items()
        if system != comparison.examined
    }
    figures["test.evidence_correlation"] = comparison.evidence.correlation
    if comparison.seams is not None:
        figures |= {"test.brier_at_seams": comparison.seams.at_seams, "test.brier_inside": comparison.seams.inside}
    return figures


def _tags(material: Material, card: ModelCard) -> dict[str, str]:
    return {"vca.model_version": card.model_version, "vca.annotations": material.annotations}


def evidence_line(comparison: Comparison) -> str:
    """How far the shares of evidence can be believed, and how seams between windows are judged, if there are any."""
    found, seams = comparison.evidence, comparison.seams
    line = (
        f"evidence shares against leaving a modality out: correlation {found.correlation:.2f} (ranks "
        f"{found.rank_correlation:.2f}), same first modality in {found.top_agreement:.0%} of {found.n_pairs} labels"
    )
    if seams is None:
        return line
    return f"{line}\nBrier score of steps where windows meet {seams.at_seams:.4f}, elsewhere {seams.inside:.4f}"


def _plain(system: str) -> str:
    """A system's name as MLflow takes it in the name of a metric."""
    return re.sub(r"[^A-Za-z0-9_.-]+", "_", system)
