"""`fleetd image`: what machines without disks boot; and the root file system that containers are made of."""

import json
import sys
import tempfile
from pathlib import Path
from typing import Annotated, Final

import typer

from fleetd.cli.asking import Json
from fleetd.errors import UsageError

app = typer.Typer()
image_app = typer.Typer(help="The image of machines without disks: build, verify, show.", no_args_is_help=True)
app.add_typer(image_app, name="image")
MIB: Final = 1 << 20
Folder = Annotated[Path, typer.Argument(metavar="DIR", help="where the image is")]
RecipeFolder = Annotated[Path | None, typer.Option("--recipe", help="the recipe's folder; default: fleetd's own")]
Mirror = Annotated[
    list[str] | None,
    typer.Option("--mirror", help="a line of a sources.list; default: what apt on this machine has; may be repeated"),
]
Relock = Annotated[bool, typer.Option("--relock", help="take the mirror's packages of today, and list their hashes")]
Keys = Annotated[list[str] | None, typer.Option("--key", help="a public key that must have signed it; may be repeated")]


@image_app.command()
def build(
    out: Annotated[Path, typer.Option("--out", help="the folder to write to")] = Path("image"),
    wheels: Annotated[Path, typer.Option("--wheels", help="fleetd's wheel and those it needs")] = Path("dist/wheels"),
    key: Annotated[Path | None, typer.Option("--key", help="sign with the private key in this file")] = None,
    recipe: RecipeFolder = None,
    mirror: Mirror = None,
    kernel: Annotated[str, typer.Option("--kernel", help="the package of the kernel")] = "linux-image-amd64",
    argument: Annotated[list[str] | None, typer.Option("--argument", help="a further kernel argument")] = None,
    processors: Annotated[int, typer.Option("--processors", help="to pack with; default: all", min=0)] = 0,
    relock: Relock = False,
    as_json: Json = False,
) -> None:
    """Build an image. The same recipe, packages and wheels give the same bytes. Needs mmdebstrap and squashfs-tools."""
    from fleetd.boot.image import ARGUMENTS, Wanted, build_image
    from fleetd.boot.recipe import default_folder, read_recipe

    wanted = Wanted(
        out=out,
        wheels=wheels,
        key=key,
        mirrors=mirror or (),
        kernel=kernel,
        arguments=(*ARGUMENTS, *(argument or ())),
        relock=relock,
        processors=processors,
    )
    build_image(read_recipe(recipe or default_folder()), wanted, lambda text: print(text, file=sys.stderr))
    show(out, as_json=as_json)


@image_app.command()
def verify(folder: Folder, key: Keys = None, as_json: Json = False) -> None:
    """Read an image through: every part is what the manifest says, and the manifest is signed by one of the keys."""
    from fleetd.boot.manifest import check_parts, load_image

    image = load_image(folder, tuple(key or ()))
    check_parts(folder, image)
    signed = "signed" if key else "its signature was not asked for (--key)"
    if as_json:
        print(json.dumps({"good": True, "signed": bool(key)}))
        return
    print(f"{folder}: good: {len(image.parts)} parts, {signed}")


@image_app.command()
def show(
    folder: Folder, *, packages: Annotated[bool, typer.Option("--packages")] = False, as_json: Json = False
) -> None:
    """Show what an image consists of."""
    from fleetd.boot.manifest import MANIFEST, load_image

    image = load_image(folder)
    if as_json:
        print((folder / MANIFEST).read_text("utf-8"), end="")
        return
    print(f"fleetd {image.version}, kernel {image.kernel}, {len(image.packages)} packages")
    for what, part in image.parts.items():
        print(f"{what:8} {part.size / MIB:6.1f} MiB  {part.sha256[:12]}  {part.name}")
    print(f"{'a boot':8} {image.over_the_wire() / MIB:6.1f} MiB")
    print(f"arguments: {' '.join(image.arguments)}")
    for name in sorted(image.packages) if packages else ():
        print(name)


@image_app.command()
def root(
    out: Annotated[Path, typer.Argument(metavar="TAR", help="the file to write")],
    recipe: RecipeFolder = None,
    mirror: Mirror = None,
    relock: Relock = False,
) -> None:
    """Make the root file system alone, as a tar: the base of the container images."""
    from fleetd.boot.debian import make_root
    from fleetd.boot.layers import moved
    from fleetd.boot.recipe import default_folder, read_recipe

    if out.is_dir():
        raise UsageError(f"{out}: is a folder; name the file to write")
    with tempfile.TemporaryDirectory(prefix="fleetd-image-") as room:
        made = make_root(read_recipe(recipe or default_folder()), Path(room), mirror or (), relock=relock)
        moved(made.tar, out)
    print(f"{out}: {out.stat().st_size // MIB} MiB, {len(made.used)} packages")
