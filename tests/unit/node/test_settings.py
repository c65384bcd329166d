from __future__ import annotations

from pathlib import Path

import pytest

from stafett.common.settings import SettingsInvalid, load
from stafett.common.topology import Topology
from stafett.node.settings import NodeSettings


def from_options(*options: str) -> NodeSettings:
    return load(NodeSettings, list(options), "stafett node")


def test_defaults_serve_the_host_s_containerd() -> None:
    settings = from_options()
    assert settings.store == "containerd"
    assert settings.content_root is None
    assert settings.namespaces == ()
    assert settings.topology == Topology()


def test_options_win_over_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("STAFETT_NODE_NODE_ID", "from-environment")
    monkeypatch.setenv("STAFETT_NODE_ZONE", "z1")
    monkeypatch.setenv("STAFETT_NODE_LABELS", '{"disk": "ssd"}')
    settings = from_options("--node-id", "from-option")
    assert settings.node_id == "from-option"
    assert settings.topology == Topology(zone="z1")
    assert settings.labels == {"disk": "ssd"}


@pytest.mark.parametrize(("text", "expected"), [("k8s.io", ("k8s.io",)), (" a, b ,", ("a", "b")), ("", ())])
def test_namespaces_are_separated_by_commas(
    monkeypatch: pytest.MonkeyPatch, text: str, expected: tuple[str, ...]
) -> None:
    monkeypatch.setenv("STAFETT_NODE_NAMESPACES", text)
    assert from_options().namespaces == expected


@pytest.mark.parametrize("node_id", ["", "a b", "a/b", "x" * 254])
def test_a_name_that_the_cluster_cannot_use_is_refused(node_id: str) -> None:
    with pytest.raises(SettingsInvalid, match="STAFETT_NODE_NODE_ID"):
        from_options("--node-id", node_id)


def test_a_layout_store_needs_its_folder(tmp_path: Path) -> None:
    with pytest.raises(SettingsInvalid, match="content_root"):
        from_options("--store", "oci-layout")
    assert from_options("--store", "oci-layout", "--content-root", str(tmp_path)).content_root == tmp_path


def test_all_wrong_settings_are_listed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("STAFETT_NODE_MAX_STREAMS", "0")
    monkeypatch.setenv("STAFETT_NODE_NO_SUCH_THING", "1")
    with pytest.raises(SettingsInvalid) as error:
        from_options("--listen-port", "65536")
    for name in ("MAX_STREAMS", "NO_SUCH_THING", "LISTEN_PORT"):
        assert f"STAFETT_NODE_{name}" in str(error.value)


def test_settings_come_from_files_where_neither_option_nor_variable_says_otherwise(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, text in (("RACK", "r1\n"), ("ZONE", "of-file"), ("LISTEN_PORT", "1")):
        (tmp_path / f"STAFETT_NODE_{name}").write_text(text)
    (tmp_path / "STAFETT_GATEWAY_ZONE").write_text("of another part")
    (tmp_path / "..data").mkdir()
    monkeypatch.setenv("STAFETT_SETTINGS_DIR", str(tmp_path))
    monkeypatch.setenv("STAFETT_NODE_ZONE", "of-environment")
    settings = from_options("--listen-port", "2")
    assert settings.topology == Topology(zone="of-environment", rack="r1")
    assert settings.listen_port == 2


def test_wrong_files_are_listed_with_the_rest(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "STAFETT_NODE_MAX_STREAMS").write_text("0")
    (tmp_path / "STAFETT_NODE_NO_SUCH_THING").write_text("1")
    monkeypatch.setenv("STAFETT_SETTINGS_DIR", str(tmp_path))
    with pytest.raises(SettingsInvalid) as error:
        from_options("--listen-port", "65536")
    for name in ("MAX_STREAMS", "NO_SUCH_THING", "LISTEN_PORT"):
        assert f"STAFETT_NODE_{name}" in str(error.value)


def test_a_folder_of_settings_that_is_not_there_is_a_mistake(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("STAFETT_SETTINGS_DIR", str(tmp_path / "absent"))
    with pytest.raises(SettingsInvalid, match="STAFETT_SETTINGS_DIR"):
        from_options()
