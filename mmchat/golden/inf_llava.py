"""Recorded cases of INF-LLaVA (WeihuangLin/INF-LLaVA): texts."""

from __future__ import annotations

from mmchat.golden import llava

HANDLERS = {"prompts": llava.prompts}
