"""What stands under `ec2:` in a pool.

Promises: what two options say together is checked here; whether the things that they name exist, is checked when the
provider opens. Nothing of AWS is imported: a policy is read without it.
"""

from typing import Annotated, Final, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, SecretStr, model_validator

from fleetd.core.units import money_per_h, seconds, share

OVERRIDES: Final = 300  # choices that one CreateFleet may be given


def _share_or_none(value: object) -> float:
    return 0.0 if value in (0, "0", "0%") else share(value)


Duration = Annotated[float, BeforeValidator(seconds, json_schema_input_type=float | str), Field(ge=0, le=86400)]
Share = Annotated[float, BeforeValidator(_share_or_none, json_schema_input_type=float | str)]
Price = Annotated[float, BeforeValidator(money_per_h, json_schema_input_type=float | str)]
Type = Annotated[str, Field(pattern=r"^[a-z0-9-]+\.[a-z0-9-]+$")]
Subnet = Annotated[str, Field(pattern=r"^subnet-[0-9a-f]+$")]
Url = Annotated[str, Field(pattern=r"^https?://[^\s]+$")]

_OF_FLEET: Final = ("launch_template", "types", "subnets")


class Ec2Options(BaseModel):
    """What stands under `ec2:` in a pool."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    mode: Literal["fleet", "asg"] = Field(
        description="`fleet`: instances that fleetd starts and ends by name; `asg`: those of an Auto Scaling group"
    )
    region: str = Field(pattern=r"^[a-z]{2}(-[a-z]+)+-[0-9]+$", description="such as `eu-central-1`")
    launch_template: str | None = Field(
        default=None,
        pattern=r"^[A-Za-z0-9()./_-]{3,128}$",
        description="in mode `fleet`: what instances are made from, by name or id",
    )
    version: str = Field(
        default="$Default",
        pattern=r"^(\$Default|\$Latest|[0-9]+)$",
        description="of the launch template: a number, `$Default` or `$Latest`",
    )
    types: tuple[Type, ...] = Field(
        default=(), description="in mode `fleet`: instance types that will do; the more, the rarer a stockout"
    )
    subnets: tuple[Subnet, ...] = Field(default=(), description="in mode `fleet`: the subnets that will do")
    spot: Share = Field(default=0.0, description="in mode `fleet`: the share of the pool that is to be spot")
    on_demand: bool = Field(default=True, description="whether on-demand instances take the place of spot that is out")
    group: str | None = Field(
        default=None, min_length=1, max_length=255, description="in mode `asg`: the Auto Scaling group's name"
    )
    stockout: Duration = Field(default=180.0, description="how long a type that is out in a zone is not asked for")
    prices: dict[Type, Price] = Field(default_factory=dict, description="on-demand prices by type")
    pricing: bool = Field(default=False, description="ask the AWS Price List for the prices that `prices` lacks")
    controller: Url | None = Field(
        default=None, description="where instances reach the controller (default: where it listens)"
    )
    worker: str = Field(
        default="pip:fleetd[releases]",
        pattern=r"^(pip:.+|image|https?://[^\s]+)$",
        description="what `fleetd userdata` installs: `pip:SPEC`, the URL of a wheel or of a tar of wheels, or `image`",
    )
    identity: SecretStr | str | None = Field(
        default=None,
        description="AWS's public certificate of the region, in PEM: instances prove by it who they are",
    )
    ca: SecretStr | str | None = Field(
        default=None, description="an authority that instances trust the controller's certificate by, in PEM"
    )
    endpoint: Url | None = Field(default=None, description="another endpoint for all of AWS's services")
    profile: str | None = Field(default=None, description="a profile of the AWS configuration (default: the usual way)")

    @model_validator(mode="after")
    def _fits_the_mode(self) -> "Ec2Options":
        if self.mode == "asg":
            if self.group is None:
                raise ValueError("mode asg needs `group:`")
            for name in (*_OF_FLEET, "spot"):
                if getattr(self, name):
                    raise ValueError(f"`{name}:` is of mode fleet; in mode asg the group says it")
            return self
        if self.group is not None:
            raise ValueError("`group:` is of mode asg")
        for name in _OF_FLEET:
            if not getattr(self, name):
                raise ValueError(f"mode fleet needs `{name}:`")
        if len(set(self.types)) * len(set(self.subnets)) > OVERRIDES:
            raise ValueError(
                f"{len(self.types)} types in {len(self.subnets)} subnets are more than {OVERRIDES} choices"
            )
        return self
