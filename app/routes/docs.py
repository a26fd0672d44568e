"""``/docs``: the OpenAPI description as a page. Its files come with the service, not from elsewhere."""

from __future__ import annotations

from collections.abc import Mapping
from importlib.resources import files
from types import MappingProxyType

from fastapi import APIRouter, Request, Response
from fastapi.staticfiles import StaticFiles

from app.routes.playground import STATIC

router = APIRouter(include_in_schema=False)

PAGE = "docs.html"
POLICY = "; ".join(
    (
        "default-src 'none'",
        "script-src 'self'",
        "style-src 'self' 'unsafe-inline'",
        "img-src 'self' data:",
        "connect-src 'self'",
        "base-uri 'none'",
        "form-action 'none'",
        "frame-ancestors 'none'",
    )
)
HEADERS: Mapping[str, str] = MappingProxyType(
    {"Cache-Control": "no-cache", "Content-Security-Policy": POLICY}
)
page = StaticFiles(directory=STATIC)
assets = StaticFiles(directory=str(files("fastapi_offline") / "static"))


@router.api_route("/docs", methods=["GET", "HEAD"])
async def docs(request: Request) -> Response:
    """The page."""
    return await _file(page, PAGE, request)


@router.api_route("/docs/assets/{path:path}", methods=["GET", "HEAD"])
async def docs_asset(path: str, request: Request) -> Response:
    """A file of Swagger UI."""
    return await _file(assets, path, request)


async def _file(folder: StaticFiles, path: str, request: Request) -> Response:
    response = await folder.get_response(path, request.scope)
    response.headers.update(HEADERS)
    return response
