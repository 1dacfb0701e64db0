"""q and k of any PyTorch model's self-attention, as its product sees them."""

from .attention import CapturedAttention, CapturedLayer
from .session import capture

__all__ = ["CapturedAttention", "CapturedLayer", "capture"]
