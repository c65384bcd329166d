"""Each error has its place in both boundary tables."""

from __future__ import annotations

from stafett.common import errors
from stafett.common.grpc_errors import STATUS_OF
from stafett.common.settings import SettingsInvalid
from stafett.gateway.oci_errors import STATUS_AND_CODE


def leaves() -> set[type[errors.StafettError]]:
    return {kind for kind in errors.StafettError.__subclasses__() if kind is not SettingsInvalid}


def test_every_error_has_a_grpc_status() -> None:
    assert set(STATUS_OF) == leaves()


def test_every_error_has_an_http_status_and_an_oci_code_and_none_is_429() -> None:
    assert set(STATUS_AND_CODE) == leaves()
    assert all(400 <= status < 600 and status != 429 for status, _ in STATUS_AND_CODE.values())
