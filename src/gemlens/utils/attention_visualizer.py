"""Where the documented interface has AttentionMaskVisualizer; it lives in gemlens.visualize."""

from gemlens.visualize.visualizer import AttentionMaskVisualizer

__all__ = ["AttentionMaskVisualizer"]
