"""The files that lie beside this code: templates of pages, and what is put into them as it is."""

from __future__ import annotations

import functools
from importlib import resources

import jinja2


@functools.cache
def template(name: str) -> jinja2.Template:
    """A page to be filled in; what is not there to fill it is an error."""
    environment = jinja2.Environment(
        autoescape=True, trim_blocks=True, lstrip_blocks=True, undefined=jinja2.StrictUndefined
    )
    return environment.from_string(content(name))


@functools.cache
def content(name: str) -> str:
    return resources.files(__package__).joinpath(name).read_text(encoding="utf-8")
