"""What the owner got wrong: one line with the pool, AWS's code and what to change; and nothing is launched."""

import pytest

from fleetd.errors import ProviderError, RefusedError
from tests.conformance.provider import order
from tests.ec2.rigs import FleetRig, closing

pytestmark = pytest.mark.slow


@pytest.fixture
async def rig(cloud, proxy, tmp_path):
    async with closing(FleetRig(cloud, proxy, tmp_path)) as made:
        yield made


@pytest.mark.parametrize(
    ("options", "told", "fix"),
    [
        ({"launch_template": "nowhere"}, "InvalidLaunchTemplateName.NotFoundException", "change `launch_template:`"),
        ({"launch_template": "lt-0123456789abcdef0"}, "InvalidLaunchTemplateId", "change `launch_template:`"),
        ({"version": "7"}, "version 7", "change `version:`"),
        ({"subnets": ["subnet-0123456789abcdef0"]}, "InvalidSubnetID.NotFound", "change `subnets:`"),
        ({"types": ["m5.lrage"]}, "m5.lrage", "change `types:`"),
        ({"profile": "nobody"}, "nobody", "change `profile:`"),
        ({"launch_template": "stops"}, "InstanceInitiatedShutdownBehavior", "make a version"),
        ({"launch_template": "blind"}, "InstanceMetadataTags", "make a version"),
    ],
)
async def test_what_is_not_there_or_not_fit_is_refused_when_the_pool_opens(rig, options, told, fix):
    rig.cloud.template("stops", InstanceInitiatedShutdownBehavior=None)
    rig.cloud.template("blind", MetadataOptions={"HttpTokens": "required"})
    provider = rig.make(**options)
    with pytest.raises(RefusedError) as caught:
        await provider.open(lambda: None)
    line = str(caught.value)
    assert line.startswith("pool burst: ")
    assert "\n" not in line
    assert told in line
    assert fix in line
    assert rig.cloud.instances() == []


@pytest.mark.parametrize(
    ("code", "fix"),
    [
        ("UnauthorizedOperation", "grant what `fleetd iam` prints"),
        ("AuthFailure", "check them and `region:`"),
        ("ExpiredToken", "renew them"),
        ("OptInRequired", "enable it, or change `region:`"),
        ("SignatureDoesNotMatch", "the secret key is wrong"),
    ],
)
async def test_a_credential_that_will_not_do_is_told_with_the_fix(rig, code, fix):
    rig.proxy.fail("DescribeLaunchTemplateVersions", code)
    provider = rig.make()
    with pytest.raises(RefusedError, match=rf"^pool burst: DescribeLaunchTemplateVersions: {code}: .*{fix}"):
        await provider.open(lambda: None)
    assert rig.cloud.instances() == []


async def test_no_credentials_at_all_is_told(rig, monkeypatch):
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.delenv(name)
    with pytest.raises(ProviderError, match=r"^pool burst: no AWS credentials"):
        await rig.make().open(lambda: None)


async def test_an_endpoint_that_is_not_there_is_told(rig):
    with pytest.raises(ProviderError, match=r"^pool burst: DescribeLaunchTemplateVersions: no answer: .*127.0.0.1:1"):
        await rig.make(endpoint="http://127.0.0.1:1").open(lambda: None)


async def test_what_was_refused_is_not_asked_every_second(rig):
    provider = rig.make(launch_template="nowhere")
    for _ in range(5):
        with pytest.raises(RefusedError, match="nowhere"):
            await provider.open(lambda: None)
    assert rig.proxy.counts["DescribeLaunchTemplateVersions"] == 1


@pytest.mark.parametrize("code", ["InvalidAMIID.NotFound", "UnauthorizedOperation", "InvalidParameterValue"])
async def test_a_no_at_the_launch_is_refused_and_not_bought_elsewhere(rig, code):
    rig.proxy.refusals["spot"] = code
    provider = rig.make()
    await provider.open(lambda: None)
    with pytest.raises(RefusedError, match=rf"^pool burst: CreateFleet: {code}: spot m5.large in us-east-1a"):
        await provider.launch(order(rig, "1-1", 1))
    assert rig.cloud.instances() == []
