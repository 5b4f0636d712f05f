"""Answers against the OpenAPI document: what is not documented, or not so, fails the test that got it.

The document lets keys come; here none may that is not in it.
"""

import json
import re
from collections.abc import Sequence
from functools import cache
from typing import Any

import httpx
from jsonschema_rs import Draft202012Validator

from fleetd.web.calls import Call
from fleetd.web.openapi import document

SKIPPED = ("text/event-stream", "application/octet-stream", "text/plain")
REFUSAL = "#/components/schemas/Refusal"


class Contract:
    """The document of one table of calls."""

    def __init__(self, calls: Sequence[Call]) -> None:
        self.document = document(calls)
        closed = json.loads(json.dumps(self.document["components"]))
        for shape in closed["schemas"].values():
            if "properties" in shape:
                shape["additionalProperties"] = False
        self._schemas = closed
        self._paths = {
            re.compile(re.sub(r"\{\w+\}", "[^/]+", path)): told for path, told in self.document["paths"].items()
        }
        self.seen: set[tuple[str, str, int]] = set()

    async def __call__(self, answer: httpx.Response) -> None:
        """Check an answer; a hook of httpx's client."""
        media = answer.headers.get("content-type", "").partition(";")[0]
        if media in SKIPPED or answer.request.method == "HEAD":
            return
        await answer.aread()
        method, path = answer.request.method.lower(), answer.request.url.path
        found = (told for pattern, told in self._paths.items() if pattern.fullmatch(path))
        told: dict[str, Any] = next(found, {})
        if method not in told:
            assert answer.status_code in (404, 405), f"{method} {path}: {answer.status_code}"
            self._valid({"$ref": REFUSAL}, answer)
            return
        self.seen.add((method, path, answer.status_code))
        responses = told[method]["responses"]
        assert str(answer.status_code) in responses, f"{method} {path}: {answer.status_code} is not documented"
        content = responses[str(answer.status_code)].get("content")
        if content is None:
            assert answer.content == b""
            return
        assert media in content, f"{method} {path}: {media} is not documented"
        self._valid(content[media]["schema"], answer)

    def _valid(self, schema: dict[str, Any], answer: httpx.Response) -> None:
        self._validator(json.dumps(schema)).validate(json.loads(answer.content))

    @cache  # noqa: B019 - lives as long as its test
    def _validator(self, schema: str) -> Draft202012Validator:
        return Draft202012Validator({**json.loads(schema), "components": self._schemas})
