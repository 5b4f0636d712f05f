"""What an instance is told at its first start: cloud-init that installs the worker and has systemd keep it.

Promises: pure, and the same text for the same pool. Nothing in it is secret: the worker's credential comes later, for
what AWS vouches for (worker/instance.py); so do the worker's arguments, so that the text need not follow the policy. An
instance whose worker has ended, or cannot be started, ends itself: it would only cost.
"""

import json
import re
import shlex
from textwrap import indent
from typing import Final

from fleetd.core.model import PoolPolicy
from fleetd.core.ports import WorkerLaunch
from fleetd.errors import UsageError

MOST: Final = 16_384  # what EC2 takes
HOME: Final = "/opt/fleetd"
IMAGE: Final = "image"  # of `worker:`: the image has it already
_ARCHIVE: Final = re.compile(r"\.(tar|tar\.gz|tgz|tar\.xz)$")
_HASH: Final = re.compile(r"sha256=([0-9a-f]{64})")

# What still runs 110 s after a TERM goes back to its dispatcher: see worker/instance.py.
_UNIT: Final = """\
[Unit]
Description=fleetd worker of this instance
After=network-online.target
Wants=network-online.target
# A worker that has drained, was left alone or cannot start: the instance would only cost.
SuccessAction=poweroff
FailureAction=poweroff
StartLimitIntervalSec=600
StartLimitBurst=5

[Service]
Type=exec
User=fleetd
Group=fleetd
Environment=HOME=%S/fleetd-worker
ExecStart=/opt/fleetd/bin/python -m fleetd.worker.instance /etc/fleetd/instance.json
Restart=on-failure
RestartSec=5
KillMode=mixed
TimeoutStopSec=120
OOMPolicy=continue
StandardOutput=journal+console
StandardError=journal+console
StateDirectory=fleetd-worker
StateDirectoryMode=0700
UMask=0077
LimitNOFILE=65536
TasksMax=infinity
NoNewPrivileges=yes
PrivateTmp=yes
ProtectSystem=full
ProtectKernelTunables=yes
ProtectKernelModules=yes
ProtectControlGroups=yes
RestrictSUIDSGID=yes
LockPersonality=yes
CapabilityBoundingSet=

[Install]
WantedBy=multi-user.target
"""

_USER: Final = (
    "{name: fleetd, system: true, homedir: /var/lib/fleetd-worker, no_create_home: true, shell: /usr/sbin/nologin}"
)

_FIRST: Final = """\
#!/bin/sh
# Installs the worker and starts it, once.
set -eu
end() {
    [ $? -eq 0 ] && return
    echo "fleetd: the worker cannot be installed: this instance ends" >/dev/console
    systemctl poweroff
}
trap end EXIT
"""

_PYTHON: Final = """\
look() {
    for python in python3.14 python3.13 python3.12 python3.11 python3; do
        "$python" -c 'import ensurepip, sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null && return
    done
    false
}
more() {
    if command -v apt-get >/dev/null
    then apt-get update -qq && DEBIAN_FRONTEND=noninteractive apt-get install -qq python3-venv
    else dnf install -qy python3.11
    fi
}
look || { more && look; }
"$python" -m venv /opt/fleetd
"""

_LAST: Final = """\
systemctl daemon-reload
systemctl enable --now fleetd-worker.service
"""


