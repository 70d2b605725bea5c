"""The fixtures of vector servers, and of parts made of photos."""

from parts.parts_fixtures import made, many
from server_fixtures import drawn, postgres_server, server, url

__all__ = ["drawn", "made", "many", "postgres_server", "server", "url"]
