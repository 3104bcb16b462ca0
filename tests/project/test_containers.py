"""samples/containers/: image, compose file and StatefulSet fit each other, and their commands are dpwa's.

No engine of containers is needed: what the files name is compared, and what they run is run.
"""

from __future__ import annotations

import getpass
import json
import os
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

from dpwa.cli import main
from dpwa.cli_nodes import run_node
from dpwa.config.cluster import ClusterConfig
from dpwa.launch.ports import free_ports
from dpwa.transport.key_folder import KeyFolder, make_keys
from support import ROOT

FOLDER = ROOT / "samples" / "containers"
DOCKERFILE = (FOLDER / "Dockerfile").read_text(encoding="utf-8")
COMPOSE: dict[str, Any] = yaml.safe_load((FOLDER / "compose.yaml").read_text(encoding="utf-8"))
SERVICE, CONFIG_MAP, SET = yaml.safe_load_all((FOLDER / "kubernetes.yaml").read_text(encoding="utf-8"))
POD = SET["spec"]["template"]["spec"]
(NODE,) = POD["containers"]
(KEYS,) = POD["initContainers"]
NODES = ["dpwa-0", "dpwa-1", "dpwa-2", "dpwa-3"]


def parsed(words: list[str]) -> dict[str, Any]:
    """What `dpwa run` makes of such words."""
    assert words[:2] == ["dpwa", "run"]
    with run_node.make_context("run", words[2:]) as context:
        return dict(context.params)


def command_of(service: dict[str, Any]) -> dict[str, Any]:
    return parsed(shlex.split(service["command"]))


