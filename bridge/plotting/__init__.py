"""Pictures of a net: its filters, its values, its drawing, and what its layers see."""

from __future__ import annotations

from typing import TYPE_CHECKING

from bridge.lazy import lazy

if TYPE_CHECKING:
    from bridge.plotting.files import draw_net as draw_net
    from bridge.plotting.files import save_picture as save_picture
else:
    __all__ = lazy(__name__, {"draw_net": "bridge.plotting.files", "save_picture": "bridge.plotting.files"})
