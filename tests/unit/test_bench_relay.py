"""The relay benchmark's last line."""

from __future__ import annotations

from bench.relay import Figures, summary


def figures(last_host_x: float) -> Figures:
    return Figures(
        last_host_x, 1.1, 1.0, 1.0, busy_cores=0.8, cpu_seconds_per_gb=3.0, failed_pulls=0, started_within_ms=5
    )


def test_the_delay_of_a_hop_is_what_six_more_hosts_in_a_chain_take_longer() -> None:
    shown = summary({"one_layer": figures(1.30), "2 hosts": figures(1.10)})
    assert shown["hop_ms"] == 533
    assert shown["busy_cores"] == 0.8


def test_each_case_is_shown_without_what_is_said_once() -> None:
    shown = summary({"one_layer": figures(1.3), "star": figures(4.0)})
    assert shown["star"] == {
        "last_host_x": 4.0,
        "median_host_x": 1.1,
        "upstream_copies": 1.0,
        "cross_zone_copies": 1.0,
        "failed_pulls": 0,
        "started_within_ms": 5,
    }
