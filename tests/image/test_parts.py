"""What an image is made of, part by part, without Debian and without root."""

import hashlib
import json
import struct
import tarfile
import zipfile
from dataclasses import replace
from pathlib import Path

import pytest

from fleetd.boot import debian, kernel, layers, manifest, program, recipe
from fleetd.boot.manifest import Image, Part
from fleetd.errors import FleetdError, UsageError
from fleetd.releases.sign import make_key

# ── the recipe


def test_our_own_recipe_is_good() -> None:
    ours = recipe.read_recipe(recipe.default_folder())
    assert {"python3", "busybox-static", "ca-certificates"} <= set(ours.packages)
    assert ours.programs["init"].startswith(b"#!/bin/busybox sh\n")
    assert [hook.name for hook in ours.hooks][-1] == "99-clean"
    assert any(name.startswith("linux-image-") for name in ours.lock)
    for hook in ours.hooks:
        assert hook.stat().st_mode & 0o111


def test_a_lock_is_what_sha256sum_reads(tmp_path: Path) -> None:
    lock = {"b_1.0-1_amd64.deb": "0" * 64, "a_1%3a2~3_all.deb": "f" * 64}
    path = tmp_path / "packages.lock"
    path.write_text(recipe.dump_lock(lock))
    assert path.read_text().splitlines()[0] == f"{'f' * 64}  a_1%3a2~3_all.deb"
    assert recipe.read_lock(path) == lock
    path.write_text(f"{'0' * 63}  short_1_all.deb\n")
    with pytest.raises(UsageError, match=r"packages.lock:1: expected a SHA-256"):
        recipe.read_lock(path)


def test_what_is_missing_is_named(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"packages: is missing; a recipe is a folder as pxe"):
        recipe.read_recipe(tmp_path)
    (tmp_path / "packages").write_text("python3  # why\n-rf\n")
    with pytest.raises(UsageError, match=r"packages: '-rf' is no name of a package"):
        recipe.read_recipe(tmp_path)


def test_packages_are_held_to_the_list() -> None:
    lock = {"libc6_2.36-9_amd64.deb": "a" * 64}
    place = Path("pxe/packages.lock")
    debian.check_used(lock, lock, place)
    for name, said in (
        ("libc6_2.36-10_amd64.deb", "is in the list as libc6_2.36-9_amd64.deb, or with another hash"),
        ("libevil_1_amd64.deb", "is not in the list"),
    ):
        with pytest.raises(FleetdError, match=f"{name} {said}.*--relock"):
            debian.check_used({name: "a" * 64}, lock, place)
    with pytest.raises(FleetdError, match="with another hash"):
        debian.check_used({"libc6_2.36-9_amd64.deb": "b" * 64}, lock, place)


# ── the kernel's modules


def _module(*told: str) -> bytes:
    """The least that is a module: an ELF of 64 bits with .modinfo and names of sections."""
    info = b"".join(text.encode() + b"\0" for text in told)
    names = b"\0.modinfo\0.shstrtab\0"
    table = 64 + len(info) + len(names)
    head = (
        b"\x7fELF\x02\x01\x01" + bytes(9) + struct.pack("<HHIQQQIHHHHHH", 1, 62, 1, 0, 0, table, 0, 64, 0, 0, 64, 3, 2)
    )
    sections = [(0, 0, 0), (1, 64, len(info)), (10, 64 + len(info), len(names))]
    return (
        head
        + info
        + names
        + b"".join(struct.pack("<IIQQQQIIQQ", name, 1, 0, 0, at, size, 0, 0, 1, 0) for name, at, size in sections)
    )


def test_a_module_tells_what_it_needs() -> None:
    data = _module("license=GPL", "alias=pci:v8086*", "depends=dca,i2c-algo-bit", "softdep=pre: crc32c realtek post: x")
    read = kernel.read_module("igb", data, {"realtek"})
    assert read.needs == ("dca", "i2c_algo_bit", "realtek")
    assert read.aliases == ("pci:v8086*",)
    with pytest.raises(FleetdError, match="module bad: cannot be read: it is no ELF"):
        kernel.read_module("bad", b"nothing of the kind", ())
    with pytest.raises(FleetdError, match=r"module bad: has no .modinfo"):
        kernel.read_module("bad", data.replace(b".modinfo\0", b".modinf0\0"), ())


