"""moto's server as a process of its own, with what a pool needs in it: subnets, a launch template, a group."""

import contextlib
import os
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import boto3
from botocore.config import Config

from tests.servers import _die_with_parent, free_port

REGION = "us-east-1"
ENVIRON = {
    "AWS_ACCESS_KEY_ID": "testing",
    "AWS_SECRET_ACCESS_KEY": "testing",
    "AWS_EC2_METADATA_DISABLED": "true",
    "AWS_CONFIG_FILE": "/dev/null",
    "AWS_SHARED_CREDENTIALS_FILE": "/dev/null",
}
TYPES = ("m5.large", "c5.large")
TEMPLATE = {
    "ImageId": "ami-12345678",
    "InstanceType": "m5.large",
    "InstanceInitiatedShutdownBehavior": "terminate",
    "MetadataOptions": {"HttpTokens": "required", "InstanceMetadataTags": "enabled"},
}
Json = dict[str, Any]


@dataclass
class Cloud:
    """The server, asked past the proxy: what a test sees or does here is neither counted nor disturbed."""

    port: int
    clients: dict[str, Any] = field(default_factory=dict)
    subnets: dict[str, str] = field(default_factory=dict)  # the zones

    @property
    def url(self) -> str:
        """Where it listens."""
        return f"http://127.0.0.1:{self.port}"

    def client(self, service: str) -> Any:
        """A client of the test's own."""
        if service not in self.clients:
            session = boto3.Session("testing", "testing", region_name=REGION)
            quiet = Config(retries={"total_max_attempts": 1}, read_timeout=20)
            self.clients[service] = session.client(service, endpoint_url=self.url, config=quiet)
        return self.clients[service]

    @property
    def ec2(self) -> Any:
        """A client of EC2."""
        return self.client("ec2")

    @property
    def asg(self) -> Any:
        """A client of Auto Scaling."""
        return self.client("autoscaling")

    def reset(self) -> None:
        """Forget everything, and make the template again."""
        ask = urllib.request.Request(f"{self.url}/moto-api/reset", method="POST")
        urllib.request.urlopen(ask, timeout=20).close()
        found = self.ec2.describe_subnets()["Subnets"]
        self.subnets = {one["SubnetId"]: one["AvailabilityZone"] for one in found[:3]}
        self.template("worker")

    def template(self, name: str, **changes: Any) -> None:
        """Make a launch template."""
        data = {key: value for key, value in {**TEMPLATE, **changes}.items() if value is not None}
        self.ec2.create_launch_template(LaunchTemplateName=name, LaunchTemplateData=data)

    def group(self, name: str, **changes: Any) -> None:
        """Make an Auto Scaling group without an instance so far."""
        given: Json = {
            "LaunchTemplate": {"LaunchTemplateName": "worker", "Version": "$Default"},
            "MinSize": 0,
            "MaxSize": 20,
            "DesiredCapacity": 0,
            "VPCZoneIdentifier": ",".join(self.subnets),
            "NewInstancesProtectedFromScaleIn": True,
            **changes,
        }
        self.asg.create_auto_scaling_group(AutoScalingGroupName=name, **given)

    def instances(self, *states: str) -> list[Json]:
        """Every instance, or those in the given states."""
        pages = self.ec2.get_paginator("describe_instances").paginate()
        found = [one for page in pages for lot in page["Reservations"] for one in lot["Instances"]]
        return [one for one in found if not states or one["State"]["Name"] in states]

    def alive(self) -> list[Json]:
        """Every instance that costs."""
        return self.instances("pending", "running")

    def tags(self, instance: Json) -> dict[str, str]:
        """The tags of an instance."""
        return {tag["Key"]: tag["Value"] for tag in instance.get("Tags", ())}

    def desired(self, name: str) -> int:
        """The desired capacity of a group."""
        found = self.asg.describe_auto_scaling_groups(AutoScalingGroupNames=[name])
        return int(found["AutoScalingGroups"][0]["DesiredCapacity"])

    def close(self) -> None:
        """Let go of the connections."""
        for client in self.clients.values():
            client.close()


@contextlib.contextmanager
def start() -> Iterator[Cloud]:
    """A server of its own, ended whatever happens."""
    port = free_port()
    process = subprocess.Popen(
        [sys.executable, "-m", "moto.server", "-p", str(port)],
        env={**os.environ, **ENVIRON, "MOTO_EC2_LOAD_DEFAULT_AMIS": "false"},
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        preexec_fn=_die_with_parent,  # noqa: PLW1509
    )
    cloud = Cloud(port)
    try:
        deadline = time.monotonic() + 30
        while True:
            assert process.poll() is None, "moto's server ended"
            with contextlib.suppress(OSError), urllib.request.urlopen(f"{cloud.url}/moto-api/data.json", timeout=5):
                break
            assert time.monotonic() < deadline, "moto's server does not answer"
            time.sleep(0.1)
        yield cloud
    finally:
        cloud.close()
        process.kill()
        process.wait(10)
