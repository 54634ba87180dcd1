"""Make prompts: insert each class name into each template (CLIP paper, section 3.1.4)."""

from __future__ import annotations

from collections.abc import Sequence

SLOT = "{}"
DEFAULT_TEMPLATES = ("a photo of a {}.",)


def check_templates(templates: Sequence[str], source: str) -> None:
    """Check that there is a template, and that each one has exactly one `{}`.

    Raises:
        ValueError: a check fails. The message names `source`, the file that the templates were read from.
    """
    if not templates:
        raise ValueError(f"{source}: templates is empty; give at least one, such as {DEFAULT_TEMPLATES[0]!r}")
    for template in templates:
        if template.count(SLOT) != 1:
            raise ValueError(f"{source}: template {template!r} must have exactly one {SLOT} for the class name")


def fill(template: str, class_name: str) -> str:
    """Insert the class name into the template. Braces inside the class name are kept."""
    return template.replace(SLOT, class_name)


def prompts_of(class_name: str, templates: Sequence[str]) -> list[str]:
    """All prompts of one class, in the order of the templates."""
    return [fill(template, class_name) for template in templates]