def test_dependencies_come_deepest_last() -> None:
    modules = {
        name: kernel.read_module(name, _module(f"depends={needs}"), ())
        for name, needs in {
            "net": "failover,virtio",
            "pci": "virtio",
            "virtio": "ring",
            "ring": "",
            "failover": "ring",
        }.items()
    }
    lines = kernel.Kernel("6.1", b"", modules).dependencies().splitlines()
    assert lines == [
        "failover.ko: ring.ko",
        "net.ko: failover.ko virtio.ko ring.ko",
        "pci.ko: virtio.ko ring.ko",
        "ring.ko:",
        "virtio.ko: ring.ko",
    ]


# ── layers


def test_a_folder_is_left_out_with_all_in_it() -> None:
    patterns = ("usr/share/doc/*", "usr/lib/*/perl-base", "usr/bin/perl*")
    for name, out in (
        ("usr/share/doc", False),
        ("usr/share/doc/python3/copyright", True),
        ("usr/lib/x86_64-linux-gnu/perl-base/List/Util.pm", True),
        ("usr/lib/x86_64-linux-gnu/libc.so.6", False),
        ("usr/bin/perl5.36", True),
        ("usr/bin/python3", False),
    ):
        assert layers.is_left_out(name, patterns) is out, name


# ── the worker's layer


def _wheel(folder: Path, name: str, files: dict[str, bytes], tag: str = "py3-none-any") -> Path:
    path = folder / f"{name}-1.0-{tag}.whl"
    with zipfile.ZipFile(path, "w") as archive:
        archive.mkdir(name)
        for inside, content in files.items():
            archive.writestr(inside, content)
        archive.writestr(f"{name}-1.0.dist-info/METADATA", f"Metadata-Version: 2.1\nName: {name}\nVersion: 1.0\n")
    return path


def _listed(*wheels: Path) -> str:
    lines = (f"{path.name.partition('-')[0]}==1.0 \\\n    --hash=sha256:{_sha256(path)}\n" for path in wheels)
    return "".join(lines)