def says_its_node(words: list[str], folder: Path, **environment: str) -> dict[str, str]:
    """Run such a command of dpwa in a folder, with a script that says what it finds, in place of the training."""
    ours = [
        *words[: words.index("--") + 1],
        sys.executable,
        "-c",
        "import json, os; print(json.dumps(dict(os.environ)))",
    ]
    kept = {name: value for name, value in os.environ.items() if not name.startswith("DPWA_")}
    done = subprocess.run(
        [sys.executable, "-m", *ours], cwd=folder, env=kept | environment, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    return dict(json.loads(done.stdout))


def on_localhost(text: str) -> str:
    """A cluster file whose nodes are all here."""
    ports = iter(free_ports(4))
    return re.sub(r"host: [\w.-]+, port: \d+", lambda _: f"host: localhost, port: {next(ports)}", text)


def test_the_image_is_made_of_files_that_are_there_by_a_user_who_is_not_root():
    copied = [line.split()[1:-1] for line in DOCKERFILE.splitlines() if line.startswith("COPY")]
    assert [name for names in copied for name in names if not (ROOT / name).exists()] == []
    instructions = re.findall(r"^([A-Z]+) ", DOCKERFILE, re.MULTILINE)
    assert instructions[0] == "FROM"
    assert set(instructions) == {"FROM", "WORKDIR", "COPY", "RUN", "USER", "CMD"}
    (user,) = re.findall(r"^USER (\d+)$", DOCKERFILE, re.MULTILINE)
    assert int(user) == POD["securityContext"]["runAsUser"] != 0
    assert f"--uid {user}" in DOCKERFILE
    (command,) = re.findall(r"^CMD (.+)$", DOCKERFILE, re.MULTILINE)
    assert json.loads(command)[0] == "dpwa"
    assert "docker build -f samples/containers/Dockerfile -t dpwa ." in DOCKERFILE


@pytest.mark.heavy
def test_what_the_image_copies_is_enough_to_install_dpwa(tmp_path):
    for line in DOCKERFILE.splitlines():
        for name in line.split()[1:-1] if line.startswith("COPY") else ():
            copy = shutil.copytree if (ROOT / name).is_dir() else shutil.copy
            copy(ROOT / name, tmp_path / name)
    words = [sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "--no-build-isolation", "-w", "out", "."]
    subprocess.run(words, cwd=tmp_path, check=True, capture_output=True)
    assert list((tmp_path / "out").glob("dpwa-*.whl"))


def test_each_service_is_the_node_of_its_name():
    config = ClusterConfig.from_text((FOLDER / "cluster.yaml").read_text(encoding="utf-8"))
    assert [node.name for node in config.nodes] == list(COMPOSE["services"])
    for name, service in COMPOSE["services"].items():
        assert service["environment"]["DPWA_NODE"] == name == config.node(name).host
        found = command_of(service)
        assert found["command"] == ("python", "-m", "dpwa.examples.digits.train")
        assert found["on_failure"] == "restart"
        assert service["restart"] == "on-failure"
        assert service["init"], "else the script would be process 1, which SIGTERM does not end before dpwa is there"
        mounted = dict(volume.split(":")[:2] for volume in service["volumes"])
        assert mounted["./cluster.yaml"] == f"/train/{found['cluster_file']}"
        assert f"/train/{found['run_dir']}".startswith(mounted["runs"] + "/")
    assert "runs" in COMPOSE["volumes"]
    assert config.checkpoint is not None, "whoever is started again goes on"
    build = COMPOSE["x-node"]["build"]
    assert (FOLDER / build["context"]).resolve() == ROOT
    assert ROOT / build["dockerfile"] == FOLDER / "Dockerfile"


@pytest.mark.seconds
def test_the_command_of_a_service_starts_its_node(tmp_path):
    (tmp_path / "cluster.yaml").write_text(on_localhost((FOLDER / "cluster.yaml").read_text(encoding="utf-8")))
    service = COMPOSE["services"]["w3"]
    found = says_its_node(shlex.split(service["command"]), tmp_path, **service["environment"])
    assert (found["DPWA_NODE"], found["DPWA_RANK"], found["DPWA_WORLD_SIZE"]) == ("w3", "2", "4")
    assert found["DPWA_ON_FAILURE"] == "restart"


def test_each_pod_is_a_node_that_is_reached_by_its_name_within_the_headless_service():
    assert SERVICE["kind"], SET["kind"] == ("Service", "StatefulSet")
    assert SERVICE["spec"]["clusterIP"] == "None"
    assert SERVICE["spec"]["publishNotReadyAddresses"], "nodes look each other up before they are ready"
    assert SET["spec"]["serviceName"] == SERVICE["metadata"]["name"]
    labels = SET["spec"]["template"]["metadata"]["labels"]
    assert SERVICE["spec"]["selector"] == SET["spec"]["selector"]["matchLabels"] == labels
    config = ClusterConfig.from_text(CONFIG_MAP["data"]["cluster.yaml"])
    names = [f"{SET['metadata']['name']}-{number}" for number in range(SET["spec"]["replicas"])]
    assert [node.name for node in config.nodes] == names == NODES
    assert [node.host for node in config.nodes] == [f"{name}.{SET['spec']['serviceName']}" for name in names]
    (port,) = {node.port for node in config.nodes}
    assert [entry["containerPort"] for entry in NODE["ports"]] == [port]
    assert [entry["port"] for entry in SERVICE["spec"]["ports"]] == [port]
    assert port < 32768


def test_a_pod_has_what_its_command_names():
    found = parsed([*NODE["command"], *NODE["args"]])
    mounts = {mount["mountPath"]: mount["name"] for mount in NODE["volumeMounts"]}
    volumes = {volume["name"]: volume for volume in POD["volumes"]}
    claims = {claim["metadata"]["name"] for claim in SET["spec"]["volumeClaimTemplates"]}
    assert set(mounts.values()) <= set(volumes) | claims
    assert found["cluster_file"].name in CONFIG_MAP["data"]
    assert volumes[mounts[str(found["cluster_file"].parent)]]["configMap"]["name"] == CONFIG_MAP["metadata"]["name"]
    assert mounts[str(found["run_dir"].parent)] in claims, "checkpoints outlive the pod"
    config = ClusterConfig.from_text(CONFIG_MAP["data"]["cluster.yaml"])
    assert mounts[str(config.keys)] == "keys"
    assert config.checkpoint is not None
    assert "secret" not in mounts.values(), "a pod sees its own key alone"
    assert found["on_failure"] == "restart", "a StatefulSet starts a pod again"
    for container in (NODE, KEYS):
        (variable,) = container["env"]
        assert variable["name"] == "DPWA_NODE"
        assert variable["valueFrom"]["fieldRef"]["fieldPath"] == "metadata.name"
        assert container["image"] == COMPOSE["x-node"]["image"]


@pytest.mark.seconds
@pytest.mark.parametrize("name", NODES)
def test_the_name_of_a_pod_makes_it_its_node(tmp_path, name):
    (tmp_path / "config").mkdir()
    text = CONFIG_MAP["data"]["cluster.yaml"].replace("/keys", str(tmp_path / "keys"))
    (tmp_path / "config" / "cluster.yaml").write_text(on_localhost(text))
    words = [*NODE["command"], *NODE["args"]]
    here = [word.replace("/config/", "config/").replace("/runs/", "runs/") for word in words]
    found = says_its_node(here, tmp_path, DPWA_NODE=name)
    assert (found["DPWA_NODE"], found["DPWA_RANK"]) == (name, name[-1])
    assert found["DPWA_RUN_DIR"] == str(tmp_path / "runs" / "digits")


def test_a_pod_gets_its_own_key_in_a_form_that_dpwa_takes(tmp_path):
    secret, keys = tmp_path / "secret", tmp_path / "keys"
    make_keys(tmp_path / "made", NODES)
    secret.mkdir()
    keys.mkdir()
    for path in (tmp_path / "made").iterdir():  # as Kubernetes mounts a secret: links to files that a group can read
        path.chmod(0o640)
        (secret / path.name).symlink_to(path)
    shell, option, script = KEYS["command"]
    script = script.replace("/secret/", f"{secret}/").replace("/keys/", f"{keys}/")
    for _ in range(2):  # a container that is started again, too
        subprocess.run(
            [f"/bin/{shell}", option, script], env={"DPWA_NODE": "dpwa-2", "PATH": os.environ["PATH"]}, check=True
        )
    assert sorted(path.name for path in keys.iterdir()) == ["allowed.yaml", "dpwa-2.key"]
    KeyFolder(keys, "dpwa-2", [name for name in NODES if name != "dpwa-2"])
    assert keys.owner() == getpass.getuser()


def test_the_commands_in_the_comments_can_be_typed():
    comments = "".join((FOLDER / name).read_text(encoding="utf-8") for name in ("kubernetes.yaml", "compose.yaml"))
    (told,) = re.findall(r"^# +sed .+ cluster.yaml && (dpwa .+)$", comments, re.MULTILINE)
    words = shlex.split(told)[1:]
    group = main.commands["keys"]
    with group.commands[words[1]].make_context("init", words[2:]):  # type: ignore[attr-defined]
        pass
    assert "docker compose -f samples/containers/compose.yaml up" in comments
    text = CONFIG_MAP["data"]["cluster.yaml"]
    assert re.sub(r"^keys: .*", "keys: keys", text, flags=re.MULTILINE) != text
