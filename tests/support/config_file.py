"""Config files for tests: the shipped one with some values changed, as an administrator would make it."""

import re
from pathlib import Path

SHIPPED = Path(__file__).parents[2] / "config"


def write_config(path: Path, template: str | None = None, **values: object) -> Path:
    """Write a config file with these values. A key that the template has, also in a comment, is changed there.

    ``template``: text of another config file than the shipped one. Strings are put into double quotes.
    """
    text = SHIPPED.read_text() if template is None else template
    for key, value in values.items():
        line = f"{key}={_quoted(value)}"
        text, found = re.subn(rf"(?m)^#? ?{key}=.*$", lambda _, line=line: line, text, count=1)
        if not found:
            text += f"{line}\n"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)
    return path


def _quoted(value: object) -> str:
    return f'"{value}"' if isinstance(value, (str, Path)) else repr(value)
