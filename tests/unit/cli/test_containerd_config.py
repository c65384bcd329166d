"""What containerd's own configuration has to say is found in each version, and what lacks can be pasted."""

from __future__ import annotations

import subprocess
import tomllib
from pathlib import Path

import pytest
import yaml

from stafett.cli.configure.distros import DistroName, distro_of
from stafett.cli.containerd_config import ContainerdConfig, plugin_of
from stafett.cli.doctor.containerd_checks import check_config
from stafett.cli.doctor.verdict import Level

HOSTS_DIR = Path("/etc/containerd/certs.d")
V1, V2, V3 = (f'plugins."{plugin_of(version)}"' for version in (1, 2, 3))
PATH = f'config_path = "{HOSTS_DIR}"'
VERSIONS = pytest.mark.parametrize("version", [1, 2, 3, 4])


def read(folder: Path, text: str) -> ContainerdConfig:
    (folder / "config.toml").write_text(text)
    found = ContainerdConfig.read(folder / "config.toml")
    assert found is not None
    return found


def dumped(path: Path) -> str:
    """What containerd makes of a configuration."""
    command = ["containerd", "--config", str(path), "config", "dump"]
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout


@VERSIONS
@pytest.mark.parametrize("name", [DistroName.CONTAINERD, DistroName.GKE])
def test_what_is_to_be_pasted_is_a_whole_configuration(tmp_path: Path, name: DistroName, version: int) -> None:
    config = read(tmp_path, distro_of(name, HOSTS_DIR).snippet(version))
    assert (config.version, config.uses(HOSTS_DIR), config.discards_layers) == (version, True, False)


@pytest.mark.needs_program("containerd")
@pytest.mark.parametrize("version", [1, 2])
def test_containerd_itself_takes_what_is_to_be_pasted(tmp_path: Path, version: int) -> None:
    path = tmp_path / "config.toml"
    path.write_text(distro_of(DistroName.CONTAINERD, HOSTS_DIR).snippet(version))
    assert PATH in dumped(path)


@VERSIONS
def test_user_data_of_eks_is_a_node_config_with_toml_in_it(tmp_path: Path, version: int) -> None:
    document = yaml.safe_load(distro_of(DistroName.EKS, HOSTS_DIR).snippet(version))
    assert (document["apiVersion"], document["kind"]) == ("node.eks.aws/v1alpha1", "NodeConfig")
    config = read(tmp_path, f"version = {version}\n{document['spec']['containerd']['config']}")
    assert config.uses(HOSTS_DIR)
    assert not config.discards_layers


@VERSIONS
def test_a_patch_for_talos_keeps_layers(tmp_path: Path, version: int) -> None:
    (file,) = yaml.safe_load(distro_of(DistroName.TALOS, HOSTS_DIR).snippet(version))["machine"]["files"]
    assert (file["path"], file["op"]) == ("/etc/cri/conf.d/20-customization.part", "create")
    talos = f"version = {version}\nimports = ['part.toml']\n"
    (tmp_path / "part.toml").write_text(file["content"])
    assert not read(tmp_path, talos).discards_layers
    assert "discard_unpacked_layers = false" in file["content"]


@pytest.mark.parametrize("name", [DistroName.K3S, DistroName.RKE2])
@pytest.mark.parametrize("version", [2, 3])
def test_a_template_for_k3s_repeats_no_table_of_its_base(name: DistroName, version: int) -> None:
    base = f"version = {version}\n{distro_of(DistroName.CONTAINERD, HOSTS_DIR).snippet(version).partition(chr(10))[2]}"
    distro = distro_of(name)
    rendered = distro.snippet(version).replace('{{ template "base" . }}', base)
    assert tomllib.loads(rendered) == tomllib.loads(base)
    template = "config-v3.toml.tmpl" if version > 2 else "config.toml.tmpl"
    assert f"/var/lib/rancher/{name}/agent/etc/containerd/{template}" in distro.exact_change(version)


