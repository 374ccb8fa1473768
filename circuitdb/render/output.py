"""From DOT source to a file: SVG, PNG, PDF, DOT or a self-contained HTML page.

A ``dot`` on the PATH is used where there is one. Otherwise the PyPI package graphviz-pure, which
is installed with circuitdb, draws; it knows no PDF. Files appear whole or not at all.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import sys
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Final

from circuitdb.errors import RenderError
from circuitdb.render.features import Entry
from circuitdb.render.page import Table, page

PNG_DPI: Final = 160

_PURE: Final = "graphviz-pure"


def save(
    dot: str, path: str | Path, *, table: Table | None = None, about: Sequence[Entry] = ()
) -> Path:
    """Write a drawing; the suffix of the path says what to.

    Args:
        dot: DOT source, from :func:`circuitdb.render.to_dot` or
            :func:`circuitdb.render.overlap_dot`.
        path: ends in ``.svg``, ``.png``, ``.pdf``, ``.dot`` (or ``.gv``), ``.html``.
        table: the edges, listed below the drawing of an HTML page.
        about: what is known of its features, which an HTML page shows where the pointer rests.

    Raises:
        RenderError: the suffix is unknown, the file cannot be written, or nothing installed can
            draw it.
    """
    target = check_path(path)
    write(target, _MAKERS[target.suffix.lower()](dot, table, about))
    return target


def check_path(path: str | Path, suffixes: Iterable[str] | None = None) -> Path:
    """The file a drawing would go to; worth knowing before long work that ends in a drawing.

    Args:
        path: the file.
        suffixes: what it may end in; by default all that circuits are drawn to.

    Raises:
        RenderError: it has no known suffix, or no directory to stand in.
    """
    known = _MAKERS if suffixes is None else tuple(suffixes)
    if str(path).endswith(os.sep):  # A Path would drop it.
        raise RenderError(f"{str(path)!r} names a directory; name a file")
    target = Path(path)
    if target.suffix.lower() not in known:
        raise RenderError(f"cannot tell the format of {str(path)!r}: end it in {', '.join(known)}")
    if not target.parent.is_dir():
        raise RenderError(f"cannot write {str(path)!r}: no directory {str(target.parent)!r}")
    return target


def to_svg(dot: str) -> str:
    """The ``<svg>`` element of a drawing, for a notebook or a page.

    Raises:
        RenderError: no Graphviz is installed, or it refuses the source.
    """
    svg = _draw(dot, "svg").decode()
    return svg[svg.index("<svg") :]


def dot_binary() -> Path:
    """The Graphviz that draws: ``dot`` on the PATH, else graphviz-pure.

    Raises:
        RenderError: neither is installed.
    """
    return Path(_find("dot") or _find_pure())


def _find(name: str) -> str | None:
    return shutil.which(name)


def _find_pure() -> str:
    # The scripts of an environment stand beside its interpreter, which need not be on the PATH.
    beside = os.pathsep.join([str(Path(sys.executable).parent), sys.prefix + "/Scripts"])
    found = shutil.which(_PURE, path=beside) or shutil.which(_PURE)
    if found is None:
        raise RenderError(
            "nothing here can draw: run 'pip install graphviz-pure', or install Graphviz"
        )
    return found


def _draw(dot: str, kind: str) -> bytes:
    import graphviz
    from graphviz.backend import dot_command

    binary = dot_binary()
    if kind == "pdf" and binary.stem == _PURE:
        raise RenderError(
            "PDF needs Graphviz's own 'dot' on the PATH (apt install graphviz, brew install "
            "graphviz, conda install graphviz); .svg and .png need nothing"
        )
    dot_command.DOT_BINARY = binary
    try:
        drawn: bytes = graphviz.pipe("dot", kind, dot.encode(), quiet=True)
    except graphviz.CalledProcessError as error:
        said = (error.stderr or b"").decode(errors="replace").strip().splitlines()
        raise RenderError(
            f"{binary.name} could not draw this: {said[0] if said else error}"
        ) from error
    except (graphviz.ExecutableNotFound, OSError) as error:
        raise RenderError(f"{str(binary)!r} cannot be run: {error}") from error
    return drawn


def _png(dot: str, table: Table | None, about: Sequence[Entry]) -> bytes:
    return _draw(dot.replace("\ngraph [", f"\ngraph [dpi={PNG_DPI} ", 1), "png")


def _html(dot: str, table: Table | None, about: Sequence[Entry]) -> bytes:
    return page(to_svg(dot), table, about).encode()


def write(target: Path, content: bytes) -> None:
    """Through a temporary name beside it, so that no one ever reads half a file."""
    passing = target.with_name(f".{target.name}.{os.getpid()}.tmp")
    try:
        passing.write_bytes(content)
        os.replace(passing, target)
    except OSError as error:
        raise RenderError(f"cannot write {str(target)!r}: {error.strerror}") from error
    finally:
        with contextlib.suppress(OSError):  # Why it is there, or was not made, is told already.
            passing.unlink(missing_ok=True)


_MAKERS: Final[dict[str, Callable[[str, Table | None, Sequence[Entry]], bytes]]] = {
    ".svg": lambda dot, table, about: _draw(dot, "svg"),
    ".png": _png,
    ".pdf": lambda dot, table, about: _draw(dot, "pdf"),
    ".dot": lambda dot, table, about: dot.encode(),
    ".gv": lambda dot, table, about: dot.encode(),
    ".html": _html,
}
