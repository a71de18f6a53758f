"""The cluster file is checked by Ray's own code, as far as that goes offline, and for what Ray leaves open."""

import copy
import re
from pathlib import Path
from typing import Any

import jsonschema
import pytest
import yaml
from ray.autoscaler._private.util import prepare_config, validate_config


@pytest.fixture(scope="module")
def cluster(repository: Path) -> dict[str, Any]:
    return yaml.safe_load((repository / "cluster.yaml").read_text(encoding="utf-8"))


def test_ray_accepts_the_file(cluster: dict[str, Any]) -> None:
    """`ray up` fills in defaults, then checks; both steps are Ray's own."""
    validate_config(prepare_config(copy.deepcopy(cluster)))


def test_ray_would_refuse_a_mistake(cluster: dict[str, Any]) -> None:
    """The check above can fail: an unknown key, an unknown head, limits that cannot be met."""
    with pytest.raises(jsonschema.ValidationError):
        validate_config(prepare_config(copy.deepcopy(cluster) | {"max_wokers": 3}))
    with pytest.raises(ValueError, match="head_node_type"):
        validate_config(prepare_config(copy.deepcopy(cluster) | {"head_node_type": "nobody"}))
    greedy = copy.deepcopy(cluster)
    greedy["available_node_types"]["cpu-decode"]["min_workers"] = greedy["max_workers"] + 1
    with pytest.raises(ValueError, match="max_workers"):
        validate_config(prepare_config(greedy))


def test_the_cluster_is_closed(cluster: dict[str, Any]) -> None:
    """Every `ray start` asks for the token, and the dashboard, which runs code, is not on the network."""
    for key in ("head_start_ray_commands", "worker_start_ray_commands"):
        starts = [command for command in cluster[key] if "ray start" in command]
        assert len(starts) == 1
        assert "RAY_AUTH_MODE=token" in starts[0]
        assert "RAY_USAGE_STATS_ENABLED=0" in starts[0]
    assert "--dashboard-host=127.0.0.1" in cluster["head_start_ray_commands"][-1]
    assert any(remote.endswith("/.ray/auth_token") for remote in cluster["file_mounts"])


def test_versions_agree_with_the_constraints(cluster: dict[str, Any], repository: Path) -> None:
    """Nodes with another Ray or Python than the driver refuse to join; the images must follow constraints.txt."""
    pinned = re.search(r"^ray==(\S+)$", (repository / "constraints.txt").read_text(encoding="utf-8"), re.MULTILINE)
    assert pinned is not None
    images = [cluster["docker"]["head_image"], cluster["docker"]["worker_image"]]
    images += [node["docker"]["worker_image"] for node in cluster["available_node_types"].values() if "docker" in node]
    for image in images:
        assert image.startswith(f"rayproject/ray:{pinned[1]}-py311-"), image


def test_every_node_installs_the_pinned_packages(cluster: dict[str, Any]) -> None:
    """A node type with its own setup commands replaces the common ones: it must install too."""
    setups = [cluster["head_setup_commands"], cluster["worker_setup_commands"]]
    setups += [
        n["worker_setup_commands"] for n in cluster["available_node_types"].values() if "worker_setup_commands" in n
    ]
    for commands in setups:
        assert any("pip install" in c and "-c /home/ray/vca/constraints.txt" in c for c in commands), commands


def test_workers_scale_and_the_gpu_nodes_have_gpus(cluster: dict[str, Any]) -> None:
    """Both kinds of workers start at none, may grow, and together fit under the cluster's limit."""
    workers = {
        name: node for name, node in cluster["available_node_types"].items() if name != cluster["head_node_type"]
    }
    assert set(workers) == {"cpu-decode", "gpu-encode"}
    assert all(0 == node["min_workers"] < node["max_workers"] for node in workers.values())
    assert sum(node["max_workers"] for node in workers.values()) <= cluster["max_workers"]
    assert workers["gpu-encode"]["node_config"]["InstanceType"].startswith(("g", "p"))
    assert workers["gpu-encode"]["docker"]["worker_image"].endswith("-gpu")
