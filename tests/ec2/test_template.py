"""The CloudFormation example: it passes cfn-lint, is created on moto, and the provider takes what it makes."""

import base64
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from fleetd.core.model import AppPolicy, PoolPolicy
from fleetd.core.ports import WorkerLaunch
from fleetd.providers.ec2 import Ec2Provider
from fleetd.providers.ec2.options import Ec2Options
from fleetd.providers.ec2.userdata import user_data
from tests.ec2.cloud import ENVIRON, REGION, Cloud, start
from tests.ec2.identity import authority

pytestmark = pytest.mark.slow

STACK = Path(__file__).parents[2] / "examples" / "ec2-stack.yaml"
MOST_OF_A_PARAMETER = 4096  # bytes, says CloudFormation


def test_cfn_lint_finds_nothing() -> None:
    command = [
        str(Path(sys.executable).parent / "cfn-lint"),
        "--include-checks",
        "I",
        "-r",
        "eu-central-1",
        "--",
        str(STACK),
    ]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert (done.returncode, done.stdout) == (0, "")


@pytest.fixture(scope="module")
def cloud() -> Iterator[Cloud]:
    """moto's server with the stack."""
    with start() as made:
        made.reset()
        made.client("cloudformation").create_stack(
            StackName="fleetd-burst",
            TemplateBody=STACK.read_text(),
            Capabilities=["CAPABILITY_IAM"],
            Parameters=[
                {"ParameterKey": key, "ParameterValue": value}
                for key, value in {
                    "Vpc": made.ec2.describe_vpcs()["Vpcs"][0]["VpcId"],
                    "Image": "ami-12345678",
                    "UserData": text(),
                }.items()
            ],
        )
        yield made


def options(**more: Any) -> Ec2Options:
    given: dict[str, Any] = {
        "mode": "fleet",
        "region": REGION,
        "launch_template": "lt-0123456789abcdef0",
        "types": ["m5.large"],
        "subnets": ["subnet-0"],
        "controller": "http://10.0.0.2:7117",
        "identity": authority().certificate,
    }
    return Ec2Options(**{**given, **more})


def launch(folder: Path = Path()) -> WorkerLaunch:
    apps = {"photos": AppPolicy("photos")}
    servers = {"photos": ("10.0.0.5:4730",)}
    return WorkerLaunch(
        "shop", "c-1", "", str(folder), apps, servers, {"photos": 60.0}, lambda pool: f"secret of {pool}"
    )


def text() -> str:
    return user_data(PoolPolicy("burst", "ec2", options(), ("photos",), slots=4), launch())


def outputs(cloud: Cloud) -> dict[str, str]:
    (stack,) = cloud.client("cloudformation").describe_stacks(StackName="fleetd-burst")["Stacks"]
    assert stack["StackStatus"] == "CREATE_COMPLETE"
    return {one["OutputKey"]: one["OutputValue"] for one in stack["Outputs"]}


def template(cloud: Cloud) -> dict[str, Any]:
    named = outputs(cloud)["LaunchTemplate"]
    found = cloud.ec2.describe_launch_template_versions(LaunchTemplateId=named, Versions=["$Latest"])
    return dict(found["LaunchTemplateVersions"][0]["LaunchTemplateData"])


def test_user_data_fits_into_a_parameter() -> None:
    assert len(text().encode()) < MOST_OF_A_PARAMETER


def test_it_makes_a_template_whose_instances_end_with_their_worker(cloud: Cloud) -> None:
    made = template(cloud)
    assert base64.b64decode(made["UserData"]).decode() == text()
    assert made["InstanceInitiatedShutdownBehavior"] == "terminate"
    assert made["MetadataOptions"] == {
        "HttpEndpoint": "enabled",
        "HttpTokens": "required",
        "HttpPutResponseHopLimit": 1,
        "InstanceMetadataTags": "enabled",
    }


def test_jobs_can_do_nothing_in_the_account_and_nobody_is_let_in(cloud: Cloud) -> None:
    iam, role = cloud.client("iam"), outputs(cloud)["Role"].rpartition("/")[2]
    assert iam.list_attached_role_policies(RoleName=role)["AttachedPolicies"] == []
    assert iam.list_role_policies(RoleName=role)["PolicyNames"] == []
    (profile,) = iam.list_instance_profiles_for_role(RoleName=role)["InstanceProfiles"]
    assert template(cloud)["IamInstanceProfile"]["Arn"] == profile["Arn"]
    (group,) = cloud.ec2.describe_security_groups(GroupIds=[outputs(cloud)["SecurityGroup"]])["SecurityGroups"]
    assert group["IpPermissions"] == []
    assert template(cloud)["SecurityGroupIds"] == [group["GroupId"]]


async def test_the_provider_takes_it(cloud: Cloud, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in ENVIRON.items():
        monkeypatch.setenv(name, value)
    subnets = list(cloud.subnets)
    taken = options(launch_template=outputs(cloud)["LaunchTemplate"], subnets=subnets, endpoint=cloud.url)
    pool = PoolPolicy("burst", "ec2", taken, ("photos",), slots=4)
    provider = Ec2Provider(pool, taken, launch(tmp_path))
    await provider.open(lambda: None)
    await provider.close()
