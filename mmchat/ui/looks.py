"""How the page looks and how it is launched: theme, style sheet, limits."""

from __future__ import annotations

from typing import Any

import gradio as gr

from mmchat.ui.canvas import ASSETS


def launch_options() -> dict[str, Any]:
    """What `launch()` of the page wants: looks, limits, and nothing that reaches outside this machine."""
    theme = gr.themes.Base(
        primary_hue=gr.themes.colors.teal,
        neutral_hue=gr.themes.colors.slate,
        radius_size="md",
        font=("ui-sans-serif", "system-ui", "Segoe UI", "Roboto", "sans-serif"),
        font_mono=("ui-monospace", "SFMono-Regular", "Menlo", "monospace"),
    ).set(
        button_primary_background_fill="*primary_700",
        button_primary_background_fill_hover="*primary_800",
        button_primary_background_fill_dark="*primary_700",
        button_primary_background_fill_hover_dark="*primary_600",
        slider_color="*primary_600",
    )
    return {
        "theme": theme,
        "css": "\n".join((ASSETS / name).read_text("utf-8") for name in ("page.css", "reel.css")),
        "footer_links": [],
        "share": False,
        "ssr_mode": False,
        "enable_monitoring": False,
        "max_file_size": "64mb",
    }
