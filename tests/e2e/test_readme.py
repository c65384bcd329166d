"""The README's steps by hand, as they are written, on a machine of their own: namespaces with an empty containerd."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from stafett.cli.host_platform import own_platform
from stafett.cli.local_cluster.images import make_image
from stafett.cli.local_cluster.parts import run
from stafett.cli.local_cluster.processes import Processes
from tests.e2e.upstream import Upstream

ROOT = Path(__file__).parents[2]
IMAGE = "docker.io/library/alpine:3.20"
MACHINE = """\
set -eu
ip link set lo up
for folder in /run/containerd /var/lib/containerd /etc/containerd; do
  mkdir -p $folder
  mount -t tmpfs none $folder
done
cat >/etc/containerd/config.toml <<END
version = 2
[plugins."io.containerd.grpc.v1.cri".registry]
  config_path = "/etc/containerd/certs.d"
END
containerd >containerd.log 2>&1 &
redis-server --save "" >redis.log &
docker-registry serve {registry}/config.yml >registry.log 2>&1 &
until ctr version && redis-cli ping && curl --silent 127.0.0.1:{port}; do sleep 0.2; done >/dev/null 2>&1
export STAFETT_GATEWAY_UPSTREAM_URLS='{{"docker.io": "http://127.0.0.1:{port}"}}'
cd {root}
"""
"""What the README asks for: root, containerd and Redis; and what the Internet is to others."""


@pytest.mark.needs_root
@pytest.mark.needs_program("containerd")
@pytest.mark.needs_program("redis-server")
@pytest.mark.needs_program("docker-registry")
@pytest.mark.needs_program("curl")
@pytest.mark.timeout(180)
def test_a_newcomer_who_follows_the_readme_shares_an_image(tmp_path: Path) -> None:
    upstream = Upstream(tmp_path / "registry")
    with Processes(tmp_path / "logs") as processes:  # filled here, served there
        upstream.start(processes)
        image = make_image(tmp_path / "layout", IMAGE, {own_platform(): [2_000_000]})
        upstream.push(tmp_path / "layout", IMAGE, image.index)
    text = (ROOT / "README.md").read_text().partition("## Try it by hand")[2]
    steps = re.findall(r"```sh\n(.*?)```", text, re.DOTALL)[0]
    for said, instead in {
        "--registry docker.io ": f"--registry docker.io --upstream docker.io={upstream.url} ",
        "sleep 5\n": "until curl --silent --fail 127.0.0.1:7462/readyz; do sleep 0.2; done >/dev/null 2>&1\n",
        "\nstafett images\n": "\nuntil stafett images | grep alpine; do sleep 0.2; done\n",
        "\nstafett doctor ": "\nstafett doctor || test $? = 1 ",
    }.items():
        assert said in steps, said
        steps = steps.replace(said, instead)
    script = tmp_path / "steps.sh"
    script.write_text(MACHINE.format(registry=upstream.directory, port=upstream.port, root=ROOT) + steps)
    alone = ["unshare", "--mount", "--net", "--pid", "--fork", "--kill-child", "--mount-proc"]
    done = run(["sh", "-c", f"cd {tmp_path} && exec {' '.join(alone)} timeout 150 bash {script}"], 170)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "nothing would go upstream" in done.stdout
    failed = [line for line in done.stdout.splitlines() if re.match("(fail|warn) ", line)]
    assert failed == ["warn peers: no other node is READY"]
