"""MMR1's reward server: scores the responses of vision-language models over HTTP, and stands alone.

Importing this package loads nothing; `api` and `client` need pydantic, httpx and tenacity, and no web framework.
"""

__version__ = "0.1.0"
