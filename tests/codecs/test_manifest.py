"""One manifest has one spelling; what is spelt otherwise or says what cannot be is refused by the name of its field."""

import json
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fleetd.codecs.manifest import File, Manifest, dump_manifest, load_manifest, release_digest
from fleetd.errors import ProtocolError

SHA = "ab" * 32
GOOD = Manifest(
    app="photos",
    version="1.0",
    kind="wheel",
    requires_python=">=3.11",
    jobs={"resize@v3": "photos.jobs:resize", "bilder drehen": "photos.jobs:Turner.turn"},
    health="photos.health:check",
    lock=SHA,
    files={"wheel/ö.whl": File(SHA, 7), "uv.lock": File(SHA, 0)},
)


def test_the_spelling_is_frozen_since_digests_are_made_over_it() -> None:
    small = Manifest("a", "1", "folder", "", {}, "", "", {"app/ö.py": File("0" * 64, 3)})
    spelt = (
        '{"app":"a","files":{"app/ö.py":{"sha256":"' + "0" * 64 + '","size":3}},"format":1,"health":"","jobs":{},'
        '"kind":"folder","lock":"","requires_python":"","version":"1"}'
    )
    assert dump_manifest(small) == spelt.encode()
    assert release_digest(spelt.encode()) == "673f4401bac92dd88696ea450d1e0999eb87dd28139c46a63a0c8e32a4a272ab"


def test_what_is_written_is_read() -> None:
    assert load_manifest(dump_manifest(GOOD)) == GOOD


def changed(**fields: Any) -> bytes:
    raw = json.loads(dump_manifest(GOOD)) | fields
    return json.dumps(raw, sort_keys=True, separators=(",", ":"), ensure_ascii=False).encode(errors="surrogatepass")


@pytest.mark.parametrize(
    ("fields", "line"),
    [
        ({"app": ""}, "manifest: app: '' is not a name"),
        ({"app": "a\nb"}, "manifest: app: 'a\\nb' is not a name"),
        ({"app": 7}, "manifest: app: 7 is not a name"),
        ({"version": " 1"}, "manifest: version: ' 1' is not a version"),
        ({"kind": "zip"}, "manifest: kind: 'zip' is not 'wheel' or 'folder'"),
        ({"kind": ["wheel"]}, "manifest: kind: ['wheel'] is not 'wheel' or 'folder'"),
        ({"requires_python": None}, "manifest: requires_python: None is not text"),
        ({"health": "photos.health"}, "manifest: health: 'photos.health' is not module:function"),
        ({"lock": "abc"}, "manifest: lock: 'abc' is not a SHA-256 in hex"),
        ({"lock": SHA.upper()}, f"manifest: lock: '{SHA.upper()}' is not a SHA-256 in hex"),
        ({"jobs": []}, "manifest: jobs: [] is not an object"),
        ({"jobs": {"a": "b"}}, "manifest: jobs: a: 'b' is not module:function"),
        ({"jobs": {"a": "b:c d"}}, "manifest: jobs: a: 'b:c d' is not module:function"),
        ({"jobs": {"": "b:c"}}, "manifest: jobs: '' is not a name"),
        ({"files": {"x": {"sha256": SHA}}}, "manifest: files: x: must have a sha256 in hex and a size"),
        ({"files": {"x": {"sha256": "z", "size": 1}}}, "manifest: files: x: must have a sha256 in hex and a size"),
        ({"files": {"x": {"sha256": SHA, "size": -1}}}, "manifest: files: x: size: -1 is not a size"),
        ({"files": {"x": {"sha256": SHA, "size": True}}}, "manifest: files: x: size: True is not a size"),
        ({"files": {"x": {"sha256": SHA, "size": 1.0}}}, "manifest: files: x: size: 1.0 is not a size"),
        ({"format": 2}, "manifest: format: 2 is not known here, only 1"),
        ({"format": True}, "manifest: format: True is not known here, only 1"),
        ({"extra": 1}, "manifest: 'extra': is not known here"),
    ],
)
def test_a_wrong_field_is_named_in_one_line(fields: dict[str, Any], line: str) -> None:
    with pytest.raises(ProtocolError) as caught:
        load_manifest(changed(**fields))
    assert str(caught.value) == line


@pytest.mark.parametrize("name", ["app", "version", "kind", "requires_python", "jobs", "health", "lock", "files"])
def test_a_missing_field_is_named(name: str) -> None:
    raw = json.loads(dump_manifest(GOOD))
    del raw[name]
    with pytest.raises(ProtocolError, match=f"^manifest: {name}: is missing$"):
        load_manifest(json.dumps(raw).encode())


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"[]",
        b"\xff",
        b"[" * 100_000,
        b'{"format": ' + b"1" * 5000 + b"}",
        changed(app="\ud800"),
        json.dumps(json.loads(dump_manifest(GOOD))).encode(),
        dump_manifest(GOOD) + b"\n",
        dump_manifest(GOOD).replace(b'{"app":"photos"', b'{"app":"x","app":"photos"'),
    ],
)
def test_another_spelling_is_refused_though_it_may_mean_the_same(body: bytes) -> None:
    with pytest.raises(ProtocolError, match=r"^manifest: [^\n]*$"):
        load_manifest(body)


def test_the_digest_is_of_every_field_and_every_file() -> None:
    others = [
        replace(GOOD, app="photo"),
        replace(GOOD, jobs={}),
        replace(GOOD, files=GOOD.files | {"uv.lock": File(SHA, 1)}),
    ]
    digests = {release_digest(dump_manifest(one)) for one in [GOOD, *others]}
    assert len(digests) == 4


def mutated(at: int, byte: int) -> bytes:
    body = bytearray(dump_manifest(GOOD))
    body[at % len(body)] = byte
    return bytes(body)


@given(st.binary(max_size=200) | st.builds(mutated, st.integers(0, 600), st.integers(0, 255)))
def test_whatever_the_bytes_it_is_a_manifest_or_a_protocol_error(body: bytes) -> None:
    try:
        manifest = load_manifest(body)
    except ProtocolError as error:
        assert "\n" not in str(error)  # noqa: PT017 - both ways out are good
    else:
        assert dump_manifest(manifest) == body