def user_data(pool: PoolPolicy, launch: WorkerLaunch) -> str:
    """Return an instance's user data as text; raises UsageError for a pool that cannot have any."""
    place = f"pool {pool.name}: ec2"
    _mind(place, pool, launch)
    controller = (pool.options.controller or launch.controller_url).rstrip("/")
    config = json.dumps({"controller": controller, "fleet": launch.fleet, "pool": pool.name})
    script = "".join((_FIRST, *_install(place, pool.options.worker), _LAST))
    files = (
        ("/etc/fleetd/instance.json", "0644", f"{config}\n"),
        ("/etc/systemd/system/fleetd-worker.service", "0644", _UNIT),
        (f"{HOME}-install", "0755", script),
    )
    parts = [
        "#cloud-config",
        f"# By `fleetd userdata {pool.name}`; make it anew when the pool's `controller:` or `worker:` changes.",
        "users:",
        "  - default",
        f"  - {_USER}",
        *_trust(pool.options.ca),
        "write_files:",
        *(_file(*file) for file in files),
        "runcmd:",
        f"  - [{HOME}-install]",
    ]
    text = "\n".join(parts) + "\n"
    if len(text.encode()) > MOST:
        raise UsageError(f"{place}: its user data would be of {len(text.encode())} bytes; EC2 takes {MOST}")
    return text


def _mind(place: str, pool: PoolPolicy, launch: WorkerLaunch) -> None:
    """Refuse what could start instances and never a worker."""
    if pool.options.identity is None:
        why = "AWS's public certificate of the region, by which its instances prove who they are"
        raise UsageError(f"{place}: needs `identity:`, {why} (docs/ec2-instances.md)")
    for name in pool.apps:
        app = launch.apps.get(name)
        if app is not None and app.exec:
            raise UsageError(f"{place}: app {name}: only apps with a `release` run on instances yet")
        if not launch.servers.get(name):
            raise UsageError(f"{place}: app {name}: no queue names it, so its workers have no dispatcher")


def _install(place: str, worker: str) -> list[str]:
    """Return the part of the script that installs what `worker:` says."""
    pip = f"{HOME}/bin/pip install -q --disable-pip-version-check"
    kind, _, spec = worker.partition(":")
    if worker == IMAGE:
        return [f"{HOME}/bin/python -c 'import fleetd.worker.instance'\n"]
    if kind == "pip" and spec.strip():
        return [_PYTHON, f"{pip} {shlex.quote(spec.strip())}\n"]
    url, _, fragment = worker.partition("#")
    if kind not in ("http", "https") or (fragment and not _HASH.fullmatch(fragment)):
        why = "must be pip:SPEC, `image`, or the http(s) URL of a wheel or a tar of wheels, #sha256=… at its end"
        raise UsageError(f"{place}: worker: {worker!r:.100}: {why}")
    path = url.partition("?")[0]
    if path.endswith(".whl"):
        return [_PYTHON, f"{pip} {shlex.quote(f'fleetd[releases] @ {worker}')}\n"]
    if not _ARCHIVE.search(path):
        told = "is neither a wheel (.whl) nor a tar of wheels (.tar.gz, …)"
        raise UsageError(f"{place}: worker: {worker!r:.100} {told}")
    get = "import sys, urllib.request as u; u.urlretrieve(*sys.argv[1:])"
    sums = f'echo "{fragment.partition("=")[2]}  {HOME}/wheels.tar" | sha256sum -c --quiet\n' if fragment else ""
    return [
        _PYTHON,
        f"{HOME}/bin/python -c {shlex.quote(get)} {shlex.quote(url)} {HOME}/wheels.tar\n",
        sums,
        f"mkdir {HOME}/wheels && tar -xf {HOME}/wheels.tar -C {HOME}/wheels --transform 's|.*/||'\n",
        f"{pip} --no-index --find-links {HOME}/wheels 'fleetd[releases]'\n",
    ]


def _trust(authority: object) -> list[str]:
    """Return the part by which the instance trusts the controller's certificate."""
    if authority is None:
        return []
    text = authority if isinstance(authority, str) else str(authority.get_secret_value())  # type: ignore[attr-defined]
    return ["ca_certs:", "  trusted:", "    - |", indent(text.strip(), " " * 6)]


def _file(path: str, mode: str, content: str) -> str:
    head = f'  - path: {path}\n    permissions: "{mode}"\n    content: |\n'
    return head + indent(content, " " * 6).rstrip("\n")
