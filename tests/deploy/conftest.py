from __future__ import annotations

import pytest

from tests.deploy.rendering import FAST, Chart, Object, helm_programs

EVERYTHING = {
    "metrics": {
        "enabled": True,
        "serviceMonitor": {"enabled": True},
        "prometheusRule": {"enabled": True},
    },
    "tracing": {"endpoint": "http://collector:4317"},
    "startupTaint": {"enabled": True},
    "resourceQuota": {"enabled": True},
    "namespace": {"create": True},
    "networkPolicy": {"trackerClients": [{"ipBlock": {"cidr": "192.0.2.0/24"}}]},
}


@pytest.fixture(scope="session")
def chart() -> Chart:
    """The chart under the newest Helm that is here."""
    programs = helm_programs()
    if not programs:
        pytest.skip("needs helm: make helm")
    return Chart(programs[-1])


@pytest.fixture(scope="session")
def usual(chart: Chart) -> list[Object]:
    """What the default values give, but for keys that would have to be made."""
    return chart.objects(FAST)


@pytest.fixture(scope="session")
def everything(chart: Chart) -> list[Object]:
    """With all that is optional."""
    return chart.objects(FAST, EVERYTHING)