def _sha256(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def test_wheels_become_a_program_without_an_installer(tmp_path: Path) -> None:
    ours = _wheel(tmp_path, "fleetd", {"fleetd/__init__.py": b"x = 1\n"})
    tool = _wheel(tmp_path, "uv", {"uv/__init__.py": b"", "uv-1.0.data/scripts/uv": b"\x7fELF"})
    _wheel(tmp_path, "other", {"other/__init__.py": b""})
    (tmp_path / "worker.txt").write_text(_listed(ours, tool))
    made = []
    for name in ("one", "two"):
        (tmp_path / name).mkdir()
        tar, compiled = program.make_program(tmp_path, tmp_path / name)
        made.append(tar.read_bytes())
    assert made[0] == made[1]
    with tarfile.open(tar) as packed:
        members = {member.name: member for member in packed}
    site = "opt/fleetd/lib/python3.11/site-packages"
    assert {f"{site}/fleetd/__init__.py", f"{site}/uv/__init__.py", "opt/fleetd/bin/python"} <= members.keys()
    assert f"{site}/other/__init__.py" not in members  # it is not on the list
    assert members["opt/fleetd/bin/uv"].mode == 0o755
    assert members["opt/fleetd/bin/python"].linkname == "/usr/bin/python3.11"
    assert {(member.uid, member.gid, member.mtime) for member in members.values()} == {(0, 0, program.CLOCK)}
    assert (f"{site}/fleetd/__pycache__/__init__.cpython-311.pyc" in members) is compiled


def test_a_wheel_that_is_not_the_listed_one_is_refused(tmp_path: Path) -> None:
    ours = _wheel(tmp_path, "fleetd", {"fleetd/__init__.py": b"x = 1\n"})
    other = _wheel(tmp_path, "cffi", {"cffi/__init__.py": b""})
    (tmp_path / "worker.txt").write_text(_listed(ours, other))
    _wheel(tmp_path, "cffi", {"cffi/__init__.py": b"import evil\n"})
    with pytest.raises(FleetdError, match=r"worker.txt: cffi: no wheel with the SHA-256 that is listed"):
        program.chosen_wheels(tmp_path)


def test_no_wheels_and_how_to_get_them(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"has no wheel of fleetd; in a checkout run: python -m scripts.wheels"):
        program.chosen_wheels(tmp_path)


# ── the manifest

GOOD = Image(
    version="1.0",
    kernel="6.1.0-1-amd64",
    parts={what: Part(f"{what}-0123456789ab", 5, hashlib.sha256(what.encode()).hexdigest()) for what in manifest.PARTS},
    arguments=("console=ttyS0", "quiet"),
    packages={"a_1_all.deb": "0" * 64},
)


def _written(folder: Path, key: Path | None = None, image: Image = GOOD) -> Path:
    folder.mkdir(exist_ok=True)
    for what, part in image.parts.items():
        (folder / part.name).write_bytes(what.encode())
    sizes = {what: replace(part, size=len(what)) for what, part in image.parts.items()}
    manifest.write_image(folder, replace(image, parts=sizes), key)
    return folder


def test_a_manifest_comes_back_as_it_was(tmp_path: Path) -> None:
    public = make_key(tmp_path / "key.pem")
    folder = _written(tmp_path / "image", tmp_path / "key.pem")
    image = manifest.load_image(folder, (public,))
    manifest.check_parts(folder, image)
    assert image.arguments == GOOD.arguments
    assert image.over_the_wire() == sum(map(len, manifest.PARTS))


def test_a_new_image_takes_the_place_of_the_old_one(tmp_path: Path) -> None:
    folder = _written(tmp_path / "image")
    (folder / "notes").write_text("mine")
    app = Part("app-ba9876543210", 3, hashlib.sha256(b"app").hexdigest())
    _written(folder, image=replace(GOOD, parts={**GOOD.parts, "app": app}))
    assert not (folder / GOOD.parts["app"].name).exists()
    assert {path.name for path in folder.iterdir()} >= {"app-ba9876543210", GOOD.parts["base"].name, "notes"}


def test_who_signed_it_counts(tmp_path: Path) -> None:
    make_key(tmp_path / "key.pem")
    other = make_key(tmp_path / "other.pem")
    signed, unsigned = _written(tmp_path / "signed", tmp_path / "key.pem"), _written(tmp_path / "unsigned")
    with pytest.raises(FleetdError, match="none of the trusted keys"):
        manifest.load_image(signed, (other,))
    with pytest.raises(FleetdError, match="is not signed"):
        manifest.load_image(unsigned, (other,))


@pytest.mark.parametrize(
    ("key", "value", "said"),
    [
        ("format", 2, "this fleetd reads 1"),
        ("parts", {}, "the parts must be kernel, initrd, base, app"),
        ("arguments", ["a b"], "'a b' is not allowed here"),
        ("arguments", ["x\nboot evil"], "not allowed here"),
        ("packages", {"a": "short"}, "not allowed here"),
        ("version", None, ""),
    ],
)
def test_a_manifest_that_is_none_is_one_line(tmp_path: Path, key: str, value: object, said: str) -> None:
    folder = _written(tmp_path / "image")
    path = folder / manifest.MANIFEST
    told = json.loads(path.read_text())
    if value is None:
        del told[key]
    else:
        told[key] = value
    path.write_text(json.dumps(told))
    with pytest.raises(FleetdError, match=f"image.json: is no manifest of an image: .*{said}") as caught:
        manifest.load_image(folder)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("name", ["../../etc/shadow", "/etc/shadow", ".hidden", "a/b", ""])
def test_a_part_never_leads_out_of_its_folder(tmp_path: Path, name: str) -> None:
    folder = _written(tmp_path / "image")
    path = folder / manifest.MANIFEST
    told = json.loads(path.read_text())
    told["parts"]["base"]["name"] = name
    path.write_text(json.dumps(told))
    with pytest.raises(FleetdError, match="not allowed here"):
        manifest.load_image(folder)


def test_a_part_that_is_missing_short_or_spoiled_is_named(tmp_path: Path) -> None:
    folder = _written(tmp_path / "image")
    image = manifest.load_image(folder)
    part = folder / image.parts["base"].name
    for content, said in ((b"bas", "has 3 bytes, and the manifest says 4"), (b"BASE", "its SHA-256 is")):
        part.write_bytes(content)
        with pytest.raises(FleetdError, match=said):
            manifest.check_parts(folder, image)
    part.unlink()
    with pytest.raises(FleetdError, match="cannot read the base"):
        manifest.check_parts(folder, image)
    with pytest.raises(FleetdError, match=r"image.json: cannot read the image's manifest"):
        manifest.load_image(tmp_path)