@pytest.mark.parametrize(
    ("config", "levels", "said"),
    [
        (f"version = 2\n[{V2}.registry]\n{PATH}\n", {}, ""),
        (f"version = 3\n[{V3}.registry]\n{PATH}\n", {}, ""),
        (f"[{V1}.registry]\n{PATH}\n", {}, ""),
        ("version = 2\n", {"config-path": Level.FAIL}, "config_path is not set"),
        (f"version = 3\n[{V2}.registry]\n{PATH}\n", {"config-path": Level.FAIL}, "of version 3"),
        (f"version = 2\n[{V3}.registry]\n{PATH}\n", {"config-path": Level.FAIL}, "of version 2"),
        (f"[{V2}.registry]\n{PATH}\n", {"config-path": Level.FAIL}, "of version 1"),
        (f'version = 2\n[{V2}.registry]\nconfig_path = "/b"\n', {"config-path": Level.FAIL}, "config_path is /b"),
        (
            f"version = 2\n[{V2}.registry]\n{PATH}\n[{V2}.registry.mirrors.a]\nendpoint = []\n",
            {"config-path": Level.FAIL},
            "CRI cannot start",
        ),
        (
            f"version = 2\n[{V2}.registry]\n{PATH}\n[{V2}.registry.configs.a.tls]\nca_file = 'a'\n",
            {"config-path": Level.FAIL},
            "CRI cannot start",
        ),
        (
            f"version = 2\n[{V2}.registry.mirrors.a]\nendpoint = []\n",
            {"config-path": Level.FAIL},
            "move what registry.mirrors",
        ),
        (
            f'version = 3\n[{V3}.registry]\nconfig_path = "{HOSTS_DIR}:/b"\n',
            {"config-path": Level.WARN},
            "take the list for one folder",
        ),
        (f'version = 2\n[{V2}.registry]\nconfig_path = "/b:{HOSTS_DIR}/"\n', {}, ""),
        (
            f'version = 3\n[{V3}]\nuse_local_image_pull = true\n[{V3}.registry]\nconfig_path = "{HOSTS_DIR}:/b"\n',
            {},
            "",
        ),
        (
            f"version = 2\n[{V2}.registry]\n{PATH}\n[{V2}.containerd]\ndiscard_unpacked_layers = true\n",
            {"discard-layers": Level.FAIL},
            "nothing to share",
        ),
        (
            f"version = 3\n[{V3}]\ndiscard_unpacked_layers = true\n",
            {"config-path": Level.FAIL, "discard-layers": Level.FAIL},
            "nothing to share",
        ),
        ("version = [", {"config-path": Level.FAIL}, "cannot be read"),
        (None, {"config-path": Level.FAIL}, "is not there"),
    ],
)
def test_what_lacks_is_named_with_what_to_paste(
    tmp_path: Path, config: str | None, levels: dict[str, Level], said: str
) -> None:
    path = tmp_path / "config.toml"
    if config is not None:
        path.write_text(config)
    wrong = [
        verdict
        for verdict in check_config(distro_of(DistroName.CONTAINERD, HOSTS_DIR, path))
        if verdict.level is not Level.OK
    ]
    assert {verdict.check: verdict.level for verdict in wrong} == levels
    assert any(said in f"{verdict.said} {verdict.remedy}" for verdict in wrong) or not levels


IMPORTED = "discard_unpacked_layers = false\n"


def test_an_import_replaces_the_whole_plugin_as_containerd_1_does(tmp_path: Path) -> None:
    (tmp_path / "conf.d").mkdir()
    (tmp_path / "conf.d" / "layers.toml").write_text(f"version = 2\n[{V2}.containerd]\n{IMPORTED}")
    main = f'version = 2\nimports = ["conf.d/*.toml"]\n[{V2}.registry]\n{PATH}\n'
    assert not read(tmp_path, main).uses(HOSTS_DIR)


@pytest.mark.needs_program("containerd")
def test_containerd_1_itself_does_so(tmp_path: Path) -> None:
    (tmp_path / "layers.toml").write_text(f"version = 2\n[{V2}.containerd]\n{IMPORTED}")
    path = tmp_path / "config.toml"
    path.write_text(f'version = 2\nimports = ["layers.toml"]\n[{V2}.registry]\n{PATH}\n')
    assert 'config_path = ""' in dumped(path)


def test_an_import_adds_to_the_plugin_as_containerd_2_does_and_later_ones_win(tmp_path: Path) -> None:
    (tmp_path / "conf.d").mkdir()
    (tmp_path / "conf.d" / "1.toml").write_text(f'version = 3\n[{V3}.registry]\nconfig_path = "/b"\n')
    (tmp_path / "conf.d" / "2.toml").write_text(f"[{V3}]\n{IMPORTED}[{V3}.registry]\n{PATH}\n")
    (tmp_path / "conf.d" / "3.toml").write_text(f'imports = ["../config.toml"]\n[{V3}]\n{IMPORTED}')
    main = f'version = 3\nimports = ["conf.d/*.toml"]\n[{V3}]\ndiscard_unpacked_layers = true\n'
    config = read(tmp_path, main)
    assert config.uses(HOSTS_DIR)
    assert not config.discards_layers
