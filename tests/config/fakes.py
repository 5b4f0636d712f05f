"""Adapters that exist only here, with options such as the later ones will have, and a policy that uses them all."""

from pathlib import Path
from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, SecretStr, ValidationInfo, field_validator

from fleetd.config import Adapters, load_text


class Options(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class Tls(Options):
    ca: str = Field(default="", description="The certificate to trust.")
    key: SecretStr | None = Field(default=None, description="The private key.")


class RedisOptions(Options):
    url: str = Field(description="Where the server is.")
    password: SecretStr | None = Field(default=None, description="The password.")
    tls: Tls | None = Field(default=None, description="How to encrypt.")
    spares: list[Annotated[SecretStr, Field(min_length=3)]] = Field(default=[], description="Further passwords.")

    @field_validator("password")
    @classmethod
    def _talks_too_much(cls, password: SecretStr | None) -> SecretStr | None:
        if password and "weak" in password.get_secret_value():
            raise ValueError(f"{password.get_secret_value()} is a weak password")
        return password


class GearmanOptions(Options):
    servers: list[str] = Field(min_length=1, description="The dispatchers.")
    timeout: float = Field(default=2.0, gt=0, le=60, description="Seconds for one reading.")


class ProcessOptions(Options):
    nice: int = Field(default=0, ge=0, le=19, description="Niceness of the workers.")


class RackOptions(Options):
    inventory: str = Field(description="The machines.")
    power: Literal["wol", "ipmi"] = Field(description="How machines are switched on.")

    @field_validator("inventory")
    @classmethod
    def _beside_the_policy(cls, inventory: str, info: ValidationInfo) -> str:
        assert info.context is not None
        return str(Path(info.context["base_dir"]) / inventory)


class KubernetesOptions(Options):
    mode: Literal["pods", "nodes"] = Field(description="What is started.")
    namespace: str = Field(default="default", description="Where.")
    template: str = Field(description="From which template.")


class Ec2Options(Options):
    mode: Literal["fleet"] = Field(description="What is started.")
    region: str = Field(description="Where.")
    launch_template: str = Field(description="From which template.")
    spot: str = Field(default="0%", description="The share of spot instances.")


class LeaseOptions(Options):
    name: str | None = Field(default=None, pattern="^[a-z-]+$", description="The record's name.")


def _adapter(options):
    return lambda: type("Adapter", (), {"Options": options})


def _broken():
    raise ModuleNotFoundError("No module named 'rabbits'")


ADAPTERS = Adapters(
    sources={"gearman": _adapter(GearmanOptions), "redis": _adapter(RedisOptions), "rabbitmq": _broken},
    providers={
        "process": _adapter(ProcessOptions),
        "rack": _adapter(RackOptions),
        "kubernetes": _adapter(KubernetesOptions),
        "ec2": _adapter(Ec2Options),
    },
    leaders={"kubernetes": _adapter(LeaseOptions)},
)
HOOK = "https://chat.example/s3cret-hook"
ENVIRON = {
    "REDIS_PASSWORD": "s3cret-redis",
    "JOIN": "s3cret-join",
    "HOOK": HOOK,
    "BAD_HOOK": "ftp://chat.example/s3cret-hook",
    "EMPTY": "",
    "WEAK": "weak-s3cret",
}
HERE = Path(__file__).parent

# The policy of the design, with what its budget asks for added: a job_limit on `mail`.
FULL = """\
version: 1
fleet: shop
timezone: Europe/Berlin
currency: EUR
sources:
  main: {gearman: {servers: ["10.0.0.5:4730", "10.0.0.6:4730"]}, on_blind: {hold: 10m, then: keep}}
  orders: {redis: {url: "redis://cache/0", password: {env: REDIS_PASSWORD}}}
apps:
  photos: {release: {path: photos}}
  billing: {exec: ["celery", "-A", "shop", "worker"], drain: {signal: TERM, deadline: 10m}}
queues:
  resize: {app: photos, source: main, match: "resize_*", objective: {wait: 30s, share: 95%}, job_limit: 2m}
  mail: {app: photos, source: main, match: "mail_*", objective: {wait: 5m}, priority: low, job_limit: 1m}
  invoices: {app: billing, source: orders, match: invoices, service: 20s, objective: {wait: 2m}, job_limit: 10m}
pools:
  rack3: {rack: {inventory: rack3.yaml, power: wol}, apps: [photos, billing], slots: 4, max: 12, price: 0.03/h}
  pods: {kubernetes: {mode: pods, template: worker}, apps: [photos], slots: 2, min: 1, max: 40, price: 0.10/h}
  burst:
    ec2: {mode: fleet, region: eu-central-1, launch_template: worker, spot: 80%}
    apps: [photos, billing]
    slots: 8
    max: 10
    price: {max: 0.40/h}
    billing: {minimum: 60s}
    act: false
schedules:
  morning rush: {cron: "30 7 * * mon-fri", for: 3h, floor: {photos: 24}}
budget: {hour: 5, month: 900, warn: 80%}
limits: {launches: 20/min, stops: 10/min}
stability: calm
controller: {listen: "127.0.0.1:7117", join: {env: JOIN}}
alerts: {webhook: {env: HOOK}, on: [blind, dead]}
"""


def read(text, base_dir=HERE, environ=ENVIRON):
    """Load a text with the adapters above, as the file `policy.yaml`."""
    return load_text(text, "policy.yaml", base_dir, adapters=ADAPTERS, environ=environ)
