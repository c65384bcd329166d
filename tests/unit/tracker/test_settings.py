from __future__ import annotations

import pytest

from stafett.common.settings import SettingsInvalid, load
from stafett.tracker.redis_link import RedisPlace
from stafett.tracker.settings import TrackerSettings


def test_a_plain_and_a_sentinel_url_are_understood() -> None:
    assert RedisPlace.parse("redis://h") == RedisPlace((("h", 6379),))
    assert RedisPlace.parse("rediss://me:p%40ss@[::1]:7000/3") == RedisPlace(
        (("::1", 7000),), database=3, tls=True, username="me", password="p@ss"
    )
    sentinel = RedisPlace.parse("redis+sentinel://:pw@h1:1,h2/main/2")
    assert sentinel == RedisPlace((("h1", 1), ("h2", 26379)), database=2, master="main", password="pw")
    assert "pw" not in str(sentinel)


@pytest.mark.parametrize(
    "url",
    [
        "http://h",
        "redis://h:port/0",
        "redis://h:99999",
        "redis:///0",
        "redis://h/x",
        "redis+sentinel://h:1",
        "redis://h/0/1",
    ],
)
def test_a_wrong_url_is_refused_without_showing_a_password(url: str) -> None:
    with pytest.raises(ValueError, match=r"^(must|needs|has) "):
        RedisPlace.parse(url.replace("//h", "//u:secret@h"))


def test_all_wrong_settings_are_listed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("STAFETT_TRACKER_REDIS_URL", "nonsense")
    monkeypatch.setenv("STAFETT_TRACKER_LISTEN_PORT", "-1")
    with pytest.raises(SettingsInvalid) as error:
        load(TrackerSettings, ["--lease-ttl-seconds", "0"], "stafett tracker")
    for name in ("REDIS_URL", "LISTEN_PORT", "LEASE_TTL_SECONDS"):
        assert f"STAFETT_TRACKER_{name}" in str(error.value)


def test_a_lease_must_outlive_two_heartbeats() -> None:
    with pytest.raises(SettingsInvalid, match="at most half of lease_ttl_seconds"):
        load(TrackerSettings, ["--heartbeat-interval-seconds", "3"], "stafett tracker")
